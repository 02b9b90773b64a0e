"""Beam search: of all texts of some length, about the most probable one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.data.vocab import Vocab
from jaxlm.errors import JaxlmError
from jaxlm.scoring.generation import Text, begin, check_counts, next_logits
from jaxlm.scoring.network import Network
from jaxlm.scoring.sampling import Sampling


def beam_search(
    network: Network, vocab: Vocab, sampling: Sampling, prompt: np.ndarray, *, words: int, beam: int, end: int
) -> Text:
    """The most probable text of at most `words` words after a prompt's ids, `beam` texts kept at each word.

    No word that `sampling` bans comes. A text may end earlier with the id `end` (-1: none). Raises JaxlmError where a
    count is not at least 1, or the beam is wider than the vocabulary.
    """
    check_counts(words=words, beam=beam)
    if beam > len(vocab):
        raise JaxlmError(f"beam must be at most {len(vocab):,}, the words of the vocabulary; it is {beam}")
    position = begin(network, Sampling(), prompt, beam)
    length = 1 << (words - 1).bit_length()
    tokens, log_probs = _search(network, position.carry, position.token, words, end, sampling.banned, length=length)
    found = np.asarray(tokens)[:words]
    found = found[found >= 0]
    return Text(vocab.decode(found), np.asarray(log_probs, np.float64)[: len(found)])


@partial(jax.jit, static_argnames="length")
def _search(network, carry, token, words, end, banned, *, length):
    """The best text's words [length], -1 after its end, and their log-probabilities."""
    B, V = len(token), network.model.vocab_size

    def unfinished(loop):
        step, _, _, _, _, _, done = loop
        return (step < words) & ~done.all()

    def extend(loop):
        step, carry, token, texts, log_probs, totals, done = loop
        logits, carry = next_logits(network, token, carry)
        log_p = jax.nn.log_softmax(logits)
        allowed = log_p if banned is None else jnp.where(banned, -jnp.inf, log_p)
        stay = jnp.where(jnp.arange(V) == 0, 0.0, -jnp.inf)  # a text that has ended goes on in one way only
        candidates = totals[:, None] + jnp.where(done[:, None], stay, allowed)
        totals, places = lax.top_k(candidates.reshape(-1), B)
        parent, word = places // V, (places % V).astype(jnp.int32)
        ended = done[parent]
        texts = texts[parent].at[:, step].set(jnp.where(ended, -1, word))
        log_probs = log_probs[parent].at[:, step].set(jnp.where(ended, 0, log_p[parent, word]))
        carry = jax.tree.map(lambda leaf: leaf[parent], carry)
        return step + 1, carry, word, texts, log_probs, totals, ended | (word == end)

    totals = jnp.where(jnp.arange(B) == 0, 0.0, -jnp.inf)  # all begin alike: one of them goes on at first
    start = (0, carry, token, jnp.full((B, length), -1, jnp.int32), jnp.zeros((B, length)), totals, jnp.zeros(B, bool))
    _, _, _, texts, log_probs, totals, _ = lax.while_loop(unfinished, extend, start)
    best = totals.argmax()
    return texts[best], log_probs[best]
