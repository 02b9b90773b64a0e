"""jaxlm: recurrent language models in JAX.

Public names are imported on first use, so that a command's help is instant. Type checkers read them
in `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

_NAMES = {  # the public names that each module defines
    "jaxlm.config.config": (
        "Config",
        "preset",
    ),
    "jaxlm.config.protocols": (
        "Cache",
        "Dynamic",
        "MCDropout",
        "Temperature",
    ),
    "jaxlm.config.recipe": ("Recipe",),
    "jaxlm.config.settings": (
        "DataConfig",
        "TrainConfig",
    ),
    "jaxlm.data.corpora": (
        "load_corpus",
        "prepare",
    ),
    "jaxlm.data.corpus": ("Corpus",),
    "jaxlm.data.vocab": ("Vocab",),
    "jaxlm.base.errors": ("JaxlmError",),
    "jaxlm.interop.exporting": ("export_model",),
    "jaxlm.interop.importing": ("import_model",),
    "jaxlm.interop.tensorflow": (
        "from_tensorflow",
        "to_tensorflow",
    ),
    "jaxlm.models.attention": ("Attention",),
    "jaxlm.models.gated_deltanet": ("GatedDeltaNet",),
    "jaxlm.models.gru": ("GRU",),
    "jaxlm.models.hawk": ("Hawk",),
    "jaxlm.models.hgrn2": ("HGRN2",),
    "jaxlm.models.lstm": ("LSTM",),
    "jaxlm.models.mingru": (
        "MinGRU",
        "MinLSTM",
    ),
    "jaxlm.models.mogrifier": ("Mogrifier",),
    "jaxlm.models.rlstm": ("RLSTM",),
    "jaxlm.models.stack": ("init_params",),
    "jaxlm.models.xlstm": (
        "MLSTM",
        "SLSTM",
    ),
    "jaxlm.optimizers.adamw": ("AdamW",),
    "jaxlm.optimizers.descent": (
        "ASGD",
        "SGD",
    ),
    "jaxlm.optimizers.muon": ("Muon",),
    "jaxlm.report.sweep_results": (
        "MemberResult",
        "Sweep",
        "Trial",
    ),
    "jaxlm.runs.loading": (
        "evaluate",
        "load",
        "tune_protocol",
    ),
    "jaxlm.runs.ngram_models": ("ngram",),
    "jaxlm.runs.trainer": (
        "TrainResult",
        "train",
    ),
    "jaxlm.schedules": (
        "Cosine",
        "Linear",
        "Piecewise",
        "Plateau",
    ),
    "jaxlm.scoring.comparison": ("compare",),
    "jaxlm.scoring.language_model": ("LanguageModel",),
    "jaxlm.scoring.stream": ("eval_step",),
    "jaxlm.sweeps.supervisor": ("sweep",),
    "jaxlm.training.step": (
        "Metrics",
        "TrainState",
        "Window",
        "init_state",
        "train_step",
        "train_windows",
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imports a public name, and keeps it as an attribute."""
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
