"""Runs as real processes: one small run, its command, and how two runs are compared."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jaxlm
from jaxlm.data.corpora import load_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.runs import checkpoint

ROOT = Path(__file__).resolve().parents[1]
# JAX's own cache, so that a restart is quick: one for all commands of a session of tests.
COMPILED = Path(os.environ["JAXLM_TEST_COMPILED"])
ONE_THREAD = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"


def flags(**fields: object) -> tuple[str, ...]:
    """Fields of the config as the command line takes them."""
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in fields.items()]
    texts = [
        (name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
        for name, value in pairs
    ]
    return tuple(text for pair in texts for text in pair)


TINY = flags(corpus="embedded-tiny", hidden_sizes=8, embedding_size=4, batch_size=20, epochs=1)
# An unoptimised softmax over all 500 words would be most of an epoch.
FIELDS = dict(
    corpus="embedded-tiny",
    vocab_size=100,
    embedding_size=4,
    hidden_sizes=(4,),
    batch_size=50,
    bptt_length=20,
    epochs=3,
    keep_output=0.8,
    checkpoint_every=7,
    windows_per_call=4,
    keep_checkpoints="words=15k:75k:30k,100k",
)
MILESTONES = {15: 15_000, 45: 45_000, 75: 75_000, 100: 100_000}  # 1,000 words a window
FLAGS = flags(**FIELDS)
CONFIG = jaxlm.preset("small").replace(**FIELDS)
WINDOWS = 39  # in an epoch
MAIN = "from jaxlm.__main__ import main; main()"


def load_text() -> Corpus:
    """The text of `CONFIG`, with the words that its model knows."""
    return load_corpus(CONFIG.data.corpus, max_vocab=CONFIG.model.vocab_size)


def start(*arguments: str | Path, code: str = MAIN, **options) -> subprocess.Popen:
    """`jaxlm ARGUMENTS` as a process of its own with one thread of XLA;
    its output is read by `end`.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": ONE_THREAD,
        "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def training(run_dir: Path) -> tuple[str | Path, ...]:
    """The command that begins the run, or resumes it where there is one."""
    return (
        "train",
        "--run-dir",
        run_dir,
        *(("--resume",) if (run_dir / "config.json").exists() else FLAGS),
    )


def start_training(run_dir: Path, *arguments: str | Path, **options) -> subprocess.Popen:
    """Starts the run, or resumes it where there is one."""
    return start(*training(run_dir), *arguments, **options)


def end(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    """Waits for a process: (exit code, all output)."""
    out, err = process.communicate(timeout=timeout)
    assert "Traceback" not in err, err
    return process.returncode, out + err


def kill(process: subprocess.Popen) -> None:
    """Sends SIGKILL and waits for the end."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


class Process(Protocol):
    """What tells whether it has ended."""

    def poll(self) -> int | None: ...


def wait_for(condition: Callable[[], object], process: Process, timeout: float = 600) -> bool:
    """Whether the condition came true before the process ended."""
    looked = time.monotonic()
    deadline = looked + timeout
    while not condition():
        seconds = time.monotonic() - looked
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the condition never became true"
        # A look through folders would take the core from the process that it waits for.
        time.sleep(min(max(0.001, 4 * seconds), 0.005))
        looked = time.monotonic()
    return True


def windows(run_dir: Path) -> int:
    """Lines of the metrics so far."""
    path = run_dir / "metrics.jsonl"
    if path.exists():
        return path.read_bytes().count(b"\n")
    return 0


def kept(run_dir: Path) -> dict[str, bytes]:
    """Every byte of a finished run that must be reproduced: its metrics and checkpoints:
    last, best and milestones.
    """
    files = {"metrics.jsonl": (run_dir / "metrics.jsonl").read_bytes()}
    milestones = [str(step) for step, one in checkpoint.manifests(run_dir).items() if one.words]
    for which in ("last", "best", *milestones):
        found = checkpoint.find(run_dir, which)
        files |= {
            f"{which}/{path.relative_to(found)}": path.read_bytes()
            for path in sorted(found.rglob("*"))
            if path.is_file()
        }
    return files


def assert_same(run_dir: Path, reference: dict[str, bytes]) -> None:
    """Asserts that the finished run equals the reference byte for byte."""
    files = kept(run_dir)
    assert files.keys() == reference.keys()
    assert [name for name in files if files[name] != reference[name]] == []
