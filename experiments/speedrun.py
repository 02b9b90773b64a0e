"""The speedrun: how soon is Penn Treebank at a given validation perplexity, from the command's
start, on two cores?

Words in perplexity, characters in bits per character.

    # Every rung, three seeds: a table and speedrun.csv
    python experiments/speedrun.py
    # The shortest one
    python experiments/speedrun.py --presets fast-115 --seeds 1
    # The commands, without running them
    python experiments/speedrun.py --show
    # The test perplexity with a neural cache as well
    python experiments/speedrun.py --cache 4000
    # Keep the runs of each rung as a record, and check one from its directories alone
    python experiments/speedrun.py --keep records
    python experiments/speedrun.py --verify records/fast-115

A rung is a preset, named by what it reaches on the test split, and a target on validation. A record
is the command `jaxlm train --preset NAME`, begun with the text in the cache and with no compiled
program: the clock runs from the command's start to the first validation at or below the target. The
test split is read once, at the run's end. The last rungs take hours a seed. Each run is a line that
is added to --out, the history, with its date, commit and machine; its epochs are kept beside the
history.

The unit is what TensorFlow 1 takes for the preset `small`: its step, measured between the runs,
times its 11,610 steps (`pip install tensorflow` for it). How the recipes were found, and what did
not help, is in docs/lab/speedrun.md.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import date
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmark import Contender, Worker, watched
from records import (
    SEEDS,
    STEPS_OF_A_TURN,
    TENSORFLOW_STEPS,
    TURNS,
    Rung,
    claims,
    say_verdict,
    verify,
)

from jaxlm.base.units import mean_and_deviation, spread
from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code

HERE = Path(__file__).resolve().parent
MEASURED = ("valid", "test", "cached_test", "seconds_in_all")
TENSORFLOW_TEST = 118.4  # of `small`: its 15 epochs, and what they reach on the test split


# `fast-78` is the best within TensorFlow's time, `fast-72` and `char-medium` the best within three
# hours.
RUNGS = {
    "fast-115": Rung(123.0),
    "fast-113": Rung(123.0),
    "fast-93": Rung(100.0),
    "fast-91": Rung(97.0),
    "fast-84": Rung(90.0),
    "fast-84-blocks": Rung(91.0),
    "fast-82": Rung(89.0),
    "fast-82-blocks": Rung(88.5),
    "fast-80": Rung(87.0),
    "fast-78": Rung(86.0),
    "fast-75": Rung(82.0),
    "fast-72": Rung(78.0),
    "char-small": Rung(1.56, "ptb-char", "bits_per_character"),
    "char-medium": Rung(1.31, "ptb-char", "bits_per_character"),
    "char-pieces": Rung(1.31, "ptb-char", "bits_per_character"),
}


class Record(NamedTuple):
    """One run, and a line of the history, in the rung's measure; None: not measured, or never
    reached.
    """

    date: str
    commit: str
    machine: str
    preset: str
    target: float  # on validation
    seed: int
    seconds: float | None  # to the first validation at or below the target
    epoch: int | None  # that ended with it
    tensorflow_seconds: float | None
    valid: float  # the run's last
    test: float
    seconds_in_all: float  # of the command, its test included, and of the evaluation with a cache
    cached_test: float | None  # with a neural cache, whose settings valid chose
    log: str  # the file beside the history that has the run's epochs


def started_tensorflow() -> Worker | None:
    """TensorFlow 1's step of `small`, measured once; None where it is not installed."""
    if not importlib.util.find_spec("tensorflow"):
        return None
    tensorflow = Worker(Contender("tensorflow", "tensorflow"))
    tensorflow.turn(4, counted=False)
    tensorflow_seconds(tensorflow)
    return tensorflow


def tensorflow_seconds(tensorflow: Worker | None) -> float | None:
    """The seconds of TensorFlow 1's whole training of `small`, by the median of its steps so far;
    None without it.
    """
    if tensorflow is None:
        return None
    for _ in range(TURNS):
        tensorflow.turn(STEPS_OF_A_TURN)
    return TENSORFLOW_STEPS * median(tensorflow.seconds)


