"""From a protocol to what reads with it."""

from collections.abc import Callable

import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.protocols import Cache, Dynamic, MCDropout, Plain, Temperature
from jaxlm.models.recurrent import Params
from jaxlm.scoring.dynamic_evaluation import DynamicReader, Statistics, check_compatible, cost_of
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.reading import EachSentence, OneStream, Reader
from jaxlm.scoring.softmax_temperature import TemperatureReader
from jaxlm.scoring.token_scores import BySentence, Scoring, Streamed

BLOCK = 1 << 16  # tokens that are handed to a reader at a time

Statistician = Callable[[Dynamic], Statistics]  # reads the training text for a protocol; called for the rule rms only


def reader_of(config: Config, params: Params, protocol: Plain, statistics: Statistician) -> Reader:
    """The reader of any protocol but plain.

    Args:
        config: the run's.
        params: the model's.
        protocol: its numbers.
        statistics: of the training text.

    Raises:
        JaxlmError: the protocol means nothing for this model, or there is no training text.
    """
    model = config.model
    if isinstance(protocol, Cache):
        return CacheReader(model, params, protocol)
    if isinstance(protocol, Temperature):
        return TemperatureReader(model, params, protocol)
    if isinstance(protocol, MCDropout):
        return MCReader(model, params, protocol, config.train.bptt_length)
    assert isinstance(protocol, Dynamic), protocol
    check_compatible(model, protocol)
    found = statistics(protocol) if protocol.rule == "rms" else None
    return DynamicReader(model, params, protocol, found, cost_of(config, protocol))


def scoring_of(
    config: Config, params: Params, reader: Reader | None, stream: bool, top: int = 0, full: bool = True
) -> Scoring:
    """How sentences become scores; without a reader, plainly.

    Args:
        config: the run's.
        params: the model's.
        reader: of a protocol.
        stream: whether the state is passed on from sentence to sentence.
        top: how many likeliest words to find.
        full: whether to find more than the nats.
    """
    if reader is None:
        return (Streamed if stream else BySentence)(config.model, params, top, full)
    return (OneStream if stream else EachSentence)(reader, top, full)


def reader_nats(reader: Reader, ids: np.ndarray) -> np.ndarray:
    """Summed nats of every token of a stream [N] but the first, in constant memory; of a `GridReader` [G1, G2, ...]."""
    scoring, nats = OneStream(reader, full=False), 0.0
    for start in range(0, len(ids) - 1, BLOCK):
        nats += scoring([np.asarray(ids[start : start + BLOCK + 1])]).nats.sum(0, dtype=float)
    return np.asarray(nats)
