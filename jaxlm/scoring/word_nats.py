"""The scores of texts one by one, and the nats of words that are made of pieces."""

from collections.abc import Sequence

import numpy as np

from jaxlm.scoring.sentences import Encoded, blocks
from jaxlm.scoring.token_scores import Scoring, TokenScores

_BLOCK = 1 << 14  # texts that are sorted by length together


def word_nats(scores: TokenScores, cuts: np.ndarray) -> np.ndarray:
    """The nats of every token that was predicted, which sum to the nats of their words.

    The P(B) of a word is added to its last token and to the last token before it.

    Args:
        scores: Scores of tokens.
        cuts: Before which tokens P(B) counts, as `Encoded` has them.

    Returns:
        Nats, float64.
    """
    nats = scores.nats.astype(float)
    nats[cuts] -= scores.boundary[cuts]
    nats[cuts - 1] += scores.boundary[cuts]
    return nats


def scores_of_each(scoring: Scoring, texts: Sequence[np.ndarray]) -> list[TokenScores]:
    """The scores of each text.

    Equal texts are read once, so that they get equal numbers.

    Args:
        scoring: Scores the texts.
        texts: Ids [n + 1] of each text, n >= 1.
    """
    unique = {ids.tobytes(): ids for ids in texts}
    scores_by_ids = {}
    for block in blocks(unique.items(), _BLOCK):
        scores = scoring([ids for _, ids in block])
        stop = 0
        for key, ids in block:
            start = stop
            stop += len(ids) - 1
            scores_by_ids[key] = scores.rows(slice(start, stop))
    return [scores_by_ids[ids.tobytes()] for ids in texts]


def sentence_nats(
    scoring: Scoring,
    sentences: Sequence[Encoded],
    eos: bool = False,
) -> list[np.ndarray]:
    """`word_nats` of the tokens [n] of each sentence.

    Args:
        scoring: Scores the sentences.
        sentences: The sentences.
        eos: Whether the `<eos>` after the tokens is scored too.
    """
    texts = []
    for sentence in sentences:
        # The boundary after the last word is scored at the `<eos>`.
        reads_eos = eos or len(sentence.cuts) > 0
        texts.append(sentence.ids if reads_eos else sentence.ids[:-1])
    return [
        word_nats(scores, sentence.cuts)[: len(sentence.tokens) + eos]
        for sentence, scores in zip(sentences, scores_of_each(scoring, texts), strict=True)
    ]
