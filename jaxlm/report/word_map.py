"""A map of the embedding: the most frequent words where their vectors lie."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.report.figure import PALETTE, figure, label, marks, save

_WIDTH = 2100
_HEIGHT = 1500
_MARGIN = 50  # pixels, which are the axes' units too
# The bytes beside the pieces of SentencePiece, which come first and in no order.
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


@dataclass(frozen=True)
class WordMap:
    """The most frequent words, or other tokens, where their vectors lie."""

    words: Sequence[str]  # n
    places: np.ndarray  # [n, 2]
    clusters: np.ndarray  # [n], from 0; all 0 without scikit-learn
    # Of each word, in the whole vocabulary, with their cosines.
    neighbors: Sequence[Sequence[tuple[str, float]]]
    method: str  # t-SNE or PCA
    tokens: str = "words"  # words, characters, bytes or subwords

    @property
    def legend(self) -> str:
        """What the picture shows, its colours included."""
        # Ids of pieces and bytes are in no order of frequency.
        which = "most frequent" if self.tokens in ("words", "characters") else "first"
        legend = f"The {len(self.words)} {which} {self.tokens} in the embedding ({self.method})"
        clusters = len(np.unique(self.clusters))
        if clusters > 1:
            legend += f"; colours: {clusters} clusters of the vectors (k-means)"
        return legend


def embedding_map(
    embedding: np.ndarray,
    words: Sequence[str],
    path: Path,
    **options: Any,
) -> Path:
    """Draws a map into a picture.

    Args:
        embedding: The vectors [V, E].
        words: Their names.
        path: The picture, as `save` writes it.
        options: Options of `map_words`.

    Returns:
        The path.

    Raises:
        JaxlmError: As `map_words`.
        RunDirError: The picture cannot be written.
    """
    words_map = map_words(embedding, words, **{"count": 400, "neighbors": 0, **options})
    with drawn_map(words_map) as drawn:
        title = {"fontsize": 11, "weight": "bold", "va": "center"}
        drawn.axes[0].text(20, _HEIGHT - 25, words_map.legend, **title)
        return save(drawn, Path(path))


def map_words(
    embedding: np.ndarray,
    words: Sequence[str],
    *,
    count: int = 500,
    method: Literal["tsne", "pca"] = "tsne",
    neighbors: int = 10,
    tokens: str = "words",
) -> WordMap:
    """Places the most frequent words on a plane, and finds the nearest neighbours of each.

    t-SNE (van der Maaten and Hinton 2008, jmlr.org/papers/v9/vandermaaten08a.html) keeps neighbours
    by cosine together; PCA keeps the two widest directions. Without scikit-learn the method is PCA,
    and there are no clusters.

    Args:
        embedding: The vectors [V, E], in order of frequency, as ids are.
        words: Their names. Bytes beside pieces of words are left out.
        count: How many words are placed.
        method: tsne or pca.
        neighbors: How many each word has, among all words.
        tokens: What the names are of: words, characters, bytes or subwords.

    Returns:
        The map.

    Raises:
        JaxlmError: There are too few words, or the vectors are not finite or all equal.
    """
    vectors = np.asarray(embedding)
    if {*words} > _BYTES:
        pieces = [place for place, word in enumerate(words) if word not in _BYTES]
        vectors = vectors[pieces]
        words = [words[place] for place in pieces]
    head = vectors[:count]
    if vectors.ndim != 2 or min(head.shape) < 2 or len(head) < 5 or len(words) < len(head):
        raise JaxlmError(
            f"a map needs at least 5 words with vectors of at least 2 numbers, and a word for "
            f"each; it has {len(words)} words and the vectors' shape is {head.shape}"
        )
    if not np.isfinite(vectors).all() or (np.ptp(head, axis=0) == 0).all():
        raise JaxlmError(
            "the embedding's vectors are not finite, or all equal: map one that was trained"
        )
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places, clusters, used = _project(unit[:count].astype(np.float64), method)
    nearest = []
    if neighbors:
        nearest = [_nearest(unit, words, place, neighbors) for place in range(len(head))]
    return WordMap(words[: len(head)], places, clusters, nearest, used, tokens)


def _nearest(
    unit: np.ndarray,
    words: Sequence[str],
    place: int,
    count: int,
) -> list[tuple[str, float]]:
    """The words with the nearest unit vectors to one of them, with their cosines."""
    cosine = unit @ unit[place]
    cosine[place] = -np.inf
    count = min(count, len(unit) - 1)
    nearest = np.argpartition(-cosine, count - 1)[:count]
    nearest = nearest[np.argsort(-cosine[nearest], kind="stable")]
    return [(words[int(other)], round(float(cosine[other]), 3)) for other in nearest]


@contextmanager
def drawn_map(words: WordMap) -> Iterator[Any]:
    """A figure of a map; a label that would lie on another is moved aside.

    Each label's key is its place in the map.
    """
    span = np.maximum(np.ptp(words.places, axis=0), 1e-12)
    area = np.array([_WIDTH, _HEIGHT - _MARGIN])
    places = _MARGIN + (words.places - words.places.min(axis=0)) / span * (area - 2 * _MARGIN)
    with figure(_WIDTH / 150, _HEIGHT / 150) as drawn:
        drawn.set_layout_engine("none")
        axes = drawn.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, _HEIGHT))
        axes.set_axis_off()
        style: dict[str, Any] = {"fontsize": 7.5, "ha": "center", "va": "center"}
        labels = [
            axes.text(*place, label(word), color=PALETTE[cluster], **style)
            for place, word, cluster in zip(places, words.words, words.clusters, strict=True)
        ]
        renderer = drawn.canvas.get_renderer()
        extents = [text.get_window_extent(renderer).size for text in labels]
        sizes = np.array(extents) + np.array([8, 2])
        apart = moved_apart(places, sizes, area)
        for key, (text, place) in enumerate(zip(labels, apart, strict=True)):
            text.set_position(place)
            text.set_gid(marks([], [str(key)]))
        yield drawn


def moved_apart(
    places: np.ndarray,
    sizes: np.ndarray,
    area: np.ndarray,
) -> np.ndarray:
    """Moves boxes apart, in at most 200 rounds.

    Args:
        places: Their centres [n, 2].
        sizes: Their widths and heights [n, 2].
        area: The width and height [2] that they stay in.

    Returns:
        Their centres [n, 2].
    """
    low = sizes / 2
    high = np.maximum(area - sizes / 2, sizes / 2)
    places = np.clip(places, low, high)
    first, second = np.triu_indices(len(places), 1)
    reach = np.array([lengths[first] + lengths[second] for lengths in sizes.T]) / 2
    for _ in range(200):
        gaps = np.array([centres[first] - centres[second] for centres in places.T])
        touching = np.flatnonzero((np.abs(gaps) < reach).all(axis=0))
        if not len(touching):
            break
        gap = gaps[:, touching].T
        overlap = reach[:, touching].T - np.abs(gap)
        narrower = overlap == overlap.min(axis=1, keepdims=True)  # the shorter way out
        push = np.where(gap < 0, -0.5, 0.5) * overlap * narrower
        np.add.at(places, first[touching], push)
        np.add.at(places, second[touching], -push)
        places = np.clip(places, low, high)
    return places


def _project(vectors: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray, str]:
    """The places [n, 2] and clusters [n] of unit vectors [n, E], and the method's name."""
    centred = vectors - vectors.mean(axis=0)
    widest = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    try:  # an extra, slow to import
        from sklearn.cluster import KMeans
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        return widest, np.zeros(len(vectors), int), "PCA"
    # With few words, threads take longer than one.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # such as fewer distinct vectors than clusters
        clusters = KMeans(min(len(PALETTE), len(vectors)), random_state=0).fit_predict(vectors)
        if method == "pca":
            return widest, clusters, "PCA"
        perplexity = min(20, (len(vectors) - 1) / 3)
        tsne = TSNE(metric="cosine", init="pca", random_state=0, perplexity=perplexity)
        return tsne.fit_transform(vectors).astype(np.float64), clusters, "t-SNE"
