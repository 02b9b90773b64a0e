"""What many tests share."""

import contextlib
import fcntl
import gc
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

# Machines differ in time, and a change alone makes a suite fail that passed: `nightly` draws anew.
hypothesis.settings.register_profile("jaxlm", deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, derandomize=False)
hypothesis.settings.load_profile("jaxlm")

# JAX traces with hundreds of thousands of small objects: seldom walked, they cost less.
gc.set_threshold(1_000_000, 50, 100)

ROOT = Path(__file__).resolve().parents[1]


# The default suite compiles thousands of small programs, in a third of the time that XLA's
# optimisations would take. Where numbers were recorded (`golden`) and in the slow tests, CI
# compiles as users do.
DEFAULT_SUITE = "not slow and not golden"
COMPILED_BYTES = 1 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Before JAX is imported anywhere:
    how all processes of the session compile, and where they keep programs.
    """
    if hasattr(config, "workerinput"):
        return
    for name in (
        "FORCE_COLOR",
        "TTY_COMPATIBLE",
        "JAXLM_TRACEBACK",
        "JAXLM_STORAGE",
        "PYTHONDONTWRITEBYTECODE",  # each command would compile all of jaxlm's files
    ):  # what a shell may have set
        os.environ.pop(name, None)
    if config.option.markexpr == DEFAULT_SUITE:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        os.environ["JAXLM_TEST_PICTURES"] = "none"  # of the commands that `forked.py` starts
        os.environ["JAXLM_TEST_SYNC"] = "none"
        # By default each op of a program carries the whole stack that called it, pytest's too.
        os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
        # A program of the tests is small: its code in one piece takes a quarter less of XLA's time.
        flags = ["--xla_cpu_parallel_codegen_split_count=1"]
        if version("jaxlib").startswith("0.10."):
            # By the older emitters. (jax 0.12 has none, and ends at such a flag.)
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
    os.environ["JAXLM_TEST_COMPILED"] = tempfile.mkdtemp(prefix="jaxlm-compiled-")
    _keep_programs(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the compiled programs of the commands that the session has started."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["JAXLM_TEST_COMPILED"], ignore_errors=True)


def _keep_programs(config: pytest.Config) -> None:
    """Names one folder of compiled programs for all processes of all sessions.

    Most of what tests take is XLA's time, and the same program is met in many files and processes.
    JAX names a program by its text, its options, the compiler and the folder, so that none is taken
    for another. The folder is that of JAXLM_TEST_PROGRAMS, which .ci/run keeps between its runs, or
    pytest's cache (`pytest --cache-clear` empties it).
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not hasattr(config, "cache"):
        return
    from jaxlm.data.cache import compilation_cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "JAXLM_CACHE", os.environ.get("JAXLM_TEST_PROGRAMS") or str(config.cache.mkdir("jaxlm"))
        )
        folder = compilation_cache()  # of this kind of processor
    if sum(file.stat().st_size for file in folder.glob("*")) > COMPILED_BYTES:
        shutil.rmtree(folder, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


# Where JAXLM_NO_SKIPS is set, as in CI, a test may only be skipped for these reasons; "all": not
# for these packages.
MAY_BE_ABSENT = (
    "torch",
    "transformers",
    "lm_eval",
    "minicons",
    "tensorflow",
    "sherpa_onnx",
    "no Penn Treebank",  # the LDC's
    "no file system can be mounted here",
)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a session of CI in which a test was skipped for want of a browser or an extra."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        "JAXLM_NO_SKIPS" not in os.environ
        or reporter is None
        or hasattr(session.config, "workerinput")
    ):
        return
    allowed = MAY_BE_ABSENT[6:] if os.environ["JAXLM_NO_SKIPS"] == "all" else MAY_BE_ABSENT
    reasons = {
        str(report.longrepr[-1]) for report in reporter.stats.get("skipped", [])
    }  # (file, line, reason)
    wrong = sorted(reason for reason in reasons if not any(name in reason for name in allowed))
    if wrong:
        print("\nskipped in CI:", *wrong, sep="\n  ")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


