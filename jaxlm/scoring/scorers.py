"""How a model scores sentences: each by itself or as one stream, by any protocol, or learning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked, choice, count, flag
from jaxlm.config.protocols import Plain, protocol_of
from jaxlm.scoring.dynamic_evaluation import AdaptiveScoring
from jaxlm.scoring.evaluation import check_converged
from jaxlm.scoring.reading import OneStream, each_sentence
from jaxlm.scoring.sentences import BLOCK, SentenceReader
from jaxlm.scoring.token_scores import Detail, Network, Scoring, TokenScores
from jaxlm.scoring.trained_model import TrainedModel

UNITS = {"bits": math.log(2), "nats": 1.0}  # nats of each unit


@dataclass(frozen=True)
class SurprisalOptions:
    """How the surprisal of sentences is found.

    Attributes:
        tokenizer: What splits lines: "none" at white space, "ptb" as Penn Treebank's files are;
            None: as the text that the model was trained on.
        protocol: A name, as in "cache", or its settings, as in `Cache(cache_window=100)`; None:
            plain.
        data_dir: Where Penn Treebank's files lie, which dynamic evaluation reads.
        block: Sentences that are read together.
        first: Number of the first sentence.
        scoring: A scoring of `LanguageModel.scorer` or `adaptive`, continued from its state; None:
            a new `scorer`.
        where: Names a sentence, given its number, in an error.

    Raises:
        JaxlmError: A value is outside its limits.
    """

    context: str = choice(
        "sentence",
        "sentence begins each anew (state, cache and parameters), stream passes the state on",
        ("sentence", "stream"),
    )
    oov: str = choice(
        "unk",
        "read unknown words as <unk>, refuse them (error), or give them NaN",
        ("unk", "error", "nan"),
    )
    top_k: int = count(0, "add the K likeliest words in each word's place")
    unit: str = choice("bits", "of surprisal and entropy", tuple(UNITS))
    tokenizer: str | None = None
    eos: bool = flag(False, "also a row for the <eos> that ends each sentence")
    punctuation: str = choice("word", "attached to its word, or a word of its own", ("word", "own"))
    boundary: str = choice(
        "corrected",
        "include the boundary after a word made of pieces, or not (published)",
        ("corrected", "published"),
    )
    protocol: str | Plain | None = None
    data_dir: str | Path | None = None
    block: int = count(BLOCK, "sentences that are read together", low=1)
    first: int = 1
    scoring: Scoring | None = None
    where: Callable[[int], str] = "sentence {}".format

    def __post_init__(self) -> None:
        checked(self)


def sentence_reader(model: TrainedModel, how: SurprisalOptions) -> SentenceReader:
    """How sentences are read.

    Args:
        model: The model.
        how: `tokenizer`, `punctuation` and `context` count.

    Raises:
        JaxlmError: There is no such tokenizer.
    """
    return SentenceReader(
        model.vocab,
        model.config.data.lowercase,
        model.line_as_read,
        model.tokenizer(how.tokenizer),
        how.punctuation,
        blank=how.context == "stream",
    )


def scorer(
    model: TrainedModel,
    context: str = "sentence",
    *,
    full: bool = True,
    **options: Any,
) -> Scoring:
    """A scoring of sentences: each by itself, or one after the other with the state passed on.

    Args:
        model: The model.
        context: "sentence" or "stream".
        full: Whether to find entropy and rank.
        **options: Fields of `SurprisalOptions`.

    Returns:
        A function from sentences of ids to scores. It raises Diverged where dynamic evaluation
        learnt at too high a rate.

    Raises:
        JaxlmError: An option is none of the choices.
    """
    return scoring_of(model, SurprisalOptions(context=context, **options), full)


def scoring_of(model: TrainedModel, how: SurprisalOptions, full: bool = True) -> Scoring:
    """`scorer`, given its options.

    Args:
        model: The model.
        how: The options.
        full: Whether to find entropy and rank.
    """
    protocol = protocol_of(how.protocol)
    reader = model.reader_of(protocol, None, how.data_dir, _network(model, how))
    detail = Detail(how.top_k, full)
    if how.context == "stream":
        read = OneStream(reader, detail)
    else:
        read = partial(each_sentence, reader, detail)

    def scoring(sentences: Sequence[np.ndarray]) -> TokenScores:
        scores = read(sentences)
        nats = scores.nats
        check_converged(protocol, "the sentences", nats.sum(dtype=float), len(nats))
        return scores

    return scoring


def adaptive(model: TrainedModel, rate: float, **options: Any) -> AdaptiveScoring:
    """A scoring that takes a step of SGD after each sentence; its `params` are adapted.

    Args:
        model: The model.
        rate: Learning rate.
        **options: `context`, `top_k`, `boundary` and `punctuation` of `SurprisalOptions`.

    Raises:
        JaxlmError: The rate is not above 0, or there is a protocol.
    """
    how = SurprisalOptions(**options)
    if protocol_of(how.protocol).kind_name != "plain":
        raise JaxlmError("a model learns from its own probabilities: leave the protocol out")
    return AdaptiveScoring(_network(model, how), rate, how.context == "stream", Detail(how.top_k))


def _network(model: TrainedModel, how: SurprisalOptions) -> Network:
    """The network, which also scores the boundaries of words where they are to be corrected."""
    boundaries = sentence_reader(model, how).boundaries
    if boundaries is None or how.boundary != "corrected":
        return model.network
    return model.network.with_boundaries(jnp.asarray(boundaries.begins))
