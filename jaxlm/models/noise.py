"""What is random in a window, as a value: drawn here, in one place, and given to the model.

So a model is a pure function, which a test can feed recorded masks, and one device draws what many would. `model` is
the config's model. Letters: `T` steps, `B` batch, `E` embedding width, `H` hidden width, `V` vocabulary, `G` gates.
"""

from dataclasses import dataclass, replace
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from jaxlm.models.recurrent import Params, Recurrent, State
from jaxlm.ops.dropout import apply_mask, draw_mask
from jaxlm.ops.sampled_softmax import Drawn, draw_words

Mask = Bool[Array, "..."] | None  # true where something is kept; None: nothing is dropped
Keep = Scalar | float | None

# Numbers folded into the window's key, one for each kind of noise; 0 is the embedded input's, 1 + i layer i's output's.
_WORDS, _RECURRENT_WEIGHTS, _STATES, _LATENTS, _UPDATES, _DRAWN, _CARRY = range(2**20, 2**20 + 7)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """What a window keeps; as it is by default, everything. Where a tuple is empty nothing is dropped in any layer."""

    embedding: Bool[Array, "_ B E"] | None = (
        None  # units of the embedded input; locked, [1, B, E] for all steps
    )
    outputs: tuple[Mask, ...] = ()  # for each layer, units of its output [T, B, H] or [1, B, H]
    words: Bool[Array, "V 1"] | None = None  # words that an input may read
    recurrent_weights: tuple[
        Mask, ...
    ] = ()  # for each layer, elements of its recurrent kernel [H, G * H]
    states: tuple[
        Mask, ...
    ] = ()  # for each layer, units of the h that its gates read of the step before [B, H]
    latents: Bool[Array, "_ B KD"] | None = (
        None  # units of a mixture's latent vectors or of a projection's output
    )
    updates: tuple[Mask, ...] = ()  # for each layer, units of what is written to its cell [B, H]
    carry: Bool[Array, "B 1"] | None = None  # rows whose carry goes on
    drawn: Drawn | None = (
        None  # the words that the softmax's sum is estimated from; None: all of them count
    )


def is_random(model: Recurrent) -> bool:
    """Whether `draw_noise` draws anything."""
    return bool(model.growing) or model.keep_carry is not None or model.sampled_words > 0


def growing(model: Recurrent, step: Scalar, total: Scalar | int) -> Recurrent:
    """The model with the dropout that `dropout_ramp` gives at a step of `total` windows (Morerio et al. 2017)."""
    if model.dropout_ramp is None:
        return model
    grown = jnp.minimum(step / (model.dropout_ramp * total), 1)
    start = 0 if model.dropout_start is None else model.dropout_start
    share = start + (1 - start) * grown
    return replace(
        model, **{name: 1 - share * (1 - getattr(model, name)) for name in model.growing}
    )


def sums_all_words(model: Recurrent, step: Scalar | int, total: Scalar | int) -> Scalar | bool:
    """Whether a window's softmax sums all words: they are no more than are drawn, or the share of windows is over."""
    drawn = model.sampled_words >= model.vocab_size
    if model.sampled_share is None:
        return drawn
    return drawn | (step >= model.sampled_share * total)


