"""Pages that say what happened: of one run, and of a study.

In reading order: `figures` (one style, and a figure with its words), `words` (how numbers and conditions are
written), `page` (templates, style sheets, pictures); then the page of a run (`run_data`, `run_figures`,
`run_gallery`, `run_python`, `run_summary`, `run`), and that of a study (`study_data`, `study_figures`,
`study_tables`, `study`).
`demo` writes folders with invented numbers, to draw a page without a training.
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    'figures': ['PALETTE', 'Plot', 'figure_style'],
    'run_data': ['read_run', 'run_finding', 'run_caution'],
    'run': ['write_report'],
    'study_data': ['findings', 'study_finding', 'study_caution', 'verdicts'],
    'study': ['study_report'],
})