def uncompiled(folder: str) -> dict[str, str]:
    """The environment of a process that runs this checkout with no program compiled before.

    Args:
        folder: an empty one, for the programs.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla",
    }


def command(preset: str, seed: int) -> list[str]:
    """The arguments of `jaxlm` that train a rung.

    Args:
        preset: the rung's name.
        seed: of the run.
    """
    return ["train", "--preset", preset, "--corpus", RUNGS[preset].corpus, "--seed", str(seed)]


def run(
    preset: str,
    rung: Rung,
    seed: int,
    cache: int,
    tensorflow: Worker | None,
    logs: Path,
    keep: Path | None = None,
) -> Record:
    """Trains in a process of its own, and watches the file of metrics that it writes; then
    evaluates with a cache.

    Args:
        preset: the rung's name.
        rung: its target, text and measure.
        seed: of the run.
        cache: words of a neural cache (0: none).
        tensorflow: what measures the unit, where it is installed.
        logs: the folder for the run's epochs.
        keep: where the run directory stays (None: it is removed).
    """
    logs.mkdir(exist_ok=True)
    code = commit()  # before hours in which the checkout may change
    valid = f"valid_{rung.measure}"
    with tempfile.TemporaryDirectory() as folder:
        place = keep or Path(folder) / "run"
        environment = uncompiled(folder)
        metrics = place / "metrics.jsonl"
        size = 0
        reached = None
        epoch = None
        seconds = 0.0
        arguments = [*command(preset, seed), "--run-dir", str(place)]
        with closing(watched(arguments, environment, 0.05)) as clock:
            for seconds in clock:
                size_before = size
                if metrics.exists():
                    size = metrics.stat().st_size
                if reached is not None or size == size_before:
                    continue
                for row in _rows(metrics, "epoch"):
                    if row[valid] <= rung.target:
                        reached = seconds
                        epoch = row["epoch"]
                        break
        epochs = _rows(metrics, "epoch")
        test = _rows(metrics, "test")[0]  # of the last parameters; the best ones' comes after it
        cached = None
        cached_seconds = 0.0
        if cache:
            cached, cached_seconds = evaluated(place, cache, rung.measure, environment)
    today = date.today().isoformat()
    log = logs / f"{today}-{preset}-seed{seed}-{time.time():.0f}.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in (*epochs, test)))
    return Record(
        date=today,
        commit=code,
        machine=machine(),
        preset=preset,
        target=rung.target,
        seed=seed,
        seconds=reached,
        epoch=epoch,
        tensorflow_seconds=tensorflow_seconds(tensorflow),
        valid=epochs[-1][valid],
        test=test[f"test_{rung.measure}"],
        seconds_in_all=seconds + cached_seconds,
        cached_test=cached,
        log=log.name,
    )


def commit() -> str:
    """The checkout's commit, as git describes it; empty without git."""
    command = ["git", "describe", "--always", "--dirty"]
    with suppress(OSError):
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()
    return ""


def machine() -> str:
    """The processor's name, and how many cores may be used."""
    name = platform.machine()
    cores = os.cpu_count()
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if model:
            name = model[1]
    return f"{name}, {cores} cores"


