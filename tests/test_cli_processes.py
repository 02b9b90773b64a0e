"""`jaxlm` as a process: what is imported, closed and broken pipes, signals and limits."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import TINY

from jaxlm.cli import main
from jaxlm.config.config import preset

ROOT = Path(__file__).resolve().parents[1]
MAIN = "import sys; from jaxlm.cli import main; sys.exit(main())"
HEAVY = ("jax", "numpy", "rich", "flax", "optax", "optuna", "matplotlib")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of no window."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert (
        main(
            [
                "train",
                "--corpus",
                "embedded-tiny",
                "--preset",
                "test",
                "--steps",
                "0",
                "--run-dir",
                str(folder),
            ]
        )
        == 0
    )
    return folder


def jaxlm(*arguments, code=MAIN, before="", after="", **options):
    """The command in a shell, which redirects its files: (exit code, output, errors)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        ["bash", "-c", f'{before} "$@" {after}', "bash", *command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        **options,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "commands",
    [
        [["--help"]],
        [
            ["train", "--model", "gru", "--help"],
            ["sweep", "-h"],
            ["predict", "--help"],
            ["train", "--epochs", "x"],
            ["train", "--learning-rate", "-1"],
        ],
    ],
)
def test_help_and_mistakes_import_nothing_heavy(commands):
    code = (
        "import sys\nfrom jaxlm.cli import main\n"
        f"for arguments in {commands}:\n"
        "    sys.argv = ['jaxlm', *arguments]\n"
        "    try: main()\n    except SystemExit: pass\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "print(*heavy, file=sys.stderr, end='!')"
    )
    # A verb's module imports what the verb needs, and no package that draws, searches or downloads.
    light = {"jax", "numpy", "optax", "rich"} if len(commands) > 1 else set()
    _, _, err = jaxlm(code=code)
    assert err.endswith("!") and set(err.split("\n")[-1].strip("!").split()) <= light


def test_closed_files_are_no_traceback(finished):
    code, out, err = jaxlm("perplexity", finished, after="<&-")
    assert (
        (code, out) == (1, "")
        and err.startswith("error: ")
        and err.count("\n") == 1
        and "input" in err
    )
    assert jaxlm("info", finished, after=">&-")[0] == 0
    assert jaxlm("info", finished, "--json", after=">/dev/full")[0] == 1
    assert jaxlm("--help", after=">/dev/full")[0] == 1


def test_a_reader_that_ends_first_is_no_traceback(finished):
    """One that reads a line, and one that reads nothing."""
    _, out, err = jaxlm("predict", finished, "the", "-k", "400", after="| head -1")
    assert (out.count("\n"), err) == (1, "")
    for arguments in (("info", finished), ("--help",)):
        code, _, err = jaxlm(*arguments, before="set -o pipefail;", after="| sleep 0")
        assert (code, err) in ((0, ""), (1, ""))


def test_a_line_s_row_comes_through_a_pipe_before_the_next_line(finished):
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "surprisal", str(finished)],
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
    )
    assert process.stdin and process.stdout
    late = threading.Timer(60, process.kill)  # a row that is held back never comes
    late.start()
    try:
        process.stdin.write("the the\n")
        process.stdin.flush()
        rows = [process.stdout.readline() for _ in range(3)]
    finally:
        late.cancel()
        process.kill()
        process.communicate()
    assert all(rows), rows


def test_devices_that_are_not_there(finished):
    both = f"""
import sys
from jaxlm.cli import main
assert main(["info", {str(finished)!r}]) == 0  # it computes nothing
print("predicted:")
sys.exit(main(["predict", {str(finished)!r}, "the"]))"""
    code, out, err = jaxlm(code=both, env={"JAX_PLATFORMS": "foo"})
    assert (code, out[-12:]) == (1, "\npredicted:\n")
    assert err.count("\n") == 1 and "JAX_PLATFORMS" in err
    if not find_spec("jax_plugins"):
        code, out, err = jaxlm("predict", finished, "the", env={"JAX_PLATFORMS": "cuda"})
        assert (
            (code, out, err.count("\n")) == (1, "", 1)
            and "JAX_PLATFORMS" in err
            and "AssertionError" not in err
        )


def test_settings_of_jax_change_no_number(tmp_path):
    """Those that a shell may have for other programs."""
    wide = {
        "JAX_ENABLE_X64": "1",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
    }
    strict = {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    given = [
        "train",
        "--preset",
        "test",
        "--corpus",
        "embedded-tiny",
        "--keep-output",
        "0.5",
        "--steps",
        "2",
    ]
    assert jaxlm(*given, "--run-dir", tmp_path / "set", env=wide | strict)[0] == 0
    assert main([*given, "--run-dir", str(tmp_path / "unset")]) == 0
    costs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("set", "unset")]
    assert costs[0] == costs[1]


