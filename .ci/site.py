"""Build the documentation site, and fail on any warning, broken link or missing cross-reference.

`python .ci/site.py` reads the notebooks with their saved outputs (nothing is run again) and the pages in nbs/pages,
and writes the site to _docs/. It needs no network, and neither does who looks at the site.
"""
import ast, importlib, inspect, io, os, re, shutil, sys
from functools import cache
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from posixpath import normpath, relpath
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT/'.ci'/'site'
NBS, STAGED, OUT = ROOT/'nbs', ROOT/'_proc', ROOT/'_docs'
MADE = STAGED/'.made'   # where Sphinx and myst-nb write
REPOSITORY = 'https://github.com/tsynd/tsynd'
COLAB = 'https://colab.research.google.com/github/tsynd/tsynd/blob/main'
SITE = 'https://tsynd.github.io/tsynd/'   # every link inside the site is staged under this address, then made relative
NOT_HERE = {'FrontmatterProc', 'insert_warning', 'add_show_docs', 'exec_show_docs', 'clean_show_doc', 'rm_export', 'add_fold', 'mv_exports'}


def chapters():
    "The book in reading order: 06, then 06a, then 07"
    return sorted(f for f in NBS.glob('*.ipynb') if re.match(r'\d\d[a-z]?_', f.name))

def tutorials(): return sorted(NBS.glob('tutorials/*.ipynb'))

def others():
    "Notebooks that are neither chapters nor tutorials, such as the evidence"
    return sorted(f for f in NBS.glob('*.ipynb') if f not in chapters() and f.stem != 'index')

def pages(): return sorted(NBS.glob('pages/*.md'))

def address(file):
    "Where a source file stands on the site, as nbdev's own links have it: 05_callback.ipynb is callback.html"
    from nbdev.config import nbpath2html
    file = file.relative_to(NBS)
    return (nbpath2html(file) if file.suffix == '.ipynb' else Path(file.name).with_suffix('.html')).as_posix()

@cache
def addresses():
    "Source file → its address, of every page that has a source"
    return {f: address(f) for f in [*chapters(), *tutorials(), *others(), *pages(), NBS/'index.ipynb']}

def docname(file): return address(file).removesuffix('.html')

def title(file):
    "Number and short name of a notebook for the menu: '05 · The callback'"
    from fastcore.nbio import read_nb
    head = next(m[1] for c in read_nb(file).cells if c.cell_type == 'markdown' and (m := re.match(r'# (.+)', c.source)))
    number = re.match(r'\d\d[a-z]?(?=_)', file.name)
    return (number[0] + ' · ' if number and file.parent == NBS else '') + re.split(r'[:?] ', head)[0]


# Links

def relink(markdown, source):
    "Links of a file become addresses of the site, or of the repository where the target is no page; code is left alone"
    def target(url):
        if re.match(r'[a-z][a-z0-9+.-]*:|#|attachment:', url, re.I): return url
        if url.startswith('/'): return SITE + url[1:]              # nbdev's link to a symbol
        path, _, fragment = url.partition('#')
        file = (source.parent/unquote(path)).resolve()
        if file in addresses(): return SITE + addresses()[file] + (fragment and '#' + fragment)
        if not file.exists() or not file.is_relative_to(ROOT): raise SystemExit(f'{source.relative_to(ROOT)}: broken link to {url}')
        kind = 'tree' if file.is_dir() else 'blob'
        return f'{REPOSITORY}/{kind}/main/{file.relative_to(ROOT).as_posix()}'
    fence, code = r'^(?P<f>```+|~~~+).*?^(?P=f)', r'`[^`\n]+`'
    return re.sub(rf'{fence}|(?<!!)(\[(?:[^\]`]|{code})*\]\(<?)([^)\s>]+)|{code}',
                  lambda m: m[0] if m[2] is None else m[2] + target(m[3]), markdown, flags=re.M | re.S)


# Notebooks, through nbdev's processors

def sketches(markdown):
    "Python with `…` in it is not highlighted as Python, which it isn't"
    def parses(code):
        try: ast.parse(code)
        except SyntaxError: return False
        return True
    def plain_text(m): return m[0] if parses(m[1]) else m[0].replace('python', 'text', 1)
    return re.sub(r'^```python\n(.*?)^```', plain_text, markdown, flags=re.M | re.S)

def alt_texts(nb, file):
    "Every picture is described by its cell's `#| fig-alt:`"
    for cell in nb.cells:
        if not any('image/png' in o.get('data', {}) or 'image/svg+xml' in o.get('data', {}) for o in cell.get('outputs', [])): continue
        alt = cell.directives_.get('fig-alt')
        if not alt: raise SystemExit(f'{file.relative_to(ROOT)}: the picture of cell {cell.id} has no alt text; put a line `#| fig-alt: …` at its head')
        cell.metadata['mystnb'] = dict(image=dict(alt=alt))

