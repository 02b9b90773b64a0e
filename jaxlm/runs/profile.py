"""A trace of some windows of a run, by JAX's profiler."""

from pathlib import Path

import jax

FOLDER = "profile"


class Profiler:
    """Traces windows into a run's directory; a context manager.

    The first call of windows compiles the program, so the trace begins after it. It ends with the
    call that reaches the number of windows, or with the run.

    Attributes:
        path: The folder of the trace.
        written: Whether there is a trace.
    """

    def __init__(self, run_dir: Path, windows: int | None):
        """Traces nothing yet.

        Args:
            run_dir: The run's directory.
            windows: How many windows to trace; None: none.
        """
        self.path = run_dir / FOLDER
        self.written = False
        self._windows = windows
        self._begun_at: int | None = None

    def trained(self, step: int) -> None:
        """Begins or ends the trace, after a call of windows has reached a step."""
        if self._windows is None or self.written:
            return
        if self._begun_at is None:
            jax.profiler.start_trace(str(self.path))
            self._begun_at = step
        elif step - self._begun_at >= self._windows:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self.written = True

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun_at is not None and not self.written:
            self._stop()
