"""How a model scores sentences: each by itself or as one stream, by any protocol, or learning."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.config.protocols import protocol_of
from jaxlm.scoring.dynamic_evaluation import AdaptiveScoring
from jaxlm.scoring.model import Model, SentenceReader
from jaxlm.scoring.options import SurprisalOptions
from jaxlm.scoring.reading import OneStream, check_converged, each_sentence
from jaxlm.scoring.token_scores import Detail, Network, Scoring, TokenScores


def scorer(
    model: Model,
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


def scoring_of(model: Model, options: SurprisalOptions, full: bool = True) -> Scoring:
    """`scorer`, given its options.

    Args:
        model: The model.
        options: How sentences are scored.
        full: Whether to find entropy and rank.
    """
    protocol = protocol_of(options.protocol)
    reader = model.reader_of(protocol, network=_network(model, options))
    detail = Detail(options.top_k, full)
    if options.context == "stream":
        score = OneStream(reader, detail)
    else:
        score = partial(each_sentence, reader, detail)

    def checked_scores(sentences: Sequence[np.ndarray]) -> TokenScores:
        scores = score(sentences)
        nats = scores.nats
        check_converged(protocol, "the sentences", nats.sum(dtype=float), len(nats))
        return scores

    return checked_scores


def adaptive(model: Model, rate: float, **options: Any) -> AdaptiveScoring:
    """A scoring that takes a step of SGD after each sentence; its `params` are adapted.

    Args:
        model: The model.
        rate: Learning rate.
        **options: `context`, `top_k`, `boundary` and `punctuation` of `SurprisalOptions`.

    Raises:
        JaxlmError: The rate is not above 0, or there is a protocol.
    """
    settings = SurprisalOptions(**options)
    if protocol_of(settings.protocol).kind_name != "plain":
        raise JaxlmError("a model learns from its own probabilities: leave the protocol out")
    model.check_network("adaptation")
    network = _network(model, settings)
    return AdaptiveScoring(network, rate, settings.context == "stream", Detail(settings.top_k))


def _network(model: Model, options: SurprisalOptions) -> Network:
    """The network, which also scores the boundaries of words where they are to be corrected."""
    boundaries = SentenceReader(model, options).boundaries
    if boundaries is None or options.boundary != "corrected":
        return model.network
    return model.network.with_boundaries(jnp.asarray(boundaries.begins))
