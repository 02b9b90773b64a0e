"""Pictures of sweeps: any field, any perplexity."""

import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from reports import has, ink, intrude

from jaxlm.base.errors import RunDirError
from jaxlm.report.figure import ORANGE, PALE, PALETTE
from jaxlm.report.sweep_plots import draw_slice, parallel_plot, slice_plot
from jaxlm.report.sweep_results import Trial

NAN = float("nan")
INF = float("inf")


def trial(rank: int, perplexity: float) -> Trial:
    values = {
        "learning_rate": 10.0**-rank,
        "hidden_sizes": (8,) * (1 + rank % 2),
        "corpus": "$x_\x1b[2J",
        "epochs": rank,
        "tied": rank % 2 == 0,
    }
    return Trial(rank, values, "done", 1, (perplexity, NAN), (NAN, NAN), (perplexity,))


TRIALS = [trial(rank, 100.0 + rank) for rank in range(9)]


@pytest.mark.parametrize("plot", [slice_plot, parallel_plot])
@pytest.mark.parametrize(
    "trials",
    [
        TRIALS,
        TRIALS[:1],
        [trial(rank, NAN) for rank in range(9)],
        [trial(rank, INF) for rank in range(2)],
        [*TRIALS[:2], trial(2, NAN)],
    ],
    ids=["many", "one", "nan", "inf", "a gap"],
)
def test_any_points_give_the_same_picture_each_time_and_no_warning(tmp_path, plot, trials):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (plot(trials, tmp_path / name) for name in ("a.png", "b.png"))
    assert 0.002 < ink(first) < 0.5
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("plot", [slice_plot, parallel_plot])
def test_the_best_point_is_marked(tmp_path, plot):
    assert has(plot(TRIALS, tmp_path / "a.png"), "#ea580c")


def test_a_picture_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "sweep").mkdir()
    target = intrude(tmp_path / "sweep/a.png", "link")
    assert ink(slice_plot(TRIALS, tmp_path / "sweep/a.png")) > 0.002
    assert target.read_text() == "precious"
    assert not (tmp_path / "sweep/a.png").is_symlink()


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunDirError, match=r"cannot write.*gone/a\.png"):
        slice_plot(TRIALS, tmp_path / "gone/a.png")


def test_colours_are_thirds_by_rank_and_the_best():
    figure = Figure()
    draw_slice(figure.subplots(), TRIALS, "learning_rate")
    ranks = {line.get_color(): np.size(line.get_xdata()) for line in figure.axes[0].lines}
    assert ranks == {ORANGE: 1, PALETTE[0]: 2, PALETTE[7]: 3, PALE: 3}
    best, *_, worst = sorted(figure.axes[0].lines, key=lambda line: np.ravel(line.get_ydata())[0])
    assert (best.get_color(), worst.get_color()) == (ORANGE, PALE)
