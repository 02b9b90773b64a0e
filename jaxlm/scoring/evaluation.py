"""The perplexity of a text under a model, by any protocol, and the tuning of a protocol."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlm.base import units
from jaxlm.base.errors import DataError, Diverged, JaxlmError
from jaxlm.base.fields import specs
from jaxlm.config.protocols import (
    Cache,
    Dynamic,
    Interpolation,
    Plain,
    Temperature,
    protocol_of,
)
from jaxlm.data.corpus import Corpus
from jaxlm.scoring.interpolation import likeliest_weights
from jaxlm.scoring.model import Model, ReadText
from jaxlm.scoring.reading import GridReader, ModelReader, OneStream, check_converged
from jaxlm.scoring.stream import reader_nats, windowed_nats
from jaxlm.scoring.token_scores import NATS_ALONE

# Protocols whose state depends on no setting: one pass scores a whole grid.
READ_ONCE = Cache, Temperature


class Evaluation(NamedTuple):
    """Perplexity = exp(nats / predictions), and what was read.

    Attributes:
        perplexity: The perplexity of the text.
        nats: Summed nats.
        predictions: Tokens that were predicted.
        text: The name of the text.
        unknown: The share of the text's tokens that are `<unk>`: easily predicted, they make a
            perplexity look good.
        bits_per_byte: As `units.comparable` computes it.
        bits_per_character: As `units.comparable` computes it.
        word_perplexity: As `units.comparable` computes it.
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


def perplexity(
    model: Model,
    text: str,
    *,
    tokenizer: str | None = None,
    from_eos: bool = False,
) -> float:
    """The perplexity of every word of a text but the first.

    The state is passed on from line to line.

    Args:
        model: The model.
        text: The text; a newline is a word `<eos>`.
        tokenizer: Name of the tokenizer.
        from_eos: Whether the first word counts too, predicted from `<eos>` as `surprisal`
            predicts it: of one line it is then exp of the mean surprisal in nats.

    Raises:
        DataError: The text has no word to predict.

    >>> import jaxlm, math
    >>> lm = jaxlm.load("runs/tiny")
    >>> mean = lm.surprisal(["the bank lends"], unit="nats").surprisal.mean()
    >>> perplexity = lm.perplexity("the bank lends", from_eos=True)
    >>> math.isclose(perplexity, math.exp(mean), rel_tol=1e-5)
    True
    """
    ids = model.vocab.encode(model.tokens(text, tokenizer))
    if from_eos:
        ids = np.append(model.vocab.eos, ids).astype(np.int32)
    ids, count = read_and_counted(ids, "the text", Plain())
    return units.perplexity(float(reader_nats(model.reader_of(Plain()), ids)), count)


def evaluate(
    model: Model,
    split: str = "test",
    *,
    text: str | Path | None = None,
    corpus: Corpus | str | Path | None = None,
    protocol: str | Plain | None = None,
    tokenizer: str | None = None,
) -> Evaluation:
    """Evaluates a model on a split of a corpus, or on a file of text.

    `plain` reads train and valid of the run's own corpus in training's rows. Everything else is
    read in one row.

    Args:
        model: The model.
        split: train, valid or test.
        text: A file, in place of a split.
        corpus: The run's corpus, if it is already loaded; or any text that `--corpus` takes,
            encoded with this model's vocabulary.
        protocol: A name, as in "cache", or its settings, as in `Cache(cache_window=100)`
            (default: plain).
        tokenizer: Name of the tokenizer of `text`.

    Returns:
        The perplexity of every token but the first of each row.

    Raises:
        DataError: The corpus is not the training corpus, or the file cannot be read.
        JaxlmError: The protocol means nothing for this text or model.
        Diverged: Dynamic evaluation learnt at too high a rate.
    """
    protocol = protocol_of(protocol)
    text_read = model.read(split, text, corpus, tokenizer)
    shape = (1, 1)
    is_own_corpus = text_read.corpus is not None and not isinstance(corpus, str | Path)
    if is_own_corpus and split != "test" and type(protocol) is Plain:
        shape = (model.config.train.batch_size, model.config.train.bptt_length)
    return _evaluated(model, text_read, protocol, shape)


