"""Optuna's storage of a study: a journal file, a database or memory; every call into it goes through one guard."""

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.errors import JaxlmError
from jaxlm.sweeps.journal import Journal
from jaxlm.sweeps.optional import optuna
from jaxlm.urls import scrubbed, without_password

BEAT, SILENCE = 60, 600  # seconds: how often a worker shows that it lives, and how long others wait for a silent one


class Storage:
    """Optuna's storage at `where`: a journal's path, a database's URL, or None for memory.

    Attributes:
        backend: Optuna's storage, for `optuna.create_study`.
        shared: Whether it is a database, which several sweep directories may share.
        name: Where it is, without a password.

    Raises:
        JaxlmError: It cannot be used.
    """

    def __init__(self, where: str | None):
        self._where = where or "memory"
        self.name, self.shared = without_password(self._where), "://" in self._where
        with self.guarded("expected the path of a journal file, or a database's URL as in sqlite:///study.db"):
            self.backend = self._open(where)

    def beat(self, trial_id: int) -> None:
        """Notes in a database that a trial's worker lives."""
        if self.shared:
            self.backend.record_heartbeat(trial_id)

    @contextmanager
    def guarded(self, remedy: str = "what was trained is whole; fix that, then resume with --resume") -> Iterator[None]:
        """Turns an error of Optuna, of a database's driver or of a damaged file into one JaxlmError; hides warnings."""
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's, about experimental features
                yield
        except JaxlmError:
            raise
        except Exception as error:
            raise JaxlmError(f"the study in {self.name} cannot be used ({self._reason(error)}): {remedy}") from None
        finally:
            optuna.logging.set_verbosity(before)

    def _open(self, where: str | None) -> Any:
        if where is None:
            return optuna.storages.InMemoryStorage()
        if not self.shared:
            return optuna.storages.JournalStorage(Journal(Path(where)))  # pyright: ignore[reportArgumentType]
        for left in reversed(range(5)):  # another worker may be creating the tables at this moment
            try:
                return optuna.storages.RDBStorage(where, heartbeat_interval=BEAT, grace_period=SILENCE)
            except Exception as error:
                if not left or not re.search("already exists|unique|duplicate|locked", str(error), re.IGNORECASE):
                    raise
            time.sleep(1)

    def _reason(self, error: Exception) -> str:
        cause = error.__cause__ or error  # Optuna's own error names no reason
        cause = getattr(cause, "orig", None) or cause  # SQLAlchemy's quotes the whole statement
        text = scrubbed(" ".join(str(getattr(cause, "strerror", None) or cause).split()), self._where)
        kind = "" if isinstance(cause, OSError | ValueError) else f"{type(cause).__name__}: "
        return kind + (text if len(text) < 300 else text[:300] + "...")
