"""A map of the embedding: the most frequent words where their vectors lie."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.report.figure import PALETTE, figure, label, marks, save

_WIDTH = 2100
_HEIGHT = 1500
_MARGIN = 50  # pixels, which are the axes' units too
_BYTES = {
    f"<0x{byte:02X}>" for byte in range(256)
}  # beside the pieces of SentencePiece, first and in no order


@dataclass(frozen=True)
class WordMap:
    """The most frequent words where their vectors lie."""

    words: Sequence[str]  # n
    places: np.ndarray  # [n, 2]
    clusters: np.ndarray  # [n], from 0; all 0 without scikit-learn
    neighbors: Sequence[
        Sequence[tuple[str, float]]
    ]  # of each word, in the whole vocabulary, with their cosines
    method: str  # t-SNE or PCA

    @property
    def legend(self) -> str:
        """What the picture shows, its colours included."""
        clusters = len(np.unique(self.clusters))
        colours = f"; colours: {clusters} clusters of the vectors (k-means)" if clusters > 1 else ""
        return (
            f"The {len(self.words)} most frequent words in the embedding ({self.method}){colours}"
        )


def embedding_map(embedding: np.ndarray, words: Sequence[str], path: Path, **options: Any) -> Path:
    """Draws `map_words`, which takes the options, into the picture at a path, as `save` does; returns the path."""
    found = map_words(embedding, words, **{"count": 400, "neighbors": 0, **options})
    with drawn_map(found) as drawn:
        drawn.axes[0].text(20, _HEIGHT - 25, found.legend, fontsize=11, weight="bold", va="center")
        return save(drawn, Path(path))


def map_words(
    embedding: np.ndarray,
    words: Sequence[str],
    *,
    count: int = 500,
    method: Literal["tsne", "pca"] = "tsne",
    neighbors: int = 10,
) -> WordMap:
    """Places the most frequent words on a plane, and finds the nearest neighbours of each among all words.

    t-SNE (van der Maaten and Hinton, 2008) keeps neighbours by cosine together; PCA keeps the two widest directions.
    Without scikit-learn the method is PCA, and there are no clusters. The rows of the embedding [V, E] are in order of
    frequency, as ids are; bytes beside pieces of words are left out. Raises JaxlmError if there are too few words, or
    the vectors are not finite or all equal.
    """
    vectors = np.asarray(embedding)
    if {*words} > _BYTES:
        kept = [place for place, word in enumerate(words) if word not in _BYTES]
        vectors = vectors[kept]
        words = [words[place] for place in kept]
    head = vectors[:count]
    if vectors.ndim != 2 or min(head.shape) < 2 or len(head) < 5 or len(words) < len(head):
        needed = (
            "a map needs at least 5 words with vectors of at least 2 numbers, and a word for each"
        )
        raise JaxlmError(
            f"{needed}; it has {len(words)} words and the vectors' shape is {head.shape}"
        )
    if not np.isfinite(vectors).all() or (np.ptp(head, axis=0) == 0).all():
        raise JaxlmError(
            "the embedding's vectors are not finite, or all equal: map one that was trained"
        )
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places, clusters, used = _project(unit[:count].astype(np.float64), method)
    near = []
    most = min(neighbors, len(unit) - 1)
    for place in range(len(head) if most else 0):
        cosine = unit @ unit[place]
        cosine[place] = -np.inf
        nearest = np.argpartition(-cosine, most - 1)[:most]
        nearest = nearest[np.argsort(-cosine[nearest], kind="stable")]
        near.append([(words[other], round(float(cosine[other]), 3)) for other in nearest])
    return WordMap(words[: len(head)], places, clusters, near, used)


@contextmanager
def drawn_map(words: WordMap) -> Iterator[Any]:
    """A figure of a map; a label that would lie on another is moved aside. Each label's key is its place in the map."""
    span = np.maximum(np.ptp(words.places, axis=0), 1e-12)
    area = np.array([_WIDTH, _HEIGHT - _MARGIN])
    places = _MARGIN + (words.places - words.places.min(axis=0)) / span * (area - 2 * _MARGIN)
    with figure(_WIDTH / 150, _HEIGHT / 150) as drawn:
        drawn.set_layout_engine("none")
        axes = drawn.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, _HEIGHT))
        axes.set_axis_off()
        style: dict[str, Any] = {"fontsize": 7.5, "ha": "center", "va": "center"}
        rows = zip(places, words.words, words.clusters, strict=True)
        labels = [
            axes.text(*place, label(word), color=PALETTE[cluster], **style)
            for place, word, cluster in rows
        ]
        sizes = np.array([text.get_window_extent().size for text in labels]) + np.array([8, 2])
        for key, (text, place) in enumerate(
            zip(labels, moved_apart(places, sizes, area), strict=True)
        ):
            text.set_position(place)
            text.set_gid(marks([], str(key)))
        yield drawn


def moved_apart(places: np.ndarray, sizes: np.ndarray, area: np.ndarray) -> np.ndarray:
    """The centres [n, 2] of boxes of sizes [n, 2], moved apart within the area [2] in at most 200 rounds."""
    low = sizes / 2
    high = np.maximum(area - sizes / 2, sizes / 2)
    places = np.clip(places, low, high)
    for _ in range(200):
        apart = [np.subtract.outer(column, column) for column in places.T]
        close = [
            np.abs(gap) < np.add.outer(size, size) / 2
            for gap, size in zip(apart, sizes.T, strict=True)
        ]
        i, j = np.nonzero(np.triu(close[0] & close[1], 1))
        if not len(i):
            break
        gap = places[i] - places[j]
        overlap = (sizes[i] + sizes[j]) / 2 - np.abs(gap)
        push = (
            np.where(gap < 0, -0.5, 0.5) * overlap * (overlap == overlap.min(axis=1, keepdims=True))
        )
        np.add.at(places, i, push)
        np.add.at(places, j, -push)
        places = np.clip(places, low, high)
    return places


def _project(vectors: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Places [n, 2] and clusters [n] of unit vectors [n, E], and the name of the method that was used."""
    centred = vectors - vectors.mean(axis=0)
    widest = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    try:
        from sklearn.cluster import KMeans
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        return widest, np.zeros(len(vectors), int), "PCA"
    with (
        warnings.catch_warnings(),
        threadpool_limits(1),
    ):  # with few words, threads take longer than one
        warnings.simplefilter("ignore")  # such as fewer distinct vectors than clusters
        clusters = KMeans(min(len(PALETTE), len(vectors)), random_state=0).fit_predict(vectors)
        if method == "pca":
            return widest, clusters, "PCA"
        near = min(20, (len(vectors) - 1) / 3)
        tsne = TSNE(metric="cosine", init="pca", random_state=0, perplexity=near)
        return tsne.fit_transform(vectors).astype(np.float64), clusters, "t-SNE"
