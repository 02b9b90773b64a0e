"""`jaxlm` commands as forked children of one process that has imported everything,
so that one starts in no time.

Each child is a real process with its own signals, locks and exit code; nothing of JAX was computed
before the fork.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pictures
import platforms
from processes import COMPILED, ONE_THREAD, ROOT

SECONDS = 180  # a command that rests for longer, or computes for longer, hangs


class Command:
    """A command that was started; `end` waits for it."""

    def __init__(self, server: "Server", pid: int, out: Path, err: Path):
        self._server = server
        self.pid = pid
        self._out = out
        self._err = err

    def kill(self) -> None:
        """SIGKILL to it and to its workers, whether it still lives or not."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command alone, where it still lives."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code, as of `subprocess.Popen`; None while it lives."""
        return self._server.status(self.pid)

    def end(self, timeout: float = SECONDS) -> tuple[int, str, str]:
        """Exit code (-N: killed by signal N), standard output and standard error."""
        rests = time.monotonic()
        while (code := self._server.status(self.pid, wait=0.2)) is None:
            runs, seconds = _threads(self.pid)
            if runs:  # others may have the cores
                rests = time.monotonic()
            if time.monotonic() > rests + timeout or seconds > timeout:
                self.kill()
                raise AssertionError(f"it hangs: {self._err.read_text(errors='replace')}")
        return code, self._out.read_text(errors="replace"), self._err.read_text(errors="replace")


def _threads(pid: int) -> tuple[bool, float]:
    """Whether a thread of a process could run now, and the seconds that they have computed."""
    states = set[str]()
    ticks = 0
    with suppress(OSError):  # it, or one of them, has ended meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/stat"):
            values = path.read_text().rpartition(")")[2].split()
            states.add(values[0])
            ticks += int(values[11]) + int(values[12])
    return "R" in states, ticks / os.sysconf("SC_CLK_TCK")


class Server:
    """The process whose children run the commands; a context manager."""

    def __init__(self, folder: Path):
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "PYTHONUNBUFFERED": "1",
            "XLA_FLAGS": ONE_THREAD,
            "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self._folder = folder
        self._count = 0
        self._ended = dict[int, int]()
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, *arguments: str | Path, before: str = "") -> Command:
        """Starts `jaxlm ARGUMENTS` after Python code that changes
        something in that process alone.
        """
        assert self._process.stdin
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        for path in (out, err):  # also of a command that is killed before it opens them
            path.touch()
        self._process.stdin.write(
            json.dumps([[*map(str, arguments)], str(out), str(err), before]).encode() + b"\n"
        )
        while not (started := self._hear(SECONDS)):
            pass
        return Command(self, started, out, err)

    def status(self, pid: int, wait: float = 0) -> int | None:
        """A child's exit code; None while it lives."""
        deadline = time.monotonic() + wait
        while pid not in self._ended and (
            self._hear(wait) is not None or time.monotonic() < deadline
        ):
            pass
        return self._ended.get(pid)

    def _hear(self, wait: float) -> int | None:
        """Notes the next thing that the server says:
        the child that started, 0 where one ended, None: nothing.
        """
        assert self._process.stdout
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], wait)[0]:
                return None
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            assert data, "the server died"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        what, pid, *code = json.loads(line)
        if what == "started":
            self._ended.pop(pid, None)  # of an earlier process with this number
            return pid
        self._ended[pid] = code[0]
        return 0


def _serve() -> None:
    """Reads commands from standard input, one JSON a line; writes who was started and who ended."""
    _import_all()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also of a child, until its command begins
    rest = b""
    while True:
        if select.select([0], [], [], 0.005)[0]:
            data = os.read(0, 1 << 16)
            if not data:
                return
            rest += data
        while b"\n" in rest:
            line, _, rest = rest.partition(b"\n")
            arguments, out, err, before = json.loads(line)
            pid = os.fork()
            if not pid:
                os.setpgid(0, 0)
                _become(arguments, out, err, before)
            with suppress(OSError):
                os.setpgid(pid, pid)
            print(json.dumps(["started", pid]), flush=True)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                print(
                    json.dumps(["ended", ended[0], os.waitstatus_to_exitcode(ended[1])]), flush=True
                )


def _import_all() -> None:
    """All that a command may import, and small blocks,
    so that a kill falls between many writes of `prepare`.
    """
    names = [
        "optax",
        "optuna.storages.journal",
        # A verb's module that a child imported under a limit on files would leave half compiled.
        "jaxlm.cli.sweeping",
        "jaxlm.cli.training",
        "jaxlm.runs.reproduction",
        "jaxlm.sweeps.supervisor",
    ]
    if os.environ.get("JAXLM_TEST_PICTURES") != "none":
        names += [
            "sklearn.cluster",
            "sklearn.decomposition",
            "matplotlib.figure",
            "matplotlib.backends.backend_agg",
        ]
    for name in names:
        import_module(name)
    _ = import_module("optuna").create_study  # (it imports lazily)
    from jaxlm.data import text

    if os.environ.get("JAXLM_TEST_PICTURES") == "none":
        pictures.leave_out(setattr)
        platforms.leave_out(setattr)
    text.BLOCK = 256
    gc.freeze()  # a child need not walk, and so copy, what was imported


def _become(arguments: list[str], out: str, err: str, before: str) -> None:
    """Runs `jaxlm ARGUMENTS` as its script does, and ends this process."""
    sys.argv = ["jaxlm", *arguments]
    for descriptor, path in ((0, os.devnull), (1, out), (2, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    code = 70
    try:
        from jaxlm.__main__ import main

        exec(before, {})
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 71
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
