"""Perplexity: from summed nats, and as text."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

MOST_UNKNOWN = 0.05  # a result with a larger share of unknown tokens has a warning beside it


class TextSize(NamedTuple):
    """How much text there is, in several units."""

    tokens: int = 0
    bytes: int = 0  # of UTF-8
    characters: int = 0  # Unicode's code points
    words: int = 0  # between white space, and the ends of lines


def perplexity(nats: float, count: float) -> float:
    """exp(nats / count).

    >>> round(perplexity(10 * math.log(50), 10), 6)
    50.0

    Args:
        nats: The sum of the tokens' nats.
        count: How many tokens.

    Returns:
        The perplexity; inf beyond a float, nan without a positive count.
    """
    if not count > 0:
        return math.nan
    try:
        return math.exp(nats / count)
    except OverflowError:
        return math.inf


# A text has words, and a perplexity per word, if it has so many for each character.
LEAST_WORDS = 0.1


def comparable(nats: float, size: TextSize) -> dict[str, float]:
    """The numbers that compare models of different vocabularies on one text.

    Bits per byte and per character are nats / ln 2 over the bytes and the characters (Gao et al.
    2020, arXiv:2101.00027, section 3.1); the perplexity per word is exp of nats over the words and
    the ends of lines (in the lm-evaluation-harness, over the words alone). A text almost without
    white space, such as Chinese, has no words: that perplexity is nan (`LEAST_WORDS`).

    >>> from jaxlm.base.units import TextSize
    >>> comparable(8 * math.log(2), TextSize(tokens=3, bytes=4, characters=2, words=4))
    {'bits_per_byte': 2.0, 'bits_per_character': 4.0, 'word_perplexity': 4.0}

    Args:
        nats: The sum of the text's nats.
        size: How much text there is.

    Returns:
        The three numbers by name; nan for an empty text.
    """
    bits = nats / math.log(2)
    words = size.words if size.words >= LEAST_WORDS * size.characters else 0
    return {
        "bits_per_byte": bits / size.bytes if size.bytes else math.nan,
        "bits_per_character": bits / size.characters if size.characters else math.nan,
        "word_perplexity": perplexity(nats, words),
    }


def comparable_text(numbers: Mapping[str, float]) -> str:
    """The numbers of `comparable` as words; a text without words has no perplexity per word.

    >>> from jaxlm.base.units import TextSize
    >>> comparable_text(comparable(8 * math.log(2), TextSize(3, 4, 2, 4)))
    '2.0000 bits per byte, 4.0000 per character, perplexity 4.00 per word'
    >>> comparable_text(comparable(8 * math.log(2), TextSize(8, 24, 8, 0)))
    '0.3333 bits per byte, 1.0000 per character, none per word: the text has hardly any white space'
    """
    byte = numbers["bits_per_byte"]
    character = numbers["bits_per_character"]
    word = numbers["word_perplexity"]
    per_word = "none per word: the text has hardly any white space"
    if not math.isnan(word):
        per_word = f"perplexity {perplexity_text(word)} per word"
    return f"{byte:.4f} bits per byte, {character:.4f} per character, {per_word}"


def perplexity_text(value: float) -> str:
    """A perplexity with two decimals, from ten millions on as a power of ten.

    >>> perplexity_text(116.4512), perplexity_text(3e9)
    ('116.45', '3.00e+09')
    """
    if value >= 1e7:
        return f"{value:.2e}"
    return f"{value:.2f}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation) of the numbers that are not nan.

    The mean of no numbers is nan, and so is the deviation of fewer than two.

    >>> mean_and_deviation([1.0, 3.0, math.nan]), mean_and_deviation([])
    ((2.0, 1.4142135623730951), (nan, nan))
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    mean = sum(known) / len(known)
    if len(known) == 1:
        return mean, math.nan
    return mean, math.hypot(*(value - mean for value in known)) / math.sqrt(len(known) - 1)


def spread(
    mean: float,
    deviation: float = math.nan,
    shown: Callable[[float], str] = perplexity_text,
) -> str:
    """Mean ± standard deviation as text.

    >>> spread(116.4512, 0.5), spread(math.nan)
    ('116.45 ± 0.50', '')

    Args:
        mean: The mean; the text of nan is empty.
        deviation: The standard deviation; left out if it is nan.
        shown: How a number is written.

    Returns:
        The text.
    """
    if math.isnan(mean):
        return ""
    if math.isnan(deviation):
        return shown(mean)
    return f"{shown(mean)} ± {shown(deviation)}"


def number_text(measure: str, mean: float, deviation: float = math.nan) -> str:
    """A result, or the mean of several, in a measure of `measure_name`.

    >>> number_text("perplexity", 8.0), number_text("bits per byte", 1.5, 0.25)
    ('8.00', '1.5000 ± 0.2500')

    Args:
        measure: Its name; bits have four decimals.
        mean: The number; the text of nan is empty.
        deviation: The standard deviation; left out if it is nan.

    Returns:
        The text.
    """
    if measure == "perplexity":
        return spread(mean, deviation)
    return spread(mean, deviation, "{:.4f}".format)


_BITS = {"characters": "bits per character", "bytes": "bits per byte"}


def measure_name(tokens: str = "words") -> str:
    """The measure that readers expect of models of such tokens.

    >>> measure_name("words"), measure_name("characters"), measure_name("bytes")
    ('perplexity', 'bits per character', 'bits per byte')
    """
    return _BITS.get(tokens, "perplexity")


def measured(perplexity: float, tokens: str = "words") -> float:
    """A perplexity per token, in the measure of these tokens.

    >>> measured(8.0, "words"), measured(8.0, "characters")
    (8.0, 3.0)

    Args:
        perplexity: Of a model of such tokens.
        tokens: The kind of tokens.

    Returns:
        The perplexity; for characters and bytes its logarithm of base 2, which is bits a token.
    """
    if tokens not in _BITS:
        return perplexity
    return math.log2(perplexity) if perplexity > 0 else math.nan


def measure_text(perplexity: float, tokens: str = "words") -> str:
    """A perplexity, in the measure of these tokens, as text: two decimals, four of bits.

    >>> measure_text(8.0, "subwords"), measure_text(8.0, "bytes")
    ('8.00', '3.0000')

    Args:
        perplexity: Of a model of such tokens.
        tokens: The kind of tokens.

    Returns:
        The text.
    """
    return number_text(measure_name(tokens), measured(perplexity, tokens)) or "nan"


def result_text(perplexity: float, tokens: str = "words") -> str:
    """A perplexity as text; of characters and bytes it stands in brackets, after bits a token.

    >>> result_text(8.0, "subwords"), result_text(8.0, "bytes")
    ('8.00', '3.0000 bits per byte (perplexity 8.00)')
    """
    value = perplexity_text(perplexity)
    if tokens not in _BITS:
        return value
    return f"{measure_text(perplexity, tokens)} {measure_name(tokens)} (perplexity {value})"