def show_or_hide(cell):
    "Directives for which myst-nb has tags; and the cell that only names the module goes"
    if cell.cell_type != 'code': return
    def off(key): return str(cell.directives_.get(key, '')).lower() == 'false'
    if 'default_exp' in cell.directives_ or off('include'): del cell['source']; return
    cell.metadata['tags'] = [t for k, t in (('echo', 'remove-input'), ('output', 'remove-output')) if off(k)]

def defined(source):
    "Names that a cell defines, as nbdev's index has them: `TSynD`, `TSynD.before_fit`"
    from nbdev.doclinks import patch_name
    for node in ast.parse(re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M)).body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
        names = patch_name(node) or node.name
        yield from names if isinstance(names, list) else [names]
        if isinstance(node, ast.ClassDef): yield from (f'{node.name}.{f.name}' for f in node.body if isinstance(f, ast.FunctionDef))

def anchors(nb, module):
    "nbdev's links lead to the cell where a symbol is defined; from there a line leads on to the reference"
    from fastcore.nbio import mk_cell
    cells, seen = [], set()
    for cell in nb.cells:
        if cell.cell_type == 'code' and {'export', 'exports'} & set(cell.directives_):
            names = list(dict.fromkeys(defined(cell.source)))
            fresh = [i for i in dict.fromkeys(n.lower() for n in names) if i not in seen]   # nbdev's anchors know no capitals
            seen |= set(fresh)
            spans = ''.join(f'<span id="{i}"></span>' for i in fresh)
            links = ' '.join(f'<a href="{SITE}api/{module}.html#tsynd.{module}.{n}">{n}</a>' for n in names if n in reference(module))
            if names: cells.append(mk_cell(f'<div class="defines">{spans}{links and "reference: "}{links}</div>', 'markdown'))
        cells.append(cell)
    nb.cells = cells

def bar(file, module=None):
    "Under a notebook's title: get it, run it, see its module"
    at = file.relative_to(ROOT).as_posix()
    install = f' title="there, run first: %pip install git+{REPOSITORY}"'
    links = [(SITE + file.relative_to(NBS).as_posix(), 'Download this notebook', ' download'), (f'{COLAB}/{at}', 'Open in Colab', install),
             (f'{REPOSITORY}/blob/main/{at}', 'Source', '')]
    if module: links.append((f'{SITE}api/{module}.html', f'Module <code>tsynd.{module}</code>', ''))
    return '<p class="bar">' + ' '.join(f'<a href="{u}"{x}>{t}</a>' for u, t, x in links) + '</p>'

def dressed(html):
    "A piece of a report wears the report's style sheet; in a data frame, cells of many words are told from numbers"
    if 'class="dataframe"' not in html: return f'<div class="report">{html}</div>'
    return re.sub(r'<td>(?=([^<]{24})|[A-Za-z▸])', lambda m: f'<td class="words{" long" * bool(m[1])}">', html)

def report_css():
    "The style sheet of the reports, for their pieces in the book alone; colours are the site's"
    from tsynd.reports.page import style_text
    return '@scope (.report) {\n' + style_text('page.css', 'run.css', 'study.css') + '}\n'

def notebook(file):
    "A notebook as it goes to the renderer"
    from fastcore.nbio import mk_cell, read_nb, write_nb
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults
    class Book(FilterDefaults):
        "In the book the code is the text: definitions stay, and nothing is run"
        def base_procs(self): return [p for p in super().base_procs() if p.__name__ not in NOT_HERE] + [show_or_hide]
        def nb_proc(self, nb): return NBProcessor(nb=nb, procs=self.procs(), rm_directives=True)
    nb, module = read_nb(file), None
    for c in nb.cells:
        if c.cell_type == 'code' and (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M)): module = m[1]
    Book()(nb)
    alt_texts(nb, file)
    if module: anchors(nb, module)
    for c in nb.cells:
        c.metadata = {k: v for k, v in c.metadata.items() if k in ('tags', 'mystnb')}
        if c.cell_type == 'markdown': c.source = sketches(relink(c.source, file))
        for o in c.get('outputs', []):
            data = o.get('data', {})
            if 'text/markdown' in data: data['text/markdown'] = relink(''.join(data['text/markdown']), file)
            if 'text/html' in data:  # of a folder that is not here
                data['text/html'] = dressed(re.sub(r'(<a\b[^>]*?) href="(?![a-z]+:|#)[^"]*"', r'\1', ''.join(data['text/html'])))
    first = next(i for i, c in enumerate(nb.cells) if c.cell_type == 'markdown' and c.source.startswith('# '))
    if file.stem != 'index': nb.cells.insert(first + 1, mk_cell(bar(file, module), 'markdown'))
    nb.metadata['language_info'] = dict(name='python', pygments_lexer='ipython3')
    to = STAGED/Path(address(file)).with_suffix('.ipynb')
    to.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, to)


