"""The table of models: a kind by the name that `--model` and `replace(model=...)` take."""

from jaxlm.models.gated_deltanet import GatedDeltaNet
from jaxlm.models.gru import GRU
from jaxlm.models.hawk import Hawk
from jaxlm.models.hgrn2 import HGRN2
from jaxlm.models.lstm import LSTM
from jaxlm.models.mingru import MinGRU
from jaxlm.models.minlstm import MinLSTM
from jaxlm.models.mlstm import MLSTM
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Recurrent
from jaxlm.models.slstm import SLSTM

MODELS: dict[str, type[Recurrent]] = {
    "lstm": LSTM,
    "gru": GRU,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "mogrifier": Mogrifier,
    "hawk": Hawk,
    "hgrn2": HGRN2,
    "slstm": SLSTM,
    "mlstm": MLSTM,
    "gated-deltanet": GatedDeltaNet,
}