def evaluated(
    place: Path, cache: int, measure: str, environment: dict[str, str]
) -> tuple[float | None, float]:
    """The test split's measure with a neural cache of so many words, tuned on valid, and the
    seconds of the command.

    None where the command fails, which is said: the hours of the run are not lost with it.

    Args:
        place: the run's directory.
        cache: words of the neural cache.
        measure: of the rung: `perplexity` or `bits_per_character`.
        environment: the process's whole environment.
    """
    words = [
        "evaluate",
        str(place),
        "--protocol",
        "cache",
        "--cache-window",
        str(cache),
        "--tune",
        "--json",
    ]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm", *words], env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        print(f"error: {shlex.join(words)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
        return None, seconds
    return json.loads(done.stdout)[measure], seconds


def _rows(path: Path, kind: str) -> list[dict]:
    """The whole lines of one kind in a file of metrics, which may grow or be missing."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [
        json.loads(line) for line in lines if line.endswith("\n") and f'"kind":"{kind}"' in line
    ]


def add(record: Record, path: Path) -> None:
    """Adds a line to the history.

    Args:
        record: a run's record.
        path: the history, a file of CSV.
    """
    with open(path, "a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(record)


def begin_history(path: Path, fields: Sequence[str] = Record._fields) -> None:
    """Makes the history, if it is new. Raises SystemExit or OSError, before hours of training,
    where it cannot grow.

    Args:
        path: the history.
        fields: the heads of its columns.
    """
    if not path.absolute().parent.is_dir():
        raise SystemExit(f"error: --out {path}: there is no such folder")
    heads = ",".join(fields)
    with open(path, "a+") as file:
        if file.tell() == 0:
            file.write(f"{heads}\n")
        file.seek(0)
        if file.readline().strip() != heads:
            raise SystemExit(
                f"error: --out {path} is no history, whose first line is {heads}: name another file"
            )


def begin_record(folder: Path) -> None:
    """Makes the folder of a record. Raises SystemExit or OSError, before hours of training, where
    no record could be kept.

    Args:
        folder: the record's directory.
    """
    if not importlib.util.find_spec("tensorflow"):
        raise SystemExit(
            "error: --keep: a record has TensorFlow's step, measured in the same run: "
            "pip install tensorflow, or leave --keep out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"error: --keep: {folder} is not empty: name another folder")


def table(records: Sequence[Record]) -> str:
    """Mean and standard deviation over the seeds of each rung."""
    lines = [
        "| `jaxlm train --preset` | valid at or below | seconds | with epoch "
        "| of TensorFlow's time | valid | test | "
        "test, neural cache | seconds in all |",
        "|" + "---|" * 9,
    ]
    for preset in dict.fromkeys(record.preset for record in records):
        lines.append(_row([record for record in records if record.preset == preset]))
    seconds = [record.tensorflow_seconds for record in records if record.tensorflow_seconds]
    note = "TensorFlow is not installed: its time is not measured."
    if seconds:
        note = (
            f"TensorFlow 1's graph mode takes {mean_and_deviation(seconds)[0]:,.0f} s for the "
            f"{TENSORFLOW_STEPS:,} steps of `small` to a test perplexity of {TENSORFLOW_TEST}."
        )
    return "\n".join([*lines, "", note])


def _row(of_rung: list[Record]) -> str:
    """The line of one rung, over the seeds that have each number."""
    preset = of_rung[0].preset
    in_words = RUNGS[preset].measure == "perplexity"

    def over_seeds(name: str) -> str:
        values = [getattr(record, name) for record in of_rung]
        measured = [value for value in values if value is not None]
        shown = "{:,.3f}"
        if in_words or name.startswith("seconds"):
            shown = "{:,.2f}"
        text = spread(*mean_and_deviation(measured), shown.format)
        if name == "seconds" and len(measured) < len(values):
            text += f", {len(values) - len(measured)} missed"
        return text

    shares = []
    for record in of_rung:
        if in_words and record.tensorflow_seconds and record.seconds:
            shares.append(record.tensorflow_seconds / record.seconds)
    share = ""
    if shares:
        share = f"1/{mean_and_deviation(shares)[0]:.1f}"
    epochs = [str(record.epoch or "never") for record in of_rung]
    cells = [
        f"`{preset}`",
        f"{of_rung[0].target:g}",
        over_seeds("seconds"),
        ", ".join(epochs),
        share,
        *map(over_seeds, MEASURED),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", choices=list(RUNGS), default=list(RUNGS))
    parser.add_argument("--seeds", type=whole(1), default=3, help="how many, from 0 (3)")
    parser.add_argument("--show", action="store_true", help="print the commands only")
    parser.add_argument(
        "--cache", type=whole(), default=0, metavar="WORDS", help="of a neural cache (0: none)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("speedrun.csv"), help="the history (speedrun.csv)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep each rung's runs as a record, DIR/PRESET"
    )
    parser.add_argument("--verify", type=Path, metavar="DIR", help="check a record, and end")
    args = parser.parse_args()
    if args.verify:
        say_verdict(args.verify, verify(args.verify, RUNGS))
        return
    if args.show:
        for preset in args.presets:
            print(shlex.join(["jaxlm", *command(preset, 0)]))
        return
    presets = dict.fromkeys(args.presets)
    if args.keep:
        if args.seeds != len(SEEDS):
            parser.error("--keep: a record has three seeds: leave --seeds out")
        for preset in presets:
            begin_record(args.keep / preset)
    begin_history(args.out)
    records = []
    tensorflow = started_tensorflow()
    for preset in presets:
        for seed in range(args.seeds):
            logs = args.out.with_name(f"{args.out.stem}-logs")
            keep = args.keep / preset / f"seed{seed}" if args.keep else None
            rung = RUNGS[preset]
            records.append(run(preset, rung, seed, args.cache, tensorflow, logs, keep))
            print(records[-1], flush=True)
            add(records[-1], args.out)
        if args.keep and tensorflow:
            of_rung = [record for record in records if record.preset == preset]
            tree = claims(preset, RUNGS[preset], of_rung, tensorflow.seconds)
            (args.keep / preset / "record.json").write_text(json.dumps(tree, indent=1) + "\n")
    print(table(records))
    print(args.out)


if __name__ == "__main__":
    sys.exit(exit_code(main))