def _evaluated(
    model: Model,
    text: ReadText,
    protocol: Plain,
    shape: tuple[int, int] = (1, 1),
) -> Evaluation:
    """The evaluation of all tokens of a text but the first of each row.

    Args:
        model: The model.
        text: The text.
        protocol: The protocol.
        shape: Rows B and window length T, for the protocol plain; every other one reads one row.
    """
    ids = text.ids
    unknown = model.vocab.unknown_share(ids)
    if type(protocol) is Plain:
        nats, predictions = windowed_nats(model.reader_of(protocol), ids, *shape)
        count = model.config.optimizer.counted(predictions, shape[0])
    else:
        ids, count = read_and_counted(ids, text.name, protocol)
        nats = float(reader_nats(model.reader_of(protocol, text.corpus), ids))
        predictions = count
    check_converged(protocol, text.name, nats, predictions)
    numbers = units.comparable(nats, model.vocab.text_size(ids, *shape, text.tokens))
    perplexity = units.perplexity(nats, count)
    return Evaluation(perplexity, nats, predictions, text.name, unknown, **numbers)


def tune(
    model: Model,
    protocol: str | Plain,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    corpus: Corpus | str | Path | None = None,
) -> Tuned:
    """Chooses a protocol's settings on valid; then reads test, once.

    Args:
        model: The model.
        protocol: A name or a protocol; fields that the grid lacks keep their values.
        grid: Values to try, by field (default: the protocol's `grid`).
        corpus: As `evaluate` takes it.

    Returns:
        The best settings, all that were tried, and the evaluation of test.

    Raises:
        JaxlmError: There is nothing to tune, or the protocol means nothing for this text or model.
        Diverged: Every combination diverged.
    """
    source = model.find_corpus(corpus)
    protocol = protocol_of(protocol)
    test = ReadText(f"{source.name} test", source.test, corpus=source)
    valid = ReadText(f"{source.name} valid", source.valid, corpus=source)
    if grid is None:
        grid = protocol.grid
    if isinstance(protocol, Interpolation) and grid == protocol.grid:
        return _tuned_mixture(model, protocol, valid, test)
    grid = {name: np.ravel(values).tolist() for name, values in grid.items()}
    if not grid or not all(grid.values()):
        kind = protocol.kind_name
        raise JaxlmError(
            f"the protocol {kind} has nothing left to tune: evaluate it without tuning"
        )
    protocols = [
        protocol_of(protocol, **dict(zip(grid, values, strict=True)))
        for values in product(*grid.values())
    ]
    for candidate in protocols:
        # Raises what would else be raised after hours of valid.
        read_and_counted(test.ids, test.name, candidate)
    traced = all(specs(type(protocol))[name].type is float for name in grid)
    perplexities = []
    failure = None
    if isinstance(protocol, READ_ONCE) and traced:
        ids, count = read_and_counted(valid.ids, valid.name, protocol)
        values = tuple(jnp.asarray(values, jnp.float32) for values in grid.values())
        nats = reader_nats(GridReader(model.reader_of(protocol), tuple(grid), values), ids)
        perplexities = [units.perplexity(total, count) for total in nats.ravel().tolist()]
    else:
        for candidate in protocols:
            try:
                perplexities.append(_evaluated(model, valid, candidate).perplexity)
            except Diverged as error:
                perplexities.append(math.nan)
                failure = error
    trials = zip(protocols, perplexities, strict=True)
    tried = sorted(trials, key=lambda trial: (math.isnan(trial[1]), trial[1]))
    best, lowest = tried[0]
    if failure and math.isnan(lowest):
        raise failure
    return Tuned(best, lowest, tried, _evaluated(model, test, best))


def _tuned_mixture(
    model: Model,
    protocol: Interpolation,
    valid: ReadText,
    test: ReadText,
) -> Tuned:
    """The weights that make valid likeliest, beside each model alone, and test by the best."""
    ids, count = read_and_counted(valid.ids, valid.name, protocol)
    read_and_counted(test.ids, test.name, protocol)
    unweighted = protocol_of(protocol, weight=[0.0] * max(1, len(protocol.others)))
    mixed_reader: Any = model.reader_of(unweighted)
    nats = []
    for member in mixed_reader.network.members:
        reader = ModelReader(member, Plain())
        nats.append(OneStream(reader, NATS_ALONE)([ids]).nats.astype(float))
    log_p = -np.stack(nats)
    tried = []
    for weights in (*np.eye(len(nats)), likeliest_weights(-log_p)):
        weighted = protocol_of(protocol, weight=weights[1:].tolist())
        mixed = np.log(weights @ np.exp(log_p)).sum()
        tried.append((weighted, units.perplexity(-mixed, count)))
    tried.sort(key=lambda trial: trial[1])
    best, lowest = tried[0]
    return Tuned(best, lowest, tried, _evaluated(model, test, best))


def read_and_counted(
    ids: np.ndarray,
    text: str,
    protocol: Plain,
) -> tuple[np.ndarray, int]:
    """The tokens that a protocol reads of a stream, and the count that divides their nats.

    The count is that of the predictions, but where a published code divides by another.

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
