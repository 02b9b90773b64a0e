"""Pictures: valid, full of ink, whole or absent, and no trace on anybody's matplotlib."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxlm.errors import JaxlmError
from jaxlm.report.metrics import MetricsLog
from jaxlm.report.plots import _spread, embedding_map, learning_curve

NAN = float("nan")


def run(folder: Path, epochs: int = 3, windows: int = 40, **result) -> Path:
    """A run whose perplexity falls from epoch to epoch."""
    folder.mkdir(exist_ok=True)
    with MetricsLog(folder, "ptb", tensorboard=False) as log:
        for epoch in range(1, epochs + 1):
            cost = np.linspace(6, 5, windows) / epoch**0.1 * 20
            log.windows((epoch - 1) * windows + 1, epoch, cost, cost, np.full(windows, 0.5**epoch))
            told = {"epoch": epoch, "train_perplexity": np.exp(cost.mean() / 20), "valid_perplexity": 300 / epoch,
                    "floor_valid": 90.0, "preset": "$mall_"}
            log.result("epoch", **told | result)
        log.result("test", test_perplexity=118.4, checkpoint="last")
    return folder


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG")
    return imread(path)[..., :3]


def ink(path: Path) -> float:
    """The share of pixels that are not white."""
    return float((pixels(path) < 0.97).any(axis=2).mean())


def has(path: Path, colour: str) -> bool:
    from matplotlib.colors import to_rgb

    return bool((np.abs(pixels(path) - to_rgb(colour)) < 0.02).all(axis=2).sum() > 50)


def test_the_curve_shows_every_series_and_is_the_same_each_time(tmp_path):
    path = learning_curve(run(tmp_path / "run"))
    assert path == tmp_path / "run/curve.png"
    assert 0.01 < ink(path) < 0.5
    for colour in ("#2563eb", "#ea580c", "#059669", "#9ca3af"):  # train, validation, test, floor
        assert has(path, colour), colour
    assert learning_curve(tmp_path / "run", tmp_path / "again.png").read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "run"]


@pytest.mark.parametrize("result", [
    {"train_perplexity": NAN}, {"train_perplexity": 1.0}, {"valid_perplexity": None, "floor_valid": None},
    {"train_perplexity": NAN, "valid_perplexity": NAN, "floor_valid": -1.0},
    {"train_perplexity": 1e300, "preset": "\ud800\x00"}, {"epoch": 2**50}, {"epoch": 0}])
def test_odd_numbers_leave_gaps_and_no_warning(tmp_path, result):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ink(learning_curve(run(tmp_path, epochs=1, **result))) > 0.005


def test_one_window_in_one_epoch_is_enough(tmp_path):
    assert ink(learning_curve(run(tmp_path, epochs=1, windows=1))) > 0.005


def test_without_an_epoch_there_is_no_curve_but_a_sentence(tmp_path):
    with pytest.raises(JaxlmError, match="expected a run's metrics"):
        learning_curve(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(JaxlmError, match="expected a finished epoch"):
        learning_curve(tmp_path)


@pytest.mark.parametrize("name", ["gone/curve.png", "curve.nonsense"])
def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, name):
    with pytest.raises(JaxlmError, match="cannot write"):
        learning_curve(run(tmp_path / "run"), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


WORDS = ["<unk>", "$", "a$b$", "#", "\\frac", "N", "\x07", "\ud800", "漢字", "x_1^2", "%", "&", *map(str, range(28))]


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_the_map_takes_any_word_and_is_the_same_each_time(tmp_path, method):
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (embedding_map(vectors, WORDS, tmp_path / name, count=15, method=method)
                         for name in ("a.png", "b.png"))
    assert 0.0005 < ink(first) < 0.5
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("vectors, change", [
    (np.ones((10, 4)), {}), (np.full((10, 4), NAN), {}), (np.eye(4), {}), (np.eye(10)[:, :1], {}),
    (np.arange(10), {}), (np.eye(100), {}), (np.eye(10), {"method": "umap"})])
def test_what_cannot_be_mapped_is_refused(tmp_path, vectors, change):
    with pytest.raises(JaxlmError):
        embedding_map(vectors, WORDS, tmp_path / "map.png", **change)
    assert not list(tmp_path.iterdir())


def test_labels_are_moved_apart_and_not_far():
    places = np.random.default_rng(0).uniform(0, 300, (60, 2))
    places[1] = places[0]
    sizes = np.tile([30.0, 10.0], (60, 1))
    moved = _spread(places, sizes)
    apart = np.abs(moved[:, None] - moved) >= sizes[0] - 1e-6
    assert (apart.any(axis=2) | np.eye(60, dtype=bool)).all()
    assert np.abs(moved - places).max() < 60
    np.testing.assert_array_equal(_spread(moved, sizes), moved)


def test_nobodys_matplotlib_is_touched(tmp_path):
    """No display, another backend chosen, pyplot not imported: all as before."""
    code = ("import sys, matplotlib; from pathlib import Path; before = dict(matplotlib.rcParams); "
            "from jaxlm.report.plots import learning_curve; learning_curve(Path(sys.argv[1])); "
            "assert dict(matplotlib.rcParams) == before and 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(run(tmp_path))], check=True, env={"MPLBACKEND": "svg"})
