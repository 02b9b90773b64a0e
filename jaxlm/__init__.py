"""jaxlm: recurrent language models in JAX. Names are loaded on first use, so that a command's help is instant."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm.config.config import Config as Config
    from jaxlm.config.config import Recipe as Recipe
    from jaxlm.config.config import preset as preset
    from jaxlm.config.protocols import Cache as Cache
    from jaxlm.config.protocols import Dynamic as Dynamic
    from jaxlm.config.protocols import MCDropout as MCDropout
    from jaxlm.config.protocols import Temperature as Temperature
    from jaxlm.config.settings import DataConfig as DataConfig
    from jaxlm.config.settings import TrainConfig as TrainConfig
    from jaxlm.data.corpora import load_corpus as load_corpus
    from jaxlm.data.corpus import Corpus as Corpus
    from jaxlm.data.prepared import prepare as prepare
    from jaxlm.data.vocab import Vocab as Vocab
    from jaxlm.errors import JaxlmError as JaxlmError
    from jaxlm.interop.exporting import export_model as export_model
    from jaxlm.interop.importing import import_model as import_model
    from jaxlm.interop.tensorflow import from_tensorflow as from_tensorflow
    from jaxlm.interop.tensorflow import to_tensorflow as to_tensorflow
    from jaxlm.models.gated_deltanet import GatedDeltaNet as GatedDeltaNet
    from jaxlm.models.gru import GRU as GRU
    from jaxlm.models.hawk import Hawk as Hawk
    from jaxlm.models.hgrn2 import HGRN2 as HGRN2
    from jaxlm.models.lstm import LSTM as LSTM
    from jaxlm.models.mingru import MinGRU as MinGRU
    from jaxlm.models.mingru import MinLSTM as MinLSTM
    from jaxlm.models.mlstm import MLSTM as MLSTM
    from jaxlm.models.mogrifier import Mogrifier as Mogrifier
    from jaxlm.models.slstm import SLSTM as SLSTM
    from jaxlm.models.stack import init_params as init_params
    from jaxlm.optimizers.adamw import AdamW as AdamW
    from jaxlm.optimizers.descent import ASGD as ASGD
    from jaxlm.optimizers.descent import SGD as SGD
    from jaxlm.optimizers.muon import Muon as Muon
    from jaxlm.runs.loading import evaluate as evaluate
    from jaxlm.runs.loading import load as load
    from jaxlm.runs.loading import tune_protocol as tune_protocol
    from jaxlm.runs.trainer import TrainResult as TrainResult
    from jaxlm.runs.trainer import train as train
    from jaxlm.schedules import Cosine as Cosine
    from jaxlm.schedules import Linear as Linear
    from jaxlm.schedules import Piecewise as Piecewise
    from jaxlm.schedules import Plateau as Plateau
    from jaxlm.scoring.comparison import compare as compare
    from jaxlm.scoring.language_model import LanguageModel as LanguageModel
    from jaxlm.scoring.stream import eval_step as eval_step
    from jaxlm.sweeps.results import MemberResult as MemberResult
    from jaxlm.sweeps.results import Sweep as Sweep
    from jaxlm.sweeps.results import Trial as Trial
    from jaxlm.sweeps.supervisor import sweep as sweep
    from jaxlm.training.step import Metrics as Metrics
    from jaxlm.training.step import TrainState as TrainState
    from jaxlm.training.step import Window as Window
    from jaxlm.training.step import init_state as init_state
    from jaxlm.training.step import train_step as train_step
    from jaxlm.training.step import train_windows as train_windows

_HOME = {
    "jaxlm.config.config": ("Config", "Recipe", "preset"),
    "jaxlm.models.gru": ("GRU",),
    "jaxlm.models.hawk": ("Hawk",),
    "jaxlm.models.hgrn2": ("HGRN2",),
    "jaxlm.models.lstm": ("LSTM",),
    "jaxlm.models.mingru": ("MinGRU", "MinLSTM"),
    "jaxlm.models.mogrifier": ("Mogrifier",),
    "jaxlm.models.slstm": ("SLSTM",),
    "jaxlm.models.mlstm": ("MLSTM",),
    "jaxlm.models.gated_deltanet": ("GatedDeltaNet",),
    "jaxlm.optimizers.descent": ("SGD", "ASGD"),
    "jaxlm.optimizers.adamw": ("AdamW",),
    "jaxlm.optimizers.muon": ("Muon",),
    "jaxlm.config.protocols": ("Cache", "Dynamic", "MCDropout", "Temperature"),
    "jaxlm.schedules": ("Cosine", "Linear", "Piecewise", "Plateau"),
    "jaxlm.config.settings": ("DataConfig", "TrainConfig"),
    "jaxlm.data.corpora": ("load_corpus",),
    "jaxlm.data.corpus": ("Corpus",),
    "jaxlm.data.prepared": ("prepare",),
    "jaxlm.data.vocab": ("Vocab",),
    "jaxlm.errors": ("JaxlmError",),
    "jaxlm.interop.exporting": ("export_model",),
    "jaxlm.interop.importing": ("import_model",),
    "jaxlm.interop.tensorflow": ("from_tensorflow", "to_tensorflow"),
    "jaxlm.models.stack": ("init_params",),
    "jaxlm.runs.loading": ("evaluate", "load", "tune_protocol"),
    "jaxlm.runs.trainer": ("TrainResult", "train"),
    "jaxlm.scoring.comparison": ("compare",),
    "jaxlm.scoring.language_model": ("LanguageModel",),
    "jaxlm.scoring.stream": ("eval_step",),
    "jaxlm.sweeps.results": ("MemberResult", "Sweep", "Trial"),
    "jaxlm.sweeps.supervisor": ("sweep",),
    "jaxlm.training.step": ("Metrics", "TrainState", "Window", "init_state", "train_step", "train_windows"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
