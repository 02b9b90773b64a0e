"""The speedrun: how soon is Penn Treebank at a given validation perplexity, from the command's start, on two cores?

    python experiments/speedrun.py                             every target, three seeds: a table and speedrun.json
    python experiments/speedrun.py --targets 123 --seeds 1     the shortest one
    python experiments/speedrun.py --show                      the commands, without running them
    python experiments/speedrun.py --cache 4000                the test perplexity with a neural cache as well

A record is the command `jaxlm train` with the flags below, begun with the text in the cache and with no compiled
program: the clock runs from the command's start to the first validation at or below the target. The test split is
read once, at the run's end. Times are medians over the seeds; all runs that missed the target are shown as missed. The
two lowest targets take one and two hours a seed.
The unit is what TensorFlow 1 takes for the preset `small`: its step, measured between the runs, times its 11,610 steps
(`pip install tensorflow` for it). How the recipes were found, and what did not help, is in docs/lab/speedrun.md.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import Contender, Worker

from jaxlm.cli.ending import exit_code
from jaxlm.cli.parsing import whole

HERE = Path(__file__).resolve().parent
TENSORFLOW_STEPS, TENSORFLOW_TEST = 11_610, 118.4  # of `small`: its 15 epochs, and what they reach on the test split


def kept(output: float, embedding: float, words: float, weights: float) -> dict[str, float]:
    """The fields of dropout."""
    return {"keep_output": output, "keep_embedding": embedding, "keep_words": words, "keep_recurrent_weights": weights}


def ramp(start: float, ramp: float, sampled: float) -> dict[str, float]:
    """When dropout begins to grow, for how long, and the share of the run that samples words."""
    return {"dropout_start": start, "dropout_ramp": ramp, "sampled_share": sampled}


# For each target the fields that differ from the preset tied-fast. The recipe for 86 is the best within TensorFlow's
# time, the recipe for 78 the best within three hours.
WIDE = {
    "model": "mogrifier",
    "embedding_size": 384,
    "hidden_sizes": 384,
    "learning_rate": 0.03,
    "adam_learning_rate": 0.012,
    "locked_dropout": True,
    "adam_weight_decay": 0.03,
    "newton_schulz_steps": 3,
    "activation_penalty": 2,
    "temporal_penalty": 1,
    "sampled_words": 2048,
}
GROWING = {
    **WIDE,
    "rounds": 2,
    "input_gate": "coupled",
    "newton_schulz_rule": "polar-express",
    "weight_decay": 0.03,
    "batch_size": 100,
    "schedule": "linear",
    "warmup": 0,
    "final": 0,
}
RECIPES: dict[float, dict[str, Any]] = {
    123.0: {"embedding_size": 128, "hidden_sizes": 128, "sampled_words": 2048, "sampled_share": 0.8},
    110.0: {},
    100.0: {**GROWING, **kept(0.7, 0.8, 0.95, 0.8), **ramp(0.2, 0.7, 0.9), "epochs": 3},
    90.0: {**GROWING, **kept(0.55, 0.75, 0.92, 0.65), **ramp(0.3, 0.6, 0.95), "batch_size": 80, "epochs": 7},
    86.0: {**GROWING, **kept(0.45, 0.65, 0.88, 0.55), **ramp(0.3, 0.5, 0.98), "epochs": 22},
    82.0: {**GROWING, **kept(0.44, 0.64, 0.88, 0.54), **ramp(0.3, 0.25, 0.98), "epochs": 48},
    78.0: {
        **WIDE,
        **kept(0.4, 0.6, 0.88, 0.5),
        "rounds": 4,
        "weight_decay": 0.05,
        "sampled_share": 0.97,
        "batch_size": 80,
        "epochs": 84,
    },
}


def flags(target: float) -> list[str]:
    """A recipe as flags of `jaxlm train`, each of them once."""
    found = []
    for name, value in RECIPES[target].items():
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


@dataclass(frozen=True)
class Record:
    """One run."""

    target: float
    seed: int
    seconds: float | None  # to the first validation at or below the target; None: never
    epoch: int | None  # that ended with it
    valid: float  # the run's last
    test: float
    whole: float  # seconds of the whole command, its test included
    cached: float | None = None  # the test perplexity with a neural cache, whose numbers valid chose
    cached_seconds: float = 0.0  # of that evaluation's command


def command(target: float, seed: int) -> list[str]:
    """The arguments of `jaxlm` that train for a target."""
    start = ["train", "--preset", "tied-fast", "--compute-dtype", "auto", "--corpus", "ptb", "--seed", str(seed)]
    return [*start, *flags(target)]


def run(target: float, seed: int, cache: int) -> Record:
    """Trains in a process of its own, and watches the file of metrics that it writes; then evaluates with a cache."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxlm", *command(target, seed), "--run-dir", str(place)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        reached, epoch = None, None
        try:
            while process.poll() is None:
                time.sleep(0.05)
                epochs = _rows(place / "metrics.jsonl", "epoch") if reached is None else []
                if found := [row["epoch"] for row in epochs if row["valid_perplexity"] <= target]:
                    reached, epoch = time.perf_counter() - began, found[0]
        finally:
            process.kill()
            _, complaint = process.communicate()
        if process.returncode:
            raise SystemExit(f"error: {shlex.join(command(target, seed))}: {complaint.strip()}")
        whole = time.perf_counter() - began
        last, test = (_rows(place / "metrics.jsonl", kind)[0 if kind == "test" else -1] for kind in ("epoch", "test"))
        if reached is None and last["valid_perplexity"] <= target:  # reached within the last look
            reached, epoch = whole, last["epoch"]
        cached = evaluated(place, cache, environment) if cache else (None, 0.0)
        return Record(target, seed, reached, epoch, last["valid_perplexity"], test["test_perplexity"], whole, *cached)


