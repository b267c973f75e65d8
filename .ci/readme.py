"""Make README.md, and the pictures in it, from the saved outputs of nbs/index.ipynb.

`python .ci/readme.py` writes them; `tests/test_project.py` compares them with what lies in the tree.
"""
import posixpath, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = '<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook, not this file. -->\n\n'
PICTURES = 'nbs/index_files'


def directives(source):
    "The `#|` lines at the head of a cell as a dict, and the source without them"
    lines, found = source.splitlines(), {}
    while lines and (m := re.match(r'#\s*\|\s*([\w-]+):?\s*(.*?)\s*$', lines[0])):
        found[m[1]] = m[2]
        lines.pop(0)
    return found, '\n'.join(lines).strip('\n')


def tidy(output):
    "One output without what GitHub cannot show: style sheets, colour codes, overwritten progress lines"
    from nbconvert.filters import strip_ansi
    def plain(text): return re.sub(r'^.*\r(?!\n)', '', strip_ansi(text), flags=re.M)
    if 'text' in output: output.text = plain(output.text)
    data = output.get('data', {})
    if 'text/plain' in data: data['text/plain'] = plain(data['text/plain'])
    if 'text/html' in data:
        html = re.sub(r'<(style|script)\b.*?</\1>', '', data['text/html'], flags=re.S)
        data['text/html'] = re.sub(r'^\s*\n', '', html, flags=re.M)  # a blank line would end the HTML block
    return output


def relink(markdown, folder='nbs'):
    "Links relative to the notebook's `folder` become relative to the top of the project; code is left alone"
    def move(m):
        if re.match(r'[a-z][a-z0-9+.-]*:|[/#]|attachment:', m[2], re.I): return m[0]
        return m[1] + posixpath.normpath(posixpath.join(folder, m[2]))
    fenced, lines = False, []
    for line in markdown.split('\n'):
        if line.lstrip().startswith('```'): fenced = not fenced
        elif not fenced: line = re.sub(r'(\]\(<?|(?:src|href)=["\'])([^)\s"\'>]+)', move, line)
        lines.append(line)
    return '\n'.join(lines)


def page(nb):
    "The notebook as its reader should see it: directives obeyed, then removed"
    cells = []
    for cell in nb.cells:
        found, cell.source = directives(cell.source)
        def off(key): return found.get(key, '').lower() == 'false'
        if 'hide' in found or off('include'): continue
        if cell.cell_type == 'markdown': cell.source = relink(cell.source)
        elif cell.cell_type == 'code':
            cell.outputs = [] if off('output') else [tidy(o) for o in cell.outputs]
            no_source = off('echo') or not cell.source
            if no_source and not cell.outputs: continue
            cell.metadata.transient = dict(remove_source=no_source)
            cell.metadata.alt = found.get('fig-alt', '')
        cells.append(cell)
    nb.cells = cells
    # nbdev-clean takes it away; the code fences need it
    nb.metadata.language_info = dict(name='python', file_extension='.py')
    return nb


def readme(root=ROOT):
    "What should lie in the tree, made from the saved notebook: path → bytes"
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    conf = Config()
    conf.NbConvertBase.display_data_priority = ['text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg',
                                                'text/html', 'text/plain']
    conf.ExtractOutputPreprocessor.output_filename_template = (
        PICTURES + '/{unique_key}_{cell_index}_{index}{extension}')
    nb = page(nbformat.read(Path(root)/'nbs'/'index.ipynb', as_version=4))
    text, resources = MarkdownExporter(config=conf).from_notebook_node(nb, resources=dict(unique_key='index'))
    def describe(m): return f'![{nb.cells[int(m[2])].metadata.alt}]({m[1]})'  # from the cell's `#| fig-alt:`
    text = re.sub(rf'!\[\w+\]\(({PICTURES}/index_(\d+)_\d+\.\w+)\)', describe, text)
    text = re.sub(r'\n(?:[ \t]*\n){2,}', '\n\n', text).strip() + '\n'
    return {'README.md': (NOTE + text).encode()} | dict(sorted(resources['outputs'].items()))


def stale(made, root=ROOT):
    "Pictures in the tree that the notebook no longer makes"
    return [f for f in sorted((Path(root)/PICTURES).glob('*')) if f.relative_to(root).as_posix() not in made]


def write(root=ROOT):
    "Write what `readme` makes and remove stale pictures"
    made = readme(root)
    for f in stale(made, root): f.unlink()
    for name, content in made.items():
        (Path(root)/name).parent.mkdir(parents=True, exist_ok=True)
        (Path(root)/name).write_bytes(content)
        print(f'{name}: {len(content)} bytes')


if __name__ == '__main__': write()
