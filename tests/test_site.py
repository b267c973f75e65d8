"""The documentation site, built once and read in a real browser."""
import functools, importlib, re, shutil, subprocess, sys, threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from test_study_report import make
from tsynd.reports import study_report

pytestmark = pytest.mark.xdist_group('site')  # one worker builds the site, for all tests that need it

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT/'_docs'
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')

@pytest.fixture(scope='module')
def build():
    "The site, built by the documented command"
    done = subprocess.run([sys.executable, ROOT/'.ci'/'site.py'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def site(build):
    "The script that built it"
    spec = importlib.util.spec_from_file_location('site_builder', ROOT/'.ci'/'site.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(): return sorted(f.relative_to(SITE).as_posix() for f in SITE.rglob('*.html'))


@pytest.fixture(scope='module')
def server(build):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    running = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/'
    running.shutdown()


@pytest.fixture(scope='module')
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path: pytest.skip(f'no browser here: none of {", ".join(BROWSERS)}')
    playwright = pytest.importorskip('playwright.sync_api').sync_playwright().start()
    quiet = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    running = playwright.chromium.launch(executable_path=path, args=quiet)
    yield running
    running.close()
    playwright.stop()


@pytest.fixture
def page(browser, server):
    "An empty page of a phone's width, that notes what goes wrong and what is asked of others"
    context = browser.new_context(viewport=dict(width=390, height=844))
    page = context.new_page()
    page.said, page.elsewhere = [], []
    page.on('console', lambda m: page.said.append(f'{page.url}: {m.text}') if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: page.said.append(f'{page.url}: {e}'))
    # what the browser itself breaks off when it turns to the next page has not failed; a file that is missing answers with 404
    page.on('requestfailed', lambda r: page.said.append(f'{page.url}: {r.url} failed') if 'ERR_ABORTED' not in str(r.failure) else None)
    page.on('response', lambda r: page.said.append(f'{page.url}: {r.url} is {r.status}') if r.status >= 400 else None)
    page.on('request', lambda r: page.elsewhere.append(r.url) if not r.url.startswith((server, 'data:', 'blob:')) else None)
    yield page
    context.close()


# What is on it

def test_every_chapter_has_its_page(site):
    found = set(pages())
    assert {site.address(f) for f in [*site.chapters(), *site.tutorials(), *site.others(), *site.pages()]} <= found
    assert {f'api/{m}.html' for m in site.modules()} | {'index.html', 'search.html', 'api/index.html'} <= found


def test_tables_that_a_cell_computes_are_tables(site):
    "In Markdown, as on the first page, and none is left as a line of bars"
    assert re.search(r'<td[^>]*>(<p>)?Breast, clean', (SITE/'index.html').read_text(encoding='utf-8'))
    assert [p for p in pages() if re.search(r'\|\s*[|:—-]*—[|:—-]*\|', (SITE/p).read_text(encoding='utf-8'))] == []


def test_a_picture_leads_to_its_full_size(site):
    for p in pages():
        text = (SITE/p).read_text(encoding='utf-8')
        for src in re.findall(r'<img [^>]*src="((?:\.\./)*_images/[^"]+)"', text): assert f'<a class="full" href="{src}"><img' in text, (p, src)


def test_words_on_further_keywords_stay_with_them(site):
    text = site.signature('train_classifier', importlib.import_module('tsynd.classifier').train_classifier)
    assert '**kwargs, # for `classifier_learner`\n)->fastai.learner.Learner:\n' in text
    assert '**kwargs, # for `show_images`\n' in site.signature('show_batch', importlib.import_module('tsynd.data').ImageDL.show_batch)


def test_the_book_is_in_order(site):
    "The page after each chapter is the next one"
    book = [site.address(f) for f in site.chapters()]
    for a, b in zip(book, book[1:]):
        assert re.search(rf'class="next-page" href="{re.escape(b)}"', (SITE/a).read_text(encoding='utf-8')), (a, b)


def test_every_public_symbol_is_in_the_reference(site):
    documented = [f.stem for f in ROOT.glob('tsynd/*.py') if f.stem[0] != '_']
    assert sorted(documented) == sorted(site.modules())
    for m in documented:
        text = (SITE/'api'/f'{m}.html').read_text(encoding='utf-8')
        public = importlib.import_module(f'tsynd.{m}').__all__
        assert [n for n in public if f'id="tsynd.{m}.{n}"' not in text] == []
        sources = re.findall(rf'blob/main/tsynd/{m}\.py#L(\d+)"', text)
        assert len(sources) >= len(public)
        lines = (ROOT/'tsynd'/f'{m}.py').read_text(encoding='utf-8').splitlines()
        assert all(re.match(r'\s*(@|def |class |[\w, ]+[:=]|\()', lines[int(n)-1]) for n in sources)


def test_notebooks_can_be_taken_along(site):
    for f in [*site.chapters(), *site.tutorials()]:
        text, at = (SITE/site.address(f)).read_text(encoding='utf-8'), f.relative_to(ROOT).as_posix()
        assert f'{site.COLAB}/{at}"' in text and f'href="{f.name}" download' in text
        assert (SITE/f.relative_to(site.NBS)).read_bytes() == f.read_bytes()


# What the builder refuses

@pytest.mark.parametrize('link', ['missing.ipynb', '../nowhere/x.py', '06z_none.ipynb#there'])
def test_a_broken_link_in_a_source_stops_the_build(site, link):
    with pytest.raises(SystemExit, match='broken link'): site.relink(f'see [this]({link})', site.NBS/'index.ipynb')


def test_a_picture_without_words_stops_the_build(site):
    from fastcore.basics import AttrDict
    picture = AttrDict(outputs=[dict(data={'image/png': ''})], metadata={}, id='abc', directives_={'fig-alt': 'A cat'})
    site.alt_texts(AttrDict(cells=[picture]), site.NBS/'index.ipynb')
    assert picture.metadata == {'mystnb': {'image': {'alt': 'A cat'}}}
    with pytest.raises(SystemExit, match='index.ipynb: the picture of cell abc has no alt text'):
        site.alt_texts(AttrDict(cells=[AttrDict(picture, directives_={})]), site.NBS/'index.ipynb')


def test_links_in_code_are_left_alone(site):
    text = 'Say `[a](b.ipynb)`, or\n```\n[a](b.ipynb)\n```\nand `x` [`y`](05_callback.ipynb#a)'
    made = site.relink(text, site.NBS/'index.ipynb')
    assert made == text.replace('05_callback.ipynb', site.SITE + 'callback.html')


def test_faults_are_found(site, tmp_path):
    (tmp_path/'a.html').write_text('<p id="one"><a href="b.html">x</a><a href="#two">y</a><a href="#one">z</a><i id="one"></i>'
                                   '<img src="a.html"><script src="https://example.org/x.js"></script>', encoding='utf-8')
    found, n_pages, _ = site.faults(tmp_path)
    words = ' '.join(found)
    assert n_pages == 1 and len(found) == 5, found
    assert all(w in words for w in ('no file for the link b.html', 'no anchor for the link #two', 'given twice', 'no alt text', 'fetches https'))


# Read in a browser, at a phone's width

LOOK = r"""async () => {
  for (const i of document.images) { i.loading = 'eager'; try { await i.decode() } catch {} }
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const blank = i => { const c = document.createElement('canvas'); c.width = c.height = 24;
    const g = c.getContext('2d'); g.drawImage(i, 0, 0, 24, 24); const d = g.getImageData(0, 0, 24, 24).data;
    return d.every((v, k) => v == d[k%4]) };
  const clone = document.querySelector('article').cloneNode(true);
  clone.querySelectorAll('pre,code,mjx-container,script,style').forEach(e => e.remove());
  return { images: document.images.length, math: document.querySelectorAll('.math').length,
    unloaded: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    blank: [...document.images].filter(i => i.naturalWidth && blank(i)).map(i => i.src),
    wordless: [...document.images].filter(i => !i.alt.trim()).map(i => i.src),
    untyped: [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container') || e.getBoundingClientRect().width < 2).map(e => e.textContent),
    raw: clone.textContent.match(/.{0,20}(\$|\\[([]).{0,20}/g) || [],
    errors: document.querySelectorAll('mjx-merror, .problematic, .system-message').length,
    width: document.documentElement.scrollWidth, text: document.querySelector('article').innerText.length } }"""


def test_every_page_is_as_it_should_be(page, server):
    seen = []
    for name in pages():
        page.goto(server + name, wait_until='load')
        seen.append(found := page.evaluate(LOOK))
        wrong = {k: found[k] for k in ('unloaded', 'blank', 'wordless', 'untyped', 'raw', 'errors') if found[k]}
        assert wrong == {}, name
        assert found['width'] <= 390, f'{name} scrolls sideways'
        assert found['text'] > 20 or name == 'search.html', name
    assert page.said == []
    assert page.elsewhere == []
    assert sum(f['images'] for f in seen) > 20 and sum(f['math'] for f in seen) > 5


@pytest.mark.parametrize('width', [800, 1009, 1100, 1199, 1201, 1312, 1320, 1423, 1425])
def test_no_width_scrolls_sideways(page, server, width):
    "On either side of where a menu comes in or the text becomes wider"
    page.set_viewport_size(dict(width=width, height=800))
    page.goto(server + 'synthesis.html', wait_until='load')
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_pieces_of_reports_wear_their_style(page, server):
    "The words for screen readers are hidden, the marks of the tables are drawn, and nothing else on the page is touched"
    page.goto(server + 'reports/study_tables.html', wait_until='load')
    style = lambda at, key: page.evaluate('([at, key]) => getComputedStyle(document.querySelector(at))[key]', [at, key])
    assert style('.report caption.sr', 'width') == '1px' and style('.report .ci', 'stroke') == 'rgb(0, 114, 178)'
    assert style('.report td', 'borderBottomStyle') == 'solid' and style('article > section > p', 'maxWidth') == 'none'


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_text_can_be_read_in_both_themes(browser, server, theme):
    "Contrast of running text against the page: at least 7:1"
    context = browser.new_context(color_scheme=theme)
    page = context.new_page()
    page.goto(server + 'how.html')
    numbers = page.evaluate("""() => [getComputedStyle(document.querySelector('article section > p')).color, getComputedStyle(document.body).backgroundColor]
        .map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number))""")
    context.close()
    def luminance(c): return sum(w*((v/255+.055)/1.055)**2.4 if v > 10 else w*v/255/12.92 for w, v in zip((.2126, .7152, .0722), c))
    light, dark = sorted(map(luminance, numbers), reverse=True)
    assert (light+.05)/(dark+.05) >= 7
    assert (luminance(numbers[0]) < luminance(numbers[1])) == (theme == 'light')


def test_search_finds_mutual_information(page, server):
    page.goto(server + 'search.html?q=mutual+information')
    first = page.locator('#search-results li a').first
    first.wait_for(timeout=20_000)
    page.locator('#search-results a[href^="uncertainty.html"]').first.wait_for(timeout=20_000)   # the chapter about it is among them
    first.click()
    page.wait_for_load_state()
    assert 'search.html' not in page.url
    assert 'mutual information' in page.inner_text('article').lower()
    assert page.said == [] and page.elsewhere == []


def test_search_box_leads_to_results(browser, server):
    context = browser.new_context(viewport=dict(width=1280, height=900))
    page = context.new_page()
    page.goto(server)
    page.fill('.sidebar-search', 'label gate')
    page.press('.sidebar-search', 'Enter')
    page.locator('#search-results li a').first.wait_for(timeout=20_000)
    context.close()


def test_links_and_anchors_resolve(page, server):
    "As the browser sees them, every one once"
    ids, links = {}, set()
    for name in pages():
        page.goto(server + name, wait_until='domcontentloaded')
        ids[server + name], hrefs = page.evaluate("() => [[...document.querySelectorAll('[id]')].map(e => e.id), [...document.links].map(a => a.href)]")
        links |= {h for h in hrefs if h.startswith(server)}
    missing = []
    for link in sorted(links):
        path, _, fragment = link.partition('#')
        path = path.split('?')[0]
        if path.endswith('/'): path += 'index.html'
        if not (SITE/path.removeprefix(server)).is_file(): missing.append(link)
        elif fragment and path in ids and fragment not in ids[path]: missing.append(link)
    assert missing == []
    assert len(links) > 500

def test_the_report_of_a_study_fits_a_phone(browser, tmp_path):
    "Its wide tables scroll inside, with everything that is in them, what only screen readers see as well"
    context = browser.new_context(viewport=dict(width=390, height=844))
    page = context.new_page()
    page.goto(study_report(make(tmp_path/'s')).as_uri())
    width = page.evaluate('document.documentElement.scrollWidth')
    context.close()
    assert width == 390
