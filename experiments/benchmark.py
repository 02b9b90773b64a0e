"""The speed of a training step: jaxlm beside plain Flax, PyTorch and TensorFlow 1's graph mode, and the floor.

    pip install -e '.[bench]'                  the peers; those that are not installed are left out
    python experiments/benchmark.py            the presets small and zaremba-small: a table and benchmark.json
    python experiments/benchmark.py --growth   how time and memory grow with V, T, B and H: growth.png

Every contender is a process of its own, so that its peak memory is its own; they take turns within one run, and the
medians of their turns are compared. The floor is the arithmetic of the step's matrix products, done as one large
float32 product, in the same run. Needs a quiet machine: the spread of the turns is shown.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from peers import flops

from jaxlm.config.config import Config
from jaxlm.config.presets import preset

HERE = Path(__file__).parent
NEEDS = {"jaxlm": "jax", "floor": "jax", "flax": "flax", "linen": "flax",
         "pytorch": "torch", "tensorflow": "tensorflow"}
GROWTH = {"vocab_size": (10_000, 50_000, 200_000, 400_000), "bptt_length": (20, 80, 320),
          "batch_size": (20, 80, 320), "hidden_sizes": (100, 200, 400, 800)}


class Worker:
    """A contender in its own process."""

    def __init__(self, name: str, config: Config):
        self.seconds: list[float] = []
        self.peak_mib = 0.0
        self._name = name
        self._process = subprocess.Popen([sys.executable, HERE / "peers.py", name, config.to_json()], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def turn(self, windows: int, counted: bool = True) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"windows": windows}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self._name} stopped: run experiments/peers.py by hand to see why")
        answer = json.loads(line)
        self.peak_mib = answer["peak_mib"]
        if counted:
            self.seconds.append(answer["seconds"] / windows)

    def close(self) -> None:
        self._process.communicate()


def compare(config: Config, names: Sequence[str], turns: int, windows: int) -> dict[str, dict[str, float]]:
    """Every contender takes a turn of `windows`, again and again; the first, which compiles, is not counted."""
    workers = {name: Worker(name, config) for name in names}
    for worker in workers.values():
        worker.turn(windows, counted=False)
    for _ in range(turns):
        for worker in workers.values():
            worker.turn(windows)
    for worker in workers.values():
        worker.close()
    words = config.train.batch_size * config.train.bptt_length
    ours, least = median(workers["jaxlm"].seconds), median(workers["floor"].seconds)
    return {name: {"ms": 1e3 * median(w.seconds), "ms_min": 1e3 * min(w.seconds), "ms_max": 1e3 * max(w.seconds),
                   "words_per_second": words / median(w.seconds), "times_jaxlm": median(w.seconds) / ours,
                   "times_floor": median(w.seconds) / least, "peak_mib": w.peak_mib,
                   "gflops_per_second": flops(config) / median(w.seconds) / 1e9} for name, w in workers.items()}


def table(name: str, results: dict[str, dict[str, float]]) -> str:
    lines = [f"| {name} | ms/step (min-max) | words/s | times jaxlm | times the floor | peak MiB |",
             "|---|---|---|---|---|---|"]
    for contender, row in results.items():
        lines.append(f"| {contender} | {row['ms']:.1f} ({row['ms_min']:.1f}-{row['ms_max']:.1f}) | "
                     f"{row['words_per_second']:,.0f} | {row['times_jaxlm']:.2f} | {row['times_floor']:.2f} | "
                     f"{row['peak_mib']:.0f} |")
    return "\n".join(lines)


def growth(turns: int) -> dict[str, list[dict[str, float]]]:
    """zaremba-small's step with one size changed at a time, each in a fresh process."""
    results: dict[str, list[dict[str, float]]] = {}
    for field, values in GROWTH.items():
        for value in values:
            changed = {"embedding_size": value, "hidden_sizes": (value, value)} if field == "hidden_sizes" else {
                field: value}
            worker = Worker("jaxlm", preset("zaremba-small").replace(windows_per_call=2, **changed))
            worker.turn(2, counted=False)
            for _ in range(turns):
                worker.turn(2)
            worker.close()
            results.setdefault(field, []).append({"value": value, "ms": 1e3 * median(worker.seconds),
                                               "peak_mib": worker.peak_mib})
            print(field, results[field][-1], flush=True)
    return results


def draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for column, (field, rows) in enumerate(results.items()):
        for line, (key, label) in enumerate((("ms", "ms/step"), ("peak_mib", "peak MiB"))):
            axis = figure.add_subplot(2, 4, 1 + column + 4 * line)
            values = [row["value"] for row in rows]
            axis.plot(values, [row[key] for row in rows], "o-")
            axis.set(title=field if line == 0 else None, ylabel=label if column == 0 else None, ylim=(0, None))
            axis.set_xticks(values, [f"{value:,}" for value in values], rotation=60, fontsize="small")
            axis.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["small", "zaremba-small"])
    parser.add_argument("--turns", type=int, default=7, help="counted turns of each contender (7)")
    parser.add_argument("--windows", type=int, default=16, help="training steps in a turn (16)")
    parser.add_argument("--growth", action="store_true", help="measure growth instead of peers")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the results (here)")
    args = parser.parse_args()
    if args.growth:
        results = growth(min(args.turns, 3))
        draw(results, args.out / "growth.png")
        (args.out / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
        return
    names = [name for name, module in NEEDS.items() if importlib.util.find_spec(module)]
    results = {}
    for name in args.presets:
        results[name] = compare(preset(name), names, args.turns, args.windows)
        print(table(name, results[name]), flush=True)
    (args.out / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
