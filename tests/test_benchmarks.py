"""experiments/speedrun.py and benchmark.py:
their commands are accepted, they run, and they tell what was run.
"""

import csv
import io
import json
import shlex
import subprocess
import sys
from importlib import import_module
from math import log
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from recipes import MODELS, parameters
from terminals import run

import jaxlm.runs.trainer
from jaxlm.base.errors import JaxlmError
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
        lambda config, **_: (
            configs.append(config) or SimpleNamespace(stopped_by=None, run_dir=None)
        ),
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
    assert {config.data.corpus for config in configs} == {"ptb", "ptb-char"} and len(
        set(configs)
    ) == len(configs)


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
    logs = tmp_path / "logs"
    reached = speedrun.run("easy", speedrun.Rung(1e9), 0, 10, None, logs)
    missed = speedrun.run(
        "hard", speedrun.Rung(1.0, measure="bits_per_character"), 0, 0, None, logs
    )
    assert (reached.epoch, missed.epoch, missed.seconds) == (1, None, None)
    assert reached.seconds < reached.seconds_in_all and 1 < missed.test < reached.test
    assert reached.cached_test != reached.test and missed.cached_test is None
    kinds = [json.loads(line)["kind"] for line in (logs / reached.log).read_text().splitlines()]
    assert kinds == ["epoch", "epoch", "test"] and len(list(logs.iterdir())) == 2


def test_a_record_is_of_the_last_parameters_and_outlives_a_cache_that_cannot_be(
    speedrun, monkeypatch, tmp_path, capsys
):
    epochs = [
        {"kind": "epoch", "epoch": at, "valid_perplexity": valid}
        for at, valid in ((1, 118.0), (2, 119.0))
    ]
    tests = [
        {"kind": "test", "checkpoint": which, "test_perplexity": 113.0}
        for which in ("last", "best")
    ]
    tests[1]["test_perplexity"] = 112.0

    def watched(arguments, *_):
        run = Path(arguments[-1])
        run.mkdir()
        lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in (*epochs, *tests)]
        (run / "metrics.jsonl").write_text("".join(lines))
        yield 1.0

    monkeypatch.setattr(speedrun, "watched", watched)
    record = speedrun.run(
        "fast-113", speedrun.Rung(123.0), 0, 10, None, tmp_path / "logs"
    )  # (of no checkpoint)
    assert (record.seconds, record.epoch, record.valid, record.test) == (1.0, 1, 119.0, 113.0)
    assert record.cached_test is None and "error: evaluate " in capsys.readouterr().err


@pytest.mark.parametrize("script", ["speedrun", "mixtures"])
def test_a_record_that_cannot_be_kept_is_refused_before_it_trains(
    script, monkeypatch, tmp_path, capsys
):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    module = import_module(script)
    speedrun = import_module("speedrun")
    installed: dict[str, str | None] = {"tensorflow": None}
    monkeypatch.setattr(speedrun.importlib.util, "find_spec", installed.get)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--keep", "records"])
    with pytest.raises(SystemExit, match="--keep: a record has TensorFlow's step"):
        module.main()
    assert not any(tmp_path.iterdir())
    installed["tensorflow"] = "a module"
    monkeypatch.setattr(speedrun, "started_tensorflow", lambda: sys.exit("it trains"))
    with pytest.raises(SystemExit, match="it trains"):
        module.main()
    made = sorted(Path("records").iterdir())
    (made[-1] / "seed0").mkdir()  # of another record
    with pytest.raises(SystemExit, match=f"--keep: {made[-1]} is not empty"):
        module.main()


def test_records_are_added_to_the_history_and_summarised(speedrun, tmp_path):
    made = ("2026-11-28", "abc", "a machine", "fast-113", 123.0)
    records = [
        speedrun.Record(*made, 0, 50.0, 2, 1500.0, 118.0, 113.0, 60.0, None, "x"),
        speedrun.Record(*made, 1, 60.0, 2, 1500.0, 119.0, 114.0, 70.0, 100.0, "y"),
        speedrun.Record(*made, 2, None, None, 1500.0, 124.0, 118.0, 70.0, None, "z"),
    ]
    path = tmp_path / "history.csv"
    for record in records:
        speedrun.begin_history(path)
        speedrun.add(record, path)
    rows = list(csv.DictReader(path.open()))
    assert [row["seed"] for row in rows] == ["0", "1", "2"] and rows[2]["seconds"] == ""
    assert (
        path.read_text().splitlines()[0]
        == (ROOT / "docs/lab/speedrun.csv").read_text().splitlines()[0]
    )
    (row,) = [line for line in speedrun.table(records).splitlines() if "fast-113" in line]
    assert (
        "| 55.00 ± 7.07, 1 missed | 2, 2, never | 1/27.5 | 120.33 ± 3.21 |" in row
        and "| 100.00 |" in row
    )
    assert "1,500 s" in speedrun.table(records)


