"""The map of words and their neighbours, from an embedding."""

from collections.abc import Sequence

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.report.page.contents import WordMap
from jaxlm.report.word_map import project


def map_words(embedding: np.ndarray, words: Sequence[str], *, count: int = 500, neighbors: int = 10) -> WordMap:
    """Where the most frequent words lie, by t-SNE where scikit-learn is installed, else by PCA.

    Args:
        embedding: [V, E], rows in order of frequency, as ids are.
        words: V words or more.
        count: how many words to map, from the most frequent on.
        neighbors: how many to find of each, among all V words.

    Returns:
        The map.

    Raises:
        JaxlmError: There are too few words, or the vectors are not finite or all the same.
    """
    vectors = np.asarray(embedding, np.float32)
    count = min(count, len(vectors))
    if count < 5 or vectors.shape[1] < 2 or not np.isfinite(vectors).all() or (np.ptp(vectors[:count], 0) == 0).all():
        raise JaxlmError("the words cannot be mapped: it takes five words with vectors that are finite and differ")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    head = unit[:count].astype(np.float64)
    try:
        places, clusters = project(head, "tsne", 0)
        method = "t-SNE"
    except JaxlmError:  # scikit-learn is not installed
        centred = head - head.mean(axis=0)
        places, clusters, method = (
            centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T,
            np.zeros(count),
            "PCA",
        )
    return WordMap(
        list(words[:count]),
        [(round(float(x), 3), round(float(y), 3)) for x, y in places],
        [int(cluster) for cluster in clusters],
        _nearest(unit, words, count, neighbors),
        method,
    )


def _nearest(unit: np.ndarray, words: Sequence[str], count: int, most: int) -> list[list[tuple[str, float]]]:
    """Of each of the first `count` words, the words with the highest cosine among all."""
    found = []
    for place in range(count):
        cosine = unit @ unit[place]
        cosine[place] = -np.inf
        nearest = np.argpartition(-cosine, min(most, len(cosine) - 1) - 1)[: min(most, len(cosine) - 1)]
        found.append(
            [(words[i], round(float(cosine[i]), 3)) for i in nearest[np.argsort(-cosine[nearest], kind="stable")]]
        )
    return found
