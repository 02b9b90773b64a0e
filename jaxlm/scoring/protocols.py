"""From a protocol's name and settings to its reader, and from a reader to scores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.protocols import Cache, Dynamic, MCDropout, Plain
from jaxlm.data.vocab import Vocab
from jaxlm.models.recurrent import Params
from jaxlm.scoring.dynamic_evaluation import DynamicReader, Statistics, check_compatible, objective_of
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.reading import ModelReader, OneStream, Reader
from jaxlm.scoring.token_scores import Detail

BLOCK = 1 << 16  # tokens that are handed to a reader at a time


@dataclass(frozen=True)
class Readers:
    """Makes the reader of any protocol for one model.

    Attributes:
        config: the run's.
        params, vocab: the model's.
        statistics: reads the training text for dynamic evaluation by the rule rms; may raise JaxlmError.
    """

    config: Config
    params: Params
    vocab: Vocab
    statistics: Callable[[Dynamic], Statistics]

    def of(self, protocol: Plain) -> Reader:
        """The reader of a protocol. Raises JaxlmError where the protocol means nothing for this model."""
        model, params = self.config.model, self.params
        if isinstance(protocol, Cache):
            return CacheReader(model, params, protocol)
        if isinstance(protocol, MCDropout):
            return MCReader(model, params, protocol, self.config.train.bptt_length)
        if isinstance(protocol, Dynamic):
            check_compatible(model, protocol)
            statistics = self.statistics(protocol) if protocol.rule == "rms" else None
            return DynamicReader(model, params, protocol, statistics, objective_of(self.config, protocol))
        return ModelReader(model, params, protocol)


def reader_nats(reader: Reader, ids: np.ndarray) -> np.ndarray:
    """Summed nats of every token of a stream [N] but the first, in constant memory; of a `GridReader` [G1, G2, ...]."""
    scoring, nats = OneStream(reader, Detail(full=False)), 0.0
    for start in range(0, len(ids) - 1, BLOCK):
        nats += scoring([np.asarray(ids[start : start + BLOCK + 1])]).nats.sum(0, dtype=float)
    return np.asarray(nats)