TINY_CELL = "--texts embedded-tiny --cells lstm --parameters 21000"
MISTAKES = {  # script -> {its arguments: a part of the sentence}
    "speedrun.py": {
        "--seeds 0": "at least 1, found '0'",
        "--cache -1": "at least 0, found '-1'",
        "--presets small": "invalid choice: 'small'",
        "--out nowhere/x.csv": "there is no such folder",
        "--out kept.json": "kept.json is no history",
        "--keep records --seeds 1": "a record has three seeds",
    },
    "mixtures.py": {
        "--mixtures nobody": "invalid choice: 'nobody'",
        "--out kept.json": "kept.json is no history",
    },
    "benchmark.py": {
        "nothing": "unknown: nothing",
        "--presets nobody": "invalid choice: 'nobody'",
        "--turns 0": "at least 1, found '0'",
        "--windows 0": "at least 1, found '0'",
        "--commits a b": "git knows no commit a here",
        "kinds --commits a b": "leave kinds out",
        "evaluation --presets zaremba-large": "name another",
    },
    "peers.py": {
        "": "required: maker, preset",
        "nobody small": "invalid choice: 'nobody'",
        "jaxlm nobody": "unknown preset 'nobody'",
        "jaxlm small {": "invalid loads value: '{'",
        'jaxlm small {"learning_rate":-1}': "learning_rate must be above 0",
    },
    "scoring_benchmark.py": {"--data-dir nowhere": "the data directory nowhere is not a folder"},
    "large_corpus.py": {
        "--tokens 1": "at least 100,000, found '1'",
        "--turns 0": "at least 1, found '0'",
    },
    "ablation.py": {
        "--corpus nowhere": "there is no corpus or file 'nowhere'",
        "--width 0 --corpus embedded-tiny": "embedding_size must be at least 1",
        "--seeds 0": "at least 1, found '0'",
        "--markdown nowhere.md": "nowhere.md is not a page",
        "--markdown kept.json": "kept.json is not a page",
    },
    "shootout.py": {
        "--cells nobody": "invalid choice: 'nobody'",
        "--preset nobody": "unknown preset 'nobody'",
        "--texts nowhere": "there is no corpus or file 'nowhere'",
        "--texts embedded-tiny:nobody": "unknown preset 'nobody'",
        "--texts embedded-tiny --parameters 100": "no width gives lstm 100 parameters",
        f"{TINY_CELL} --minutes 0": "above 0, found '0'",
        f"{TINY_CELL} --minutes 1 --set seed=0,1": "seed is the shoot-out's own",
        f"{TINY_CELL} --minutes 0.000001": "minutes end before the first epoch of lstm",
        "--texts embedded-tiny --minutes nan": "above 0, found 'nan'",
        "--texts embedded-tiny --minutes inf": "above 0, found 'inf'",
        "--texts embedded-tiny --share -1": "above 0, found '-1'",
        "--texts embedded-tiny --set keep_output": "takes FIELD=SPACE",
        f"{TINY_CELL} --minutes 1 --set keep_output=2,3": (
            "keep_output must be above 0 and at most 1"
        ),
        f"{TINY_CELL} --minutes 1 --run-dir kept.json": "kept.json cannot be used",
    },
    "abilities.py": {
        "--tasks nobody": "invalid choice: 'nobody'",
        "--cells nobody": "invalid choice: 'nobody'",
        "--rates 0": "above 0, found '0'",
        "--markdown kept.json": "kept.json is not a page",
        "--run-dir kept.json": "kept.json cannot be used",
    },
    "shakespeare.py": {
        "--presets small": "expected PRESET[:EPOCHS] or PRESET+PRESET of ",
        "--presets hawk+small": "found 'hawk+small'",
        "--presets transformer:x": "found 'transformer:x'",
        "--nanogpt nowhere": "nowhere is no checkout of nanoGPT",
        "--run-dir kept.json": "kept.json cannot be used",
    },
    "optimizers.py": {
        "--epochs -1 --corpus embedded-tiny": "epochs must be at least 0",
        "--markdown kept.json": "kept.json is not a page",
    },
}


