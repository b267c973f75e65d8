"""What Sphinx does not know of nbdev: directives, the cell that defines a name, words beside a parameter."""
import json
import re
from functools import cache
from importlib import import_module

from docutils import nodes
from fastcore.docments import docments
from nbformat.v4 import new_markdown_cell
from sphinx.environment.adapters.toctree import global_toctree_for_doc
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
from sphinx.util.osutil import relative_uri

BAR = ('{{.bar}}\n{{download}}`Download this notebook <{0}>` '
       '[Open in Colab](https://colab.research.google.com/github/tsynd/tsynd/blob/main/nbs/{1}) '
       '[Source](https://github.com/tsynd/tsynd/blob/main/nbs/{1})')
TAGS = {'default_exp': 'remove-cell', 'hide': 'remove-cell',
        'echo: false': 'remove-input', 'output: false': 'remove-output'}
DEFINES = re.compile(r'^(?:(?:class|def) (?=[^\W_]|__call__)|(?=[A-Z]\w* *[:=]))(\w+)'
                     r'(?:\((?:self|cls): ?(\w+))?', re.M)
ENTRY = re.compile(r'<li class="toctree-l(\d)"><a class="reference internal" href="([^"]+)"')   # of a menu
defined = {}   # 'tsynd.callback.TSynD' → '05_callback', the page whose cell defines it


def read(text):
    "A notebook, its cells' `#|` directives apart from their sources; and the module that it exports, or None"
    nb, module = json.loads(text), None
    for cell in nb['cells']:
        source, cell['directives'] = ''.join(cell['source']), {}
        while cell['cell_type'] == 'code' and (m := re.match(r'#\|\s*([\w-]+):?[ \t]*(.*)\n?', source)):
            cell['directives'][m[1]], source = m[2].strip(), source[m.end():]
        module = cell['directives'].get('default_exp', module)
        cell['source'] = source
    return nb, module and module.removesuffix('.__init__')   # a part's page exports its `__init__`


def names(cell, module):
    "What an exported cell defines for others: classes, functions, constants, and methods by @patch"
    found = DEFINES.findall(cell['source']) if 'export' in cell['directives'] else []
    return [f'tsynd.{module}.{owner}.{name}'.replace('..', '.') for name, owner in found]


def survey(app, config):
    "Before all else: the modules in order of reading, what is defined where, nbdev's own addresses"
    patterns = re.findall(r"(?:file|glob): '?([^\s']+)", (app.srcdir/'_toc.yml').read_text(encoding='utf-8'))
    modules, moved = {}, {}
    for file in (f for p in patterns for f in sorted(app.srcdir.glob(f'{p}.ipynb'))):
        nb, module = read(file.read_text(encoding='utf-8'))
        page = file.relative_to(app.srcdir).with_suffix('').as_posix()
        if (old := re.sub(r'(^|/)\d+[a-z]?_', r'\1', page)) != page: moved[old] = page
        if module: modules |= dict.fromkeys([f'tsynd.{module}'.rpartition('.')[0], f'tsynd.{module}'])
        for cell in nb['cells']: defined.update(dict.fromkeys(names(cell, module), page))
    config.redirects = {old: f'{page.rpartition("/")[2]}.html' for old, page in moved.items()}
    config.autosummary_context = {'order': list(modules), 'constants': {m: constants(m) for m in modules}}


def constants(name):
    "The constants of a module, with those values that fit into a line"
    here = {} if hasattr(m := import_module(name), '__path__') else vars(m)   # a part only passes names on
    named = [n for n in here.get('__all__', []) if n.isupper() or hasattr(here[n], '__metadata__')]
    shown = {n: repr(here[n]) for n in named}
    return {n: v if len(v) < 100 and ' at 0x' not in v else '' for n, v in shown.items() if v[:6] != '<class'}


def prepare(app, docname, content):
    "Directives become myst-nb's tags; over a definition stands the way to the reference"
    file = app.env.doc2path(docname)
    if file.suffix != '.ipynb': return
    (nb, module), cells = read(content[0]), []
    for cell in nb['cells']:
        if here := names(cell, module): cells.append(signpost(here, f'tsynd.{module}.'))
        directives = cell.pop('directives')
        tags = [TAGS[d] for pair in directives.items() for d in (pair[0], ': '.join(pair)) if d in TAGS]
        image = {'alt': directives.get('fig-alt', ''), 'scale': 100}   # so that it leads to its full size
        cell['metadata'] = {'tags': tags, 'mystnb': {'image': image}}
        for output in cell.get('outputs', []):
            if 'text/html' in output.get('data', {}): dress(output['data'])
        cells.append(cell)
        if cell['source'].startswith('# ') and not docname.endswith('index'):
            cells.append(new_markdown_cell(BAR.format(file.name, file.relative_to(app.srcdir).as_posix())))
            if module: cells[-1].source += f' {{py:mod}}`tsynd.{module}`'
    nb['cells'], nb['metadata']['language_info'] = cells, {'name': 'python', 'pygments_lexer': 'ipython3'}
    content[0] = json.dumps(nb)


