"""The generated corpus (public names `embedded` and `embedded-tiny`): English in random sentences.

The probability of every token given all before it is known exactly, and so is the *floor* under
the perplexity of every model, which `tests/exact_models.py` computes and a test compares.

A sentence is a walk through a grammar. Each step draws the *class* of the next word; the class and
the sentence's *topic* then determine the distribution of the word. Every word has one class, so the
words so far determine the state of the grammar. Topics are hidden and persist over sentences, so
they must be inferred and remembered.

Words and ids are the same bytes on every platform and NumPy version: the tables hold integers, each
row sums to a power of two, and the top bits of a Philox generator's raw output are then an exact
draw.
"""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.vocab import EOS, UNK

BITS = 24  # every row of weights sums to 2**BITS
UNIT = 1 << 20  # the numerator of Zipf's law; the rank is its denominator


@lru_cache(maxsize=1)
def language() -> dict[str, Any]:
    """Reads language.toml: words, stems, grammar and sizes."""
    return tomllib.loads(Path(__file__).with_name("language.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Size:
    """One size of the corpus: how many tokens and words it has, and how strong each dependency is.

    Attributes:
        seed: The seed of the generator.
        tokens: The tokens of train, valid and test.
        floor: The summed nats of the tokens of each split but the first, under the true source.
        words: The words in each category; in each kind of it, if it is a content category.
        topics: How many topics there are, a power of two.
        kinds: How many kinds a content category has.
        stay: The probability, in 1/256, that a sentence keeps the topic of the one before it.
        coherence: The probability, in 1/256, that a content word has its sentence's kind.
        boost: The factor of a word's weight in its own topic.
        flat: The first rank of Zipf's law, for classes with topics: higher is flatter.
        close: The weight of the end of a sentence.
    """

    seed: int
    tokens: list[int]
    floor: list[float]
    words: dict[str, int]
    topics: int
    kinds: int
    stay: int
    coherence: int
    boost: int
    flat: int
    close: int

    @classmethod
    def of(cls, name: str) -> "Size":
        """Returns the size of a generated corpus."""
        return cls(**language()["sizes"][name])


def _normalized(weights: np.ndarray) -> np.ndarray:
    """Scales integer weights [..., n] so that each row sums to 2**BITS.

    The largest weight absorbs the rounding.
    """
    shares = (weights << BITS) // weights.sum(-1, keepdims=True)
    rest = (1 << BITS) - shares.sum(-1, keepdims=True)
    is_largest = np.arange(weights.shape[-1]) == weights.argmax(-1)[..., None]
    return shares + rest * is_largest


def _draw(
    cumulative: np.ndarray,
    row: np.ndarray,
    raw: np.ndarray,
) -> np.ndarray:
    """Draws an entry of each row [n] of a table, with the probabilities that the row holds.

    Args:
        cumulative: The sums of the flattened table up to each entry.
        row: The rows.
        raw: Random bits, uint64 [n], of which the top BITS decide.

    Returns:
        Places in the flattened table [n].
    """
    target = (row.astype(np.int64) << BITS) + (raw >> np.uint64(64 - BITS)).astype(np.int64)
    return np.searchsorted(cumulative, target, side="right")


def _words(category: str, kind: int) -> list[str]:
    """The words of a category, and of a kind if they are content words, the most frequent first."""
    parts = language()["content"].get(category)
    if parts is None:
        return language()["words"][category].split()
    endings = parts.get("endings", "_").split()
    beginnings = parts.get("beginnings", "_").split()
    stems = language()["stems"][parts["stems"]][kind].split()
    words = [
        f"{beginning}{stem}{ending}".replace("_", "")
        for ending, beginning, stem in product(endings, beginnings, stems)
    ]
    if "inflected" in parts:
        return [_with_s(word) for word in words]
    return words


def _with_s(word: str) -> str:
    """The plural of a regular noun, or the third person of a regular verb."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word + "s"


class Generator:
    """The tables of a `Size`, and what draws from them.

    Letters: V words, C classes, S grammar states, K topics. Weights are shares of 2**BITS. A state
    is a node of the grammar and a register: 0, or 1 + the kind of the sentence. Every sentence
    starts in state 0. `<eos>` is id 0 and class 0, and a class is a contiguous run of ids.

    Attributes:
        spec: The size.
        words: The word of each id [V].
        word_class: The class of each id [V].
        word_weight: The weight of each word in its class and in each topic [K, V].
        class_weight: The weight of each class in each state [S, C].
        next_state: The state after each class in each state [S, C].
    """

    def __init__(self, spec: Size):
        """Makes the tables of a size."""
        sizes = {EOS: 1, UNK: 1, **spec.words}
        content = language()["content"]
        classes = [
            (name, kind) for name in sizes for kind in range(spec.kinds if name in content else 1)
        ]
        self.spec = spec
        words = [_words(name, kind)[: sizes[name]] for name, kind in classes]
        self.words = tuple(chain.from_iterable(words))
        self.word_class = np.repeat(np.arange(len(classes)), [sizes[name] for name, _ in classes])
        self.word_weight = np.concatenate(
            [_word_weights(spec, index, sizes[name]) for index, (name, _) in enumerate(classes)],
            axis=1,
        )
        self.class_weight, self.next_state = _grammar_tables(spec, [name for name, _ in classes])

    def draw(self, length: int, stream: int) -> np.ndarray:
        """Draws the ids of a split.

        Args:
            length: The tokens of the split; its last sentence is cut where the split is full.
            stream: The number of the split.

        Returns:
            Ids `[length]`, int32.
        """
        generator = np.random.Philox(key=self.spec.seed + (stream << 64))
        classes = self._draw_classes(length, generator)
        sentence = np.cumsum(classes == 0) - (classes == 0)
        raw = generator.random_raw(int(sentence[-1]) + 1)
        # Whether a sentence draws a topic, or keeps that of the sentence before.
        draws_topic = (raw >> np.uint64(56)).astype(np.int64) >= self.spec.stay
        draws_topic[0] = True
        last_drawn = np.maximum.accumulate(np.where(draws_topic, np.arange(len(raw)), 0))
        drawn_topic = (raw & np.uint64(self.spec.topics - 1)).astype(np.int64)
        topic = drawn_topic[last_drawn][sentence]
        # The rows of the word weights are the classes of the first topic, then of the next.
        row = topic * self.class_weight.shape[1] + classes
        ids = _draw(self.word_weight.cumsum(), row, generator.random_raw(length))
        return (ids - topic * len(self.words)).astype(np.int32)

    def _draw_classes(self, length: int, generator: np.random.Philox) -> np.ndarray:
        """The classes of words `[length]`: walks through the grammar, 4,096 sentences at once."""
        cumulative = self.class_weight.cumsum()
        width = self.class_weight.shape[1]
        blocks = []
        total = 0
        while total < length:
            sentence = np.arange(4096)
            state = np.zeros(4096, np.int64)
            sentences = []
            classes = []
            while len(sentence):
                drawn = _draw(cumulative, state, generator.random_raw(len(state))) - state * width
                sentences.append(sentence)
                classes.append(drawn)
                unfinished = drawn != 0
                sentence = sentence[unfinished]
                state = self.next_state[state, drawn][unfinished]
            order = np.argsort(np.concatenate(sentences), kind="stable")
            blocks.append(np.concatenate(classes)[order])
            total += len(order)
        return np.concatenate(blocks)[:length]


def _word_weights(
    spec: Size,
    index: int,
    size: int,
) -> np.ndarray:
    """The weight of each word of a class in each topic [K, size], by Zipf's law.

    The words belong to the topics in turn. A word is `boost` times as frequent in its own topic.

    Args:
        spec: The size of the corpus.
        index: The number of the class.
        size: How many words the class has.
    """
    rank = np.arange(size)
    topic = np.arange(spec.topics)[:, None]
    if size < spec.topics:  # a small class serves syntax alone and belongs to no topic
        return _normalized(np.tile(UNIT // (rank + 1), (spec.topics, 1)))
    zipf = UNIT // (rank + spec.flat) + UNIT // 300  # the tail is lifted, so that every word occurs
    own_topic = (rank + 5 * index) % spec.topics
    return _normalized(zipf * np.where(own_topic == topic, spec.boost, 1))


def _grammar_tables(spec: Size, categories: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The weight of each class in each state, and the state after it, both [S, C].

    Args:
        spec: The size of the corpus.
        categories: The category of each class; the kinds of a content category follow each other.
    """
    grammar = language()["grammar"]
    nodes = list(grammar)
    kinds = np.arange(spec.kinds)
    registers = np.arange(spec.kinds + 1)[:, None]
    usual = 5040 // (kinds + 10)  # some kinds are more frequent
    coherence = np.where(registers > 0, spec.coherence, 0)
    kind_weight = (256 - coherence) * usual + coherence * usual.sum() * (registers - 1 == kinds)
    weight = np.zeros((len(nodes), spec.kinds + 1, len(categories)), np.int64)
    following = np.zeros_like(weight)
    for node, (name, arcs) in enumerate(grammar.items()):
        for category, arc, goal in arcs:
            first = categories.index(category)
            run = slice(first, first + categories.count(category))
            chance = 256 * usual.sum()
            register = registers
            if category == EOS:
                arc = spec.close
                register = 0
            elif category in language()["content"]:
                aside = name.startswith("aside") & (registers > 0)  # keeps the kind
                chance = kind_weight
                register = np.where(aside, registers, kinds + 1)
            weight[node, :, run] = arc * chance
            following[node, :, run] = nodes.index(goal) * (spec.kinds + 1) + register
    return _normalized(weight.reshape(-1, len(categories))), following.reshape(-1, len(categories))
