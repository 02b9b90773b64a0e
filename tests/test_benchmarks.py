"""experiments/speedrun.py and benchmark.py: their commands are accepted, they run, and they tell what was run."""

import csv
import io
import json
import shlex
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from conftest import ROOT
from terminals import run

import jaxlm.runs.trainer
from jaxlm.cli.ending import exit_code

EXPERIMENTS = ROOT / "experiments"


@pytest.fixture
def speedrun(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return import_module("speedrun")


def test_every_command_of_the_speedrun_is_accepted(speedrun, monkeypatch, capsys, tmp_path):
    configs = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        jaxlm.runs.trainer,
        "train",
        lambda config, **_: configs.append(config) or SimpleNamespace(stopped_by=None, run_dir=None),
    )
    monkeypatch.setattr(sys, "argv", ["speedrun.py", "--show"])
    speedrun.main()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(speedrun.RUNGS)
    for line in shown:
        name, *words = shlex.split(line)
        given = [word for word in words if word.startswith("--")]
        assert sorted(given) == sorted(set(given)), line
        code, out, err = run(words)
        assert (name, code) == ("jaxlm", 0), out + err
    assert {config.data.corpus for config in configs} == {"ptb"} and len(set(configs)) == len(configs)


@pytest.mark.slow
def test_a_record_is_what_the_run_wrote(speedrun, monkeypatch, tmp_path):
    tiny = [
        "train",
        "--preset",
        "tied-fast",
        "--corpus",
        "embedded-tiny",
        "--embedding-size",
        "8",
        "--hidden-sizes",
        "8",
        "--batch-size",
        "50",
        "--epochs",
        "2",
    ]
    monkeypatch.setattr(speedrun, "command", lambda preset, seed: [*tiny, "--seed", str(seed)])
    monkeypatch.setattr(speedrun.Unit, "measure", lambda unit: 1e6)
    logs = tmp_path / "logs"
    reached = speedrun.run("easy", 1e9, 0, 10, speedrun.Unit(), logs)
    missed = speedrun.run("hard", 1.0, 0, 0, speedrun.Unit(), logs)
    assert (reached.epoch, missed.epoch, missed.seconds) == (1, None, None)
    assert reached.seconds < reached.seconds_in_all and (reached.valid, reached.test) == (missed.valid, missed.test)
    assert reached.cached_test != reached.test and missed.cached_test is None
    kinds = [json.loads(line)["kind"] for line in (logs / reached.log).read_text().splitlines()]
    assert kinds == ["epoch", "epoch", "test"] and len(list(logs.iterdir())) == 2


def test_records_are_added_to_the_history_and_summarised(speedrun, tmp_path):
    made = ("2026-11-28", "abc", "a machine", "fast-113", 123.0)
    records = [
        speedrun.Record(*made, 0, 50.0, 2, 1500.0, 118.0, 113.0, 60.0, None, "x"),
        speedrun.Record(*made, 1, 60.0, 2, 1500.0, 119.0, 114.0, 70.0, 100.0, "y"),
        speedrun.Record(*made, 2, None, None, 1500.0, 124.0, 118.0, 70.0, None, "z"),
    ]
    path = tmp_path / "history.csv"
    for record in records:
        speedrun.check_history(path)
        speedrun.add(record, path)
    rows = list(csv.DictReader(path.open()))
    assert [row["seed"] for row in rows] == ["0", "1", "2"] and rows[2]["seconds"] == ""
    assert path.read_text().splitlines()[0] == (ROOT / "docs/lab/speedrun.csv").read_text().splitlines()[0]
    (row,) = [line for line in speedrun.table(records).splitlines() if "fast-113" in line]
    assert "| 55.00 ± 7.07, 1 missed | 2, 2, never | 1/27.5 | 120.33 ± 3.21 |" in row and "| 100.00 |" in row
    assert "1,500 s" in speedrun.table(records)


MISTAKES = {
    "speedrun.py": ["--seeds 0", "--cache -1", "--presets small", "--out nowhere/x.csv", "--out kept.json"],
    "benchmark.py": [
        "nothing",
        "--presets nobody",
        "--turns 0",
        "--windows 0",
        "--commits a b",
        "growth --out nowhere",
    ],
    "peers.py": ["", "nobody small", "jaxlm nobody", "jaxlm small {", 'jaxlm small {"learning_rate":-1}'],
    "scoring_benchmark.py": ["--data-dir nowhere", "--repeats 0", "--words x"],
    "large_corpus.py": ["--tokens 1", "--turns 0"],
    "ablation.py": [
        "--corpus nowhere",
        "--width 0 --corpus embedded-tiny",
        "--seeds 0",
        "--markdown nowhere.md",
        "--markdown kept.json",
    ],
    "optimizers.py": ["--epochs -1 --corpus embedded-tiny", "--markdown kept.json"],
}


@pytest.mark.parametrize("script", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_lost(script, tmp_path, monkeypatch):
    (tmp_path / "kept.json").write_text("hours")
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    main = import_module(script.removesuffix(".py")).main
    for words in MISTAKES[script]:
        monkeypatch.setattr(sys, "argv", [script, *words.split()])
        code, _, err = run(None, lambda _: exit_code(main))
        if isinstance(code, str):  # Python prints it, and ends with 1
            code, err = 1, code
        assert code in (1, 2) and "error: " in err.splitlines()[-1], (words, code, err)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert (tmp_path / "kept.json").read_text() == "hours"


def test_a_benchmark_says_why_a_contender_stopped(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    benchmark = import_module("benchmark")
    with pytest.raises(SystemExit, match=r"^error: me stopped: .*learning_rate"):
        benchmark.compare([benchmark.Contender("me", "jaxlm", "test", {"learning_rate": -1})], 1, 1)


@pytest.mark.slow
def test_members_are_timed_in_every_way_of_a_sweep(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    benchmark = import_module("benchmark")
    rows = benchmark.compare([benchmark.Contender(maker, maker, "test") for maker in benchmark.SWEPT], 1, 2)
    assert [row["contender"] for row in rows] == ["in-turn", "one-program", "vmapped", "processes"]
    assert all(row["words_per_second"] == pytest.approx(8 * 20 * 2 / (row["ms"] / 1e3)) for row in rows)
    assert rows[3]["peak_mib"] > 1.5 * rows[1]["peak_mib"]


@pytest.mark.slow
def test_the_benchmark_compares_what_is_installed():
    done = subprocess.run(
        [
            sys.executable,
            EXPERIMENTS / "benchmark.py",
            "steps",
            "evaluation",
            "--presets",
            "test",
            "--turns",
            "1",
            "--windows",
            "2",
            "--json",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [row["contender"] for row in found["steps"]]
    assert names[:6] == [
        f"{maker} {dtype}" for maker in ("jaxlm", "products", "floor") for dtype in ("float32", "bfloat16")
    ]
    assert [row["contender"] for row in found["evaluation"]] == ["validation", "test"]
    for row in [*found["steps"], *found["evaluation"]]:
        assert row["preset"] == "test" and row["ms"] > 0 and row["words_per_second"] > 0 and row["peak_mib"] > 0