def test_ctrl_c_before_there_is_a_run(finished):
    # also in the background
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    process = subprocess.Popen(
        [sys.executable, "-c", heeding + MAIN, "perplexity", str(finished)],
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wchan = Path(f"/proc/{process.pid}/syscall")
    deadline = time.monotonic() + 60
    try:
        while not wchan.read_text().startswith("0 0x0 "):  # read(0, ...), on x86-64
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(60)  # before its input ends: a read that sees both takes the end for its text
    finally:
        process.kill()
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize(
    "module",
    [
        "argparse",
        *(
            pytest.param(module, marks=pytest.mark.slow)
            for module in ("jaxlm.scoring.language_model", "jaxlm.cli", "jax", "numpy")
        ),
    ],
)
def test_ctrl_c_within_an_import(finished, module):
    code = f"""
import contextlib, os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        with contextlib.suppress(BaseException):  # as some imports do
            if name == {module!r}:
                os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxlm.__main__ import main
sys.meta_path.insert(0, Interrupt())
sys.modules.pop("argparse", None)
main()"""
    assert jaxlm("perplexity", finished, "a b", code=code) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("most", [pytest.param(6, marks=pytest.mark.slow), 7])
def test_too_few_open_files_end_in_a_sentence(finished, most):
    code, out, err = jaxlm("predict", finished, "the", before=f"ulimit -n {most};")
    assert code == 0 or (
        (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "most", [100, *(pytest.param(most, marks=pytest.mark.slow) for most in (900, 1300))]
)  # MiB
def test_too_little_memory_ends_in_a_sentence(finished, most):
    code, out, err = jaxlm("predict", finished, "the", before=f"ulimit -v {most << 10};")
    assert (
        (code, out) == (1, "")
        and err.startswith("error: ")
        and err.count("\n") == 1
        and f"{most:,} MiB" in err
    )


def test_a_path_that_is_not_utf_8():
    code, _, err = jaxlm("info", os.fsencode("/no/x").decode(), after=r"$'\xff'")
    assert code == 2 and err.count("\n") == 1
    done = subprocess.run(
        [sys.executable.encode(), b"-c", MAIN.encode(), b"info", b"/no/\xff"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and rb"\udcff" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.slow  # .ci/run starts it too, and the tests below in a forked process
def test_a_script_runs(tmp_path):
    """As a user starts it: a short run on the tiny corpus, in a process of its own."""
    script = ROOT / "experiments/ptb_small.py"
    flags = [*TINY, "--steps", "3", "--run-dir", tmp_path / "run"]
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "embedded-tiny" in done.stdout and "test, last checkpoint" in done.stdout
    assert "Traceback" not in done.stderr


def run_script(server, script: str, *arguments: str | Path) -> str:
    """The output of a script of `experiments/` in a forked process."""
    argv = ["script", *map(str, arguments)]
    code = f"""
import runpy, sys
sys.argv = {argv!r}
runpy.run_path({str(ROOT / "experiments" / script)!r}, run_name="__main__")
raise SystemExit(0)"""
    exit_code, out, err = server.start(before=code).end()
    assert exit_code == 0 and "Traceback" not in err, err
    return out


@pytest.mark.parametrize(
    ("script", "given"), [("ptb_small.py", "--config={}/own.json"), ("zaremba.py", "small")]
)
def test_the_scripts_run(server, script, given, tmp_path):
    (tmp_path / "own.json").write_text(preset("test").to_json())
    flags = [*TINY, "--steps", "3", "--run-dir", tmp_path / "run"]
    out = run_script(server, script, given.format(tmp_path), *flags)
    assert "embedded-tiny" in out and "test, last checkpoint" in out


def test_the_script_that_sweeps_runs(server, tmp_path):
    flags = [
        *TINY,
        "--vocab-size",
        "100",
        "--clip-norm",
        "1",
        "--workers",
        "1",
        "--run-dir",
        tmp_path / "run",
    ]
    out = run_script(server, "ptb_sweep.py", *flags)
    assert len(list((tmp_path / "run").glob("trials/*/config.json"))) == 4
    assert "best first" in out and "jaxlm train --preset small" in out


def test_the_package_itself_is_the_command():
    help_page = subprocess.run(
        [sys.executable, "-m", "jaxlm", "--help"], capture_output=True, text=True
    )
    assert help_page.returncode == 0 and help_page.stdout.startswith("usage: jaxlm")


def test_an_exit_code_outlives_the_reader_of_errors(tmp_path, finished):
    alone = dict(before="set -o pipefail;", after="2>&1 | sleep 0")
    assert jaxlm("train", "--epochs", "x", **alone) == (2, "", "")
    diverging = [
        "train",
        "--preset",
        "test",
        "--corpus",
        "embedded-tiny",
        "--learning-rate",
        "1e38",
        "--clip-norm",
        "none",
    ]
    assert jaxlm(*diverging, **alone, cwd=tmp_path)[0] == 3
    unknown = jaxlm(
        "perplexity",
        finished,
        "the zebra",
        before="set -o pipefail;",
        after="2>&1 >/dev/null | sleep 0",
    )
    assert unknown[0] == 1


def test_no_note_becomes_output_where_standard_error_is_closed(finished):
    code, out, _ = jaxlm("perplexity", finished, "the zebra", after="2>&-")
    assert code == 0 and out.count("\n") == 1
