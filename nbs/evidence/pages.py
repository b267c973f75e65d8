"""Sentences, tables and figures for the pages of the evidence, from claims.csv, which claims.py writes.

`say("… {mi-baseline/breast/100/pgd4} …")` is a paragraph whose numbers are claims, named by their ids.
`{id}` is a difference with its interval, +5.4 ± 3.0; `{id:span}` the same without a sign; `{id:size}` only
how large it is, 5.4; `{id:value}` with its sign; `{id:lo}` and `{id:hi}` the ends of the interval;
`{id:whole}` a whole number; `{id:times}` a ratio with two digits; `{id:share}` a percentage as a number
between 0 and 1; `{id:p}` the p-value of a declared question after correction."""
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from tsynd.reports import figure_style

CLAIMS = pd.read_csv(Path(__file__).parent/'claims.csv', index_col='id').astype({'n': str})
SETS = dict(breast='Breast', pneumonia='Pneumonia')
LOOKS = dict(auc=('clean', 'AUC'), accuracy=('clean', 'acc.'), balanced=('clean', 'bal.'),
             perturbed_auc=('perturbed', 'AUC'), perturbed=('perturbed', 'bal.'),
             corrupted_auc=('corrupted', 'AUC'), corrupted=('corrupted', 'bal.'),
             pgd2=('PGD', '2/255'), pgd4=('PGD', '4/255'), pgd8=('PGD', '8/255'))
TABLE = tuple(k for k in LOOKS if k != 'pgd8')
VERDICT = dict(better='#0072B2', worse='#D55E00')
HUES = dict(zip(['baseline','random','mi','trivialaugment','fgsm','pgd','mi_fgsm','pixel_mi'],
                zip(['.2','.6','#0072B2','#CC79A7','#56B4E9','#D55E00','#009E73','#E69F00'], 'oxsv*DP^')))


# Numbers in words

def claim(id):
    "One row of the table of claims"
    if id not in CLAIMS.index:
        raise KeyError(f'there is no claim {id}; claims.py says how they are named')
    return CLAIMS.loc[id]

def digits(q): return 2 if q.unit in ('nats','share','skill','of MI') else 1

def signed(v, n=1):
    "With a sign, a real minus, and no sign on what rounds to nothing"
    return f'{v:+.{n}f}'.replace('-', '−') if round(abs(v), n) else f'{0:.{n}f}'

def number(id, how=''):
    "A claim as text"
    q = claim(id)
    if how == 'share': return f'{q.value/100:.3f}'
    if how == 'whole': return f'{q.value:.0f}'
    if how == 'times': return f'{q.value:.2f}'
    if how == 'size': return f'{abs(q.value):.{digits(q)}f}'
    if how in ('value','lo','hi','image_lo','image_hi'): return signed(q[how], digits(q))
    if how == 'p': return f'{q.p_holm:.4f}'.lstrip('0')
    if how == 'span':
        return number(id).lstrip('+−')
    if how: raise KeyError(f'{id} cannot be told as {how}')
    if np.isnan(q.lo): return f'{q.value:.{digits(q)}f}'
    return f'{signed(q.value, digits(q))}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{(q.hi-q.lo)/2:.{digits(q)}f}'

ID = re.compile(r'\{([^{}:]*(?::[^{}:]*/[^{}:]*)?)(?::(\w+))?\}')

def told(text): return ID.sub(lambda m: number(m[1], m[2] or ''), text)

def say(text):
    "A paragraph whose numbers are claims"
    return Markdown(told(text))


# Tables

def against(pairs, dataset, looks=TABLE, n=100, study=''):
    "A row per pair of arms, a column per measure: paired differences in points"
    return pd.DataFrame({
        LOOKS[k]: {name: number(f'{study}{pair}/{dataset}/{n}/{k}') for name,pair in pairs.items()}
        for k in looks}).rename_axis(SETS[dataset])

def by_size(columns, sizes=(50, 100, 200)):
    "A row per data set and size, a column per (pair, measure)"
    def names(pair, k):
        q = claim(f'{pair}/breast/{sizes[0]}/{k}')
        return f'{q.arm} − {q.reference}', ', '.join(LOOKS[k]).replace('clean, ', '').replace('PGD,', 'PGD')
    return pd.DataFrame({
        names(pair, k): {(SETS[d], n): number(f'{pair}/{d}/{n}/{k}') for d in SETS for n in sizes}
        for pair,k in columns})


# Figures

def questions(study=''):
    "The declared questions, a row each"
    t = CLAIMS[CLAIMS.verdict.isin(['better','worse','open'])
               & (CLAIMS.source == ('studies/headline' if not study else f'studies/{study}'))
               & CLAIMS.p_holm.notna()]
    names = dict(auc='AUC', balanced_accuracy='balanced acc.')
    return t.assign(question=[f"{q.arm} − {q.reference}: {names[q.measure]}"
                              + (f', {q.condition}' if q.condition != 'clean' else '')
                              for q in t.itertuples()])

def bars(ax, rows, at, colors, mark='o'):
    "A mark and its interval per row"
    for y,(q,color) in zip(at, zip(rows.itertuples(), colors)):
        ax.plot([q.lo, q.hi], [y, y], color=color, lw=2.6, alpha=.55, solid_capstyle='butt')
        ax.plot(q.value, y, mark, color=color, ms=4.5)

def verdict_colors(rows):
    return [VERDICT.get(q.verdict, '.25' if q.lo*q.hi > 0 else '.62') for q in rows.itertuples()]

def forest(study=''):
    "All declared questions, those about attacks below on a scale of their own, a mark per data set"
    head = questions(study)
    attacked = head.condition.str.startswith('PGD')
    parts = [head[~attacked], head[attacked]]
    with figure_style():
        fig,axs = plt.subplots(2, 1, figsize=(7, 4), height_ratios=[p.question.nunique() for p in parts])
        for ax,part in zip(axs, parts):
            for i,(d,mark) in enumerate(zip(('breastmnist','pneumoniamnist'), 'os')):
                own = part[part.dataset == d]
                bars(ax, own, np.arange(len(own)) + .34*(i-.5), verdict_colors(own), mark)
            names = part.question.drop_duplicates()
            ax.axvline(0, color='.4', lw=.8); ax.grid(False, axis='y')
            ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names)-.5, -.5))
        axs[1].set_xlabel('difference in points, ○ Breast, □ Pneumonia')

def curves(at, xlabel, arms=tuple(HUES)):
    "A panel per data set, a line per arm: balanced accuracy at the conditions named in `at`"
    with figure_style():
        fig,axs = plt.subplots(1, 2, figsize=(5.2, 3.1), sharey=True)
        for ax,d in zip(axs, SETS):
            for arm in arms:
                color,mark = HUES[arm]
                ax.plot(list(at), [claim(f'{arm}/{d}/100/{k}').value for k in at.values()], color=color,
                        marker=mark, ms=4, lw=1.4, label=arm)
            ax.set(title=SETS[d], xlabel=xlabel, xticks=list(at)); ax.axhline(50, color='.6', lw=.8, ls=':')
        axs[0].set_ylabel('balanced accuracy, %')
        fig.legend(*axs[0].get_legend_handles_labels(), loc='outside lower center', ncols=4, columnspacing=1,
                   handletextpad=.4)
