"""Opens the run that a command line names."""

from collections.abc import Sequence
from pathlib import Path

from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.base.packaged import NAME
from jaxlm.base.terminal import flag_text
from jaxlm.runs import loading
from jaxlm.scoring.language_model import LanguageModel


def check_run(run: Path) -> None:
    """Checks that a path is the directory of a run.

    Args:
        run: RUN on the command line.

    Raises:
        RunDirError: It is no directory, or holds a sweep.
    """
    if not run.is_dir():
        dated = [path.parent for path in Path("runs").glob("*/config.json")]
        example = f", such as {max(dated)}" if dated else ""
        train = f"jaxlm train {flag_text('--run-dir', run)}"
        raise RunDirError(
            f"there is no directory {run}: name one{example}, or {NAME}, or train a run with "
            f"`{train}`"
        )
    if (run / "trials").exists() and not (run / "config.json").exists():
        raise RunDirError(f"{run} holds a sweep: name one of the runs in {run / 'trials'}")


def check_each_once(runs: Sequence[Path]) -> None:
    """Raises JaxlmError where a run is named twice."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise JaxlmError("a run is named twice: name each once")


def open_model(
    run: Path,
    checkpoint: str,
    data_dir: Path | None = None,
) -> LanguageModel:
    """Loads the model of a run.

    Args:
        run: The run's directory.
        checkpoint: last, best or a step.
        data_dir: Where the model looks for Penn Treebank first.

    Returns:
        The model.

    Raises:
        JaxlmError: There is none, or it is damaged.
    """
    check_run(run)
    return loading.load(run, checkpoint, data_dir)