# The reference

@cache
def modules():
    "Module → the chapter it is made from"
    found = {}
    for f in chapters():
        if m := re.search(r'#\|\s*default_exp\s+(\w+)', f.read_text(encoding='utf-8')): found[m[1]] = f
    return found

@cache
def reference(name):
    "The public symbols of a module and of its classes: dotted name → object"
    module, index = importlib.import_module(f'tsynd.{name}'), importlib.import_module('tsynd._modidx').d['syms'].get(f'tsynd.{name}', {})
    symbols = {}
    for n in module.__all__:
        symbols[n] = getattr(module, n)
        if not inspect.isclass(symbols[n]): continue
        members = [k.removeprefix(f'tsynd.{name}.{n}.') for k in index if k.startswith(f'tsynd.{name}.{n}.')]
        members = sorted((m for m in members if m[0] != '_' and hasattr(symbols[n], m)), key=lambda m: lines(name)[f'{n}.{m}'])
        symbols |= {f'{n}.{m}': inspect.getattr_static(symbols[n], m) for m in members}
    return symbols

@cache
def lines(name):
    "Line of each definition in a module's file"
    found = {}
    for node in ast.parse((ROOT/'tsynd'/f'{name}.py').read_text(encoding='utf-8')).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(n, ast.Name)]
            found |= {n.id: node.lineno for n in names if n.id not in found}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            from nbdev.doclinks import patch_name
            names = patch_name(node) or node.name
            for n in names if isinstance(names, list) else [names]: found[n] = node.lineno
            if isinstance(node, ast.ClassDef):
                found |= {f'{node.name}.{f.name}': f.lineno for f in node.body if isinstance(f, ast.FunctionDef)}
    return found

def plain(text): return text.replace('$', r'\$')

def bare(obj):
    "The function of a class or static method"
    return obj.__func__ if isinstance(obj, (classmethod, staticmethod)) else obj

def quiet(symbol, obj): return '.' in symbol and not (bare(obj).__doc__ or '').strip()   # a hook that a framework calls

WORDY = ((r'<built-in function callable>', 'callable'), (r'\btorch\.nn\.modules\.module\.Module', 'nn.Module'), (r'\btsynd\.\w+\.(?=\w)', ''),
         (r':NoneType=', '='), (rf'={re.escape(str(4/255))}', '=4/255'))

def signature(symbol, obj):
    "Signature with docments, and docstring, as nbdev's `show_doc` has them"
    from fastcore.docments import docments
    from nbdev.showdoc import BasicMarkdownRenderer
    kind = 'property' if isinstance(obj, property) else 'class' if inspect.isclass(obj) and '__init__' not in vars(obj) else ''
    if kind: return f'```python\n{kind} {symbol}\n```\n\n*{plain(inspect.getdoc(obj) or "")}*\n'
    made = BasicMarkdownRenderer(obj, name=symbol, maxline=1)._repr_markdown_() + '\n'       # a line for each parameter
    code, _, prose = made[made.index('```'):].rpartition('```\n')
    if inspect.isclass(obj): code = code.replace('```python\ndef ', '```python\nclass ').replace(')->None:', ')')
    for wordy, short in WORDY: code = re.sub(wordy, short, code)
    for name, words in docments(obj, args_kwargs=True).items():   # nbdev gives those of `**kwargs` to the return value, or to nobody
        if words and f'**{name}\n' in code: code = re.sub(rf'\*\*{name}\n(\).*?:?)( # {re.escape(words)})?\n', lambda m: f'**{name}, # {words}\n{m[1]}\n', code)
    return f'{code}```\n{plain(prose)}\n'

