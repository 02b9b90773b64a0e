"""The learning curve: valid, full of ink, whole or absent, and no trace on anybody's matplotlib."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from reports import has, ink, opened, run

from jaxlm.base.errors import JaxlmError
from jaxlm.config.config import Config
from jaxlm.report.curve import Results, by_kind, learning_curve, window_series
from jaxlm.report.figure import log_ticks
from jaxlm.runs.metrics import read_metrics

NAN = float("nan")


def curve(run_dir: Path, name: str = "curve.png") -> Path:
    return learning_curve(read_metrics(run_dir), Config(), run_dir / name)


def test_the_curve_shows_every_series_and_is_the_same_each_time(tmp_path):
    path = curve(run(tmp_path / "run"))
    assert path == tmp_path / "run/curve.png"
    assert 0.01 < ink(path) < 0.5
    for colour in ("#2563eb", "#ea580c", "#059669", "#9ca3af"):  # train, validation, test, floor
        assert has(path, colour), colour
    assert curve(tmp_path / "run", "again.png").read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    "result",
    [
        {"train_perplexity": NAN},
        {"train_perplexity": 1.0},
        {"valid_perplexity": None, "floor_valid": None},
        {"train_perplexity": NAN, "valid_perplexity": NAN, "floor_valid": -1.0},
        {"train_perplexity": 1e300, "preset": "\ud800\x00"},
        {"epoch": 2**50},
        {"epoch": 0},
    ],
)
def test_odd_numbers_leave_gaps_and_no_warning(tmp_path, result):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ink(curve(run(tmp_path, epochs=1, **result))) > 0.005


def test_one_window_in_one_epoch_is_enough(tmp_path):
    assert ink(curve(run(tmp_path, epochs=1, windows=1))) > 0.005


def test_without_an_epoch_there_is_no_curve_but_a_sentence(tmp_path):
    with pytest.raises(JaxlmError, match="needs a finished epoch"):
        learning_curve([], Config(), tmp_path / "curve.png")


@pytest.mark.parametrize("name", ["gone/curve.png", "curve.nonsense"])
def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, name):
    before = sorted(run(tmp_path).iterdir())
    with pytest.raises(JaxlmError, match="cannot write"):
        curve(tmp_path, name)
    assert sorted(tmp_path.iterdir()) == before


def test_nobodys_matplotlib_is_touched(tmp_path):
    """No display, another backend chosen, pyplot not imported: all as before."""
    code = (
        "import sys, matplotlib; from pathlib import Path; before = dict(matplotlib.rcParams); "
        "from jaxlm.config.config import Config; from jaxlm.report.curve import learning_curve; "
        "from jaxlm.runs.metrics import read_metrics; "
        "learning_curve(read_metrics(sys.argv[1]), Config(), Path(sys.argv[1], 'curve.png')); "
        "assert dict(matplotlib.rcParams) == before and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(run(tmp_path))],
        check=True,
        env={**os.environ, "MPLBACKEND": "svg"},
    )


def test_windows_of_several_lengths_have_their_own_perplexity_and_place(tmp_path):
    """The cost a step is 2 nats everywhere; the third epoch is unfinished."""
    steps = [[20, 4, 20, 20], [8, 20], [20]]
    with opened(tmp_path) as log:
        for epoch, lengths in enumerate(steps, 1):
            costs = 2 * np.array(lengths)
            log.windows(
                1 + sum(map(len, steps[: epoch - 1])), epoch, costs, costs, costs, steps=lengths
            )
            if epoch < 3:
                log.result("epoch", epoch=epoch, train_perplexity=np.exp(2), valid_perplexity=9.0)
    rows = read_metrics(tmp_path)
    found = Results("", *by_kind(rows), Config())
    x = found.window_ends()
    np.testing.assert_allclose(x, [0.25, 0.5, 0.75, 1, 1.5, 2, 2.25])
    np.testing.assert_allclose(window_series(found, "perplexity")[1], np.exp(2), rtol=1e-6)


def test_the_legend_names_an_estimate_and_can_be_read(tmp_path, monkeypatch):
    """The mark of an estimate is white within; its text is not."""
    drawn = []
    monkeypatch.setattr(
        "jaxlm.report.curve.save", lambda figure, path: drawn.append(figure.axes[0].get_legend())
    )
    curve(run(tmp_path, train_estimated=True))
    texts = {
        text.get_text(): matplotlib.colors.to_hex(text.get_color()) for text in drawn[0].get_texts()
    }
    assert texts["train, estimated from the words drawn"] == "#2563eb"
    assert "#ffffff" not in texts.values()


def test_the_rates_at_the_ends_are_those_of_the_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "jaxlm.report.curve.save",
        lambda figure, path: drawn.append(figure.axes[1].get_yticklabels()),
    )
    with opened(tmp_path) as log:
        log.windows(1, 1, [60, 60], [1, 1], [1.5, 0.0024])
        log.result("epoch", epoch=1, train_perplexity=20.0, valid_perplexity=21.0)
    learning_curve(read_metrics(tmp_path), Config(), tmp_path / "curve.png")
    assert [text.get_text() for text in drawn[0]] == ["0.0024", "1.5"]


@pytest.mark.parametrize(
    ("low", "high"), [(1e-6, 1.0), (0.5, 1.0), (1e-5, 30.0), (0.09, 0.11), (1.0, 4.0), (1e-9, 1e9)]
)
def test_an_axis_of_rates_has_at_most_five_round_ticks(low, high):
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 5 and all(low <= tick <= high for tick in ticks)
    assert all(float(f"{tick:.2g}") == tick for tick in ticks)


def test_a_curve_of_characters_has_bits(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("jaxlm.report.curve.save", lambda figure, path: drawn.append(figure.axes))
    rows = read_metrics(run(tmp_path))
    learning_curve(rows, Config().replace(tokens="characters"), tmp_path / "curve.png")
    axes = drawn[0][0]
    assert axes.get_ylabel() == "bits per character" and axes.get_yscale() == "linear"
    valid = [row["valid_perplexity"] for row in rows if row["kind"] == "epoch"]
    lines = [line.get_ydata() for line in axes.lines if line.get_label().startswith("validation")]
    np.testing.assert_allclose(lines[0], np.log2(valid))
