"""What every model has: the fields of its config, and the functions of a layer.

A kind is one file beside this one. Letters: `T` steps, `B` batch, `E` input width, `H` hidden
width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import Section, choice, count, flag, number, probability, setting_text
from jaxlm.base.kinds import Kinds
from jaxlm.ops.activations import rms_norm
from jaxlm.ops.dropout import Kept, Mask
from jaxlm.ops.scans import Inputs, Length, Units

Params = dict[str, Any]  # nested dicts and lists of arrays
State = Any  # one layer's carry: a pytree of arrays [B, ...]
Zeros = Callable[..., Array]  # zeros(*shape): zeros [B, *shape] in the parameters' dtype


@dataclass(frozen=True)
class LayerNoise:
    """What a window keeps within one layer. None: everything.

    Attributes:
        kept: Units of h that the gates read, the same at all steps (the field keep_state).
        updated: Units of the cell that are written, the same at all steps (keep_update).
        output: Units of the layer's output, in a block of its cell's.
        feed_forward: Units of the output of a block's feed-forward layer.
        weights: Elements of the recurrent kernel.
    """

    kept: Kept = None
    updated: Kept = None
    output: Mask = None
    feed_forward: Mask = None
    weights: Mask = None


@dataclass(frozen=True)
class Recurrent(Section):
    """An embedding, a stack of recurrent layers of one kind, and a softmax.

    Attributes:
        gates: Matrices side by side in each of a layer's kernels [inputs, gates * H], for Muon.
        kernel_gates: How many matrices the other kernels hold, by the kernel's name.
        head_units: The fewest units of a head; 2 where it is normalised.
        reads_both: Whether a cell behind a block's convolution also reads the convolution's input.
        drops_output_words: Whether a word that is dropped as an input is no output either.
    """

    gates: ClassVar[int]
    kernel_gates: ClassVar[Mapping[str, int]] = {}
    head_units: ClassVar[int] = 1
    reads_both: ClassVar[bool] = False
    drops_output_words: ClassVar[bool] = False
    vocab_size: int = count(
        10_000,
        "most words to keep; the model takes the corpus's own number if smaller",
        "words",
        low=2,
        high=2**24,  # up to there ids are exact as float32
    )
    embedding_size: int = count(200, "width E of the word embedding", "units", low=1)
    hidden_sizes: tuple[int, ...] = count(
        (256, 128), "width H of each recurrent layer, first to last", "units", low=1
    )
    tied: bool = flag(
        False, "use the embedding as the softmax kernel, equally wide (arXiv:1608.05859)"
    )
    skip: bool = flag(
        False,
        "the softmax reads the sum of all layers' outputs (arXiv:1909.01792); all layers must be "
        "equally wide",
        excludes=("block",),
    )
    running_sum: bool = flag(
        False,
        "each layer reads the sum of the outputs of the layers before it, the softmax that of all; "
        "each is dropped out first (arXiv:2211.01848); all layers must be equally wide",
        excludes=("block", "skip"),
    )
    scale_embedding: bool = flag(
        False, "multiply embedded inputs by the root of embedding_size (arXiv:1706.03762)"
    )
    projection: bool = flag(
        False,
        "project the last layer's output to the embedding's width, and what a residual block "
        "begins with from it",
        needs=("tied", "block"),
        excludes=("experts",),
    )
    block: str = choice(
        "plain",
        "what stands around a layer's cell: nothing (plain); x + cell(norm(x)), with a norm before "
        "the softmax (residual); also projections up and down, and a gate beside the cell "
        "(gated; arXiv:2405.04517)",
        ("plain", "residual", "gated"),
    )
    block_norm: str = choice(
        "rms",
        "the norms of blocks: by the root mean square (arXiv:1910.07467) or of a layer "
        "(arXiv:1607.06450), with learned factors",
        ("rms", "layer"),
        needs=("block",),
    )
    inner_size: int = count(
        0,
        "width of the cell in a block, whose outputs a matrix takes to the layer's width (0: the "
        "layer's; in a residual block without a matrix)",
        "units",
        needs=("block",),
    )
    convolution: int = count(
        0,
        "steps that a causal convolution, with SiLU, reads before the cell of a block (0: none)",
        "steps",
        high=1000,
        needs=("block",),
    )
    feed_forward_size: int = count(
        0,
        "width of the feed-forward layer after each cell of a block (0: none)",
        "units",
        needs=("block",),
    )
    activation: str = choice(
        "swiglu",
        "of feed-forward layers: SiLU or GELU, of one product (silu, gelu) or as the gate of "
        "another (swiglu, geglu, geglu-tanh: its approximation; arXiv:2002.05202)",
        ("swiglu", "geglu", "geglu-tanh", "silu", "gelu"),
        needs=("feed_forward_size",),
    )
    experts: int = count(
        0,
        "softmaxes K in a mixture (arXiv:1711.03953; 0: a plain softmax)",
        "softmaxes",
        high=2**20,
    )
    latent_size: int = count(
        0,
        "width that each softmax of the mixture reads (0: the embedding's)",
        "units",
        needs=("experts",),
    )
    mixture_epsilon: float | None = number(
        None,
        "added to the mixture's probability of each word, as the published code does with 1e-8; "
        "the sum is then above one (none: nothing)",
        above=0,
        below=1,
        needs=("experts",),
    )
    sampled_words: int = count(
        0,
        "words, drawn anew each window, that training estimates the softmax's sum from "
        "(arXiv:1412.2007; 0: all words count)",
        "words",
        high=2**24,
        excludes=("experts",),
    )
    sampled_share: float | None = number(
        None,
        "share of all windows, from the start, that sample words; in later ones all words count "
        "(none: all sample)",
        low=0,
        high=1,
        needs=("sampled_words",),
    )
    init_scale: float = number(0.1, "initial parameters are uniform in +-this", low=0)
    torch_init: bool = flag(
        False,
        "layers begin as PyTorch's, uniform in +-1/sqrt(H) (kinds without a product of the state: "
        "+-1/sqrt(inputs)), and the softmax's bias at zero; else kernels begin in +-init_scale",
    )
    keep_embedding: float | None = probability(
        "a unit of an embedded input is kept (none: no dropout there)"
    )
    keep_output: float | None = probability(
        "a unit of a layer's output, in a block of its cell's and of its feed-forward layer's, is "
        "kept (none: no dropout there)"
    )
    locked_dropout: bool = flag(
        False, "one dropout mask for all steps of a window (arXiv:1512.05287)"
    )
    keep_last_output: float | None = probability(
        "a unit of the last layer's output (with skip or running_sum: of the sum) is kept (none: "
        "as keep_output; after blocks and with running_sum: all are kept)"
    )
    keep_words: float | None = probability(
        "a word is kept as an input of the window (none: no dropout)"
    )
    keep_carry: float | None = probability(
        "a row's carry is passed to the next window, not zeroed (none: all are passed; "
        "arXiv:1909.01792)"
    )
    keep_latent: float | None = probability(
        "a unit of a mixture's latent vectors, or of a projection's output, is kept (none: no "
        "dropout)",
        needs=("experts", "projection"),
    )
    dropout_ramp: float | None = number(
        None,
        "share of all windows, from the start, over which dropout grows in a line to its full "
        "share, the carry's apart (none: full from the start; arXiv:1703.06229)",
        above=0,
        high=1,
    )
    dropout_start: float | None = number(
        None,
        "part of the full share that is dropped at first (none: nothing)",
        low=0,
        high=1,
        needs=("dropout_ramp",),
    )
    compute_dtype: str = choice(
        "float32",
        "what training multiplies in; sums, parameters, loss and evaluation stay float32; auto: "
        "bfloat16 where products of the model's shapes are measured to be 15% faster in it",
        ("float32", "bfloat16", "auto"),
    )
    matmul_precision: str = choice(
        "highest",
        "digits that training in float32 multiplies on GPUs and TPUs: highest, all; default, "
        "those that the device is fastest with (TF32, bfloat16); high, between; CPUs and "
        "evaluation keep all",
        ("highest", "high", "default"),
    )

    def init_layer(
        self,
        key: PRNGKeyArray,
        inputs: int,
        width: int,
    ) -> Params:
        """A layer's fresh parameters.

        Args:
            key: For the initial values.
            inputs: Width of what the layer reads.
            width: Width H of the layer.

        Returns:
            Arrays by name. Muon splits a matrix whose name ends in `kernel` into `gates` matrices
            side by side: its shape is [rows, gates * H].
        """
        raise NotImplementedError

    def zero_state(self, zeros: Zeros, width: int) -> State:
        """A layer's carry before the first token.

        Args:
            zeros: Makes zeros of some axes behind that of the batch, in the parameters' dtype.
            width: Width H of the layer.

        Returns:
            A pytree of arrays [B, ...].
        """
        return zeros(width)

    def apply_layer(
        self,
        params: Params,
        x: Inputs,
        state: State,
        noise: LayerNoise,
        length: Length,
    ) -> tuple[Units, State]:
        """Runs a layer over a whole sequence.

        Args:
            params: As `init_layer` makes them.
            x: Inputs. Products multiply in their dtype.
            state: The carry before the first step.
            noise: Masks, for kinds with the fields keep_state and keep_update.
            length: How many steps count, traced; None: all.

        Returns:
            The outputs [T, B, H] in x's dtype, and the carry after the last step that counts.
        """
        raise NotImplementedError

    @property
    def layers(self) -> list["Recurrent"]:
        """Each layer's model, whose kind may be another one's in a mixed stack (`mixed.py`)."""
        return [self] * len(self.hidden_sizes)

    def matrix(
        self,
        key: PRNGKeyArray,
        inputs: int,
        outputs: int,
    ) -> Float[Array, "_ _"]:
        """A fresh matrix [inputs, outputs], uniform in +-layer_scale(inputs)."""
        return uniform(key, self.layer_scale(inputs), inputs, outputs)

    def layer_scale(self, width: int) -> Scalar | float:
        """The largest initial value: init_scale, or 1 / sqrt(width) as PyTorch begins."""
        if self.torch_init:
            return width**-0.5
        return self.init_scale

    def initial_bias(
        self,
        key: PRNGKeyArray,
        gates: int,
        width: int,
    ) -> Float[Array, "{gates*width}"]:
        """A fresh bias: zeros, or with `torch_init` the sum of the two that PyTorch's layers have.

        Args:
            key: For the values; it may serve for a layer's other parameters too.
            gates: How many gates have a bias.
            width: Units of the layer.
        """
        if not self.torch_init:
            return jnp.zeros(gates * width)
        of_x, of_h = torch_biases(key, self.layer_scale(width), gates * width)
        return of_x + of_h

    def memory_biases(self, key: PRNGKeyArray, width: int) -> Float[Array, " {width}"]:
        """Draws what `longest_memory` adds to the biases of forget gates: ln U(1, T_max - 1).

        A gate with the bias b and nothing else keeps a share of sigmoid(b) = 1 - 1 / (e^b + 1): it
        forgets within e^b + 1 steps (Tallec and Ollivier 2018, arXiv:1804.11188).

        Args:
            key: For the values; it may serve for a layer's other parameters too.
            width: Units of the layer.

        Returns:
            Biases; zeros without a `longest_memory`.
        """
        longest = getattr(self, "longest_memory", None)
        if longest is None:
            return jnp.zeros(width)
        times = jax.random.uniform(jax.random.fold_in(key, 1), (width,))
        return jnp.log(1 + times * (longest - 2))

    @property
    def dropout_fields(self) -> list[str]:
        """The fields of dropout that are set, by name, without `keep_carry`."""
        names = [
            item.name
            for item in fields(self)
            if item.name.startswith("keep_") and item.name != "keep_carry"
        ]
        return [name for name in names if getattr(self, name) is not None]

    @property
    def kernel_width(self) -> int:
        """The width that the softmax's kernel reads."""
        if self.experts:
            return self.latent_size or self.embedding_size
        if self.projection:
            return self.embedding_size
        return self.hidden_sizes[-1]

    @property
    def title(self) -> str:
        """The kind's name, and what block its cells stand in."""
        if self.block == "plain":
            return self.kind_name
        return f"{self.kind_name} in {self.block} blocks"

    @property
    def drops_features(self) -> bool:
        """Whether `keep_last_output` falls on what the head reads, not on the last cell's."""
        return self.block != "plain" or self.running_sum

    @property
    def cell_sizes(self) -> tuple[int, ...]:
        """The width of each layer's cell."""
        return tuple(self.inner_size or width for width in self.hidden_sizes)

    @property
    def units(self) -> int:
        """The units of all cells and feed-forward layers, for estimates of memory."""
        return sum(self.cell_sizes) + len(self.hidden_sizes) * self.feed_forward_size

    def normalized(
        self,
        x: Inputs,
        dtype: Any,
        epsilon: float = 1e-5,
    ) -> Inputs:
        """Normalises the inputs of a layer that begins with a norm.

        In a block the inputs are normalised already, so that they are only cast.

        Args:
            x: The layer's inputs.
            dtype: The parameters' dtype.
            epsilon: Added to the mean square.

        Returns:
            The inputs in the dtype, divided by their root mean square.
        """
        x = x.astype(dtype)
        if self.block == "plain":
            return rms_norm(x, epsilon)
        return x

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
        widths = setting_text(self.hidden_sizes)
        heads = getattr(self, "heads", 1)
        if self.tied and self.kernel_width != self.embedding_size:
            name = "the last of hidden_sizes"
            remedy = "set projection, or make them equal"
            if self.experts:
                name = "latent_size"
                remedy = "leave latent_size at 0"
            raise JaxlmError(
                f"tied needs a softmax as wide as the embedding: {name} is {self.kernel_width}, "
                f"embedding_size is {self.embedding_size}; {remedy}"
            )
        if self.dropout_ramp is not None and not self.dropout_fields:
            raise JaxlmError(
                "dropout_ramp makes dropout grow, and none is set: set keep_output or another "
                "keep_..., or leave it out"
            )
        adds_up = {
            "skip": self.skip,
            "running_sum": self.running_sum,
            f"block {self.block}": self.block != "plain",
        }
        for name, is_set in adds_up.items():
            if is_set and len(set(self.hidden_sizes)) > 1:
                raise JaxlmError(
                    f"{name} adds up the layers' outputs, which needs equal widths: hidden_sizes "
                    f"is {widths}"
                )
        equal = self.embedding_size == self.hidden_sizes[0]
        if self.block != "plain" and not (equal or self.projection):
            raise JaxlmError(
                f"block {self.block} adds layers' outputs to the embedded input, which needs equal "
                f"widths: embedding_size is {self.embedding_size}, hidden_sizes is {widths}; make "
                "them equal, or set projection"
            )
        name = "hidden_sizes"
        if self.inner_size:
            name = "inner_size"
            widths = str(self.inner_size)
        for width in self.cell_sizes:
            if width % heads:
                raise JaxlmError(
                    f"{name} is {widths}, which {heads} heads do not divide; set other heads "
                    "or widths"
                )
            if width < heads * self.head_units:
                settings = f"{name} is {widths}"
                remedy = "set larger widths"
                if heads > 1:
                    settings += f" and heads is {heads}"
                    remedy = "set fewer heads or larger widths"
                raise JaxlmError(
                    f"a norm over one unit leaves at most its sign: {settings}; {remedy}"
                )


