"""Make the saved pictures of notebooks smaller: at most 256 colours each,
which the eye does not notice in plots and grey images.

`python .ci/pictures.py` does it for all notebooks, `python .ci/pictures.py nbs/core/02_tasks.ipynb` for one,
after `nbdev-test --save`.
"""
import base64, io, json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def small(png):
    "The picture with a palette: exactly the same if it has at most 256 colours; never larger"
    from PIL import Image
    im = Image.open(io.BytesIO(png))
    if im.mode == 'P': return png
    im = im.convert('RGBA')
    if im.getextrema()[3][0] < 255: return png                       # transparent: left alone
    im, made = im.convert('RGB'), io.BytesIO()
    exact = im.getcolors(256)
    im.quantize(len(exact) if exact else 256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        made, 'PNG', optimize=True)
    return min(png, made.getvalue(), key=len)


def shrink(file):
    "Bytes saved in a notebook"
    text = file.read_text(encoding='utf-8')
    for cell in json.loads(text)['cells']:
        for data in (o.get('data', {}) for o in cell.get('outputs', [])):
            if 'image/png' not in data: continue
            old = ''.join(data['image/png'])
            new = base64.b64encode(small(base64.b64decode(old))).decode() + '\n'*old.endswith('\n')
            if len(new) < len(old): text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    saved = file.stat().st_size - len(text.encode())
    if saved: file.write_text(text, encoding='utf-8')
    return saved


if __name__ == '__main__':
    for f in [Path(a) for a in sys.argv[1:]] or sorted(ROOT.glob('nbs/**/[!_.]*.ipynb')):
        print(f'{f.name}: {shrink(f)/1e3:.0f} kB saved')
