"""Perplexity: from summed nats, and as text."""

import math
from collections.abc import Sequence


def perplexity(nats: float, count: float) -> float:
    """exp(nats / count) of the summed nats of so many tokens; inf beyond a float, nan without a positive count.

    >>> round(perplexity(10 * math.log(50), 10), 6)
    50.0
    """
    if not count > 0:
        return math.nan
    try:
        return math.exp(nats / count)
    except OverflowError:
        return math.inf


def perplexity_text(value: float) -> str:
    """A perplexity with two decimals, from ten millions on as a power of ten.

    >>> perplexity_text(116.4512), perplexity_text(3e9)
    ('116.45', '3.00e+09')
    """
    return f"{value:.2e}" if value >= 1e7 else f"{value:.2f}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation) of the numbers that are not nan; nan where there is none, or one alone.

    >>> mean_and_deviation([1.0, 3.0, math.nan]), mean_and_deviation([])
    ((2.0, 1.4142135623730951), (nan, nan))
    """
    known = [value for value in values if not math.isnan(value)]
    mean = sum(known) / len(known) if known else math.nan
    deviations = [value - mean for value in known]
    return mean, math.hypot(*deviations) / math.sqrt(len(known) - 1) if len(known) > 1 else math.nan


def spread(mean: float, deviation: float = math.nan) -> str:
    """A perplexity as mean ± standard deviation; empty for nan.

    >>> spread(116.4512, 0.5), spread(math.nan)
    ('116.45 ± 0.50', '')
    """
    if math.isnan(mean):
        return ""
    return perplexity_text(mean) + ("" if math.isnan(deviation) else f" ± {perplexity_text(deviation)}")
