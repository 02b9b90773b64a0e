"""The kinds of models, each a frozen dataclass of its shapes (static) and numbers (traced)."""

from dataclasses import dataclass

from jaxlm.config.fields import choice, count, counts, flag, number
from jaxlm.errors import JaxlmError


@dataclass(frozen=True)
class Recurrent:
    """What every model has: an embedding, a stack of recurrent layers and a softmax."""

    vocab_size: int = count(10_000, "most words to keep; the model takes the corpus's own number if smaller", "words",
                            low=2)
    embedding_size: int = count(200, "width E of the word embedding", "units", low=1)
    hidden_sizes: tuple[int, ...] = counts((256, 128), "width H of each recurrent layer, first to last", "units")
    tied: bool = flag(False, "use the embedding as the softmax kernel (arXiv:1608.05859); the last layer must be as "
                             "wide as the embedding")
    init_scale: float = number(0.1, "initial parameters are uniform in +-this", low=0)
    keep_embedding: float | None = number(None, "probability that a unit of an embedded input is kept (none: no "
                                                "dropout there)", above=0, high=1)
    keep_output: float | None = number(None, "probability that a unit of a layer's output is kept (none: no dropout "
                                             "there)", above=0, high=1)
    compute_dtype: str = choice("float32", "what training multiplies in; sums, parameters, loss and evaluation stay "
                                           "float32", ("float32", "bfloat16"))

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
        if self.tied and self.hidden_sizes[-1] != self.embedding_size:
            raise JaxlmError(f"tied needs a last layer as wide as the embedding: the last of hidden_sizes is "
                             f"{self.hidden_sizes[-1]}, embedding_size is {self.embedding_size}")


@dataclass(frozen=True)
class LSTM(Recurrent):
    """Long short-term memory, as TensorFlow's BasicLSTMCell (Zaremba et al. 2014, arXiv:1409.2329)."""

    forget_bias: float = number(0.0, "added to the forget gate before its sigmoid")
    recurrent_op: str = choice("scan", "what trains the layers: scan, or cudnn on a CUDA device", ("scan", "cudnn"))

    def check(self) -> None:
        super().check()
        if (self.recurrent_op, self.compute_dtype) == ("cudnn", "bfloat16"):
            raise JaxlmError("recurrent_op cudnn computes in float32, and compute_dtype is bfloat16: use scan")


@dataclass(frozen=True)
class GRU(Recurrent):
    """Gated recurrent unit, the variant of cuDNN and PyTorch (Cho et al. 2014, arXiv:1406.1078)."""


@dataclass(frozen=True)
class MinGRU(Recurrent):
    """Minimal GRU, whose gates depend on the input alone (Feng et al. 2024, arXiv:2410.01201)."""


MODELS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "mingru": MinGRU}
