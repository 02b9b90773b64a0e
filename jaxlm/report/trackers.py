"""Experiment trackers: a run's metrics sent to Weights & Biases, Trackio or MLflow, each an optional package."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxlm.errors import JaxlmError

OnMetrics = Callable[[int, Mapping[str, float]], object]  # (step, values by tag), as TensorBoard has them
PROJECT = "jaxlm"
TRACKERS = ("wandb", "trackio", "mlflow")


@contextmanager
def tracked(name: str, run_name: str, config: Mapping[str, Any]) -> Iterator[OnMetrics]:
    """Opens a run of a tracker; a failure while it is open ends the tracking with a warning, never the run.

    Args:
        name: one of TRACKERS. Where the metrics go (a server, a folder, offline) is the tracker's own setting.
        run_name: the run's name there.
        config: the run's config, as plain values.

    Yields:
        What `jaxlm.train(on_metrics=...)` takes.

    Raises:
        JaxlmError: The tracker is unknown, is not installed, or cannot be opened.
    """
    if name not in TRACKERS:
        raise JaxlmError(f"unknown tracker {name!r}: expected {', '.join(TRACKERS[:-1])} or {TRACKERS[-1]}")
    try:
        module = import_module(name)
    except ImportError:
        raise JaxlmError(f"--track {name} needs {name}: pip install {name}") from None
    try:
        log, close = _OPEN[name](module, run_name, dict(config))
    except Exception as error:
        raise JaxlmError(f"{name} cannot be opened: {' '.join(str(error).split())[:300]}") from None
    send = _Sender(name, log)
    try:
        yield send
    finally:
        send.quietly(close)


class _Sender:
    """Sends until the first failure."""

    def __init__(self, name: str, log: Callable[[Mapping[str, float], int], object]):
        self._name, self._log = name, log

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        self.quietly(lambda: self._log({tag: float(value) for tag, value in values.items()}, step))

    def quietly(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._log = lambda values, step: None
            warnings.warn(
                f"{self._name}'s tracking ends here, the run continues: {error}", RuntimeWarning, stacklevel=3
            )


def _wandb(wandb: Any, name: str, config: dict[str, Any]) -> tuple[Callable, Callable]:
    run = wandb.init(project=PROJECT, name=name, config=config)
    return lambda values, step: run.log(values, step=step), run.finish


def _trackio(trackio: Any, name: str, config: dict[str, Any]) -> tuple[Callable, Callable]:
    trackio.init(project=PROJECT, name=name, config=config)
    return lambda values, step: trackio.log(values, step=step), trackio.finish


def _mlflow(mlflow: Any, name: str, config: dict[str, Any]) -> tuple[Callable, Callable]:
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=name)
    mlflow.log_params(config)
    return lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run


_OPEN: dict[str, Callable[[Any, str, dict[str, Any]], tuple[Callable, Callable]]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def run_name(run_dir: str | Path | None, preset: str) -> str:
    """A run's name at a tracker: its directory's, or the preset's."""
    return Path(run_dir).absolute().name if run_dir is not None else preset
