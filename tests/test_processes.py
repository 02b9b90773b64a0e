"""Several real processes, started, stopped and killed, end with the numbers of one process."""

import os
import random
import re
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import processes as processes_
import pytest
from processes import end, kill, start, wait_for, windows
from test_parallel import on_devices

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.distributed import hosts as processes
from jaxlm.runs.metrics import read_metrics

FLAGS = (*processes_.FLAGS, "--batch-size", "48", "--epochs", "2")
STEP = {
    "SLURM_JOB_ID": f"{os.getpid()}",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
CONFIG = processes_.CONFIG.replace(batch_size=48, epochs=2)


KILLS = int(os.environ.get("JAXLM_CHAOS_PROCESSES", "3"))
FOUR_DEVICES = (
    "import os; os.environ['XLA_FLAGS'] += ' --xla_force_host_platform_device_count=4'; "
    f"{processes_.MAIN}"
)


def start_two(run_dir: Path, *arguments: str | Path, code: str = processes_.MAIN):
    """The same command as two processes with a device each, connected by a free port.
    An existing run is resumed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    how = ("--resume",) if (run_dir / "config.json").exists() else FLAGS
    return [
        start(
            "train",
            "--run-dir",
            run_dir,
            "--coordinator",
            f"localhost:{port}",
            "--processes",
            "2",
            "--process",
            str(i),
            *how,
            *arguments,
            code=code,
        )
        for i in (0, 1)
    ]


def assert_same_numbers(run_dir: Path, reference: Path) -> None:
    """Costs and gradient norms of every window, and every perplexity, within float32's rounding."""
    rows = read_metrics(run_dir)
    expected = read_metrics(reference)
    assert [(row["kind"], row.get("step")) for row in rows] == [
        (row["kind"], row.get("step")) for row in expected
    ]
    for row, wanted in zip(rows, expected, strict=True):
        for name in (
            "cost",
            "grad_norm",
            "train_perplexity",
            "valid_perplexity",
            "test_perplexity",
        ):
            if name in wanted:
                np.testing.assert_allclose(
                    row[name],
                    wanted[name],
                    rtol=1e-4 if name == "grad_norm" else 2e-5,
                    err_msg=f"{name} of {row}",
                )
    mine = jaxlm.load(run_dir).params
    alone = jaxlm.load(reference).params
    for name, array in jaxlm.to_tensorflow(alone).items():
        np.testing.assert_allclose(jaxlm.to_tensorflow(mine)[name], array, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process with one device."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    jaxlm.train(CONFIG, run_dir=run_dir, quiet=True)
    return run_dir


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_as_one_alone(tmp_path, alone):
    """And their checkpoint is resumed by one process: on one device, and on four."""
    run_dir = tmp_path / "two"
    both = start_two(run_dir)
    assert wait_for(lambda: windows(run_dir) > 20, both[0]), end(both[0])
    kill(both[1])
    code, said = end(both[0], timeout=60)  # by itself: the connection broke
    assert code == 1 and said.rstrip().endswith("start all of them again with --resume"), said
    for copy in ("one device", "four devices"):
        shutil.copytree(run_dir, tmp_path / copy)

    both = start_two(run_dir)
    (code, said), (other, quiet) = map(end, both)
    assert code == other == 0, said + quiet
    assert "test, last checkpoint" in said and "perplexity" not in quiet
    assert_same_numbers(run_dir, alone)

    jaxlm.train(CONFIG, run_dir=tmp_path / "one device", resume=True, quiet=True)
    assert_same_numbers(tmp_path / "one device", alone)
    on_devices(
        4,
        f"""
import jaxlm
from test_processes import CONFIG
jaxlm.train(CONFIG, run_dir={str(tmp_path / "four devices")!r}, resume=True, quiet=True, devices=2,
            model_devices=2)
""",
    )
    assert_same_numbers(tmp_path / "four devices", alone)


@pytest.mark.slow
def test_two_processes_with_four_devices_each_killed_at_random_end_as_one_alone(
    tmp_path, alone, capsys
):
    """JAXLM_CHAOS_PROCESSES (3) kills, of either process or of both, at any moment."""
    seed = int(os.environ.get("JAXLM_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    rng = random.Random(seed)
    caught = Counter()
    run_dir = tmp_path / "0"
    aborted = 0
    with capsys.disabled():
        print(f"\nJAXLM_CHAOS_SEED={seed}")
    while sum(caught.values()) < KILLS:
        both = start_two(run_dir, code=FOUR_DEVICES)
        had = windows(run_dir)
        if rng.random() < 0.7:
            wait_for(lambda at=run_dir, had=had: windows(at) not in (0, had), both[0], timeout=400)
            time.sleep(rng.uniform(0, 1.5))
        else:
            time.sleep(rng.uniform(0, 8))
        assert all(process.poll() in (None, 0) for process in both), list(map(end, both))
        killed = rng.choice(([0], [1], [0, 1]))
        for i in killed:
            kill(both[i])
        for i in {0, 1} - {*killed}:
            # By itself: done, with a sentence, or aborted by JAX's service or by gloo, where that
            # saw the death first.
            code, said = end(both[i])
            assert code in (0, 1) or (
                code == -signal.SIGABRT and re.search("another task died|gloo::", said)
            ), said
            aborted += code < 0
        caught["both" if len(killed) == 2 else f"process {killed[0]}"] += 1
        if all(process.returncode == 0 for process in both):  # too late
            assert_same_numbers(run_dir, alone)
            run_dir = run_dir.with_name(str(int(run_dir.name) + 1))
    (code, said), (other, quiet) = map(end, start_two(run_dir, code=FOUR_DEVICES))
    assert code == other == 0, said + quiet
    assert_same_numbers(run_dir, alone)
    with capsys.disabled():
        print(
            f"survived SIGKILL of two processes with four devices each: {dict(caught)}; "
            f"JAX aborted {aborted}"
        )


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_words_spread_over_processes(tmp_path, alone, monkeypatch):
    """Started as by SLURM, from the environment alone."""
    run_dir = tmp_path / "two"
    both = []
    for i in ("0", "1"):
        for name, value in {
            **STEP,
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_PROCID": i,
            "SLURM_LOCALID": i,
        }.items():
            monkeypatch.setenv(name, value)
        both.append(start("train", "--run-dir", run_dir, *FLAGS))
    assert wait_for(lambda: windows(run_dir) > 20, both[0]), end(both[0])
    both[1].send_signal(signal.SIGTERM)
    (code, said), (other, quiet) = map(end, both)
    assert code == other == 128 + signal.SIGTERM, said + quiet
    assert "saved; resume with" in said and "saved" not in quiet
    for name in (*STEP, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name)
    both = start_two(run_dir, "--devices", "1", "--model-devices", "2")  # a half of the words each
    (code, said), (other, quiet) = map(end, both)
    assert code == other == 0, said + quiet
    assert_same_numbers(run_dir, alone)


def cluster_command(name: str, **places: object) -> list[str]:
    """The arguments of `jaxlm` in one of the files for clusters, with places in it replaced."""
    text = (processes_.ROOT / "experiments/cluster" / name).read_text().replace("\\\n", " ")
    command = re.sub(
        r"\s+", " ", text[text.index("jaxlm train --run-dir") :].split("resources:")[0]
    )
    for place, value in {"$resume ": "", **places}.items():
        command = command.replace(place, str(value))
    return [word.strip('"') for word in command.split()[1:]]


def cluster_file(name: str, run_dir: Path, port: int, process: int) -> list[str]:
    return cluster_command(
        name,
        **{
            "/runs/large": run_dir,
            '"$run"': run_dir,
            "jaxlm-run-0-0.jaxlm:9911": f"localhost:{port}",
            "$JOB_COMPLETION_INDEX": process,
        },
    )


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml"])
def test_the_files_for_clusters_give_arguments_that_are_accepted(name):
    from jaxlm.cli.verbs import VERBS

    verb, *words = cluster_file(name, Path("runs/large"), 9911, 1)
    args = VERBS[verb].parser(words).parse_args(words)
    assert str(args.run_dir) == "runs/large" and args.devices * args.model_devices == 16


def test_the_file_for_slurm_gives_a_process_all_gpus_of_its_host():
    text = (processes_.ROOT / "experiments/cluster/slurm.sh").read_text()
    (ids,), (gpus,) = (
        re.findall(rf"{name}=([\d,]+)", text)
        for name in ("JAX_LOCAL_DEVICE_IDS", "--gpus-per-node")
    )
    assert ids.split(",") == [str(place) for place in range(int(gpus))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml"])
def test_the_files_for_clusters_start_processes_that_join(tmp_path, monkeypatch, name):
    """With a smaller model, on two processes of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    small = (
        *FLAGS,
        "--sampled-words",
        "8",
        "--vocab-size",
        "100",
        "--devices",
        "2",
        "--model-devices",
        "1",
    )
    both = []
    for i in (0, 1):
        if name == "slurm.sh":
            for field, value in {
                **STEP,
                "SLURM_STEP_NUM_TASKS": 2,
                "SLURM_PROCID": i,
                "SLURM_LOCALID": i,
            }.items():
                monkeypatch.setenv(field, str(value))
        both.append(start(*cluster_file(name, tmp_path / "run", port, i), *small, "--steps", "3"))
    for code, said in map(end, both):
        assert code == 0, said
    assert windows(tmp_path / "run") >= 3


@pytest.mark.slow
def test_the_failure_of_one_process_is_everyones(tmp_path):
    (tmp_path / "something").touch()
    (code, said), (other, heard) = map(end, start_two(tmp_path))
    assert code == other == 1
    assert "is not empty (it holds something)" in said
    assert "another process failed; see its log" in heard


@pytest.mark.parametrize(
    "given",
    [
        ("localhost:1", None, None),
        ("localhost:1", 2, 2),
        ("localhost:1", 2, -1),
        ("localhost", 2, 0),
        ("localhost:65536", 2, 0),
        ("localhost:0", 2, 0),
        (None, 2, 0),
        (None, 0, None),
        ("a:1", 1, 1),
    ],
)
def test_a_part_of_what_is_needed_is_refused(given):
    with pytest.raises(JaxlmError, match="--coordinator HOST:PORT, --processes N and --process I"):
        processes.join_processes(*given)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "a..b"])
def test_where_no_process_listens_a_sentence_says_so(monkeypatch, host):
    monkeypatch.setattr(processes, "WAIT", 0.2)
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *_, **__: pytest.fail("it would abort the process")
    )
    with pytest.raises(JaxlmError, match=f"no process answers at {host}:1 .*--process 0"):
        processes.join_processes(f"{host}:1", 2, 1)


def test_a_process_stays_alone_unless_a_cluster_says_that_there_are_more(monkeypatch):
    for name in [
        name
        for name in os.environ
        if name.startswith(("SLURM", "OMPI", "TPU", "JOB_", "KUBERNETES"))
    ]:
        monkeypatch.delenv(name)
    assert not processes.join_processes() and not processes.join_processes(processes=1)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert not processes._cluster()  # in a batch script, outside srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not processes._cluster()  # the shell of an allocation
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert processes._cluster()
    assert not processes.join_processes(processes=1)