def evaluated(place: Path, cache: int, environment: dict[str, str]) -> tuple[float, float]:
    """The test perplexity with a neural cache of so many words, tuned on valid, and the seconds of the command."""
    words = ["evaluate", str(place), "--protocol", "cache", "--cache-window", str(cache), "--tune"]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "jaxlm", *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {shlex.join(words)}: {done.stderr.strip()}")
    (said,) = re.findall(r"test: perplexity ([\d.,]+)", done.stdout)
    return float(said.replace(",", "")), time.perf_counter() - began


def _rows(path: Path, kind: str) -> list[dict]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [row for line in lines if line.endswith("\n") and f'"kind":"{kind}"' in line and (row := json.loads(line))]


class Unit:
    """TensorFlow 1's whole training of `small`, from its step, which is measured between the runs."""

    def __init__(self):
        self._worker = None
        if importlib.util.find_spec("tensorflow"):
            self._worker = Worker(Contender("tensorflow", "tensorflow"))
            self._worker.turn(4, counted=False)

    def measure(self) -> None:
        if self._worker:
            for _ in range(3):
                self._worker.turn(16)

    @property
    def seconds(self) -> float | None:
        return TENSORFLOW_STEPS * median(self._worker.seconds) if self._worker else None


def unused(path: Path) -> Path:
    """The path, with a number where it is taken: it holds an earlier start's hours."""
    found, number = path, 2
    while found.exists():
        found, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return found


def table(records: Sequence[Record], unit: float | None) -> str:
    """Medians over the seeds, and each run's own numbers."""
    cached = any(record.cached is not None for record in records)
    heads = [
        "valid at or below",
        "`tied-fast` with",
        "seconds, median (each)",
        "with epoch",
        "TensorFlow's time",
        "valid",
        "test",
        *["test, neural cache", "seconds in all"] * cached,
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for target in dict.fromkeys(record.target for record in records):
        some = [record for record in records if record.target == target]
        times = [record.seconds for record in some if record.seconds is not None]
        each = ", ".join("missed" if one.seconds is None else f"{one.seconds:.0f}" for one in some)
        epochs = ", ".join("never" if one.epoch is None else str(one.epoch) for one in some)
        middle = median(times) if len(times) == len(some) else None
        share = "" if middle is None or unit is None else _share(middle, unit)
        columns = [[one.valid for one in some], [one.test for one in some]]
        if cached:
            columns += [[one.cached for one in some], [one.whole + one.cached_seconds for one in some]]
        values = [f"{median(column):.1f} ({', '.join(f'{value:.1f}' for value in column)})" for column in columns]
        lines.append(
            f"| {target:g} | `{shlex.join(flags(target))}` | "
            f"{'missed' if middle is None else f'{middle:.0f}'} ({each}) | {epochs} | {share} | "
            f"{' | '.join(values)} |"
        )
    lines.append("")
    lines.append(
        "TensorFlow is not installed: its time is not measured."
        if unit is None
        else f"TensorFlow 1's graph mode: {1e3 * unit / TENSORFLOW_STEPS:.0f} ms a step of `small`, "
        f"{unit:,.0f} s for its {TENSORFLOW_STEPS:,} steps to a test perplexity of {TENSORFLOW_TEST}."
    )
    return "\n".join(lines)


def _share(seconds: float, unit: float) -> str:
    return f"1/{unit / seconds:.1f}" if seconds < unit else f"{seconds / unit:.1f} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=float, nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=whole(1), default=3, help="how many, from 0 (3)")
    parser.add_argument("--show", action="store_true", help="print the commands only")
    parser.add_argument("--cache", type=whole(), default=0, metavar="WORDS", help="of a neural cache (0: none)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("speedrun.json"),
        help="every run's numbers (speedrun.json); a number is added to a name that is taken",
    )
    args = parser.parse_args()
    if args.show:
        for target in args.targets:
            print(shlex.join(["jaxlm", *command(target, 0)]))
        return
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: there is no such folder")
    unit, records, out = Unit(), [], unused(args.out)
    unit.measure()
    for target in args.targets:
        for seed in range(args.seeds):
            records.append(run(target, seed, args.cache))
            unit.measure()
            print(records[-1], flush=True)
            out.write_text(
                json.dumps(
                    {"tensorflow_seconds": unit.seconds, "records": [asdict(record) for record in records]}, indent=1
                )
                + "\n"
            )
    print(table(records, unit.seconds))
    print(out)


if __name__ == "__main__":
    sys.exit(exit_code(main))