def signpost(here, prefix):
    "Over a definition: from here to the reference, and an anchor for the way back"
    links = ' '.join(f'{{py:obj}}`{name.removeprefix(prefix)} <{name}>`' for name in here)
    anchors = ''.join(f'<span id="in-{name}"></span>' for name in here)
    return new_markdown_cell(f'{{.defines}}\n{anchors}reference: {links}')


def dress(data):
    "A report's piece wears its style, without links to files beside it; data frames tell words from numbers"
    html = re.sub(r' href="(?![a-z]+:|#)[^"]*"', '', ''.join(data['text/html']))
    frame = re.sub(r'<td>(?=[^<]{24})', '<td class="words long">', html)
    frame = re.sub(r'<td>(?=[A-Za-z▸])', '<td class="words">', frame)
    data['text/html'] = frame if 'class="dataframe"' in html else f'<div class="report">{html}</div>'


def escape(text):
    "Markdown's `code` becomes that of reStructuredText, in which stars and bars mean nothing"
    pieces = re.split(r'(`[^`]+`)', text)
    return ''.join(f'`{p}`\\ ' if p[:1] == '`' else re.sub(r'([*_|\\])', r'\\\1', p) for p in pieces)


def describe(app, what, name, obj, options, lines):
    "Comments beside parameters (fastcore's docments) are their descriptions"
    lines[:] = escape('\n'.join(lines)).split('\n')
    if what not in ('function', 'method', 'class', 'exception'): return
    for key, said in docments(obj, args_kwargs=True).items():
        if said: lines += ['', f':{"returns" if key == "return" else f"param {key}"}: {escape(said)}']


def fields(app, what, name, value, skip, options):
    "A class's plain attributes are its parameters, and described there"
    return what == 'class' and not (callable(value) or hasattr(value, '__get__')) or None


def shorten(app, env):
    "In menus a notebook has its number and its title as far as a colon: '05 · The callback'"
    for page, title in env.longtitles.items():
        number = re.match(r'\d+[a-z]?(?=_)', page.rpartition('/')[2])
        words = nodes.Text((number[0] + ' · ' if number else '') + re.split(r'[:?] ', title.astext())[0])
        env.titles[page] = nodes.title('', '', words)
        next(env.tocs[page].findall(nodes.reference)).children = [words]


@cache
def reference(env):
    "Each public name, without its module, and where the reference has it"
    python, known = env.domaindata['py'], {}
    for name, entry in python['objects'].items():
        module = max((m for m in python['modules'] if name.startswith(m + '.')), key=len, default='')
        known[name if entry.objtype == 'module' else name.removeprefix(module + '.')] = entry
    return known


class Names(SphinxPostTransform):
    "`Synthesizer` in running text leads to the reference"
    default_priority = 5

    def run(self):
        known = reference(self.env)
        for literal in list(self.document.findall(nodes.literal)):
            name = re.sub(r'\(.*\)$', '', literal.astext())
            entry = known.get(name) or known.get(re.sub(r'^tsynd\.([a-z_]+\.)*', '', name))
            if entry and not isinstance(literal.parent, (nodes.reference, nodes.title)):
                at = self.app.builder, self.env.docname, *entry[:2]
                literal.replace_self(make_refnode(*at, literal.deepcopy()))


@cache
def menu_of(app, **how):
    "The menu as the front page has it"
    tree = global_toctree_for_doc(app.env, app.config.root_doc, app.builder, tags=app.tags, **how)
    return app.builder.render_partial(tree)['fragment']


def menu(app, page, template, context, doctree):
    "Each page has the front page's menu, with itself marked: to make it anew takes longer than the page"
    def toctree(**how):
        whole, here, path, marked = menu_of(app, **how), app.builder.get_target_uri(page), {}, set()
        for level, at in ENTRY.findall(whole):
            path[level] = at
            if at == here: marked = {path[k] for k in path if k <= level}

        def entry(m):
            mark = ' current' if m[2] in marked else ''
            mine, to = ('current ', '#') if m[2] == here else ('', relative_uri(here, m[2]))
            return f'<li class="toctree-l{m[1]}{mark}"><a class="{mine}reference internal" href="{to}"'
        return ENTRY.sub(entry, whole)
    context['toctree'] = toctree


def setup(app):
    app.connect('config-inited', survey)
    app.connect('source-read', prepare)
    app.connect('env-updated', shorten)
    app.connect('html-page-context', menu, priority=100)   # before the theme's
    app.connect('autodoc-process-docstring', describe)
    app.connect('autodoc-skip-member', fields)
    app.add_post_transform(Names)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
