"""Perplexity at the edges of floats."""

import math

import pytest

from jaxlm.base.units import perplexity, perplexity_text

NAN = math.nan
INF = math.inf


@pytest.mark.parametrize(
    "nats, count, expected",
    [
        (200.0, 100, math.exp(2)),
        (0.0, 7, 1.0),
        (709.0, 1, math.exp(709)),
        (710.0, 1, INF),
        (1e9, 1, INF),
        (INF, 3, INF),
        (-INF, 3, 0.0),
        (NAN, 1, NAN),
        (1.0, 0, NAN),
        (1.0, -1, NAN),
        (1.0, NAN, NAN),
    ],
)
def test_perplexity(nats, count, expected):
    assert perplexity(nats, count) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "value, text", [(118.404, "118.40"), (1e7, "1.00e+07"), (INF, "inf"), (NAN, "nan")]
)
def test_text(value, text):
    assert perplexity_text(value) == text
