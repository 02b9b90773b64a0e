"""jaxlm: recurrent language models in JAX. Names load on first use, so that a command's help is instant."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm.config import Config as Config
    from jaxlm.config import DataConfig as DataConfig
    from jaxlm.config import ModelConfig as ModelConfig
    from jaxlm.config import TrainConfig as TrainConfig
    from jaxlm.config import preset as preset
    from jaxlm.data.corpora import Corpus as Corpus
    from jaxlm.data.corpora import load_corpus as load_corpus
    from jaxlm.data.stream import prepare as prepare
    from jaxlm.data.vocab import Vocab as Vocab
    from jaxlm.errors import JaxlmError as JaxlmError
    from jaxlm.language_model import LanguageModel as LanguageModel
    from jaxlm.language_model import evaluate as evaluate
    from jaxlm.language_model import load as load
    from jaxlm.models.lstm import init_params as init_params
    from jaxlm.models.tensorflow import from_tensorflow as from_tensorflow
    from jaxlm.models.tensorflow import to_tensorflow as to_tensorflow
    from jaxlm.optim import Hyper as Hyper
    from jaxlm.step import TrainState as TrainState
    from jaxlm.step import Window as Window
    from jaxlm.step import eval_step as eval_step
    from jaxlm.step import init_state as init_state
    from jaxlm.step import train_step as train_step
    from jaxlm.step import train_windows as train_windows
    from jaxlm.sweep import sweep as sweep
    from jaxlm.train import TrainResult as TrainResult
    from jaxlm.train import train as train
    from jaxlm.trials import Sweep as Sweep
    from jaxlm.trials import Trial as Trial

_HOME = {
    "jaxlm.config": ("Config", "DataConfig", "ModelConfig", "TrainConfig", "preset"),
    "jaxlm.data.corpora": ("Corpus", "load_corpus"),
    "jaxlm.data.stream": ("prepare",),
    "jaxlm.data.vocab": ("Vocab",),
    "jaxlm.errors": ("JaxlmError",),
    "jaxlm.language_model": ("LanguageModel", "evaluate", "load"),
    "jaxlm.models.lstm": ("init_params",),
    "jaxlm.models.tensorflow": ("from_tensorflow", "to_tensorflow"),
    "jaxlm.optim": ("Hyper",),  # where it is made a pytree
    "jaxlm.step": ("TrainState", "Window", "eval_step", "init_state", "train_step", "train_windows"),
    "jaxlm.sweep": ("sweep",),
    "jaxlm.train": ("TrainResult", "train"),
    "jaxlm.trials": ("Sweep", "Trial"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


class _Package(ModuleType):
    """`jaxlm.train` and `jaxlm.evaluate` are functions, and the modules of these names do not hide them."""

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _MODULE_OF):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *__all__})


sys.modules[__name__].__class__ = _Package