def entry(name, symbol, obj):
    "One symbol: signature, words, links to its source and to where the book explains it"
    source, book = f'{REPOSITORY}/blob/main/tsynd/{name}.py#L{lines(name)[symbol]}', f'{SITE}{address(modules()[name])}'
    definition = inspect.isroutine(obj) or isinstance(obj, property) or inspect.isclass(obj) and obj.__module__.startswith('tsynd')
    more = f' <a href="{book}#{symbol.lower()}">in the book</a>' if definition else ''
    head = (f'<span id="tsynd.{name}.{symbol}"></span>\n\n{"###" if "." in symbol else "##"} {symbol}\n\n'
            f'<p class="bar small"><a href="{source}">source</a>{more}</p>\n\n')
    if definition: return head + signature(symbol, bare(obj))
    value = re.sub(r' at 0x\w+|<function (\S+)>', lambda m: m[1] or '', repr(obj))
    return head + f'```text\n{symbol} = {value if len(value) < 400 else value[:400] + " …"}\n```\n'

def entries(name):
    "All symbols of a module; what frameworks call, and has no words of its own, in one line"
    symbols = reference(name)
    for s, o in symbols.items():
        if not quiet(s, o): yield entry(name, s, o)
        own = [k for k, v in symbols.items() if k.startswith(s + '.') and quiet(k, v)]
        if own:
            book = f'{SITE}{address(modules()[name])}'
            links = ', '.join(f'<a id="tsynd.{name}.{k}" href="{book}#{k.lower()}"><code>{k.partition(".")[2]}</code></a>' for k in own)
            yield f'<p>Further members, told of in the book: {links}.</p>\n'

def api():
    "A page for each module and one for all"
    from nbdev.doclinks import NbdevLookup
    link = NbdevLookup().linkify
    (STAGED/'api').mkdir(parents=True, exist_ok=True)
    index = ('# API reference\n\nEvery public symbol, by module. A name leads to its signature, parameters and source; '
             'each module is a chapter of the book.\n\n')
    for name, chapter in modules().items():
        symbols, doc = reference(name), (importlib.import_module(f'tsynd.{name}').__doc__ or '').strip().split('\n\n')[0]
        links = f'<a href="{SITE}{address(chapter)}">The chapter</a> <a href="{REPOSITORY}/blob/main/tsynd/{name}.py">Source</a>'
        intro = f'# tsynd.{name}\n\n{doc}\n\n<p class="bar">{links}</p>\n\n'
        text = intro + '\n'.join(entries(name))
        text = re.sub(rf'\]\((?:{re.escape(SITE)}|/)(\w+\.html)', rf']({SITE}\1', link(text))
        (STAGED/'api'/f'{name}.md').write_text(text, encoding='utf-8')
        index += f'## [tsynd.{name}]({SITE}api/{name}.html)\n\n{doc}\n\n'
        for s, o in symbols.items():
            if '.' in s: continue
            first = (inspect.getdoc(o) or '').split('\n')[0] if inspect.isroutine(o) or inspect.isclass(o) else ''
            says = ': ' + plain(first) if first and not first.startswith(s + '(') else ''
            index += f'- [`{s}`]({SITE}api/{name}.html#tsynd.{name}.{s}){says}\n'
        index += '\n'
    index += '```{toctree}\n:hidden:\n\n' + '\n'.join(modules()) + '\n```\n'
    (STAGED/'api'/'index.md').write_text(index, encoding='utf-8')


# Everything in one place

def menu(caption, entries): return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(entries) + '\n```\n'

def listed(files): return [f'{title(f)} <{docname(f)}>' for f in files]

def stage():
    "What the renderer reads, in _proc/"
    from fastcore.nbio import mk_cell, read_nb, write_nb
    if STAGED.exists(): shutil.rmtree(STAGED)
    STAGED.mkdir()
    for f in [NBS/'index.ipynb', *chapters(), *tutorials(), *others()]: notebook(f)
    for f in pages(): (STAGED/f.name).write_text(relink(include(f), f), encoding='utf-8')
    api()
    (STAGED/'.static').mkdir()
    (STAGED/'.static'/'report.css').write_text(report_css(), encoding='utf-8')
    home = read_nb(STAGED/'index.ipynb')
    menus = [menu('Start', ['Home <self>', 'how', *listed(others())]), menu('Tutorials', listed(tutorials())),
             menu('The book', listed(chapters())), menu('Reference', ['api/index', 'limits', 'citing', 'changelog', 'contributing'])]
    home.cells.append(mk_cell('\n'.join(menus), 'markdown'))
    write_nb(home, STAGED/'index.ipynb')

def include(file):
    "A page, with the files it names in `{{…}}` put in their place"
    return re.sub(r'\{\{(\S+?)\}\}', lambda m: (file.parent/m[1]).read_text(encoding='utf-8').strip(), file.read_text(encoding='utf-8'))

