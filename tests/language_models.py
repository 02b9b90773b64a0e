"""Small language models with parameters that were never trained,
and surprisals computed plainly.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from recipes import TRAINED, drawn_params

import jaxlm
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise
from jaxlm.scoring.language_model import LanguageModel

WORDS = (
    EOS,
    UNK,
    "the",
    "dogs",
    "dog",
    "runs",
    "run",
    "n't",
    "'s",
    "N",
    "ca",
    "inc.",
    "$",
    "of",
    "a",
    "%",
    "b.",
)
KINDS = (*TRAINED, "hawk", "attention")  # that cover the shapes of a carry


@cache
def small_lm(
    kind: str = "lstm",
    tied: bool = False,
    seed: int = 0,
    words: tuple[str, ...] = WORDS,
    layers: int = 1,
) -> LanguageModel:
    return lm_of(Vocab(words), kind, tied, seed, layers)


def lm_of(
    vocab: Vocab, kind: str = "lstm", tied: bool = False, seed: int = 0, layers: int = 1
) -> LanguageModel:
    """A model of one layer, or of two where it has two kinds of them or is asked for them."""
    one = layers == 1 and "," not in kind
    config = jaxlm.preset("small").replace(
        model=kind,
        vocab_size=len(vocab),
        embedding_size=4,
        hidden_sizes=(4,) if one else (6, 4),
        tied=tied,
        init_scale=1.0,
    )
    return LanguageModel(drawn_params(config.model, seed), config, vocab, {})


def log_probs(lm: LanguageModel, words: list[str], params=None) -> np.ndarray:
    """Log-probabilities of every next word after `<eos>` and after each word, [len(words) + 1, V].

    Each program would be of one length: what is read behind the words, to a multiple of 16, changes
    no row before it (`test_laws.py`).
    """
    ids = [lm.vocab.eos, *lm.vocab.encode(words)]
    read = jnp.asarray([*ids, *[lm.vocab.eos] * (-len(ids) % 16)])
    found = next_word(lm.config.model, lm.params if params is None else params, read)
    return np.asarray(found, np.float64)[: len(ids)]


@jax.jit
def next_word(model, params, ids):
    """ids [N] -> log-probabilities [N, V] of the word after each."""
    return jax.nn.log_softmax(next_logits(model, params, ids))


@jax.jit
def next_logits(model, params, ids):
    """ids [N] -> logits [N, V] of the word after each."""
    x = stack.embed(params, ids[:, None])
    features, _ = stack.features(model, params, Noise(), x, stack.zero_carry(model, 1))
    return heads.logits(model, params, features[:, 0])
