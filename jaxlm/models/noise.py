"""What is random in a window, as a value: drawn here, in one place, and given to the model.

So a model is a pure function, which a test can feed recorded masks, and one device draws what many
would. `model` is the config's model. Letters: `T` steps, `B` batch, `E` embedding width, `H` hidden
width, `V` vocabulary, `G` gates.
"""

from dataclasses import dataclass, replace
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from jaxlm.models.recurrent import LayerNoise, Params, Recurrent, State
from jaxlm.ops.dropout import Mask, apply_mask, draw_mask
from jaxlm.ops.sampled_softmax import Drawn, draw_words

Keep = Scalar | float | None

# Numbers folded into the window's key, one for each kind of noise. The embedded input's is 0, that
# of layer i's output 1 + i.
_WORDS = 2**20
_RECURRENT_WEIGHTS = 2**20 + 1
_STATES = 2**20 + 2
_LATENTS = 2**20 + 3
_UPDATES = 2**20 + 4
_DRAWN = 2**20 + 5
_CARRY = 2**20 + 6
_FEED_FORWARDS = 2**20 + 7
_FEATURES = 2**20 + 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """The masks of a window, true for what is kept. By default everything is kept.

    Attributes:
        embedding: Units of the embedded input [T, B, E]; locked, [1, B, E] for all steps.
        outputs: For each layer, units of its output [T, B, H] or [1, B, H], in a block of its
            cell's; empty: all.
        words: Words that an input may read [V, 1].
        recurrent_weights: For each layer, elements of its recurrent kernel [H, G * H].
        states: For each layer, units of the last step's h that its gates read [B, H].
        latents: Units of a mixture's latent vectors [T, B, K * D], or of a projection's output.
        updates: For each layer, units of what is written to its cell [B, H].
        carry: Rows whose carry is passed on from the window before [B, 1].
        drawn: The words that the softmax's sum is estimated from; None: it sums all words.
        feed_forwards: For each layer, units of its feed-forward layer's output, as of `outputs`.
        features: Units of what the head reads after the last block; likewise.
    """

    embedding: Mask = None
    outputs: tuple[Mask, ...] = ()
    words: Mask = None
    recurrent_weights: tuple[Mask, ...] = ()
    states: tuple[Mask, ...] = ()
    latents: Mask = None
    updates: tuple[Mask, ...] = ()
    carry: Mask = None
    drawn: Drawn | None = None
    feed_forwards: tuple[Mask, ...] = ()
    features: Mask = None

    def of_layer(self, layer: int) -> LayerNoise:
        """The masks of a layer, whose number counts from 0."""

        def mask_in(masks: tuple[Mask, ...]) -> Mask:
            if layer < len(masks):
                return masks[layer]
            return None

        return LayerNoise(
            kept=mask_in(self.states),
            updated=mask_in(self.updates),
            output=mask_in(self.outputs),
            feed_forward=mask_in(self.feed_forwards),
            weights=mask_in(self.recurrent_weights),
        )


def is_random(model: Recurrent) -> bool:
    """Whether `draw_noise` draws anything."""
    return bool(model.dropout_fields) or model.keep_carry is not None or model.sampled_words > 0


def growing(
    model: Recurrent,
    step: Scalar,
    total: Scalar | int,
) -> Recurrent:
    """The model with as much dropout as `dropout_ramp` allows at a window (arXiv:1703.06229).

    Args:
        model: The config's model.
        step: The window's number, from 0.
        total: The windows of all epochs.

    Returns:
        The model with other probabilities.
    """
    if model.dropout_ramp is None:
        return model
    progress = jnp.minimum(step / (model.dropout_ramp * total), 1)
    start = 0 if model.dropout_start is None else model.dropout_start
    share = start + (1 - start) * progress
    keeps = {name: 1 - share * (1 - getattr(model, name)) for name in model.dropout_fields}
    return replace(model, **keeps)


def sums_all_words(
    model: Recurrent,
    step: Scalar | int,
    total: Scalar | int,
) -> Scalar | bool:
    """Whether a window's softmax sums all words, not a sample of them.

    Args:
        model: The config's model.
        step: The window's number, from 0.
        total: The windows of all epochs.

    Returns:
        True where the sample would hold all words, or `sampled_share` of the windows is over.
    """
    samples_all = model.sampled_words >= model.vocab_size
    if model.sampled_share is None:
        return samples_all
    return samples_all | (step >= model.sampled_share * total)


