"""The documentation site, built once by the documented command; every page is read once in a real browser."""
import functools, importlib, inspect, re, shutil, subprocess, sys, threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group('site')  # one worker builds the site, for all tests that need it

ROOT = Path(__file__).resolve().parents[1]
NBS, SITE = ROOT/'nbs', ROOT/'_docs'
COMMAND = 'sphinx-build -W --keep-going nbs _docs'


@pytest.fixture(scope='module')
def pages():
    "Address → text of every page of the site, built by the documented command"
    for made in (SITE, NBS/'api'): shutil.rmtree(made, ignore_errors=True)
    command = [sys.executable, '-m', 'sphinx', *COMMAND.split()[1:], '--quiet']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(SITE.rglob('*.html'))
    texts = {f.relative_to(SITE).as_posix(): f.read_text(encoding='utf-8') for f in files}
    return {at: text for at, text in texts.items() if 'http-equiv="refresh"' not in text}


@pytest.fixture(scope='module')
def notebooks():
    "Every notebook that is read, with its address"
    def hidden(path): return any(part[0] in '._' for part in path.parts)
    found = [f.relative_to(NBS) for f in sorted(NBS.rglob('*.ipynb'))]
    return {NBS/f: f.with_suffix('.html').as_posix() for f in found if not hidden(f)}


@pytest.fixture(scope='module')
def server(pages):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    running = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/'
    running.shutdown()


@pytest.fixture
def page(browser):
    "An empty page on a screen of 1280 by 800, that notes what goes wrong"
    context = browser.new_context(viewport=dict(width=1280, height=800))
    page = context.new_page()
    page.said, page.asked = [], []
    def note(what, unless=False):
        if not unless: page.said.append(f'{page.url}: {what}')
    page.on('console', lambda m: note(m.text, unless=m.type not in ('error', 'warning')))
    page.on('pageerror', note)
    # what the browser breaks off when it turns to the next page has not failed; a missing file answers 404
    page.on('requestfailed', lambda r: note(f'{r.url} failed', unless='ERR_ABORTED' in str(r.failure)))
    page.on('response', lambda r: note(f'{r.url} is {r.status}', unless=r.status < 400))
    page.on('request', lambda r: page.asked.append(r.url))
    yield page
    context.close()


# What is on it

def test_every_notebook_and_page_is_there(pages, notebooks):
    written = [f.relative_to(NBS).with_suffix('.html').as_posix() for f in NBS.glob('pages/*.md')]
    assert {*notebooks.values(), *written, 'search.html', 'api/tsynd.html'} - set(pages) == set()


def test_the_book_is_in_order(pages, notebooks):
    "The page after each chapter is the next one of its part"
    parts = {}
    for f, at in notebooks.items():
        if re.match(r'\d', f.name): parts.setdefault(f.parent, []).append(at)
    for book in parts.values():
        for a, b in zip(book, book[1:]):
            following = re.search(r'class="next-page" href="([^"]+)"', pages[a])
            assert following and Path(following[1]).name == Path(b).name, (a, b)


def test_menus_name_chapters_by_number_and_short_title(pages, notebooks):
    menu = pages['index.html'].partition('sidebar-tree')[2].partition('</aside>')[0]
    for f, at in notebooks.items():
        number = re.match(r'\d+[a-z]?(?=_)', f.name)
        assert not number or re.search(rf'href="{re.escape(at)}">{number[0]} · [^:<]+</a>', menu), at


def public(module):
    "The public names of a module, and the public methods, with @patch or without, of its classes"
    for name in module.__all__:
        yield name
        if not inspect.isclass(found := getattr(module, name)): continue
        methods = [k for k, v in vars(found).items() if inspect.isroutine(v) or isinstance(v, property)]
        yield from (f'{name}.{k}' for k in methods if k[0] != '_' or k == '__call__')


def test_every_public_symbol_is_in_the_reference_with_its_parameters_and_its_source(pages):
    files = [f for f in ROOT.glob('tsynd/**/*.py') if f.stem[0] != '_']
    modules = ['.'.join(f.relative_to(ROOT).with_suffix('').parts) for f in files]
    for name in modules:
        text = pages[f'api/{name}.html']
        names = public(importlib.import_module(name))
        assert [n for n in names if f'id="{name}.{n}"' not in text] == [], name
        sources = re.findall(r'href="\.\./([^"#]+)#(in-[^"]+)"><span class="viewcode-link">', text)
        assert [s for s in sources if f'id="{s[1]}"' not in pages[s[0]]] == [] and sources, name
    reference = ''.join(text for at, text in pages.items() if at.startswith('api/'))
    assert 'Annotated[' not in re.sub('<[^>]+>', '', pages['api/tsynd.targeting.callback.html'])
    assert 'synthesis.Synthesizer.__call__"' in reference and '<strong>kwargs</strong> – for <a' in reference


