"""The picture of models' perplexity against what their surprisal explains of reading times."""

from collections.abc import Sequence
from pathlib import Path

from jaxlm.report.figure import BLUE, figure, label, log_axis, save
from jaxlm.scoring.humanlike import Gain


def gain_plot(gains: Sequence[Gain], path: Path) -> Path:
    """Draws a point with its interval for each model.

    Args:
        gains: Of single models.
        path: The file.

    Returns:
        The path.

    Raises:
        RunDirError: It cannot be written.
    """
    with figure(5, 3.6) as drawn:
        axes = drawn.subplots()
        for gain in gains:
            ends = [[gain.gain - gain.low_95], [gain.high_95 - gain.gain]]
            axes.errorbar(gain.perplexity, gain.gain, ends, fmt="o", color=BLUE, capsize=3)
            place = (gain.perplexity, gain.gain)
            axes.annotate(label(gain.model), place, (6, 6), textcoords="offset points")
        axes.set(xlabel="perplexity of a word", ylabel="gain in nats for each time")
        axes.margins(0.2)
        log_axis(axes, "x")
        return save(drawn, path)
