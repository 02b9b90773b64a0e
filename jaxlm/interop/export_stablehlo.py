"""Export to StableHLO: the function of one next word, its weights inside, as jax.export serialises it."""

import jax
import jax.numpy as jnp
from jax import export

from jaxlm.errors import JaxlmError
from jaxlm.models import heads, stack
from jaxlm.models.noise import no_noise
from jaxlm.scoring.language_model import LanguageModel

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A file that `jax.export.deserialize` reads, and notes.

    Its `call(tokens, *carry)` takes tokens int32 [1, B], for any B, and the carry's arrays, all zero before the first
    word, and returns the logits [1, B, V] of the next word and the new carry.

    Raises:
        JaxlmError: the package flatbuffers is missing.
    """
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise JaxlmError("StableHLO needs the package flatbuffers: pip install 'jaxlm[stablehlo]'") from None
    recurrent, params = stack.exact(model.config.model), model.params
    like = jax.eval_shape(lambda: stack.zero_carry(recurrent, 1))
    structure = jax.tree.structure(like)

    def next_word(tokens: jax.Array, *carry: jax.Array) -> tuple[jax.Array, ...]:
        state = jax.tree.unflatten(structure, carry)
        features, state = stack.features(recurrent, params, no_noise(recurrent), stack.embed(params, tokens), state)
        return heads.logits(recurrent, params, features), *jax.tree.leaves(state)

    rows = export.symbolic_shape("B")[0]
    arguments = [jax.ShapeDtypeStruct((1, rows), jnp.int32)]
    arguments += [jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for leaf in jax.tree.leaves(like)]
    made = export.export(jax.jit(next_word), platforms=PLATFORMS)(*arguments)
    shapes = ", ".join(str(list(argument.shape)) for argument in arguments[1:])
    answer = f"logits [1, B, {len(model.vocab)}] and the new carry"
    note = f"call(tokens int32 [1, B], carry {shapes}) -> {answer}; for {', '.join(PLATFORMS)}"
    return bytes(made.serialize()), [note]