def test_running_text_leads_to_the_reference(pages, notebooks):
    callback = next(at for at in notebooks.values() if at.endswith('callback.html'))
    link = r'<blockquote>.*?href="[^"]*api/tsynd\.[\w.]*callback\.html#[\w.]+\.TSynD"'
    assert re.search(link, pages[callback], re.S)


def test_notebooks_can_be_taken_along(pages, notebooks):
    for f, at in notebooks.items():
        if f.name == 'index.ipynb': continue
        taken = re.search(r'href="((?:\.\./)*_downloads/[^"]+)"', pages[at])
        assert (SITE/at).parent.joinpath(taken[1]).resolve().read_bytes() == f.read_bytes()
        assert f'blob/main/{f.relative_to(ROOT).as_posix()}">Open in Colab' in pages[at]


def test_nbdevs_addresses_lead_on(pages, notebooks):
    "Other projects' links to symbols are made from nbdev's index, which leaves numbers out"
    index = importlib.import_module('tsynd._modidx').d['syms']
    for old in {a.partition('#')[0] for symbols in index.values() for a, _ in symbols.values()}:
        to = re.search(r'url=([^"]+)"', (SITE/old).read_text(encoding='utf-8'))
        assert old in pages or (SITE/old).parent.joinpath(to[1]).is_file(), old


def test_a_broken_link_stops_the_build(tmp_path):
    "Of a notebook to a page, to a heading of it, to a name of the reference; in the site's own configuration"
    settings = (NBS/'conf.py').read_text(encoding='utf-8').replace('__file__', repr(str(NBS/'conf.py')))
    settings = re.sub(r"'sphinx_external_toc', |'nbdev_book'", '', settings)
    nothing_made = '\nautosummary_generate = html_static_path = []\n'
    (tmp_path/'conf.py').write_text(settings + nothing_made, encoding='utf-8')
    links = '# A\n[a](none.ipynb) [b](#nothing) {py:obj}`tsynd.data.nothing` [c](#a)\n'
    (tmp_path/'index.md').write_text(links, encoding='utf-8')
    command = [sys.executable, '-m', 'sphinx', *COMMAND.split()[1:-2], '-q', tmp_path, tmp_path/'out']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "'a'" not in done.stderr
    assert all(words in done.stderr for words in ('none.ipynb', "'nothing'", 'tsynd.data.nothing'))


# Read in a browser: every page once, for all that can be wrong with it

LOOK = r"""async () => {
  for (const i of document.images) { i.loading = 'eager'; try { await i.decode() } catch {} }
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const blank = i => { const c = document.createElement('canvas'); c.width = c.height = 24;
    const g = c.getContext('2d'); g.drawImage(i, 0, 0, 24, 24); const d = g.getImageData(0, 0, 24, 24).data;
    return d.every((v, k) => v == d[k%4]) };
  const clone = document.querySelector('article').cloneNode(true);
  clone.querySelectorAll('pre,code,mjx-container,script,style,dl.py').forEach(e => e.remove());
  const all = s => [...document.querySelectorAll(s)], ids = all('[id]').map(e => e.id), images = all('img');
  const math = all('.math'), page = document.documentElement;
  return { wrong: {
      unloaded: images.filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
      blank: images.filter(i => i.naturalWidth && blank(i)).map(i => i.src),
      wordless: images.filter(i => !i.alt.trim()).map(i => i.src),
      'not leading to its full size': images
        .filter(i => i.src.includes('/_images/') && i.closest('a')?.href != i.src).map(i => i.src),
      untyped: math.filter(e => !e.querySelector('mjx-container') || e.getBoundingClientRect().width < 2)
        .map(e => e.textContent),
      raw: clone.textContent.match(/.{0,20}(\$|\\[([]).{0,20}/g) || [],
      bars: clone.textContent.match(/\|\s*[|:—-]*—[|:—-]*\|/g) || [],
      errors: all('mjx-merror, .problematic, .system-message').map(e => e.textContent),
      twice: ids.filter((i, k) => ids.indexOf(i) < k),
      'cut off': all('.highlight pre, pre.literal-block').filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => e.innerText.slice(0, 80)),
      'without a button to copy': all('div.cell_input .highlight')
        .filter(e => !e.querySelector('button.copybtn')).map(e => e.innerText.slice(0, 80)),
      sideways: page.scrollWidth > innerWidth ? [page.scrollWidth] : [] },
    images: images.length, math: math.length, text: document.querySelector('article').innerText.length, ids,
    links: [...document.links].map(a => a.href) } }"""


