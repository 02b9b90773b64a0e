"""jaxlm: recurrent language models in JAX. Names are loaded on first use, so that a command's help is instant."""

import re
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
    from jaxlm.data.corpora import prepare as prepare
    from jaxlm.data.corpus import Corpus as Corpus
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
    from jaxlm.models.mogrifier import Mogrifier as Mogrifier
    from jaxlm.models.stack import init_params as init_params
    from jaxlm.models.xlstm import MLSTM as MLSTM
    from jaxlm.models.xlstm import SLSTM as SLSTM
    from jaxlm.optimizers.adamw import AdamW as AdamW
    from jaxlm.optimizers.descent import ASGD as ASGD
    from jaxlm.optimizers.descent import SGD as SGD
    from jaxlm.optimizers.muon import Muon as Muon
    from jaxlm.report.sweep_results import MemberResult as MemberResult
    from jaxlm.report.sweep_results import Sweep as Sweep
    from jaxlm.report.sweep_results import Trial as Trial
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
    from jaxlm.sweeps.supervisor import sweep as sweep
    from jaxlm.training.step import Metrics as Metrics
    from jaxlm.training.step import TrainState as TrainState
    from jaxlm.training.step import Window as Window
    from jaxlm.training.step import init_state as init_state
    from jaxlm.training.step import train_step as train_step
    from jaxlm.training.step import train_windows as train_windows

# Where each name is loaded from, as the imports above, which only type checkers run, have it.
_SOURCE = __spec__.loader.get_data(__file__).decode()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
_MODULE_OF = {
    name: module
    for module, name in re.findall(r"^    from (\S+) import (\w+) as", _SOURCE, re.MULTILINE)
}
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