@pytest.mark.parametrize("script", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_lost(script, tmp_path, monkeypatch):
    (tmp_path / "kept.json").write_text("hours")
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    main = import_module(script.removesuffix(".py")).main
    for words, part in MISTAKES[script].items():
        monkeypatch.setattr(sys, "argv", [script, *words.split()])
        code, _, err = run(None, lambda _: exit_code(main))
        if isinstance(code, str):  # Python prints it, and ends with 1
            code, err = 1, code
        assert code in (1, 2) and "error: " in err.splitlines()[-1] and part in err, (
            words,
            code,
            err,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert (tmp_path / "kept.json").read_text() == "hours"


def test_a_benchmark_says_why_a_contender_stopped(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    benchmark = import_module("benchmark")
    with pytest.raises(SystemExit, match=r"^error: me stopped: .*learning_rate"):
        benchmark.compare([benchmark.Contender("me", "jaxlm", "test", {"learning_rate": -1})], 1, 1)


def test_growth_is_told_before_it_is_drawn(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    benchmark = import_module("benchmark")
    monkeypatch.setattr(benchmark, "growth", lambda turns: [{"ms": 1}])
    monkeypatch.setattr(benchmark, "draw", lambda *_: sys.exit("no"))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "growth", "--json"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert '"ms": 1' in capsys.readouterr().out


@pytest.mark.slow
def test_members_are_timed_in_every_way_of_a_sweep(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    benchmark = import_module("benchmark")
    rows = benchmark.compare(
        [benchmark.Contender(maker, maker, "test") for maker in benchmark.SWEPT], 1, 2
    )
    assert [row["contender"] for row in rows] == ["in-turn", "one-program", "vmapped", "processes"]
    assert all(
        row["words_per_second"] == pytest.approx(8 * 20 * 2 / (row["ms"] / 1e3)) for row in rows
    )
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
        f"{maker} {dtype}"
        for maker in ("jaxlm", "products", "floor")
        for dtype in ("float32", "bfloat16")
    ]
    assert [row["contender"] for row in found["evaluation"]] == ["validation", "test"]
    for row in [*found["steps"], *found["evaluation"]]:
        assert (
            row["preset"] == "test"
            and row["ms"] > 0
            and row["words_per_second"] > 0
            and row["peak_mib"] > 0
        )


@pytest.mark.slow
def test_a_shoot_out_goes_on_where_it_was_and_its_rows_are_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXLM_STORAGE", f"sqlite:///{tmp_path}/s.db")  # which holds one sweep alone
    shootout = import_module("shootout")
    line = [
        "shootout.py",
        "--texts",
        "embedded-tiny",
        "--minutes",
        "1",
        "--parameters",
        "21000",
        "--trials",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", [*line, "--seeds", "2", "--cells", *shootout.CELLS[:2]])
    monkeypatch.setattr(shootout, "seconds_of", lambda *_: (0.0, 30.0))
    trained = shootout.trained
    runs = []

    def interrupted(config, corpus, folder):
        runs.append(folder)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return trained(config, corpus, folder)

    monkeypatch.setattr(shootout, "trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shootout.main()
    monkeypatch.setattr(shootout, "seconds_of", lambda *_: pytest.fail("it was measured already"))
    shootout.main()
    rows = list(csv.DictReader((tmp_path / "runs/shootout/shootout.csv").open()))
    assert [(row["cell"], row["seed"]) for row in rows] == [
        (cell, seed) for cell in ("lstm", "gru") for seed in "01"
    ]
    assert {row["epochs"] for row in rows} == {"2"} and all(
        abs(int(row["parameters"]) / 21_000 - 1) < 0.02 for row in rows
    )
    capsys.readouterr()
    name, *words = shlex.split(rows[3]["command"])
    code, out, err = run([*words, "--run-dir", "again"])
    assert (name, code) == ("jaxlm", 0), out + err
    again = [
        json.loads(line) for line in (tmp_path / "again/metrics.jsonl").read_text().splitlines()
    ]
    assert again[-1]["test_perplexity"] == float(rows[3]["test"])
    monkeypatch.setattr(sys, "argv", [*line, "--cells", "lstm", "--seeds", "1"])
    monkeypatch.setattr(shootout, "trained", lambda *_: pytest.fail("it was trained already"))
    shootout.main()
    assert rows == list(csv.DictReader((tmp_path / "runs/shootout/shootout.csv").open()))
    tried = list(csv.DictReader((tmp_path / "runs/shootout/shootout_tuning.csv").open()))
    assert [row["cell"] + row["trial"] for row in tried] == ["gru0", "gru1", "lstm0", "lstm1"]
    monkeypatch.setattr(sys, "argv", [*line, "--trials", "3"])
    with pytest.raises(JaxlmError, match="name another --run-dir"):
        shootout.main()


def test_a_text_with_another_preset_has_epochs_of_its_own(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shootout = import_module("shootout")
    given = dict(
        preset="tied-fast",
        parameters=21_000,
        trials=1,
        share=0.25,
        set=[],
        cells=["lstm"] * 2,
        minutes=[1.0] * 2,
    )
    for text, seconds in {"embedded-tiny": 30.0, "embedded-tiny:tied-fast": 10.0}.items():
        monkeypatch.setattr(
            shootout, "seconds_of", lambda *_, seconds=seconds: (0.5 * seconds, seconds)
        )
        (cell,) = shootout.planned(SimpleNamespace(**given, run_dir=tmp_path, texts=[text] * 2))
        assert (cell.text, cell.config.train.epochs) == (
            text,
            round((60 - 0.5 * seconds) / seconds),
        )


def test_a_text_of_dots_is_kept_below_the_run_directory(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shootout = import_module("shootout")
    (tmp_path / "a.txt").write_text("a b c d\n" * 9000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shootout, "seconds_of", lambda *_: (0.0, 1.0))
    given = dict(
        preset="tied-fast",
        parameters=21_000,
        trials=1,
        share=0.25,
        set=[],
        cells=["lstm"],
        minutes=[1.0],
    )
    (cell,) = shootout.planned(SimpleNamespace(**given, run_dir=tmp_path / "s", texts=["."]))
    assert len(cell.folder.relative_to(tmp_path / "s").parts) == 3


def test_a_row_of_a_shoot_out_is_of_the_last_parameters_where_the_best_were_tested_too(
    monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shootout = import_module("shootout")
    tests = [
        {"kind": "test", "checkpoint": which, "test_bits_per_character": bits}
        for which, bits in (("last", 1.5), ("best", 1.25))
    ]
    monkeypatch.setattr(shootout, "trained", lambda *_: (100.0, 90.0))
    timing = {
        1: (40.0, 50.0),
        2: (10.0, 50.0),
        3: (80.0, 25.0),
    }  # of the second the end alone, after a stop
    rows = {
        epoch: dict(zip(("seconds", "words_per_second"), row, strict=True))
        for epoch, row in timing.items()
    }
    monkeypatch.setattr(shootout, "read_timing", lambda _: rows)
    monkeypatch.setattr(shootout, "read_metrics", lambda _: tests)
    cell = shootout.Cell("ptb", 5.0, "lstm", tmp_path / "ptb/5min/lstm", jaxlm.preset("test"))
    cell.folder.mkdir(parents=True)
    shootout.run(cell, {}, 0)
    (row,) = shootout.rows_of(tmp_path)
    assert (row["test"], row["bits_per_character"]) == (90.0, 1.5)
    assert (row["seconds"], row["words_per_second"]) == (160.0, 37.5)
    shootout.write_rows(
        [{"a": 1}, {"a": 2, "b": 3}], tmp_path / "rows.csv"
    )  # as of a directory that was begun before
    assert (tmp_path / "rows.csv").read_text() == "a,b\n1,\n2,3\n"


def test_the_page_s_tables_are_of_the_runs(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shootout = import_module("shootout")
    laboratory = EXPERIMENTS.parent / "docs/lab"
    texts = ("text", "cell", "command", "date", "commit", "machine")
    with (laboratory / "shootout.csv").open(newline="") as file:
        rows = [
            {k: v if k in texts else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]
    page = (laboratory / "shootout.md").read_text()
    lines = [line for line in shootout.table(rows).splitlines()[2:] if line.startswith("|")]
    assert len(lines) >= 20
    assert [line for line in lines if "| " + line.split(" | ", 2)[2] not in page] == []


def test_the_tables_of_tiny_shakespeare_are_of_the_runs(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shakespeare = import_module("shakespeare")
    root = EXPERIMENTS.parent
    page = (root / "docs/lab/shakespeare.md").read_text()
    runs: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (root / "docs/lab/shakespeare.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            runs.setdefault((row["system"], row["machine"]), []).append(row)
    for rows in runs.values():
        for name in ("nats", "mixed", "dynamic", "adaptive"):
            losses = [float(row[name]) for row in rows if row[name]]
            if len(losses) == 3:
                assert f" {shakespeare.shown_mean(losses)}" in page, (rows[0]["system"], name)
    mixture = next(rows for (system, _), rows in runs.items() if "+" in system)
    losses = [float(row["mixed"]) for row in mixture]
    assert f" {shakespeare.shown_mean(losses)} " in (root / "README.md").read_text()


def test_the_table_of_blocks_is_of_the_runs():
    laboratory = EXPERIMENTS.parent / "docs/lab"
    page = (laboratory / "shakespeare.md").read_text()
    table = {}
    for line in page.partition("| cell | bare, 50 x 100 |")[2].splitlines()[2:]:
        if not line.startswith("|"):
            break
        cell, *shown = [column.strip(" `") for column in line.strip("|").split("|")]
        columns = [(shape, batch) for shape in ("", "+block") for batch in (50, 12)]
        for (shape, batch), nats in zip(columns, shown, strict=True):
            if nats:
                table[cell + shape, batch] = nats
    with (laboratory / "shakespeare_blocks.csv").open(newline="") as file:
        runs = {
            (row["cell"], 12 if "--batch-size=12" in row["command"] else 50): row
            for row in csv.DictReader(file)
            if "mogrifier" not in row["cell"]
        }
    assert table == {
        run: f"{float(row['bits_per_character']) * log(2):.3f}" for run, row in runs.items()
    }


def test_a_seed_of_a_shoot_out_that_diverges_has_a_row_of_nan(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shootout = import_module("shootout")
    config = jaxlm.preset("test").replace(
        corpus="embedded-tiny", learning_rate=5e37, clip_norm=None, epochs=1
    )
    cell = shootout.Cell("embedded-tiny", 5.0, "lstm", tmp_path / "text/5min/lstm", config)
    cell.folder.mkdir(parents=True)
    space = {"learning_rate": "4e37,5e37"}
    assert (
        shootout.tuned(cell, space, 1, 0.25) == {}
        and "the preset's own values" in capsys.readouterr().out
    )
    shootout.run(cell, {}, 0)
    (row,) = shootout.rows_of(tmp_path)
    assert (str(row["valid"]), str(row["bits_per_character"])) == ("nan", "nan")
    assert "seed0: " in capsys.readouterr().out


def test_a_path_may_have_a_colon(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    found = import_module("shootout").text_and_preset
    assert found("vol:1.txt", "small") == ("vol:1.txt", "small")
    assert found("vol:1.txt:tied-fast", "small") == ("vol:1.txt", "tied-fast")


def test_the_table_of_a_shoot_out_says_which_cells_are_alike(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shootout = import_module("shootout")
    same = dict(
        text="ptb", minutes=5.0, parameters=3_000_000, epochs=4, seconds=300.0, words_per_second=1.0
    )
    nan = float("nan")
    measured = {
        "lost": (nan, 99.0),
        "slow": (110.0, 112.0),
        "alike": (102.5, 104.5),
        "best": (100.0, 102.0),
    }
    rows = [
        {**same, "cell": cell, "valid": valid, "test": valid - 5, "bits_per_character": 1.3}
        for cell, each in measured.items()
        for valid in each
    ]
    table = shootout.table(rows)
    assert [line.split(" | ")[2] for line in table.splitlines()[2:6]] == [
        "best",
        "alike",
        "slow",
        "lost",
    ]
    assert "| 99.00 (1 diverged) | 94.00 |" in table
    assert "| 101.00 ± 1.41 | 96.00 ± 1.41 | 1.3000 ± 0.0000 |" in table
    assert (
        "ptb, 5 minutes: the lowest on validation is best; within the deviations: alike." in table
    )
    rows.append({**rows[0], "text": "another", "cell": "best"})
    assert (
        len(shootout.table(rows).splitlines()) == 2 + 5 + 1 + 2
    )  # of another text no cell that it has not
    assert shootout.plot(rows, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "cell",
    parameters({name: name for name in MODELS}, ("lstm", "mogrifier", "hawk", "gated-deltanet")),
)
def test_a_cell_is_as_wide_as_its_parameters_ask(cell, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    shootout = import_module("shootout")
    config = shootout.sized(jaxlm.preset("tied-fast"), cell, 3_000_000)
    assert (
        config.kinds["model"] == cell and abs(shootout.parameters_of(config) / 3_000_000 - 1) < 0.02
    )
    assert config.model.hidden_sizes == (config.model.embedding_size,)


@pytest.mark.parametrize(("parameters", "width"), [(3_160_000, 260), (888_000, 82)])
def test_a_width_is_a_multiple_of_four_where_one_is_near_enough(parameters, width, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    config = import_module("shootout").sized(jaxlm.preset("tied-fast"), "lstm", parameters)
    assert config.model.hidden_sizes == (width,)
