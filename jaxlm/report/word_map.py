"""A map of the embedding: the most frequent words where their vectors lie."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.report.figure import BLUE, GREEN, ORANGE, figure, label, save

_CLUSTERS = (BLUE, ORANGE, GREEN, "#dc2626", "#7c3aed", "#854d0e", "#db2777", "#0891b2", "#65a30d", "#475569")
_WIDTH, _HEIGHT, _MARGIN = 2100, 1500, 50  # pixels, which are the axes' units too
_NAMES = {"tsne": "t-SNE", "pca": "PCA"}


def embedding_map(
    embedding: np.ndarray,
    words: Sequence[str],
    path: Path,
    *,
    count: int = 400,
    method: Literal["tsne", "pca"] = "tsne",
    seed: int = 0,
) -> Path:
    """Draws words where their vectors lie, in the colours of their clusters.

    t-SNE (van der Maaten and Hinton, 2008) keeps neighbours by cosine together, PCA keeps the two widest directions;
    a label that would lie on another is moved aside.

    Args:
        embedding: [V, E], rows in order of frequency, as ids are.
        words: at least as many words as are drawn.
        path: where to write the picture; its ending chooses the format.
        count: how many words to draw, from the most frequent on.
        method: "tsne" or "pca".
        seed: of the projection and the clusters.

    Returns:
        The picture's path.

    Raises:
        JaxlmError: The method is unknown, there are too few words, or the vectors are not finite or all the same.
        RunDirError: The picture cannot be written.
    """
    if method not in _NAMES:
        raise JaxlmError(f"expected method tsne or pca, found {method!r}")
    vectors = np.asarray(embedding, np.float64)[:count]
    if vectors.ndim != 2 or min(vectors.shape) < 2 or len(vectors) < 5 or len(words) < len(vectors):
        raise JaxlmError(
            f"a map needs at least 5 words with vectors of at least 2 numbers, and a word for each; "
            f"it has {len(words)} words and the vectors' shape is {vectors.shape}"
        )
    if not np.isfinite(vectors).all() or (np.ptp(vectors, axis=0) == 0).all():
        raise JaxlmError("the embedding's vectors are not finite, or all the same: map one that was trained")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places, clusters = project(vectors, method, seed)
    span = np.maximum(np.ptp(places, axis=0), 1e-12)
    area = np.array([_WIDTH, _HEIGHT - _MARGIN]) - 2 * _MARGIN
    places = _MARGIN + (places - places.min(axis=0)) / span * area

    with figure(_WIDTH / 150, _HEIGHT / 150) as drawn:
        drawn.set_layout_engine("none")
        axes = drawn.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, _HEIGHT))
        axes.set_axis_off()
        labels = [
            axes.text(*place, label(word), color=_CLUSTERS[cluster], fontsize=7.5, ha="center", va="center")
            for place, word, cluster in zip(places, words, clusters, strict=False)
        ]
        sizes = np.array([text.get_window_extent().size for text in labels]) + np.array([8, 2])
        for text, place in zip(labels, spread(places, sizes), strict=True):
            text.set_position(place)
        axes.text(
            20,
            _HEIGHT - 25,
            f"The {len(labels)} most frequent words in the embedding ({_NAMES[method]})",
            fontsize=11,
            weight="bold",
            va="center",
        )
        return save(drawn, Path(path))


def spread(places: np.ndarray, sizes: np.ndarray, rounds: int = 200) -> np.ndarray:
    """Moves boxes aside, each by little, until they lie apart or the rounds are over.

    Args:
        places: [n, 2], the boxes' centres.
        sizes: [n, 2], their widths and heights.
        rounds: how often at most all boxes that overlap are moved.

    Returns:
        The new centres [n, 2].
    """
    places = places.copy()
    for _ in range(rounds):
        apart = [np.subtract.outer(column, column) for column in places.T]
        close = [np.abs(gap) < np.add.outer(size, size) / 2 for gap, size in zip(apart, sizes.T, strict=True)]
        i, j = np.nonzero(np.triu(close[0] & close[1], 1))
        if not len(i):
            break
        gap = places[i] - places[j]
        overlap = (sizes[i] + sizes[j]) / 2 - np.abs(gap)
        push = np.where(gap < 0, -0.5, 0.5) * overlap * (overlap == overlap.min(axis=1, keepdims=True))
        np.add.at(places, i, push)
        np.add.at(places, j, -push)
    return places


def project(vectors: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places [n, 2] and clusters [n] of unit vectors [n, E]."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        raise JaxlmError("a map of words needs scikit-learn: pip install 'jaxlm[maps]'") from None

    projection = (
        PCA(2, random_state=seed)
        if method == "pca"
        else TSNE(metric="cosine", init="pca", random_state=seed, perplexity=min(20, (len(vectors) - 1) / 3))
    )
    clustering = KMeans(min(len(_CLUSTERS), len(vectors)), random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # with few words, threads take longer than one
        warnings.simplefilter("ignore")  # such as fewer distinct vectors than clusters
        return projection.fit_transform(vectors), clustering.fit_predict(vectors)
