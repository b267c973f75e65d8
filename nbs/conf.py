"""Sphinx's settings for the site: `sphinx-build -W --keep-going nbs _docs` builds it, without a network."""
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE/'_site')]   # this tree's modules, wherever the installed ones lie
from nbdev_book import defined  # noqa: E402

project, author = 'tsynd', 'tsynd developers'
project_copyright = '2026 onwards, tsynd developers, Apache License 2.0'
extensions = [
    'myst_nb', 'sphinx_external_toc', 'sphinx_copybutton', 'sphinx_reredirects', 'sphinx-mathjax-offline',
    'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.linkcode', 'sphinx.ext.githubpages',
    'nbdev_book']
exclude_patterns = ['_site', 'studies', 'measurements', '**.ipynb_checkpoints']
templates_path = ['_site/templates']

suppress_warnings = ['etoc.toctree',               # autosummary makes its own
                     'misc.highlighting_failure']  # Python with `…` in it
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!tsynd\.).*'),
                        ('py:class', r'tsynd\.core\.errors\.printable')]   # a check inside a type

html_theme = 'furo'
pygments_dark_style = 'github-dark'
html_title = 'tsynd'
html_baseurl = 'https://tsynd.github.io/tsynd/'
html_static_path = ['_site/static']
html_css_files = ['tsynd.css', 'report.css']
html_favicon = '_site/static/icon.svg'
html_show_sphinx = html_show_sourcelink = html_copy_source = html_use_index = False
html_theme_options = {
    'top_of_page_buttons': [],   # a notebook has a line of links of its own
    'light_css_variables': {'color-brand-primary': '#0b5c8a', 'color-brand-content': '#0b5c8a'},
    'dark_css_variables': {'color-brand-primary': '#7cc4ea', 'color-brand-content': '#7cc4ea'}}

# pieces of reports that the book shows wear the reports' style, in the site's colours
sheets = [f.read_text(encoding='utf-8') for f in sorted(HERE.parent.glob('tsynd/reports/templates/*.css'))]
STYLE = '@scope (.report) {\n' + ''.join(sheets) + '}\n'
(HERE/'_site/static/report.css').write_text(STYLE, encoding='utf-8')

myst_enable_extensions = ['dollarmath', 'amsmath', 'attrs_inline', 'attrs_block', 'colon_fence', 'deflist',
                          'smartquotes']
myst_heading_anchors = 3
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'   # tables too
nb_merge_streams = True
nb_output_stderr = 'remove'
highlight_language = 'text'

autosummary_generate = ['_site/reference.rst']
autosummary_ignore_module_all = True   # a package lists its modules, not what it takes from them
autodoc_default_options = {'members': True, 'undoc-members': True, 'special-members': '__call__',
                           'member-order': 'bysource'}
autodoc_preserve_defaults = False   # a signature that is derived from settings has no source
autodoc_typehints_format = 'short'
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 70


def linkcode_resolve(domain, info):
    "A name of the reference leads to the cell of the book that defines it, or its class"
    name = f'{info["module"]}.{info["fullname"]}'
    while name and name not in defined: name = name.rpartition('.')[0]
    return f'../{defined[name]}.html#in-{name}' if name else None


def without_words(app, what, name, obj, options, signature, returns):
    "A setting's range and words stand among the parameters, not in the signature"
    kind = r'(?:[^][]|\[(?:[^][]|\[[^][]*\])*\])*?'
    notes = r"""(?:, (?:'[^']*'|"[^"]*"|~?annotated_types\.\w+\((?:[^()]|\([^()]*\))*\)))+"""
    signature = signature and signature.replace('~typing.', '')
    for _ in range(3):   # one stands in another, in lists and where None is allowed
        signature = signature and re.sub(rf'Annotated\[({kind}){notes}\]', r'\1', signature)
    return signature, returns


def setup(app): app.connect('autodoc-process-signature', without_words)
