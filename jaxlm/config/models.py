"""The kinds of models, each a frozen dataclass of its shapes (static) and numbers (traced)."""

from dataclasses import dataclass, fields
from typing import ClassVar

from jaxlm.config.fields import choice, count, counts, flag, number
from jaxlm.errors import JaxlmError


@dataclass(frozen=True)
class Recurrent:
    """What every model has: an embedding, a stack of recurrent layers and a softmax."""

    recurrent_gates: ClassVar[int] = 0  # matrices of the recurrent kernel [H, gates * H]; 0: it has none
    drops_state: ClassVar[bool] = False  # whether keep_state can be given
    vocab_size: int = count(
        10_000, "most words to keep; the model takes the corpus's own number if smaller", "words", low=2, high=2**24
    )  # (up to there ids are exact as float32)
    embedding_size: int = count(200, "width E of the word embedding", "units", low=1)
    hidden_sizes: tuple[int, ...] = counts((256, 128), "width H of each recurrent layer, first to last", "units")
    tied: bool = flag(
        False,
        "use the embedding as the softmax kernel (arXiv:1608.05859); the last layer must be as "
        "wide as the embedding, unless there is a projection or a mixture",
    )
    skip: bool = flag(
        False,
        "the softmax reads the sum of the layers' outputs, not the last one's (arXiv:1909.01792); "
        "all layers must be equally wide",
    )
    scale_embedding: bool = flag(False, "multiply embedded inputs by the root of embedding_size (arXiv:1706.03762)")
    projection: bool = flag(False, "with tied: project the last layer's output to the embedding's width")
    experts: int = count(0, "softmaxes K in a mixture (arXiv:1711.03953; 0: a plain softmax)", "softmaxes", high=2**20)
    latent_size: int = count(
        0, "width of the vector that each softmax of the mixture reads (0: the embedding's)", "units"
    )
    mixture_epsilon: float | None = number(
        None,
        "added to the mixture's probability of each word, as the published "
        "code does with 1e-8; the sum is then above one (none: nothing)",
        above=0,
        below=1,
    )
    sampled_words: int = count(
        0,
        "words, drawn anew each window, that training estimates the softmax's sum from "
        "(arXiv:1412.2007; 0: all words count)",
        "words",
        high=2**24,
    )
    sampled_share: float | None = number(
        None,
        "share of all windows, from the start, in which it does; in the others all words count (none: in all)",
        low=0,
        high=1,
    )
    init_scale: float = number(0.1, "initial parameters are uniform in +-this", low=0)
    torch_init: bool = flag(
        False,
        "the layers begin uniform in +-1/sqrt(H) and the softmax's bias at zero, as "
        "PyTorch's do; else all in +-init_scale, and the layers' biases at zero",
    )
    keep_embedding: float | None = number(
        None, "probability that a unit of an embedded input is kept (none: no dropout there)", above=0, high=1
    )
    keep_output: float | None = number(
        None, "probability that a unit of a layer's output is kept (none: no dropout there)", above=0, high=1
    )
    locked_dropout: bool = flag(
        False, "one dropout mask for all steps of a window in place of one a step (arXiv:1512.05287)"
    )
    keep_last_output: float | None = number(
        None, "probability that a unit of the last layer's output is kept (none: as keep_output)", above=0, high=1
    )
    keep_words: float | None = number(
        None,
        "probability that a word is kept as an input: dropped, its row of the "
        "embedding reads as zero for the window (none: no dropout)",
        above=0,
        high=1,
    )
    keep_recurrent_weights: float | None = number(
        None,
        "probability that an element of a layer's recurrent kernel is "
        "kept, drawn once a window: weight drop (none: no dropout; "
        "arXiv:1708.02182)",
        above=0,
        high=1,
    )
    keep_state: float | None = number(
        None, "probability that the gates read a unit of h, drawn once a window (none: no dropout)", above=0, high=1
    )
    keep_carry: float | None = number(
        None,
        "probability that a row's carry goes on into the next window: else it "
        "begins from zero (none: it always goes on; arXiv:1909.01792)",
        above=0,
        high=1,
    )
    keep_latent: float | None = number(
        None,
        "probability that a unit of a mixture's latent vectors, or of a "
        "projection's output, is kept (none: no dropout)",
        above=0,
        high=1,
    )
    dropout_ramp: float | None = number(
        None,
        "share of all windows, from the start, over which all that is dropped "
        "grows in a line to its full share, the carry apart (none: full from the "
        "start; arXiv:1703.06229)",
        above=0,
        high=1,
    )
    dropout_start: float | None = number(
        None, "with dropout_ramp: the part of its full share that is dropped at first (none: nothing)", low=0, high=1
    )
    compute_dtype: str = choice(
        "float32",
        "what training multiplies in; sums, parameters, loss and evaluation stay "
        "float32; auto: bfloat16 where the device multiplies it by itself",
        ("float32", "bfloat16", "auto"),
    )

    @property
    def growing(self) -> list[str]:
        """The names of the probabilities, of those given, that `dropout_ramp` acts on."""
        names = (item.name for item in fields(self) if item.name.startswith("keep_") and item.name != "keep_carry")
        return [name for name in names if getattr(self, name) is not None]

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
        last, latent = self.hidden_sizes[-1], self.latent_size
        if self.projection and not self.tied:
            raise JaxlmError(
                "projection leads to the embedding as the softmax kernel, and tied is false: set tied, "
                "or leave projection out"
            )
        if self.projection and self.experts:
            raise JaxlmError(
                f"projection and experts exclude each other: a mixture's own layer leads to the "
                f"embedding's width, and experts is {self.experts}; leave projection out"
            )
        if self.tied and not self.projection and not self.experts and last != self.embedding_size:
            raise JaxlmError(
                f"tied needs a last layer as wide as the embedding: the last of hidden_sizes is {last}, "
                f"embedding_size is {self.embedding_size}; set projection, or make them equal"
            )
        if self.tied and self.experts and latent not in (0, self.embedding_size):
            raise JaxlmError(
                f"tied needs latent vectors as wide as the embedding: latent_size is {latent}, "
                f"embedding_size is {self.embedding_size}; leave latent_size at 0"
            )
        for name, absent in (("latent_size", 0), ("mixture_epsilon", None), ("keep_latent", None)):
            allowed = self.experts or (name == "keep_latent" and self.projection)
            if not allowed and getattr(self, name) != absent:
                raise JaxlmError(
                    f"{name} belongs to a mixture of softmaxes, and experts is 0: set experts, or leave {name} out"
                )
        if self.sampled_words and self.experts:
            raise JaxlmError(
                f"sampled_words estimates the sum of one softmax, and experts is {self.experts}: leave "
                f"one of the two at 0"
            )
        if self.sampled_share is not None and not self.sampled_words:
            raise JaxlmError(
                "sampled_share says how long words are sampled, and sampled_words is 0: set "
                "sampled_words, or leave sampled_share out"
            )
        if self.dropout_ramp is not None and not self.growing:
            raise JaxlmError(
                "dropout_ramp says how long dropout grows, and nothing is dropped: set keep_output or "
                "another keep_..., or leave dropout_ramp out"
            )
        if self.dropout_start is not None and self.dropout_ramp is None:
            raise JaxlmError(
                f"dropout_start is where the growing dropout of dropout_ramp begins, and dropout_ramp is "
                f"none: set dropout_ramp, or leave dropout_start {self.dropout_start:g} out"
            )
        if self.keep_recurrent_weights is not None and not self.recurrent_gates:
            raise JaxlmError(
                f"keep_recurrent_weights drops elements of a recurrent kernel, and a model of the kind "
                f"{type(self).__name__} has none: leave it at none, or take the model lstm, gru or "
                "mogrifier"
            )
        if self.keep_state is not None and not self.drops_state:
            raise JaxlmError(
                f"keep_state drops units of an LSTM's h, and the model is of the kind "
                f"{type(self).__name__}: leave it at none, or take the model lstm or mogrifier"
            )
        if self.skip and len(set(self.hidden_sizes)) > 1:
            raise JaxlmError(
                f"skip adds up the layers' outputs, which needs equal widths: hidden_sizes is "
                f"{','.join(map(str, self.hidden_sizes))}"
            )


