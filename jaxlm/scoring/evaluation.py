"""What evaluating a text by a protocol finds, and how its tokens are counted."""

import math
from typing import NamedTuple

import numpy as np

from jaxlm.base.errors import DataError, Diverged, JaxlmError
from jaxlm.base.units import perplexity
from jaxlm.config.protocols import Cache, Dynamic, Plain


class Evaluation(NamedTuple):
    """Perplexity = exp(nats / predictions), and what was read.

    Attributes:
        perplexity: The perplexity of the text.
        nats: Summed nats.
        predictions: Tokens that were predicted.
        text: The name of the text.
        unknown: The share of the text's tokens that are `<unk>`: easily predicted, they make a
            perplexity look good.
        bits_per_byte: As `units.comparable` has it.
        bits_per_character: As `units.comparable` has it.
        word_perplexity: As `units.comparable` has it.
    """

    perplexity: float
    nats: float
    predictions: int
    text: str
    unknown: float = 0.0
    bits_per_byte: float = math.nan
    bits_per_character: float = math.nan
    word_perplexity: float = math.nan


class Tuned(NamedTuple):
    """A protocol's settings of the lowest perplexity on valid, and the evaluation of test by them.

    Attributes:
        protocol: The best settings.
        valid: Their perplexity on valid.
        tried: Every protocol with its perplexity on valid, the best first; nan where it diverged.
        test: The evaluation of test, read once.
    """

    protocol: Plain
    valid: float
    tried: list[tuple[Plain, float]]
    test: Evaluation


def check_converged(
    protocol: Plain,
    text: str,
    nats: float,
    count: int,
) -> None:
    """Checks that dynamic evaluation did not diverge.

    Args:
        protocol: The protocol that the text was read by.
        text: The name of the text.
        nats: Summed nats.
        count: Predictions.

    Raises:
        Diverged: Dynamic evaluation learnt at so high a rate that the perplexity is not finite.
    """
    if isinstance(protocol, Dynamic) and not math.isfinite(perplexity(nats, count)):
        rate = f"lower learning_rate, which is {protocol.learning_rate:g}"
        raise Diverged(f"dynamic evaluation diverged on {text}: {rate}")


def read_and_counted(
    ids: np.ndarray,
    text: str,
    protocol: Plain,
) -> tuple[np.ndarray, int]:
    """The tokens that a protocol reads of a stream, and by how many its nats are divided.

    Args:
        ids: The stream [N].
        text: The name of the text.
        protocol: The protocol.

    Raises:
        DataError: There is nothing to predict.
        JaxlmError: The text is shorter than the cache.
    """
    if (
        isinstance(protocol, Dynamic)
        and protocol.as_krause
        and (len(ids) - 2) % protocol.segment_length == 0
    ):
        ids = ids[:-1]  # that code leaves a last segment of one prediction out
    count = len(ids) - 1
    if count < 1:
        raise DataError(f"{len(ids):,} tokens are too few to evaluate: expected at least 2")
    if isinstance(protocol, Cache):
        window = protocol.cache_window
        if window > count:
            sizes = f"cache_window {window:,} is larger than the {count:,} predictions of {text}"
            raise JaxlmError(f"{sizes}: lower cache_window, or evaluate a longer text")
        if protocol.compatibility == "awd-lstm":
            count += 1  # that code divides by the tokens
    return ids, count
