"""The map of the embedding: any words, the same picture each time, labels that lie apart."""

import sys
import warnings

import numpy as np
import pytest
from reports import ink

from jaxlm.base.errors import JaxlmError
from jaxlm.data.tokens import Bytes
from jaxlm.report.word_map import drawn_map, embedding_map, map_words, moved_apart

NAN = float("nan")

WORDS = [
    "<unk>",
    "$",
    "a$b$",
    "#",
    "\\frac",
    "N",
    "\x07",
    "\ud800",
    "\x1b[2J",
    "\n",
    "w" * 100_000,
    "漢字",
    "x_1^2",
    "%",
    "&",
    *map(str, range(28)),
]


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_the_map_takes_any_word_and_is_the_same_each_time(tmp_path, method):
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (
            embedding_map(vectors, WORDS, tmp_path / name, count=15, method=method)
            for name in ("a.png", "b.png")
        )
    assert 0.0005 < ink(first) < 0.5
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((10, 4)),
        np.full((10, 4), NAN),
        np.eye(4),
        np.eye(10)[:, :1],
        np.arange(10),
        np.eye(100),
    ],
)
def test_what_cannot_be_mapped_is_refused(tmp_path, vectors):
    with pytest.raises(JaxlmError):
        embedding_map(vectors, WORDS, tmp_path / "map.png")
    assert not list(tmp_path.iterdir())


def test_labels_are_moved_apart_and_not_far():
    places = np.random.default_rng(0).uniform(20, 280, (60, 2))
    places[1] = places[0]
    sizes = np.tile([30.0, 10.0], (60, 1))
    area = np.array([300, 300])
    moved = moved_apart(places, sizes, area)
    apart = np.abs(moved[:, None] - moved) >= sizes[0] - 1e-6
    assert (apart.any(axis=2) | np.eye(60, dtype=bool)).all()
    assert np.abs(moved - places).max() < 60
    np.testing.assert_allclose(moved_apart(moved, sizes, area), moved)


def test_no_label_is_cut_and_the_colours_are_explained():
    words = [letter * 60 for letter in "abcdefghijklmnop"]
    found = map_words(np.random.default_rng(0).normal(size=(16, 8)), words, neighbors=0)
    assert found.legend.endswith("(t-SNE); colours: 10 clusters of the vectors (k-means)")
    with drawn_map(found) as drawn:
        for text in drawn.axes[0].texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 2100 and box.y1 <= 1500


def test_the_map_finds_the_nearest_words_of_the_whole_vocabulary():
    vectors = np.random.default_rng(0).normal(size=(60, 8))
    vectors[50] = vectors[3] * 2
    found = map_words(vectors, [f"w{place}" for place in range(60)], count=20, neighbors=4)
    assert found.neighbors[3][0] == ("w50", 1.0) and len(found.words) == len(found.places) == 20


def test_bytes_beside_pieces_are_left_out_and_a_vocabulary_of_bytes_is_shown():
    pieces = [
        "<unk>",
        "\n",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *(f"\u2581w{place}" for place in range(42)),
    ]
    vectors = np.random.default_rng(0).normal(size=(300, 8))
    found = map_words(vectors, pieces, count=20, neighbors=50, method="pca", tokens="subwords")
    assert found.legend.startswith("The 20 first subwords in the embedding (PCA)")
    assert found.words == [*pieces[:2], *pieces[258:276]] and not {*pieces[2:258]} & {
        *dict(found.neighbors[0])
    }
    assert (
        found.neighbors[3][:9] == map_words(vectors[258:], pieces[258:], neighbors=9).neighbors[1]
    )
    assert map_words(vectors[:256], Bytes.names, method="pca", neighbors=0).words == Bytes.names


def test_without_scikit_learn_there_is_a_map_by_pca(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    found = map_words(np.random.default_rng(0).normal(size=(60, 8)), list(map(str, range(60))))
    assert found.legend == "The 60 most frequent words in the embedding (PCA)"


def test_a_map_of_characters_is_called_so():
    vectors = np.random.default_rng(0).normal(size=(30, 8))
    found = map_words(vectors, list(map(str, range(30))), method="pca", tokens="characters")
    assert found.legend.startswith("The 30 most frequent characters in the embedding (PCA)")