@dataclass(frozen=True)
class LSTM(Recurrent):
    """Long short-term memory, as TensorFlow's BasicLSTMCell (Zaremba et al. 2014, arXiv:1409.2329)."""

    recurrent_gates: ClassVar[int] = 4
    drops_state: ClassVar[bool] = True
    forget_bias: float = number(0.0, "added to the forget gate before its sigmoid")


@dataclass(frozen=True)
class GRU(Recurrent):
    """Gated recurrent unit, the variant of cuDNN and PyTorch (Cho et al. 2014, arXiv:1406.1078)."""

    recurrent_gates: ClassVar[int] = 3


@dataclass(frozen=True)
class MinGRU(Recurrent):
    """Minimal GRU, whose gates depend on the input alone (Feng et al. 2024, arXiv:2410.01201)."""


@dataclass(frozen=True)
class Mogrifier(Recurrent):
    """LSTM whose input and state gate each other before its gates see them (Melis et al. 2020, arXiv:1909.01792)."""

    drops_state: ClassVar[bool] = True
    rounds: int = count(5, "how often input and state gate each other, the input first (0: an LSTM)", "rounds")
    rank: int = count(0, "rank of the matrices of a round, as products of two (0: full matrices)")
    input_gate: str = choice(
        "free",
        "what the input gate i is, given the forget gate f: free, capped (min(i, 1 - f)) or coupled (1 - f)",
        ("free", "capped", "coupled"),
    )
    forget_bias: float = number(0.0, "the forget gates' bias at the start; it is trained")
    cell_clip: float | None = number(
        None, "clips the cell state that is carried to the next step to +-this (none: no clipping)", above=0
    )
    layer_norm: bool = flag(False, "normalise the gates and the cell over a layer's units (arXiv:1607.06450)")
    keep_update: float | None = number(
        None,
        "probability that a unit of what is written to the cell, tanh(j), is "
        "kept, drawn once a window (none: no dropout; arXiv:1603.05118)",
        above=0,
        high=1,
    )
    model_compatibility: str = choice(
        "none",
        "whose quirks of dropout to repeat: none, or lamb, the published code (docs/mogrifier.md)",
        ("none", "lamb"),
    )

    @property
    def recurrent_gates(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A coupled input gate has no matrix of its own."""
        return 3 if self.input_gate == "coupled" else 4

    def check(self) -> None:
        super().check()
        widths = (self.embedding_size, *self.hidden_sizes)
        if self.rank > min(widths):
            name = "embedding_size" if self.embedding_size == min(widths) else "hidden_sizes"
            raise JaxlmError(
                f"rank must be at most the width of what a round gates: rank is {self.rank}, and {name} "
                f"has {min(widths)}; rank 0 is full matrices"
            )


MODELS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "mingru": MinGRU, "mogrifier": Mogrifier}
