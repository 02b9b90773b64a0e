"""The table of published kinds, by the names that `--model` and `--optimizer` take."""

from jaxlm.models.recurrent import Recurrent
from jaxlm.optimizers.optimizer import Optimizer
from jaxlm.published.awd_lstm import PublishedASGD
from jaxlm.published.lamb import LambAdam, LambMogrifier

MODELS: dict[str, type[Recurrent]] = {"lamb-mogrifier": LambMogrifier}
OPTIMIZERS: dict[str, type[Optimizer]] = {"awd-lstm": PublishedASGD, "lamb-adam": LambAdam}
