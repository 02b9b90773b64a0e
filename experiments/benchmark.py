"""The speed of jaxlm: a training step beside other systems, by kind and optimiser, evaluation,
start-up, two commits.

    # The peers; a peer that is not installed is left out
    pip install -e '.[bench]'
    # A step of each preset in each dtype, beside the peers and the floor
    python experiments/benchmark.py
    python experiments/benchmark.py kinds optimizers evaluation sweeps char start-up growth
    # A step of the presets at two commits of this repository
    python experiments/benchmark.py --commits HEAD~1 HEAD
    # The results as JSON, in place of tables
    python experiments/benchmark.py --json

Every contender is a process of its own, with its own peak memory. Contenders take turns within one
run, and the medians of their turns are compared. The floor is the arithmetic of the step's matrix
products as one large product of the dtype, in the same run, beside the products at the step's own
shapes. Needs a quiet machine: the spread of the turns is shown.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from peers import EVALUATED, SWEPT, flops, words

from jaxlm import preset
from jaxlm.base.terminal import printable
from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code
from jaxlm.config.config import PRESETS, Config
from jaxlm.report.figure import figure, save

HERE = Path(__file__).resolve().parent
PEERS = {"pytorch": "torch", "tensorflow": "tensorflow"}  # and the module that each needs
DTYPES = ("float32", "bfloat16")
SECTIONS = ("steps", "kinds", "optimizers", "evaluation", "sweeps", "char")
# Most windows in a turn, of presets and sections whose steps are long.
SHORT = {"zaremba-medium": 4, "zaremba-large": 2, "evaluation": 1, "sweeps": 4}
FORMS = {"words_per_second": ",.0f", "times": ".2f", "gflops_per_second": ".0f", "peak_mib": ".0f"}
GROWTH = {
    "vocab_size": (10_000, 50_000, 200_000, 400_000),
    "bptt_length": (20, 80, 320),
    "batch_size": (20, 80, 320),
    "hidden_sizes": (100, 200, 400, 800),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """Who runs what: a maker of peers.py, and a preset with some fields changed."""

    label: str
    maker: str
    preset: str = "small"
    changes: Mapping[str, Any] = field(default_factory=dict)
    source: Path = HERE.parent  # the checkout whose jaxlm it imports

    @property
    def config(self) -> Config:
        return preset(self.preset).replace(**self.changes)


class Worker:
    """A contender in its own process."""

    def __init__(self, contender: Contender):
        self.seconds: list[float] = []
        self.peak_mib = 0.0
        self._label = contender.label
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(
            [
                sys.executable,
                HERE / "peers.py",
                contender.maker,
                contender.preset,
                json.dumps(contender.changes),
            ],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": str(contender.source)},
        )

    def turn(self, windows: int, counted: bool = True) -> None:
        """Runs a turn in the process. Raises SystemExit where the process has ended.

        Args:
            windows: windows of the turn.
            counted: whether its seconds are kept.
        """
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"windows": windows}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["without a word"])[-1]
            raise SystemExit(
                f"error: {self._label} stopped: {printable(last.removeprefix('error: '))}"
            )
        answer = json.loads(line)
        self.peak_mib = answer["peak_mib"]
        if counted:
            self.seconds.append(answer["seconds"] / windows)

    def close(self) -> None:
        self._process.communicate()
        self._said.close()


def compare(contenders: Sequence[Contender], turns: int, windows: int) -> list[Row]:
    """Every contender takes a turn of `windows`, again and again; the first, which compiles, is not
    counted.

    Args:
        contenders: they take turns in this order.
        turns: counted turns of each.
        windows: windows of a turn.

    Returns:
        A row for each: medians in ms, and `times`, how much longer than the first contender it
        took.
    """
    workers = [Worker(contender) for contender in contenders]
    for worker in workers:
        worker.turn(windows, counted=False)
    for _ in range(turns):
        for worker in workers:
            worker.turn(windows)
    for worker in workers:
        worker.close()
    least = median(workers[0].seconds)
    return [
        {
            "contender": contender.label,
            "preset": contender.preset,
            **times(worker.seconds),
            "times": median(worker.seconds) / least,
            "peak_mib": worker.peak_mib,
            "words_per_second": words(contender.config, contender.maker) / median(worker.seconds),
            "gflops_per_second": flops(contender.config, contender.maker)
            / median(worker.seconds)
            / 1e9,
        }
        for contender, worker in zip(contenders, workers, strict=True)
    ]


def times(seconds: Sequence[float]) -> Row:
    """Median, least and most in ms."""
    return {"ms": 1e3 * median(seconds), "ms_min": 1e3 * min(seconds), "ms_max": 1e3 * max(seconds)}


def in_dtypes(label: str, maker: str, preset: str, **changes: Any) -> list[Contender]:
    """A contender in each dtype.

    Args:
        label: a contender's name, before its dtype.
        maker: the maker in peers.py.
        preset: the preset that it trains.
        changes: the config's other fields.
    """
    return [
        Contender(f"{label} {dtype}", maker, preset, {**changes, "compute_dtype": dtype})
        for dtype in DTYPES
    ]


def steps(preset: str) -> list[Contender]:
    """jaxlm, the step's products alone and the floor in each dtype, Flax, and the peers that are
    installed.
    """
    ours = [
        one for maker in ("jaxlm", "products", "floor") for one in in_dtypes(maker, maker, preset)
    ]
    installed = [peer for peer, module in PEERS.items() if importlib.util.find_spec(module)]
    return ours + [
        Contender(peer, peer, preset) for peer in ("flax", "linen", "nnx", "jaxlm-nnx", *installed)
    ]


def contenders(what: str, presets: Sequence[str]) -> list[list[Contender]]:
    """Of a section the groups whose members take turns.

    Args:
        what: a section's name, of `SECTIONS`.
        presets: names of presets.
    """
    tied = {"tied": True, "embedding_size": 256, "hidden_sizes": (256, 256), "clip_norm": 1.0}
    tiny = {"vocab_size": 2000, "embedding_size": 32, "hidden_sizes": (32,)}
    shapes = {
        "50 characters": {"vocab_size": 50},
        "256 bytes, T 400": {"vocab_size": 256, "bptt_length": 400},
    }
    kinds = ("lstm", "gru", "mingru")
    optimizers = ("sgd", "adamw", "muon")
    return {
        "steps": [steps(name) for name in presets],
        "kinds": [
            [one for kind in kinds for one in in_dtypes(kind, "jaxlm", name, model=kind)]
            for name in presets
        ],
        "optimizers": [
            [
                one
                for kind in optimizers
                for one in in_dtypes(f"{kind}, 2 x 256", "jaxlm", "small", optimizer=kind, **tied)
            ]
        ],
        "evaluation": [
            [Contender(split, split, name) for split in EVALUATED]
            for name in presets
            if name not in SHORT
        ],
        "sweeps": [
            [Contender(f"8 {maker}{label}", maker, "small", changes) for maker in SWEPT]
            for label, changes in {"": {}, ", 32 units, 2,000 words": tiny}.items()
        ],
        "char": [
            [Contender(label, "jaxlm", "char-small", changes) for label, changes in shapes.items()]
        ],
    }[what]


def section(what: str, presets: Sequence[str], turns: int, windows: int) -> list[Row]:
    """The rows of a section; `ms` is of a window (in sweeps, one of each member), in evaluation of
    a whole pass.

    Args:
        what: a section's name, of `SECTIONS`.
        presets: names of presets.
        turns: counted turns of each contender.
        windows: windows of a turn, at most.
    """
    return [
        row
        for group in contenders(what, presets)
        for row in compare(
            group,
            turns,
            min(windows, SHORT.get(what, windows), SHORT.get(group[0].preset, windows)),
        )
    ]


def commits(names: Sequence[str], presets: Sequence[str], turns: int, windows: int) -> list[Row]:
    """The step at two commits of the repository that this file lies in.

    Args:
        names: the two commits.
        presets: names of presets.
        turns: counted turns of each contender.
        windows: windows of a turn.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / f"{number}" for number, name in enumerate(names)}
        for name, place in places.items():
            place.mkdir()
            archive = subprocess.run(
                ["git", "-C", HERE.parent, "archive", name, "jaxlm"], capture_output=True
            )
            if archive.returncode:
                raise SystemExit(f"error: git knows no commit {name} here")
            subprocess.run(["tar", "x", "-C", place], input=archive.stdout, check=True)
        for preset, dtype in product(presets, DTYPES):
            changes = {"compute_dtype": dtype}
            most = SHORT.get(preset, windows)
            group = [
                Contender(f"{name} {dtype}", "jaxlm", preset, changes, place)
                for name, place in places.items()
            ]
            rows += compare(group, turns, min(windows, most))
    return rows


