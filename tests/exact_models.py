"""Exact models of the generated corpus that know less than its source: unigram, bigram; and the source word by word."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.embedded import BITS, Source, Spec


@dataclass(frozen=True, eq=False)
class Sample:
    """A source and the ids of three splits drawn from it."""

    source: Source
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def sample(spec: Spec | str) -> Sample:
    """Draws the splits of a specification, or of a generated corpus by its name."""
    source = Source(Spec.of(spec) if isinstance(spec, str) else spec)
    return Sample(source, *(source.draw(length, stream) for stream, length in enumerate(source.spec.tokens)))


def conditional(source: Source, history: Sequence[int]) -> np.ndarray:
    """The probability of each word after all ids of a stream so far [V]: the plain reference of `Source.nats`."""
    stay, topics = source.spec.stay / 256, source.spec.topics
    state, belief = 0, np.full(topics, 1 / topics)
    for word in history:
        state = source.next_state[state, source.word_class[word]]
        belief = belief * source.word_weight[:, word]
        belief /= belief.sum()
        if word == 0:
            belief = stay * belief + (1 - stay) / topics
    return source.class_weight[state, source.word_class] * (belief @ source.word_weight) / 4.0**BITS


def stationary(source: Source) -> np.ndarray:
    """The stationary share of tokens that each state emits [S]."""
    chance = source.class_weight / 2.0**BITS
    chance[:, 0] = 0.0  # a sentence ends here; count the visits within one
    step = np.zeros((len(chance), len(chance)))
    np.add.at(step, (np.arange(len(chance))[:, None], source.next_state), chance)
    visits = np.linalg.solve((np.eye(len(step)) - step).T, np.eye(len(step))[0])
    return visits / visits.sum()


def unigram_nats(source: Source, ids: np.ndarray) -> np.ndarray:
    """The nats of each token without context [N], by the source's stationary frequencies of words."""
    classes = stationary(source) @ source.class_weight / 2.0**BITS
    words = classes[source.word_class] * source.word_weight.mean(0) / 2.0**BITS
    return -np.log(words)[ids]


def bigram_nats(source: Source, ids: np.ndarray) -> np.ndarray:
    """The nats of each token given only the one before [N], by the source's stationary frequencies of pairs.

    The word before determines its class and, by Bayes' rule, the distribution of the topic. The first token is taken
    to follow `<eos>`.
    """
    before = np.concatenate([[0], ids[:-1]])
    chance = source.class_weight / 2.0**BITS
    emitted = stationary(source)[:, None] * chance
    reached = np.zeros_like(chance)  # in state s just after class c [S, C]
    np.add.at(reached, (source.next_state, np.arange(chance.shape[1])), emitted)
    pairs = reached.T @ chance
    pairs /= pairs.sum(1, keepdims=True)
    word = source.word_weight.T / 2.0**BITS  # [V, K]
    topic = word / word.sum(1, keepdims=True)
    nats = -np.log(pairs[source.word_class[before], source.word_class[ids]])
    for block in range(0, len(ids), 4096):
        at = slice(block, block + 4096)
        nats[at] -= np.log(np.einsum("nk,nk->n", topic[before[at]], word[ids[at]]))
    return nats


def perplexities(corpus: Sample, split: str) -> dict[str, float]:
    """The perplexity of a split's predicted tokens (all but the first) under models that know less and less."""
    source, ids = corpus.source, getattr(corpus, split)
    alone = source.nats(ids, across_sentences=False) - source.nats(ids[:1])
    return {
        "floor": float(np.exp(source.floor_nats(ids) / (len(ids) - 1))),
        "sentence": float(np.exp(alone / (len(ids) - 1))),
        "bigram": float(np.exp(bigram_nats(source, ids)[1:].mean())),
        "unigram": float(np.exp(unigram_nats(source, ids)[1:].mean())),
    }