def draw_noise(model: Recurrent, key: PRNGKeyArray | None, steps: int, rows: int) -> Noise:
    """Draws what is random in one window.

    A row's masks are drawn by a key of the row; words and weights have one mask for all rows. The key is the window's,
    and may be None where nothing is random.
    """
    if key is None:
        return Noise()
    steps = 1 if model.locked_dropout else steps
    layers = tuple(enumerate(model.hidden_sizes))
    keep_weights, keep_state, keep_update = (  # a kind without the field drops nothing there
        getattr(model, name, None)
        for name in ("keep_recurrent_weights", "keep_state", "keep_update")
    )

    def folded(*places: int) -> PRNGKeyArray:
        return reduce(jax.random.fold_in, places, key)

    def units(keep: Keep, width: int, *places: int, steps: int = steps) -> Mask:
        if keep is None:
            return None
        return draw_mask(folded(*places), keep, (steps, rows, width))

    def for_all_steps(keep: Keep, width: int, *places: int) -> Mask:
        mask = units(keep, width, *places, steps=1)
        if mask is None:
            return None
        return mask[0]

    def for_all_rows(keep: Keep, shape: tuple[int, int], *places: int) -> Mask:
        if keep is None:
            return None
        return jax.random.bernoulli(folded(*places), keep, shape)

    drawn = None
    if model.sampled_words:
        drawn = draw_words(
            jax.random.uniform(folded(_DRAWN)), model.vocab_size, model.sampled_words
        )
    return Noise(
        embedding=units(model.keep_embedding, model.embedding_size, 0),
        outputs=tuple(
            units(keep_of_output(model, layer), width, layer + 1) for layer, width in layers
        ),
        words=for_all_rows(model.keep_words, (model.vocab_size, 1), _WORDS, 0),
        recurrent_weights=tuple(
            for_all_rows(keep_weights, (width, model.gates * width), _RECURRENT_WEIGHTS, layer)
            for layer, width in layers
        ),
        states=tuple(for_all_steps(keep_state, width, _STATES, layer) for layer, width in layers),
        latents=units(model.keep_latent, max(model.experts, 1) * model.kernel_width, _LATENTS),
        updates=tuple(
            for_all_steps(keep_update, width, _UPDATES, layer) for layer, width in layers
        ),
        carry=for_all_steps(model.keep_carry, 1, _CARRY, 0),
        drawn=drawn,
    )


def keep_of_output(model: Recurrent, layer: int) -> Keep:
    """The probability that a unit of a layer's output is kept."""
    last = layer == len(model.hidden_sizes) - 1
    if last and model.keep_last_output is not None:
        return model.keep_last_output
    return model.keep_output


def drop_weights(model: Recurrent, kept: Mask, layer: Params) -> Params:
    """A layer's parameters with weight drop: of `recurrent_kernel`, or else of the rows of `kernel` that read h."""
    if kept is None:
        return layer
    drop = partial(apply_mask, kept=kept, keep=getattr(model, "keep_recurrent_weights", None))
    if "recurrent_kernel" in layer:
        return {**layer, "recurrent_kernel": drop(layer["recurrent_kernel"])}
    from_input, from_state = jnp.split(layer["kernel"], [len(layer["kernel"]) - len(kept)])
    return {**layer, "kernel": jnp.concatenate([from_input, drop(from_state)])}


def drop_words(
    model: Recurrent, noise: Noise, x: Float[Array, "T B E"], tokens: Int[Array, "T B"]
) -> Float[Array, "T B E"]:
    """Embedded tokens x over keep_words where the token's word is kept, else 0 (arXiv:1512.05287).

    A word is dropped as an input only, unless the model drops it in the softmax too (`drop_rows`).
    """
    if noise.words is None or model.drops_output_words:  # there `drop_rows` has dropped them
        return x
    return apply_mask(x, noise.words[tokens], model.keep_words)


def drop_carry(noise: Noise, carry: tuple[State, ...]) -> tuple[State, ...]:
    """The carry that a window begins with, zero in the rows where it does not go on (Melis et al. 2020)."""
    if noise.carry is None:
        return carry
    kept = noise.carry[:, 0]
    return jax.tree.map(
        lambda leaf: jnp.where(kept.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), carry
    )


def drop_rows(model: Recurrent, noise: Noise, params: Params) -> Params:
    """The parameters; where the model drops words as outputs too, their rows of the embedding are zeros."""
    if noise.words is None or not model.drops_output_words:
        return params
    table = params["embedding"]
    kept = jnp.pad(
        noise.words, ((0, len(table) - len(noise.words)), (0, 0))
    )  # words that make V divide over devices
    return {**params, "embedding": apply_mask(table, kept, model.keep_words)}
