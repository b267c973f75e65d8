"""Sphinx's settings for the site; .ci/site.py calls it."""
from pathlib import Path

HERE = Path(__file__).parent

project, author = 'tsynd', 'tsynd developers'
project_copyright = '2026 onwards, tsynd developers, Apache License 2.0'
html_title = 'tsynd'
html_theme = 'furo'
html_baseurl = 'https://tsynd.github.io/tsynd/'
html_static_path = [str(HERE/'static'), str(HERE.parents[1]/'_proc'/'.static')]
html_css_files = ['tsynd.css', 'report.css']
html_favicon = str(HERE/'static'/'icon.svg')
html_show_sphinx = html_show_sourcelink = html_copy_source = html_use_index = False
html_theme_options = dict(
    source_repository='https://github.com/tsynd/tsynd', source_branch='main', source_directory='nbs/', top_of_page_buttons=[],
    light_css_variables={'color-brand-primary': '#0b5c8a', 'color-brand-content': '#0b5c8a'},
    dark_css_variables={'color-brand-primary': '#7cc4ea', 'color-brand-content': '#7cc4ea'})

extensions = ['myst_nb', 'sphinx.ext.mathjax']
exclude_patterns = ['.made', '.static']
root_doc = 'index'
mathjax_path = 'mathjax/tex-chtml.js'
myst_enable_extensions = ['dollarmath', 'amsmath', 'attrs_inline', 'colon_fence', 'deflist', 'smartquotes']
myst_heading_anchors = 3
highlight_language = 'text'
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'   # tables too
nb_merge_streams = True
nb_number_source_lines = False
nb_output_stderr = 'remove'
