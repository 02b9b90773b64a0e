"""The perplexity of a text by any protocol, and the choice of a protocol's settings on a text."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlm.config.protocols import Cache, Dynamic, Plain, Temperature, name_of, protocol_of
from jaxlm.errors import DataError, Diverged, JaxlmError
from jaxlm.fields import specs
from jaxlm.report.units import perplexity
from jaxlm.scoring.protocols import Readers, reader_nats
from jaxlm.scoring.reading import GridReader
from jaxlm.scoring.stream import stream_nats

READ_ONCE = Cache, Temperature  # whose state depends on no setting: one pass scores a whole grid


class Evaluation(NamedTuple):
    """Perplexity = exp(nats / predictions), and what was read.

    Attributes:
        unknown: the share of the text's tokens that are `<unk>`: easily predicted, they make a perplexity look good.
    """

    perplexity: float
    nats: float
    predictions: int
    text: str
    unknown: float = 0.0


class Tuned(NamedTuple):
    """A protocol's settings chosen on one text, and their perplexity on another.

    Attributes:
        protocol: with the settings of the lowest perplexity on valid.
        valid: the lowest perplexity on valid.
        tried: every protocol with its perplexity on valid; nan where it diverged.
        test: of the test split, which was read once.
    """

    protocol: Plain
    valid: float
    tried: list[tuple[Plain, float]]
    test: Evaluation


def evaluate_ids(
    readers: Readers, ids: np.ndarray, text: str, protocol: Plain, rows_and_window: tuple[int, int] = (1, 1)
) -> Evaluation:
    """The perplexity of a stream of tokens.

    Args:
        readers: of the model.
        ids: the stream [N]; all but its first token are predicted, the state passed on.
        text: its name.
        protocol: how to read it.
        rows_and_window: B and T of the protocol plain; every other protocol reads one row.

    Raises:
        DataError: the stream is too short.
        JaxlmError: the protocol means nothing for this stream or model.
        Diverged: dynamic evaluation learnt at too high a rate.
    """
    unknown = readers.vocab.unknown_share(ids)
    if type(protocol) is Plain:
        config = readers.config
        nats, count = stream_nats(config.model, readers.params, ids, *rows_and_window)
        value = perplexity(nats, config.optimizer.counted(count, rows_and_window[0]))
        return Evaluation(value, nats, count, text, unknown)
    ids, count = _read(ids, text, protocol)
    nats = float(reader_nats(readers.of(protocol), ids))
    value = perplexity(nats, count)
    if isinstance(protocol, Dynamic) and not math.isfinite(value):
        raise Diverged(
            f"dynamic evaluation diverged on {text}: lower learning_rate, which is {protocol.learning_rate:g}"
        )
    return Evaluation(value, nats, count, text, unknown)


def grid_search(
    readers: Readers, ids: np.ndarray, text: str, protocol: Plain, grid: Mapping[str, Sequence[float]] | None = None
) -> list[tuple[Plain, float]]:
    """Every combination of a grid with its perplexity, the lowest first; nan where it diverged.

    Args:
        readers, ids, text: as `evaluate_ids` has them.
        protocol: whose fields are changed.
        grid: values by field; None: the protocol's own.

    Raises:
        JaxlmError: the grid is empty, or the protocol means nothing for this stream or model.
        Diverged: every combination diverged.
    """
    chosen = protocol.grid if grid is None else grid
    if not chosen or not all(chosen.values()):
        raise JaxlmError(f"the protocol {name_of(protocol)} has nothing left to tune: evaluate it without tuning")
    every = [
        protocol_of(protocol, **dict(zip(chosen, values, strict=True)))
        for values in itertools.product(*chosen.values())
    ]
    if isinstance(protocol, READ_ONCE) and all(specs(type(protocol))[name].type is float for name in chosen):
        ids, count = _read(ids, text, protocol)
        values = tuple(jnp.asarray(values, jnp.float32) for values in chosen.values())
        nats = reader_nats(GridReader(readers.of(protocol), tuple(chosen), values), ids)
        found = [perplexity(float(one), count) for one in nats.ravel()]
    else:
        found, failed = [], None
        for one in every:
            try:
                found.append(evaluate_ids(readers, ids, text, one).perplexity)
            except Diverged as error:
                found.append(math.nan)
                failed = error
        if failed and all(map(math.isnan, found)):
            raise failed
    return sorted(zip(every, found, strict=True), key=lambda one: math.inf if math.isnan(one[1]) else one[1])


def _read(ids: np.ndarray, text: str, protocol: Plain) -> tuple[np.ndarray, int]:
    """The tokens that a protocol reads of a stream, and by how many its nats are divided."""
    if len(ids) < 2:
        raise DataError(f"{len(ids):,} tokens are too few to evaluate: expected at least 2")
    if isinstance(protocol, Cache) and protocol.cache_window > len(ids) - 1:
        raise JaxlmError(
            f"cache_window {protocol.cache_window:,} is larger than the {len(ids) - 1:,} predictions of "
            f"{text}: lower cache_window, or evaluate a longer text"
        )
    count = len(ids) - 1
    if isinstance(protocol, Dynamic) and protocol.as_krause and count % protocol.segment_length == 1:
        return ids[:-1], count - 1  # that code leaves a last segment of one prediction out
    if isinstance(protocol, Cache) and protocol.compatibility == "awd-lstm":
        return ids, count + 1  # that code divides by the tokens
    return ids, count