def draw_noise(
    model: Recurrent,
    key: PRNGKeyArray | None,
    steps: int,
    rows: int,
    ranked: Int[Array, " V"] | None = None,
) -> Noise:
    """Draws what is random in one window.

    Args:
        model: The config's model.
        key: The window's; None: nothing is random. Each row folds its number into it, so that one
            device draws what many would; words and weights have one mask for all rows.
        steps: T.
        rows: B.
        ranked: All ids, the most frequent word's first, for a sampled softmax; None: they are in
            this order.

    Returns:
        The masks, and the words of a sampled softmax.
    """
    if key is None:
        return Noise()
    steps = 1 if model.locked_dropout else steps
    layers = tuple(enumerate(model.hidden_sizes))
    cells = tuple(enumerate(zip(model.layers, model.cell_sizes, strict=True)))
    keep_feed_forward = model.keep_output if model.feed_forward_size else None
    keep_features = model.keep_last_output if model.drops_features else None

    def folded(*numbers):
        return reduce(jax.random.fold_in, numbers, key)

    def units(keep, width, *numbers):
        """A mask [steps, B, width], of the key folded with some numbers; None: keeps all."""
        if keep is None:
            return None
        return draw_mask(folded(*numbers), keep, (steps, rows, width))

    def units_of_all_steps(keep, width, *numbers):
        """A mask [B, width]."""
        if keep is None:
            return None
        return draw_mask(folded(*numbers), keep, (1, rows, width))[0]

    def elements(keep, shape, *numbers):
        """A mask that all rows share."""
        if keep is None:
            return None
        return jax.random.bernoulli(folded(*numbers), keep, shape)

    def of_cells(field, number):
        """A mask for each layer; kinds without the field keep all."""
        return tuple(
            units_of_all_steps(getattr(kind, field, None), width, number, layer)
            for layer, (kind, width) in cells
        )

    drawn = None
    if model.sampled_words:
        offset = jax.random.uniform(folded(_DRAWN))
        drawn = draw_words(offset, model.vocab_size, model.sampled_words, ranked)
    return Noise(
        embedding=units(model.keep_embedding, model.embedding_size, 0),
        outputs=tuple(
            units(keep_of_output(model, layer), width, layer + 1) for layer, width in layers
        ),
        feed_forwards=tuple(
            units(keep_feed_forward, width, _FEED_FORWARDS, layer) for layer, width in layers
        ),
        features=units(keep_features, model.hidden_sizes[-1], _FEATURES),
        words=elements(model.keep_words, (model.vocab_size, 1), _WORDS, 0),
        recurrent_weights=tuple(
            elements(
                getattr(kind, "keep_recurrent_weights", None),
                (width, kind.gates * width),
                _RECURRENT_WEIGHTS,
                layer,
            )
            for layer, (kind, width) in cells
        ),
        states=of_cells("keep_state", _STATES),
        latents=units(model.keep_latent, max(model.experts, 1) * model.kernel_width, _LATENTS),
        updates=of_cells("keep_update", _UPDATES),
        carry=units_of_all_steps(model.keep_carry, 1, _CARRY, 0),
        drawn=drawn,
    )


def keep_of_output(model: Recurrent, layer: int) -> Keep:
    """The probability that a unit of a layer's output is kept.

    Args:
        model: The config's model.
        layer: The layer's place, from 0.

    Returns:
        A probability; None: there is no dropout.
    """
    is_last = layer == len(model.hidden_sizes) - 1
    if is_last and not model.drops_features and model.keep_last_output is not None:
        return model.keep_last_output
    return model.keep_output


def drop_weights(
    model: Recurrent,
    kept: Mask,
    layer: Params,
) -> Params:
    """Applies weight drop to a layer's recurrent kernel.

    Args:
        model: The config's model.
        kept: The elements that are kept; None: all.
        layer: The parameters of the layer, or of a block. The recurrent kernel is
            `recurrent_kernel`, or else the rows of `kernel` that read h.

    Returns:
        The parameters.
    """
    if kept is None:
        return layer
    if "cell" in layer:
        return {**layer, "cell": drop_weights(model, kept, layer["cell"])}
    drop = partial(apply_mask, kept=kept, keep=getattr(model, "keep_recurrent_weights", None))
    if "recurrent_kernel" in layer:
        return {**layer, "recurrent_kernel": drop(layer["recurrent_kernel"])}
    from_input, from_state = jnp.split(layer["kernel"], [len(layer["kernel"]) - len(kept)])
    return {**layer, "kernel": jnp.concatenate([from_input, drop(from_state)])}


def drop_words(
    model: Recurrent,
    noise: Noise,
    x: Float[Array, "T B E"],
    tokens: Int[Array, "T B"],
) -> Float[Array, "T B E"]:
    """Drops words as inputs (arXiv:1512.05287).

    Args:
        model: The config's model.
        noise: The window's noise.
        x: Embedded tokens.
        tokens: The tokens.

    Returns:
        x / keep_words where the token's word is kept, else 0; x itself where `drop_rows` has
        dropped the words already.
    """
    if noise.words is None or model.drops_output_words:
        return x
    return apply_mask(x, noise.words[tokens], model.keep_words)


def drop_carry(noise: Noise, carry: tuple[State, ...]) -> tuple[State, ...]:
    """Zeroes the carry of some rows (Melis et al. 2020, arXiv:1909.01792).

    Args:
        noise: The window's noise.
        carry: The carry of the window before.

    Returns:
        The carry that the window begins with.
    """
    if noise.carry is None:
        return carry
    kept = noise.carry[:, 0]

    def zero_dropped_rows(leaf: Array) -> Array:
        other_axes = [1] * (leaf.ndim - 1)
        return jnp.where(kept.reshape(-1, *other_axes), leaf, 0)

    return jax.tree.map(zero_dropped_rows, carry)


def drop_rows(
    model: Recurrent,
    noise: Noise,
    params: Params,
) -> Params:
    """Drops words as outputs, where the model does.

    Args:
        model: The config's model.
        noise: The window's noise.
        params: The model's parameters.

    Returns:
        The parameters; rows of dropped words are zero in the embedding.
    """
    if noise.words is None or not model.drops_output_words:
        return params
    table = params["embedding"]
    # The table may have rows more, which make V divide over the devices.
    kept = jnp.pad(noise.words, ((0, len(table) - len(noise.words)), (0, 0)))
    return {**params, "embedding": apply_mask(table, kept, model.keep_words)}