def start_up(turns: int) -> list[Row]:
    """Seconds from a command to its result, with an empty cache of compiled programs and with a
    full one.
    """
    commands = {
        "--help": ["--help"],
        "train, first 16 windows": ["train"],
        "train bfloat16, first 16 windows": ["train", "--compute-dtype", "bfloat16"],
    }
    rows = []
    for label, arguments in commands.items():
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(turns):
            with tempfile.TemporaryDirectory() as cache:
                for state in seconds:
                    seconds[state].append(_seconds_to_windows(arguments, Path(cache)))
        rows += [
            {"contender": f"{label}, {state}", "preset": "small", **times(took)}
            for state, took in seconds.items()
        ]
    return rows


def _seconds_to_windows(arguments: Sequence[str], cache: Path, windows: int = 16) -> float:
    """Seconds until a command has ended, or until `train` has logged so many windows."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run/metrics.jsonl"
        given = (
            [*arguments, "--run-dir", str(metrics.parent)]
            if arguments[0] == "train"
            else [*arguments]
        )
        caches = {
            "JAXLM_CACHE": str(cache / "jaxlm"),
            "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        }
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), **caches}
        seconds = 0.0
        with contextlib.closing(watched(given, environment, 0.005)) as clock:
            for seconds in clock:
                if metrics.exists() and metrics.read_bytes().count(b"\n") >= windows:
                    return seconds
        return seconds


def watched(
    arguments: Sequence[str], environment: Mapping[str, str], pause: float
) -> Generator[float, None, None]:
    """Runs `jaxlm`, and yields the seconds since its start after every pause, and once more when it
    has ended.

    A process that runs when this is closed is ended. Raises SystemExit where the command fails.

    Args:
        arguments: those of `jaxlm`.
        environment: the process's whole environment.
        pause: seconds.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlm", *arguments],
        env=environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        while process.poll() is None:
            yield time.perf_counter() - began
            time.sleep(pause)
    finally:
        process.kill()
        _, complaint = process.communicate()
    if process.returncode:
        raise SystemExit(f"error: jaxlm {shlex.join(arguments)}: {complaint.strip()}")
    yield time.perf_counter() - began


