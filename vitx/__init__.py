"See which pixels made a Vision Transformer predict a class"
__version__ = "0.1.0"

def __getattr__(name): # loaded when asked for, so that `import vitx` stays quick
    if name == 'Explainer':
        from .explain import Explainer
        from .export import web   # adds `trace`, `export` and `export_web`
        return Explainer
    if name == 'standard_transform':
        from .model.classifiers import standard_transform
        return standard_transform
    if name == 'compare':
        from .view.compare import compare
        return compare
    raise AttributeError(f"module 'vitx' has no attribute {name!r}")
