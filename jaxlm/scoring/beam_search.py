"""Beam search: the most probable text after a prompt, among a few that grow side by side.

Letters: `B` texts of the beam, `n` tokens, `V` vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxlm.models.stack import Carry
from jaxlm.scoring.next_token import carry_after, next_logits, repeated
from jaxlm.scoring.token_scores import Network


class _Beam(NamedTuple):
    """The likeliest texts so far.

    Attributes:
        carry: The carry before `token`.
        token: The last token of each text, which is read next, int32 [B].
        ended: Which texts have ended, bool [B].
        totals: The log-probability of each text, float32 [B].
    """

    carry: Carry
    token: Array
    ended: Array
    totals: Array


def beam_search(
    network: Network,
    prompt: np.ndarray,
    tokens: int,
    beam: int,
    end: int,
    banned: Array | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable text after a prompt, as far as the beam finds it.

    Args:
        network: The model.
        prompt: Ids of `<eos>` and the prompt.
        tokens: Most tokens of the text.
        beam: Texts B that are kept at each token, at most V.
        end: Id that ends a text; -1: none.
        banned: Tokens that never come, bool [V]; None: none are banned.

    Returns:
        The text's tokens [n], -1 after its end, and their log-probabilities [n].
    """
    # All texts begin alike, so at first only one of them is continued.
    state = _Beam(
        carry=repeated(carry_after(network, prompt[:-1]), beam),
        token=jnp.full(beam, prompt[-1], jnp.int32),
        ended=jnp.zeros(beam, bool),
        totals=jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf),
    )
    texts = np.zeros((beam, 0), np.int32)
    log_probs = np.zeros((beam, 0))
    while texts.shape[1] < tokens and not state.ended.all():
        state, parents, ids, log_p = _extended(network, banned, state, end)
        texts = np.column_stack([texts[parents], ids])
        log_probs = np.column_stack([log_probs[parents], log_p])
    best = int(np.argmax(state.totals))
    return texts[best], log_probs[best]


@jax.jit
def _extended(
    network,
    banned,
    beam,
    end,
):
    """The likeliest texts of one token more.

    Returns their beam; of which text each is the continuation [B]; the tokens [B], -1 for a text
    that had ended; and their log-probabilities [B].
    """
    B = len(beam.totals)
    V = network.model.vocab_size
    logits, carry = next_logits(network, beam.token, beam.carry)
    log_p = jax.nn.log_softmax(logits)
    allowed = log_p if banned is None else jnp.where(banned, -jnp.inf, log_p)
    # A text that has ended is continued in one way only, which costs nothing.
    after_end = jnp.where(jnp.arange(V) == 0, 0.0, -jnp.inf)
    candidates = beam.totals[:, None] + jnp.where(beam.ended[:, None], after_end, allowed)
    totals, places = lax.top_k(candidates.reshape(-1), B)
    parents = places // V
    token = (places % V).astype(jnp.int32)
    had_ended = beam.ended[parents]
    carry = jax.tree.map(lambda leaf: leaf[parents], carry)
    extended = _Beam(carry, token, had_ended | (token == end), totals)
    ids = jnp.where(had_ended, -1, token)
    return extended, parents, ids, jnp.where(had_ended, 0, log_p[parents, token])
