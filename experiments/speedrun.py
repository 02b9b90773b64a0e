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
from records import TENSORFLOW_STEPS, Rung, claims, verify

from jaxlm.base.terminal import say_line
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
    "fast-84": Rung(90.0),
    "fast-78": Rung(86.0),
    "fast-75": Rung(82.0),
    "fast-72": Rung(78.0),
    "char-small": Rung(1.56, "ptb-char", "bits_per_character"),
    "char-medium": Rung(1.31, "ptb-char", "bits_per_character"),
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


def tensorflow_seconds(tensorflow: Worker | None) -> float | None:
    """The seconds of TensorFlow 1's whole training of `small`, by the median of its steps so far;
    None without it.
    """
    if tensorflow is None:
        return None
    for _ in range(3):
        tensorflow.turn(16)
    return TENSORFLOW_STEPS * median(tensorflow.seconds)


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
    code = commit()  # (what it is as the run begins)
    with tempfile.TemporaryDirectory() as folder:
        place = keep or Path(folder) / "run"
        valid = f"valid_{rung.measure}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla",
        }
        metrics = place / "metrics.jsonl"
        size = 0
        reached = None
        epoch = None
        seconds = 0.0
        with closing(
            watched([*command(preset, seed), "--run-dir", str(place)], environment, 0.05)
        ) as clock:
            for seconds in clock:
                size, before = metrics.stat().st_size if metrics.exists() else 0, size
                epochs = _rows(metrics, "epoch") if reached is None and size != before else []
                found = [row["epoch"] for row in epochs if row[valid] <= rung.target]
                if found:
                    reached = seconds
                    epoch = found[0]
        epochs, (test, *_) = (
            _rows(metrics, kind) for kind in ("epoch", "test")
        )  # (last, then best)
        cached, cached_seconds = (
            evaluated(place, cache, rung.measure, environment) if cache else (None, 0.0)
        )
        today = date.today().isoformat()
        log = logs / f"{date.today()}-{preset}-seed{seed}-{time.time():.0f}.jsonl"
        log.write_text("".join(json.dumps(row) + "\n" for row in (*epochs, test)))
        return Record(
            *(today, code, machine(), preset, rung.target, seed, reached, epoch),
            *(tensorflow_seconds(tensorflow), epochs[-1][valid], test[f"test_{rung.measure}"]),
            *(seconds + cached_seconds, cached, log.name),
        )


def commit() -> str:
    """The checkout's commit, as git describes it; empty without git."""
    command = ["git", "describe", "--always", "--dirty"]
    with suppress(OSError):
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()
    return ""


def machine() -> str:
    """The processor's name, and how many cores may be used."""
    found = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if sys.platform == "linux"
        else None
    )
    cores = len(os.sched_getaffinity(0)) if found else os.cpu_count()
    return f"{found[1] if found else platform.machine()}, {cores} cores"


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
    if done.returncode:
        print(f"error: {shlex.join(words)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
    return None if done.returncode else json.loads(done.stdout)[
        measure
    ], time.perf_counter() - began


def _rows(path: Path, kind: str) -> list[dict]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [
        row
        for line in lines
        if line.endswith("\n") and f'"kind":"{kind}"' in line and (row := json.loads(line))
    ]


def add(record: Record, path: Path) -> None:
    """Adds a line to the history.

    Args:
        record: a run's record.
        path: the history, a file of CSV.
    """
    with open(path, "a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(record)


def begin_history(path: Path) -> None:
    """Makes the history, if it is new. Raises SystemExit or OSError, before hours of training,
    where it cannot grow.
    """
    if not path.absolute().parent.is_dir():
        raise SystemExit(f"error: --out {path}: there is no such folder")
    heads = ",".join(Record._fields)  # of the history
    with open(path, "a+") as file:
        if file.tell() == 0:
            file.write(f"{heads}\n")
        file.seek(0)
        if file.readline().strip() != heads:
            raise SystemExit(
                f"error: --out {path} is no history, whose first line is {heads}: name another file"
            )


def table(records: Sequence[Record]) -> str:
    """Mean and standard deviation over the seeds of each rung."""
    lines = [
        "| `jaxlm train --preset` | valid at or below | seconds | with epoch "
        "| of TensorFlow's time | valid | test | "
        "test, neural cache | seconds in all |",
        "|" + "---|" * 9,
    ]
    for preset in dict.fromkeys(record.preset for record in records):
        some = [record for record in records if record.preset == preset]
        words = RUNGS[preset].measure == "perplexity"

        def over(name: str, some: list[Record] = some, words: bool = words) -> str:
            """Of the seeds that have it."""
            values = [value for one in some if (value := getattr(one, name)) is not None]
            missed = f", {len(some) - len(values)} missed" * (
                name == "seconds" and len(values) < len(some)
            )
            shown = "{:,.2f}" if words or name.startswith("seconds") else "{:,.3f}"  # (bits)
            return spread(*mean_and_deviation(values), shown.format) + missed

        times = [(one.tensorflow_seconds, one.seconds) for one in some if words]
        shares = [unit / seconds for unit, seconds in times if unit and seconds]
        share = mean_and_deviation(shares)[0]
        epochs = ", ".join("never" if one.epoch is None else str(one.epoch) for one in some)
        cells = [
            f"`{preset}`",
            f"{some[0].target:g}",
            over("seconds"),
            epochs,
            f"1/{share:.1f}" if shares else "",
        ]
        lines.append(f"| {' | '.join([*cells, *map(over, MEASURED)])} |")
    unit, _ = mean_and_deviation(
        [one.tensorflow_seconds for one in records if one.tensorflow_seconds]
    )
    lines += [
        "",
        f"TensorFlow 1's graph mode takes {unit:,.0f} s for the {TENSORFLOW_STEPS:,} steps of "
        "`small` to a test "
        f"perplexity of {TENSORFLOW_TEST}."
        if unit == unit
        else "TensorFlow is not installed: its time is not measured.",
    ]
    return "\n".join(lines)


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
        wrong = verify(args.verify, RUNGS)
        for line in wrong or [f"{args.verify} holds"]:
            say_line(line)
        if wrong:
            raise SystemExit(1)
        return
    if args.show:
        for preset in args.presets:
            print(shlex.join(["jaxlm", *command(preset, 0)]))
        return
    begin_history(args.out)
    tensorflow = None
    records = []
    if importlib.util.find_spec("tensorflow"):
        tensorflow = Worker(Contender("tensorflow", "tensorflow"))
        tensorflow.turn(4, counted=False)
    tensorflow_seconds(tensorflow)
    for preset in dict.fromkeys(args.presets):
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