def render():
    "Sphinx with myst-nb; gives the lines of its warnings"
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils
    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        app = Sphinx(STAGED, HERE, MADE/'html', MADE/'doctrees', 'html', status=None, warning=warnings, freshenv=True)
        app.build()
    if OUT.exists(): shutil.rmtree(OUT)
    shutil.move(MADE/'html', OUT)
    said = re.sub(r'\x1b\[[\d;]*m', '', warnings.getvalue()).replace(str(STAGED) + '/', '').strip()
    return said.splitlines() if said else []

def mathjax():
    "MathJax and its fonts, from the package that carries them"
    import importlib.util
    at = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static'/'mathjax'
    to, fonts = OUT/'_static'/'mathjax', 'output/chtml/fonts/woff-v2'
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(at/'tex-chtml.js', to)
    shutil.copytree(at/fonts, to/fonts)
    shutil.copytree(at/'input/tex/extensions', to/'input/tex/extensions')

def finish():
    "Addresses inside the site become relative, pictures lead to their full size, notebooks to download are laid in place"
    for f in OUT.rglob('*.html'):
        at = f.relative_to(OUT).as_posix()
        def relative(m):
            path, _, fragment = m[2].partition('#')
            to = relpath(path or 'index.html', Path(at).parent.as_posix() or '.')
            return f'{m[1]}{"" if path == at and fragment else to}{fragment and "#" + fragment}"'
        text = f.read_text(encoding='utf-8')
        text = re.sub(rf'((?<!rel="canonical" )href="){re.escape(SITE)}([^"]*)"', relative, text)
        text = re.sub(r'(<img alt="[^"]*" src="((?:\.\./)*_images/[^"]+)"[^>]*>)', r'<a class="full" href="\2">\1</a>', text)
        if at == 'search.html': text = text.replace('<div id="search-results"></div>', '<h1>Search</h1>\n<p>Words for the box at the head of the menu: <em>mutual information</em>, <em>label gate</em>, the name of a function.</p>\n<div id="search-results"></div>')
        for span, i in set(re.findall(r'(<span id="([^"]+)"></span>)', text)):  # a section of that name is as good
            if text.count(f'id="{i}"') > 1: text = text.replace(span, '')
        f.write_text(text, encoding='utf-8')
    for f in [*chapters(), *tutorials(), *others()]:
        to = OUT/f.relative_to(NBS)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    mathjax()
    for f in ('.buildinfo', 'objects.inv'): (OUT/f).unlink(missing_ok=True)
    shutil.rmtree(OUT/'_sources', ignore_errors=True)
    (OUT/'.nojekyll').touch()


# What a reader could stumble over

class Page(HTMLParser):
    "The ids, links and pictures of a page"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.bare = [], [], [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.append(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag in ('img', 'script', 'iframe', 'source', 'video') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('rel') not in ('canonical',) and a.get('href'): self.loads.append(a['href'])
        if tag == 'img' and not (a.get('alt') or '').strip(): self.bare.append(a.get('src', ''))

def faults(out=OUT):
    "Links and anchors that lead nowhere, ids given twice, what would be fetched from elsewhere, pictures without a description"
    read = {f.relative_to(out).as_posix(): Page(f.read_text(encoding='utf-8')) for f in sorted(out.rglob('*.html'))}
    found, n = [], 0
    for at, page in read.items():
        found += [f'{at}: the id {i} is given twice' for i in sorted({i for i in page.ids if page.ids.count(i) > 1})]
        found += [f'{at}: {src[:60]} has no alt text' for src in page.bare]
        for url in page.links + page.loads:
            if re.match(r'[a-z]+:', url) or url.startswith('//'):
                if url in page.loads and not url.startswith('data:'): found.append(f'{at}: fetches {url}')
                continue
            n += 1
            path, _, fragment = url.partition('#')
            path = unquote(path.split('?')[0])
            to = normpath((Path(at).parent/path).as_posix()) if path else at
            if to == '.': to = 'index.html'
            if not (out/to).is_file(): found.append(f'{at}: no file for the link {url}')
            elif fragment and to in read and unquote(fragment) not in read[to].ids: found.append(f'{at}: no anchor for the link {url}')
    return found, len(read), n

def main():
    os.chdir(ROOT)                  # nbdev finds its settings here
    sys.path.insert(0, str(ROOT))   # this tree's modules, wherever the installed ones lie
    stage()
    wrong = render()
    finish()
    found, n_pages, n_links = faults()
    size = sum(f.stat().st_size for f in OUT.rglob('*') if f.is_file())
    for line in wrong + found: print(line, file=sys.stderr)
    print(f'_docs: {n_pages} pages, {n_links} links within the site, {size/1e6:.1f} MB, {len(wrong)} warnings, {len(found)} faults')
    if wrong or found: sys.exit(1)


if __name__ == '__main__': main()
