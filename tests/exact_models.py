"""Exact models of the generated corpus that know less than its source: unigram, bigram;
and the source word by word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.embedded import BITS, Generator, Size


@dataclass(frozen=True, eq=False)
class Sample:
    """A source and the ids of three splits drawn from it."""

    source: Generator
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def sample(spec: Size | str) -> Sample:
    """Draws the splits of a specification, or of a generated corpus by its name."""
    source = Generator(Size.of(spec) if isinstance(spec, str) else spec)
    return Sample(
        source, *(source.draw(length, stream) for stream, length in enumerate(source.spec.tokens))
    )


def nats(source: Generator, ids: np.ndarray, across_sentences: bool = True) -> float:
    """The summed nats of a stream: the nats of its classes,
    and of its words by a filter over the hidden topic.

    Within a sentence the topic is constant, so the evidence for each topic is a sum over the
    sentence's words; only a belief of K probabilities passes from each sentence to the next.

    Args:
        source: The source of the stream.
        ids: The stream `[N]`.
        across_sentences: Whether a sentence is read after those before it, or alone.
    """
    spec = source.spec
    starts = _starts(ids)
    log_word = np.log(source.word_weight / 2.0**BITS)
    evidence = np.stack(
        [np.add.reduceat(topic[ids], starts) for topic in log_word], axis=1
    )  # [sentences, K]
    scale = evidence.max(1, keepdims=True)
    stay = spec.stay / 256 if across_sentences else 0.0
    belief = np.full(
        spec.topics, 1 / spec.topics
    )  # the probability of each topic of the next sentence
    log_probability = scale.sum()
    for likelihood in np.exp(evidence - scale):
        joint = belief * likelihood
        log_probability += np.log(joint.sum())
        belief = joint * (stay / joint.sum()) + (1 - stay) / spec.topics
    grammar = source.class_weight[states(source, ids), source.word_class[ids]] / 2.0**BITS
    return float(-log_probability - np.log(grammar).sum())


def floor_nats(source: Generator, ids: np.ndarray) -> float:
    """The summed nats of the N - 1 predicted tokens of a stream `[N]`; no model predicts the first.

    No model has a lower expected cost, whatever it was trained on.
    """
    return nats(source, ids) - nats(source, ids[:1])


def states(source: Generator, ids: np.ndarray) -> np.ndarray:
    """The state of the grammar before each token of a stream `[N]`;
    all sentences advance together.
    """
    classes = source.word_class[ids]
    found = np.zeros(len(ids), np.int64)
    position = _starts(ids)
    while len(position):
        position = position[(classes[position] != 0) & (position + 1 < len(ids))]
        found[position + 1] = source.next_state[found[position], classes[position]]
        position = position + 1
    return found


def _starts(ids: np.ndarray) -> np.ndarray:
    """Where the sentences of a stream start."""
    return np.flatnonzero(np.concatenate([[True], ids[:-1] == 0]))


def conditional(source: Generator, history: Sequence[int]) -> np.ndarray:
    """The probability of each word after all ids of a stream so far [V]:
    the plain reference of `nats`.
    """
    stay = source.spec.stay / 256
    topics = source.spec.topics
    state = 0
    belief = np.full(topics, 1 / topics)
    for word in history:
        state = source.next_state[state, source.word_class[word]]
        belief = belief * source.word_weight[:, word]
        belief /= belief.sum()
        if word == 0:
            belief = stay * belief + (1 - stay) / topics
    return source.class_weight[state, source.word_class] * (belief @ source.word_weight) / 4.0**BITS


def stationary(source: Generator) -> np.ndarray:
    """The stationary share of tokens that each state emits [S]."""
    chance = source.class_weight / 2.0**BITS
    chance[:, 0] = 0.0  # a sentence ends here; count the visits within one
    step = np.zeros((len(chance), len(chance)))
    np.add.at(step, (np.arange(len(chance))[:, None], source.next_state), chance)
    visits = np.linalg.solve((np.eye(len(step)) - step).T, np.eye(len(step))[0])
    return visits / visits.sum()


def unigram_nats(source: Generator, ids: np.ndarray) -> np.ndarray:
    """The nats of each token without context [N],
    by the source's stationary frequencies of words.
    """
    classes = stationary(source) @ source.class_weight / 2.0**BITS
    words = classes[source.word_class] * source.word_weight.mean(0) / 2.0**BITS
    return -np.log(words)[ids]


def bigram_nats(source: Generator, ids: np.ndarray) -> np.ndarray:
    """The nats of each token given only the one before [N],
    by the source's stationary frequencies of pairs.

    The word before determines its class and, by Bayes' rule, the distribution of the topic. The
    first token is taken to follow `<eos>`.
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
    found = -np.log(pairs[source.word_class[before], source.word_class[ids]])
    for block in range(0, len(ids), 4096):
        at = slice(block, block + 4096)
        found[at] -= np.log(np.einsum("nk,nk->n", topic[before[at]], word[ids[at]]))
    return found


def perplexities(corpus: Sample, split: str) -> dict[str, float]:
    """The perplexity of a split's predicted tokens (all but the first)
    under models that know less and less.
    """
    source = corpus.source
    ids = getattr(corpus, split)
    alone = nats(source, ids, across_sentences=False) - nats(source, ids[:1])
    return {
        "floor": float(np.exp(floor_nats(source, ids) / (len(ids) - 1))),
        "sentence": float(np.exp(alone / (len(ids) - 1))),
        "bigram": float(np.exp(bigram_nats(source, ids)[1:].mean())),
        "unigram": float(np.exp(unigram_nats(source, ids)[1:].mean())),
    }