# Long files at the end of the alphabet: last, one of them would run beside no other.
LONG = ("test_sweep.py", "test_train.py", "test_surprisal.py", "test_word_pieces.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the long files, so that all processes end at about one time."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leaves what is imported out of later collections of garbage, which walk it for no use."""
    gc.collect()
    gc.freeze()


# of all cores' time that a test of the default suite may take: more, and it would never end
MOST_SECONDS = 180


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Fails a test that computes without end, so that the session goes on."""
    if "slow" in item.keywords:
        return (yield)

    def fail(*_: object) -> None:
        pytest.fail(f"it has computed for {MOST_SECONDS} s")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(
        signal.ITIMER_PROF, MOST_SECONDS, 5
    )  # (again, where a library drops the first one)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="session")
def ptb_dir() -> Path:
    """The folder with Penn Treebank's three files; skips where there is none."""
    for place in (os.environ.get("JAXLM_DATA"), ROOT / "data/ptb", ROOT.parent / "shared/ptb"):
        if place and Path(place, "ptb.train.txt").is_file():
            return Path(place)
    pytest.skip("no Penn Treebank: set JAXLM_DATA to the folder of ptb.train.txt")


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path):
    """A file system of two megabytes, or of the size of an indirect parameter;
    skips where none can be mounted.
    """
    folder = tmp_path / "disk"
    size = getattr(request, "param", "2m")
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of the session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(common: Path):
    """The tests' own per-user cache, so that nobody's real one is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLM_CACHE", str(common / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks():
    """Files are not waited for: a suite has some ten thousand, each a rest of milliseconds."""
    from disks import leave_out

    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch.setattr)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_platform(request: pytest.FixtureRequest):
    """Programs are traced for CPUs alone.

    A file that lowers for other platforms says so: `EVERY_PLATFORM = True`.
    """
    if request.config.option.markexpr != DEFAULT_SUITE or hasattr(request.module, "EVERY_PLATFORM"):
        yield
        return
    from platforms import leave_out

    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch.setattr)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Runs and sweeps draw no pictures, but for those of a session's fixtures."""
    from pictures import leave_out

    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch.setattr)
        yield


@pytest.fixture
def pictures():
    """Runs and sweeps draw their pictures."""
    from pictures import drawn_again

    with pytest.MonkeyPatch.context() as patch:
        drawn_again(patch.setattr)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The process whose forked children run `jaxlm` commands."""
    from forked import Server

    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def _free_programs() -> None:
    """Each program has memory maps, and Linux aborts a process at 65,530 of them."""
    jax = sys.modules.get("jax")
    if jax:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def no_programs_of_other_files():
    """Frees what a file has compiled, also with what the file has replaced (`monkeypatch`)."""
    yield
    _free_programs()


@pytest.fixture
def room_for_programs():
    """Frees what was compiled within a file that compiles more than a process has maps for."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        _free_programs()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated corpus as a folder of text."""
    from jaxlm.data.corpora import load_corpus

    folder = tmp_path_factory.mktemp("text")
    corpus = load_corpus("embedded-tiny")
    for split in ("train", "valid", "test"):
        words = " ".join(corpus.vocab.decode(getattr(corpus, split)))
        (folder / f"{split}.txt").write_text(words.replace(" <eos> ", "\n").replace("<eos>", "\n"))
    return folder


@pytest.fixture(scope="session")
def tiny_run(common: Path):
    """A finished run of a small model on the tiny embedded corpus:
    (TrainResult, what it printed). One process of the session trains it, for all of them.
    """
    import jaxlm

    run_dir = common / "tiny-run"
    outcome = common / "tiny-run.pickle"
    with open(common / "tiny-run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not outcome.exists():
            outcome.write_bytes(pickle.dumps(_trained_tiny(run_dir)))
    result, printed = pickle.loads(outcome.read_bytes())
    state = SimpleNamespace(evaluated=jaxlm.load(run_dir).params)
    return replace(result, state=state), printed


def _trained_tiny(run_dir: Path):
    """The run of `tiny_run`, without its state, which no file has whole."""
    import jaxlm

    config = jaxlm.preset("small").replace(
        hidden_sizes=(48,),
        embedding_size=16,
        batch_size=10,
        epochs=5,
        hold=3.0,
        corpus="embedded-tiny",
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        result = jaxlm.train(config, run_dir=run_dir)
    return replace(result, state=None), out.getvalue()
