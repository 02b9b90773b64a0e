"""From a protocol to its reader, to the perplexity of a text, and to the best settings on a text."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.protocols import Cache, Dynamic, MCDropout, Plain, Temperature, name_of, protocol_of
from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError, Diverged, JaxlmError
from jaxlm.fields import specs
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params
from jaxlm.report.units import comparable, perplexity
from jaxlm.scoring.dynamic_evaluation import DynamicReader, Statistics, objective_of
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.network import Network
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.reading import GridReader, ModelReader, OneStream, Reader
from jaxlm.scoring.stream import stream_nats
from jaxlm.scoring.token_scores import Detail

BLOCK = 1 << 16  # tokens that are handed to a reader at a time
READ_ONCE = Cache, Temperature  # whose state depends on no setting: one pass scores a whole grid


@dataclass(frozen=True)
class Readers:
    """Makes the reader of any protocol for one model."""

    config: Config
    params: Params
    vocab: Vocab
    statistics: Callable[[Dynamic], Statistics]  # reads the training text, for dynamic evaluation by the rule rms
    begins: jax.Array | None = None  # which tokens [V] begin a word, where their probability is asked for

    def of(self, protocol: Plain) -> Reader:
        """The reader of a protocol. Raises JaxlmError where the protocol means nothing for this model."""
        network = Network(self.config.model, self.params, self.begins)
        if isinstance(protocol, Cache):
            return CacheReader(network, protocol)
        if isinstance(protocol, MCDropout):
            return MCReader(network, protocol, self.config.train.bptt_length)
        if isinstance(protocol, Dynamic):
            if protocol.as_krause and type(self.config.model) is not LSTM:
                raise JaxlmError(
                    f"compatibility {protocol.compatibility} is about the tensors of PyTorch's LSTM, and the "
                    f"model is {self.config.kinds['model']}: leave compatibility out"
                )
            statistics = self.statistics(protocol) if protocol.rule == "rms" else None
            return DynamicReader(network, protocol, statistics, objective_of(self.config, protocol))
        return ModelReader(network, protocol)


def reader_nats(reader: Reader, ids: np.ndarray) -> np.ndarray:
    """Summed nats of every token of a stream [N] but the first, in constant memory; of a `GridReader` [G1, G2, ...]."""
    scoring, nats = OneStream(reader, Detail(full=False)), 0.0
    for start in range(0, len(ids) - 1, BLOCK):
        nats += scoring([np.asarray(ids[start : start + BLOCK + 1])]).nats.sum(0, dtype=float)
    return np.asarray(nats)


class Evaluation(NamedTuple):
    """Perplexity = exp(nats / predictions), and what was read.

    Attributes:
        unknown: the share of the text's tokens that are `<unk>`: easily predicted, they make a perplexity look good.
        bits_per_byte, bits_per_character, word_perplexity: as `report.units.comparable` has them.
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
    readers: Readers,
    ids: np.ndarray,
    text: str,
    protocol: Plain,
    rows_and_window: tuple[int, int] = (1, 1),
    tokens: Sequence[str] = (),
) -> Evaluation:
    """The perplexity of a stream of tokens [N], called `text`: all but the first are predicted, the state passed on.

    Plainly it is read as B rows in windows of T; every other protocol reads one row. `tokens` are those of a text that
    has unknown ones, whose size is then its own. Raises DataError where the stream
    is too short, JaxlmError where the protocol means nothing for it or for the model, and Diverged where dynamic
    evaluation learnt at too high a rate.
    """
    unknown, config = readers.vocab.unknown_share(ids), readers.config
    if type(protocol) is Plain:
        nats, count = stream_nats(config.model, readers.params, ids, *rows_and_window)
        size = readers.vocab.text_size(ids, *rows_and_window, tokens)
        value = perplexity(nats, config.optimizer.counted(count, rows_and_window[0]))
    else:
        ids, count = _read(ids, text, protocol)
        nats, size = float(reader_nats(readers.of(protocol), ids)), readers.vocab.text_size(ids, tokens=tokens)
        value = perplexity(nats, count)
    if isinstance(protocol, Dynamic) and not math.isfinite(value):
        raise Diverged(
            f"dynamic evaluation diverged on {text}: lower learning_rate, which is {protocol.learning_rate:g}"
        )
    return Evaluation(value, nats, count, text, unknown, **comparable(nats, size))


def grid_search(
    readers: Readers, ids: np.ndarray, text: str, protocol: Plain, grid: Mapping[str, Sequence[float]] | None = None
) -> list[tuple[Plain, float]]:
    """Every combination of a grid with the perplexity that `evaluate_ids` finds, the lowest first; nan: it diverged.

    A grid has the values of some fields of the protocol (None: the protocol's own grid). Raises JaxlmError where it is
    empty, or the protocol means nothing for this stream or model, and Diverged where every combination diverged.
    """
    chosen = protocol.grid if grid is None else grid
    if not chosen or not all(chosen.values()):
        raise JaxlmError(f"the protocol {name_of(protocol)} has nothing left to tune: evaluate it without tuning")
    points = itertools.product(*chosen.values())
    every = [protocol_of(protocol, **dict(zip(chosen, values, strict=True))) for values in points]
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