def growth(turns: int) -> list[Row]:
    """zaremba-small's step with one size changed at a time, each in a fresh process."""
    rows: list[Row] = []
    for name, value in ((name, value) for name, values in GROWTH.items() for value in values):
        both = name == "hidden_sizes"
        changed = (
            {"embedding_size": value, "hidden_sizes": (value, value)} if both else {name: value}
        )
        contender = Contender(
            f"{name} {value}", "jaxlm", "zaremba-small", {"windows_per_call": 2, **changed}
        )
        rows += [
            {**row, "field": name, "value": value} for row in compare([contender], min(turns, 3), 2)
        ]
    return rows


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws what `growth` has measured: milliseconds and memory over each size.

    Args:
        rows: those of `growth`.
        path: the picture's file.
    """
    with figure(12, 5) as drawn:
        for column, name in enumerate(GROWTH):
            for line, (key, label) in enumerate((("ms", "ms/step"), ("peak_mib", "peak MiB"))):
                axis = drawn.add_subplot(2, 4, 1 + column + 4 * line)
                values, measured = zip(
                    *((row["value"], row[key]) for row in rows if row["field"] == name), strict=True
                )
                axis.plot(values, measured, "o-")
                axis.set(
                    title=name if line == 0 else None,
                    ylabel=label if column == 0 else None,
                    ylim=(0, None),
                )
                axis.set_xticks(
                    values, [f"{value:,}" for value in values], rotation=60, fontsize="small"
                )
        save(drawn, path)


def table(what: str, rows: Sequence[Row]) -> str:
    """A section in Markdown.

    Args:
        what: the section's name.
        rows: its rows.
    """
    lines = [
        f"| {what} | preset | ms (min-max) | words/s | times the first | GFLOP/s | peak MiB |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        cells = [
            row["contender"],
            row["preset"],
            f"{row['ms']:.1f} ({row['ms_min']:.1f}-{row['ms_max']:.1f})",
        ]
        cells += [format(row[key], form) if key in row else "" for key, form in FORMS.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="*",
        help=f"{', '.join(SECTIONS)}, start-up or growth, drawn to growth.png (default: steps)",
    )
    parser.add_argument("--commits", nargs=2, metavar=("OLD", "NEW"), help="compare two commits")
    usual = ["small", "zaremba-small", "zaremba-medium"]
    parser.add_argument(
        "--presets", nargs="+", choices=list(PRESETS), metavar="PRESET", default=usual
    )
    parser.add_argument(
        "--turns", type=whole(1), default=7, help="counted turns of each contender (7)"
    )
    parser.add_argument(
        "--windows", type=whole(1), default=16, help="training steps in a turn (16)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    args = parser.parse_args()
    unknown = set(args.what) - {*SECTIONS, "start-up", "growth"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if args.commits and (other := [one for one in args.what if one != "steps"]):
        parser.error(f"--commits compares steps: leave {other[0]} out")
    if "evaluation" in args.what and not {*args.presets} - {*SHORT}:
        parser.error(f"evaluation leaves {', '.join(args.presets)} out: name another of --presets")
    results: dict[str, list[Row]] = {}
    for what in ["commits"] if args.commits else args.what or ["steps"]:
        if what == "commits":
            rows = commits(args.commits, args.presets, args.turns, args.windows)
        elif what == "start-up":
            rows = start_up(min(args.turns, 5))
        elif what == "growth":
            rows = growth(args.turns)
        else:
            rows = section(what, args.presets, args.turns, args.windows)
        results[what] = rows
        if not args.json:
            print(table(what, rows), flush=True)
    if args.json:
        print(json.dumps(results, indent=1))
    if "growth" in results:
        draw(results["growth"], Path("growth.png"))


if __name__ == "__main__":
    sys.exit(exit_code(main))