def test_every_page_is_as_it_should_be(page, pages, server):
    seen, screens = {}, [dict(width=1280, height=800), dict(width=390, height=844)]
    for name in pages:
        page.goto(server + name, wait_until='load')
        for screen in screens:
            page.set_viewport_size(screen)
            if screen['width'] == 1280: seen[server + name] = found = page.evaluate(LOOK)
            else: assert page.evaluate('document.documentElement.scrollWidth') <= 390, name
        screens.reverse()   # the next page is loaded at the width at which this one was left
        assert {k: v for k, v in found['wrong'].items() if v} == {}, name
        assert found['text'] > 20, name
    assert page.said == []
    assert [url for url in page.asked if not url.startswith((server, 'data:', 'blob:'))] == []
    assert sum(f['images'] for f in seen.values()) > 20 and sum(f['math'] for f in seen.values()) > 5
    links = {h for f in seen.values() for h in f['links'] if h.startswith(server)}
    assert len(links) > 500
    missing = []
    for link in sorted(links):
        at, _, fragment = link.partition('#')
        at = at.split('?')[0]
        if at.endswith('/'): at += 'index.html'
        if not (SITE/at.removeprefix(server)).is_file(): missing.append(link)
        elif fragment and at in seen and fragment not in seen[at]['ids']: missing.append(link)
    assert missing == []


def test_the_command_to_try_is_on_the_first_screen(page, server):
    page.goto(server)
    command = page.locator('article pre', has_text='tsynd run').first.bounding_box()
    assert command['y'] + command['height'] < 800
    assert page.locator('article td', has_text='Breast, clean').count()   # a computed table is a table


@pytest.mark.parametrize('width', [1009, 1201, 1320, 1425])
def test_no_width_scrolls_sideways(page, server, notebooks, width):
    "Where a menu has just come in, or the text has just become wider"
    page.set_viewport_size(dict(width=width, height=800))
    chapter = next(at for at in notebooks.values() if at.endswith('synthesis.html'))
    page.goto(server + chapter, wait_until='load')
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_pieces_of_reports_wear_their_style(page, pages, server):
    "Words for screen readers are hidden, the tables' marks are drawn, nothing else on the page is touched"
    drawn = next(at for at, text in pages.items() if re.search(r'class="report".*class="?ci\b', text, re.S))
    page.goto(server + drawn, wait_until='load')
    def style(at, key):
        return page.evaluate('([at, key]) => getComputedStyle(document.querySelector(at))[key]', [at, key])
    assert style('.report caption.sr', 'width') == '1px'
    assert style('.report .ci', 'stroke') == 'rgb(0, 114, 178)'
    assert style('.report td', 'borderBottomStyle') == 'solid'
    assert style('article > section > p', 'maxWidth') == 'none'


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_text_can_be_read_in_both_themes(page, server, theme):
    "Contrast of running text against the page: at least 7:1"
    page.emulate_media(color_scheme=theme)
    page.goto(server + 'pages/how.html')
    numbers = page.evaluate("""() => [getComputedStyle(document.querySelector('article section > p')).color,
        getComputedStyle(document.body).backgroundColor]
        .map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number))""")
    def linear(v): return ((v/255+.055)/1.055)**2.4 if v > 10 else v/255/12.92
    def luminance(c): return sum(w*linear(v) for w, v in zip((.2126, .7152, .0722), c))
    light, dark = sorted(map(luminance, numbers), reverse=True)
    assert (light+.05)/(dark+.05) >= 7
    assert (luminance(numbers[0]) < luminance(numbers[1])) == (theme == 'light')


def test_search_finds_mutual_information(page, server):
    page.goto(server)
    page.fill('.sidebar-search', 'mutual information')
    page.press('.sidebar-search', 'Enter')
    first = page.locator('#search-results li a').first
    first.wait_for(timeout=20_000)
    chapter = page.locator('#search-results a[href*="uncertainty.html"]').first   # is among them
    chapter.wait_for(timeout=20_000)
    first.click()
    page.wait_for_load_state()
    assert 'search.html' not in page.url
    assert 'mutual information' in page.inner_text('article').lower()
    assert page.said == []


def test_the_report_of_a_study_fits_a_phone(page, tmp_path):
    "Its wide tables scroll inside, with everything that is in them, what only screen readers see as well"
    from test_study_report import make
    from tsynd.reports import study_report
    page.set_viewport_size(dict(width=390, height=844))
    page.goto(study_report(make(tmp_path/'s')).as_uri())
    assert page.evaluate('document.documentElement.scrollWidth') == 390
