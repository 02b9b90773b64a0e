"""A trace of some windows of a run, by JAX's profiler."""

from contextlib import ExitStack
from pathlib import Path

import jax

FOLDER = "profile"


class Profiler(ExitStack):
    """Traces windows into a run's directory; a context manager.

    The first call of windows compiles the program, so the trace begins after it. It ends with the
    call that reaches the number of windows, or with the run.

    Attributes:
        path: The folder of the trace.
        begun_at: The step after which the trace has begun; None: there is none.
    """

    def __init__(self, run_dir: Path, windows: int | None):
        """Traces nothing yet.

        Args:
            run_dir: The run's directory.
            windows: How many windows to trace; None: none.
        """
        super().__init__()
        self.path = run_dir / FOLDER
        self.begun_at: int | None = None
        self._windows = windows

    def trained(self, step: int) -> None:
        """Begins or ends the trace, after a call of windows has reached a step."""
        if self._windows is None:
            return
        if self.begun_at is None:
            self.enter_context(jax.profiler.trace(str(self.path)))
            self.begun_at = step
        elif step - self.begun_at >= self._windows:
            self.close()
