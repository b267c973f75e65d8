"""Synthetic medical images: does training on them help, and are they any good?"""
import lazy_loader

__version__ = "0.2.0.dev0"

# The front door: what most programs need. Nothing is loaded before it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=['core', 'data', 'models', 'targeting', 'robustness', 'deployment', 'generation', 'pool',
                'experiments', 'audit', 'reports'],
    submod_attrs=dict(
        core=['InputError'],
        data=['ImageData', 'Split', 'image_dls', 'load_data', 'phantom', 'subset'],
        models=['load_autoencoder', 'load_classifier', 'make_classifier', 'train_autoencoder', 'train_classifier'],
        targeting=['TSynD', 'synthesize'],
        robustness=['attack_suite', 'cam', 'corruption_table', 'robustness_table'],
        experiments=['RunConfig', 'StudyConfig', 'read_study', 'run', 'run_study']))