MODELS = Kinds[Recurrent]()


def head_count() -> Any:
    """The field `heads` of kinds whose layers have heads, each with `width / heads` units."""
    return count(2, "heads of a layer, which share its width equally", "heads", low=1, high=1000)


def weight_drop() -> Any:
    """The field `keep_recurrent_weights`, for kinds with a recurrent kernel.

    That kernel is the parameter `recurrent_kernel`, or else the last H rows of `kernel`.
    """
    return probability(
        "an element of a layer's recurrent kernel is kept, drawn once a window: weight drop "
        "(none: no dropout; arXiv:1708.02182)"
    )


def state_dropout() -> Any:
    """The field `keep_state`, for kinds whose gates can read h with some units dropped."""
    return probability("the gates read a unit of h, drawn once a window (none: no dropout)")


def longest_memory(**relations: Any) -> Any:
    """The field `longest_memory`, for kinds whose forget gate has a bias.

    Args:
        **relations: Other fields of `Spec`.
    """
    return number(
        None,
        "T_max of chrono initialisation: biases of forget gates begin at ln U(1, T_max - 1), which "
        "spreads a layer's memory over so many steps (none: as the kind has them; "
        "arXiv:1804.11188)",
        "steps",
        above=2,
        **relations,
    )


def zeros_of(rows: int, dtype: Any) -> Zeros:
    """Makes what `Recurrent.zero_state` takes.

    Args:
        rows: Rows B of the batch.
        dtype: The parameters' dtype.
    """
    return lambda *shape: jnp.zeros((rows, *shape), dtype)


def uniform(
    key: PRNGKeyArray,
    scale: Scalar | float,
    *shape: int,
) -> Float[Array, " ..."]:
    """Draws initial values.

    Args:
        key: For the values.
        scale: The largest value.
        *shape: The array's shape.

    Returns:
        An array, uniform in +-scale.
    """
    return scale * jax.random.uniform(key, shape, minval=-1.0)


def torch_biases(
    key: PRNGKeyArray,
    scale: Scalar | float,
    size: int,
) -> tuple[Float[Array, " {size}"], Float[Array, " {size}"]]:
    """Draws the two biases that PyTorch's recurrent layers begin with.

    Args:
        key: For the values; it may serve for a layer's other parameters too.
        scale: The largest value.
        size: Entries of each bias.

    Returns:
        The bias of x and that of h, uniform in +-scale.
    """
    of_x, of_h = jax.random.split(jax.random.fold_in(key, 0))
    return uniform(of_x, scale, size), uniform(of_h, scale, size)
