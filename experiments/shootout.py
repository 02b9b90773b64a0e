"""Every recurrent cell under one budget: equal parameters, equally many trials of tuning, equal
time of training.

    # Penn Treebank, 5 minutes a run, three seeds
    python experiments/shootout.py
    python experiments/shootout.py --texts ptb ptb-char novel.txt --minutes 5 30
    # Another preset for one text
    python experiments/shootout.py --texts ptb ptb-char:char-small
    python experiments/shootout.py --cells lstm hawk --trials 4 --minutes 1
    # Cells in four residual blocks, as docs/blocks.md's presets have them, beside bare ones
    python experiments/shootout.py --texts shakespeare:shakespeare --cells lstm lstm+block
    # Another space; a field of one value is every run's
    python experiments/shootout.py --set learning_rate=log:0.01:0.06 --set batch_size=12

The preset (tied-fast) gives everything but the cell. Embedding and layers of a cell are as wide as
makes its parameters those of the preset (or --parameters), within 2%. What else a block is made of
grows with that width, and its feed-forward layer takes up the rest. Compilation and an epoch,
validation included, are timed by a few windows, and it trains for as many epochs as come nearest to
the minutes, so that its command repeats each run; the table has the seconds that training took,
compilation among them. Rates and dropout (or --set) are the best of --trials random points of a
space that is the same for all cells, each trained for --share of the epochs; validation chooses.
Then each seed is trained with the best point.

All is kept in --run-dir (runs/shootout). Started again, the shoot-out goes on where it was, also
with more texts, cells, minutes or seeds. Its results are shootout.csv, a line for each run of the
directory with the command that repeats it, shootout_tuning.csv, a line for each trial, and
shootout.png. Nothing else should run beside it.
"""

import argparse
import csv
import io
import json
import math
import os
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote, unquote

import jax
import jax.numpy as jnp
from ablation import trained
from speedrun import commit, machine

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import output
from jaxlm.base.units import mean_and_deviation, spread
from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code
from jaxlm.config.config import PRESETS
from jaxlm.data.windows import batch
from jaxlm.models.recurrent import MODELS
from jaxlm.report import sweep_files
from jaxlm.report.curve import by_kind
from jaxlm.report.figure import PALETTE, figure, save
from jaxlm.runs.lock import lock
from jaxlm.runs.metrics import read_metrics, read_timing
from jaxlm.runs.run import window_plan
from jaxlm.runs.state_arrays import new_state
from jaxlm.runs.training_corpus import with_corpus
from jaxlm.scoring.stream import stream_nats
from jaxlm.sweeps.space import Space, first_values, read_space, with_settings
from jaxlm.sweeps.storage import import_optuna
from jaxlm.sweeps.study import JOURNAL
from jaxlm.training.step import traced, train_windows

NEAR = 0.02  # how far a cell's parameters may be from those asked for, as a share
KINDS = [name for name, kind in MODELS.items() if kind.__module__.startswith("jaxlm.models.")]
BLOCK = "+block"
CELLS = [name + shape for shape in ("", BLOCK) for name in KINDS]
# The presets of papers' blocks by kind; any other kind stands in the Transformer's.
BLOCK_PRESETS = {
    "mlstm": "xlstm",
    **{name: name for name in ("hawk", "hgrn2", "gated-deltanet", "mingru")},
}
BLOCK_SIZES = ("inner_size", "key_units", "feed_forward_size")  # grow with a block's width
BLOCK_FIELDS = (
    *("hidden_sizes", "torch_init", "block", "activation"),
    *("heads", "positive", "attention_window"),
    *BLOCK_SIZES,
)
Row = dict[str, Any]  # of shootout.csv


@dataclass(frozen=True)
class Cell:
    """A cell on a text in a time: what it is called, where it is kept, and its config before
    tuning.
    """

    text: str  # with its preset, if it has its own
    minutes: float
    name: str
    folder: Path
    config: jaxlm.Config


def above_zero(text: str) -> float:
    """The type of an argument that takes a finite number above zero."""
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")


def text_and_preset(given: str, preset: str) -> tuple[str, str]:
    """The parts of TEXT[:PRESET]; a path may have colons of its own.

    Args:
        given: TEXT[:PRESET].
        preset: the one where none is given.
    """
    place, _, own = given.rpartition(":")
    is_path = own not in PRESETS and (Path(given).exists() or set(own) & set("./"))
    if place and not is_path:
        return (place, own)
    return (given, preset)


def parameters_of(config: jaxlm.Config) -> int:
    """How many parameters a model has."""
    return _parameters_of(config.model)


@cache
def _parameters_of(model: Any) -> int:
    shapes = jax.eval_shape(lambda key: jaxlm.init_params(model, key), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def of_cell(config: jaxlm.Config, cell: str, width: int) -> jaxlm.Config:
    """The config with a cell of a width, bare or in its blocks.

    Args:
        config: the text's config.
        cell: a kind of model, and `+block` where it stands in blocks.
        width: of the embedding and of each layer.
    """
    kind = cell.removesuffix(BLOCK)
    settings: dict[str, Any] = {"model": kind}
    sizes = config.model.hidden_sizes
    if cell != kind:
        block = jaxlm.preset(BLOCK_PRESETS.get(kind, "transformer")).model
        sizes = block.hidden_sizes
        settings |= {
            name: getattr(block, name)
            for name in BLOCK_FIELDS
            if hasattr(block, name) and hasattr(MODELS[kind], name)
        }
        multiple = settings.get("heads", 1)
        for name in BLOCK_SIZES:
            if settings.get(name):
                units = settings[name] * width / block.embedding_size
                settings[name] = multiple * round(units / multiple)
    settings |= {"embedding_size": width, "hidden_sizes": (width,) * len(sizes)}
    return config.replace(**settings)


def sized(config: jaxlm.Config, cell: str, parameters: int) -> jaxlm.Config:
    """The config with a cell, whose one width brings its parameters nearest to a number; JaxlmError
    beyond 2%.

    Args:
        config: the text's config.
        cell: a kind of model, and `+block` where it stands in blocks.
        parameters: the number to come near to.
    """

    def distance(width: int) -> float:
        try:
            return abs(parameters_of(of_cell(config, cell, width)) / parameters - 1)
        except JaxlmError:  # such as a width that the cell's heads do not divide
            return float("inf")

    blocks = bisect_left(
        range(64, 8192, 64),
        parameters,
        key=lambda width: parameters_of(of_cell(config, cell, width)),
    )
    for step in (4, 1):  # odd widths multiply slowly
        width = min(range(max(step, 64 * blocks), 64 * blocks + 65, step), key=distance)
        found = of_cell(config, cell, width)
        if found.model.feed_forward_size:
            found = with_feed_forward(found, parameters)
        if abs(parameters_of(found) / parameters - 1) <= NEAR:
            return found
    raise JaxlmError(
        f"no width gives {cell} {parameters:,} parameters within {NEAR:.0%}: "
        f"the nearest, {width}, gives "
        f"{parameters_of(found):,}; give other --parameters"
    )


def with_feed_forward(config: jaxlm.Config, parameters: int) -> jaxlm.Config:
    """The config with as many units of each block's feed-forward layer as come nearest to a number
    of parameters.

    Args:
        config: of cells in blocks.
        parameters: the number.
    """
    units = config.model.feed_forward_size
    fewest = parameters_of(config.replace(feed_forward_size=1))
    each = (parameters_of(config) - fewest) / (units - 1)
    return config.replace(feed_forward_size=max(1, 1 + round((parameters - fewest) / each)))


def seconds_of(config: jaxlm.Config, corpus: jaxlm.Corpus) -> tuple[float, float]:
    """How long compilation, and an epoch with its validation, take on this machine: by the median
    of three calls.

    Args:
        config: the run's config.
        corpus: the text.
    """
    model = config.model
    counts = config.train
    plan = window_plan(config, len(corpus.train) // counts.batch_size)
    size = min(4, plan.windows_in(0))
    tokens = jnp.asarray(batch(corpus.train, counts.batch_size))
    given = tokens, plan.windows(0, size, size), jnp.int32(size)
    state = new_state(config)

    def trains() -> None:
        nonlocal state
        state, _ = train_windows(traced(config.recipe), state, *given, bptt_length=counts.longest)
        jax.block_until_ready(state)

    def timed(call: Callable[[], Any]) -> tuple[float, float]:
        times = [time.perf_counter()]
        for _ in range(4):
            call()
            times.append(time.perf_counter())
        first, *others = (after - before for before, after in pairwise(times))
        return max(0.0, first - median(others)), median(others)

    compiled, sampled = timed(trains)
    state = replace(
        state, step=jnp.int32(plan.total)
    )  # where the softmax of sampled words sums all
    _, exact = timed(trains)
    share = 1 if model.sampled_share is None else model.sampled_share
    seconds = (share * sampled + (1 - share) * exact) / size * plan.windows_in(0)
    more, validation = timed(
        lambda: stream_nats(model, state.evaluated, corpus.valid, counts.batch_size, counts.longest)
    )
    return compiled + more, seconds + validation


def planned(args: argparse.Namespace) -> list[Cell]:
    """Every cell with its epochs. Raises JaxlmError, before a file is made, where one cannot
    train.
    """
    import_optuna()  # raises JaxlmError where it is not installed
    os.environ.pop(
        "JAXLM_STORAGE", None
    )  # a database holds one sweep, and each cell's tuning is one
    settings = args.run_dir / "settings.json"
    shared = shared_settings(args)
    cells = []
    if settings.exists() and (kept := json.loads(settings.read_text())) != shared:
        raise JaxlmError(
            f"{args.run_dir} holds a shoot-out of {kept}, not of {shared}: name another --run-dir"
        )
    texts = [
        (text, *text_and_preset(text, args.preset)) for text in dict.fromkeys(args.texts)
    ]  # (each counts once)
    loaded = [with_corpus(jaxlm.preset(preset), place) for _, place, preset in texts]
    for (text, place, _), (base, corpus) in zip(texts, loaded, strict=True):
        if base.model.compute_dtype == "auto":
            base = base.replace(compute_dtype="float32")  # the same for every cell
        for name in dict.fromkeys(args.cells):
            config = sized(base, name, args.parameters or parameters_of(base))
            took = None
            config = with_only_values(config, read_space(space_of(args, config), config))
            for minutes in dict.fromkeys(args.minutes):
                named = (
                    text if text.strip(".") else str(Path(text).resolve())
                )  # (. and .. name no folder)
                folder = (
                    args.run_dir / quote(named, safe="") / f"{minutes:g}min" / name
                )  # (of its preset too)
                kept = folder / "epochs.json"
                if kept.exists():
                    epochs = json.loads(kept.read_text())
                else:
                    compiling, epoch = took = took or seconds_of(config, corpus)
                    if sum(took) > 60 * minutes:
                        raise JaxlmError(
                            f"{minutes:g} minutes end before the first epoch of {name} on {place}, "
                            "which takes "
                            f"{sum(took):.1f} s here: give more --minutes, or fewer --parameters"
                        )
                    epochs = round((60 * minutes - compiling) / epoch)
                cells.append(Cell(text, minutes, name, folder, config.replace(epochs=epochs)))
    return cells


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a directory have in common."""
    return {
        name: getattr(args, name) for name in ("preset", "parameters", "set", "trials", "share")
    }


def keep(path: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all.

    Args:
        path: the file.
        value: anything that JSON can hold.
    """
    with output(path) as file:
        file.write(json.dumps(value).encode())


def epochs_of_trial(cell: Cell, share: float) -> int:
    """The epochs of each trial of the search.

    Args:
        cell: the cell to tune.
        share: a trial's part of the run's epochs.
    """
    return max(1, round(share * cell.config.train.epochs))


def space_of(args: argparse.Namespace, config: jaxlm.Config) -> dict[str, str]:
    """What --set says; else a preset's rates from a quarter to four times, and dropout of embedding
    and layers.

    Args:
        args: the parsed arguments.
        config: the cell's config.
    """
    if args.set:
        space = with_settings({}, args.set)
        own = sorted(
            space.keys() & {"seed", "epochs", "model", "corpus", "hidden_sizes", "embedding_size"}
        )
        if own:
            raise JaxlmError(
                f"{own[0]} is the shoot-out's own, not to be tuned: leave it out of --set"
            )
        return space
    rates = {
        name: getattr(config.optimizer, name, None)
        for name in ("learning_rate", "adam_learning_rate")
    }
    space = {name: f"log:{rate / 4:g}:{rate * 4:g}" for name, rate in rates.items() if rate}
    return space | dict.fromkeys(("keep_output", "keep_embedding"), "uniform:0.4:1")


def with_only_values(config: jaxlm.Config, space: Space) -> jaxlm.Config:
    """The config with the values of fields that have but one.

    Args:
        config: the cell's config.
        space: what is to be tuned.
    """
    only = {
        name: values for name, values in space.items() if len(getattr(values, "choices", ())) == 1
    }
    return config.replace(**first_values(only))


def tuned(cell: Cell, space: dict[str, str], trials: int, share: float) -> dict[str, Any]:
    """The best point of a space, by a random sweep that is resumed or read where it is there
    already.

    Where no trial was trained to its end, the preset's own: no values.

    Args:
        cell: the cell to tune.
        space: {field: space}, as `jaxlm sweep --set` takes it.
        trials: points to try; 0: none, and no values.
        share: a trial's part of the run's epochs.
    """
    if not trials:
        return {}
    config = cell.config
    folder = cell.folder / "tuning"
    if (folder / sweep_files.RESULTS).exists():
        found, _ = sweep_files.read_sweep(folder)
    else:
        config = config.replace(epochs=epochs_of_trial(cell, share))
        resumes = (folder / JOURNAL).exists()
        found = jaxlm.sweep(
            config, space, strategy="random", trials=trials, run_dir=folder, resume=resumes
        )
    if found.stopped_by:
        sys.exit("stopped: start it again to resume")
    if found.best is None:
        print(
            f"{cell.name} on {cell.text}: no trial was trained to its end: "
            "the preset's own values count",
            flush=True,
        )
        return {}
    return found.best.values


def run(cell: Cell, point: dict[str, Any], seed: int) -> None:
    """Trains a seed, and keeps its row beside its run; what a run that diverges has not is nan.

    Args:
        cell: the cell to train.
        point: {field: value} of its best point.
        seed: of the run.
    """
    config = cell.config.replace(**point, seed=seed)
    folder = cell.folder / f"seed{seed}"
    row = folder.with_suffix(".json")
    if row.exists():
        return
    valid, test = trained(config, config.data.corpus, folder)
    timing, (_, _, tests) = [*read_timing(folder).values()], by_kind(read_metrics(folder))
    words = max(
        [row["seconds"] * row["words_per_second"] for row in timing], default=math.nan
    )  # of a whole epoch
    seconds = sum(
        words / row["words_per_second"] for row in timing
    )  # (a stop has divided an epoch's)
    found = {
        "text": cell.text,
        "minutes": cell.minutes,
        "cell": cell.name,
        "seed": seed,
        "parameters": parameters_of(config),
        "width": config.model.embedding_size,
        "epochs": config.train.epochs,
        "seconds": seconds,
        "words_per_second": words * len(timing) / seconds if timing else math.nan,
        "valid": valid,
        "test": test,
        # (The first test is of the last parameters, as the perplexity is.)
        "bits_per_character": tests[0]["test_bits_per_character"] if tests else math.nan,
        "command": jaxlm.Sweep(config).command(jaxlm.MemberResult(0, {}, seed)),
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
    }
    keep(row, found)


def rows_of(run_dir: Path) -> list[Row]:
    """What is kept of all runs, in the order of texts, minutes, cells and seeds."""
    rows = [json.loads(path.read_text()) for path in run_dir.glob("*/*/*/seed*.json")]
    return sorted(
        rows,
        key=lambda row: (row["text"], row["minutes"], CELLS.index(row["cell"]), row["seed"]),
    )


def points_of(run_dir: Path) -> list[Row]:
    """What each trial of all tunings gave."""
    found = []
    for path in sorted(run_dir.glob("*/*/*/tuning/sweep.csv")):
        text, minutes, cell = path.relative_to(run_dir).parts[:3]
        about = {"text": unquote(text), "minutes": minutes.removesuffix("min"), "cell": cell}
        with path.open(newline="") as file:
            found += [about | row for row in csv.DictReader(file)]
    return found


def write_rows(rows: list[Row], path: Path) -> None:
    """Writes rows as CSV, whole or not at all; what a row has not is empty.

    Args:
        rows: a line each.
        path: the file of CSV.
    """
    text = io.StringIO()
    lines = csv.DictWriter(
        text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
    )
    lines.writeheader()
    lines.writerows(rows)
    with output(path) as file:
        file.write(text.getvalue().encode())


def table(rows: list[Row]) -> str:
    """Mean and standard deviation over the seeds of each cell, the best on validation first, and
    which to choose.

    A cell of which seeds diverged comes after those of which fewer did; its means are of the
    others.
    """
    columns = (
        "parameters",
        "epochs",
        "seconds",
        "words_per_second",
        "valid",
        "test",
        "bits_per_character",
    )
    lines = [
        f"| text | minutes | cell | {' | '.join(columns)} |".replace("_", " "),
        "|" + "---|" * (3 + len(columns)),
    ]
    chosen = []
    for text, minutes in dict.fromkeys((row["text"], row["minutes"]) for row in rows):
        cells = dict[str, dict[str, tuple[float, float]]]()
        lost = dict[str, int]()
        some = [row for row in rows if (row["text"], row["minutes"]) == (text, minutes)]
        for cell in dict.fromkeys(row["cell"] for row in some):
            its = [row for row in some if row["cell"] == cell]
            cells[cell] = {name: mean_and_deviation([row[name] for row in its]) for name in columns}
            lost[cell] = sum(math.isnan(row["valid"]) for row in its)
        best, *others = sorted(cells, key=lambda cell: (lost[cell], cells[cell]["valid"][0]))
        for cell in (best, *others):
            whole = [f"{cells[cell][name][0]:,.0f}" for name in columns[:4]]
            measured = [spread(*cells[cell][name]) for name in columns[4:6]]
            measured += [spread(*cells[cell][columns[6]], shown="{:.4f}".format)]
            measured[0] += f" ({lost[cell]} diverged)" if lost[cell] else ""
            lines.append(f"| {text} | {minutes:g} | {cell} | {' | '.join(whole + measured)} |")
        mean, deviation = cells[best]["valid"]
        near = [
            cell
            for cell in others
            if cells[cell]["valid"][0] - mean <= deviation + cells[cell]["valid"][1]
        ]
        alike = f"; within the deviations: {', '.join(near)}" if near else ""
        chosen.append(f"{text}, {minutes:g} minutes: the lowest on validation is {best}{alike}.")
    return "\n".join([*lines, "", *chosen]) + "\n"


def plot(rows: list[Row], path: Path) -> Path:
    """A panel a text and budget: a dot a seed, a bar for each cell's mean and standard
    deviation.

    Args:
        rows: a seed each.
        path: the picture's file.
    """
    panels = [*dict.fromkeys((row["text"], row["minutes"]) for row in rows)]
    cells = [*dict.fromkeys(row["cell"] for row in rows)]
    with figure(4 * len(panels) + 1, 4) as drawn:
        for axes, panel in zip(
            drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            of_panel = [row for row in rows if (row["text"], row["minutes"]) == panel]
            its_cells = [*dict.fromkeys(row["cell"] for row in of_panel)]
            for place, cell in enumerate(its_cells):
                tests = [row["test"] for row in of_panel if row["cell"] == cell]
                colour = PALETTE[cells.index(cell) % len(PALETTE)]
                axes.scatter([place] * len(tests), tests, color=colour, s=14)
                axes.errorbar(
                    place, *mean_and_deviation(tests), color=colour, marker="_", capsize=4
                )
            places = range(len(its_cells))
            axes.set_xticks(places, its_cells, rotation=45, ha="right", rotation_mode="anchor")
            axes.set(title=f"{Path(panel[0]).stem}, {panel[1]:g} min", ylabel="test perplexity")
        return save(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--texts",
        nargs="+",
        default=["ptb"],
        metavar="TEXT[:PRESET]",
        help="as train's --corpus (ptb)",
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, metavar="CELL")
    parser.add_argument(
        "--minutes", nargs="+", type=above_zero, default=[5.0], help="of training a run (5)"
    )
    parser.add_argument(
        "--parameters",
        type=whole(1),
        metavar="N",
        help="of each model (those of the text's preset)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=SPACE",
        help="to tune, as of jaxlm sweep",
    )
    parser.add_argument(
        "--trials",
        type=whole(0),
        default=8,
        metavar="N",
        help="points that tune each cell (8); 0: the preset's values, and what --set says",
    )
    parser.add_argument(
        "--share", type=above_zero, default=0.25, help="of the epochs that a trial trains (0.25)"
    )
    parser.add_argument(
        "--seeds",
        type=whole(1),
        default=3,
        metavar="K",
        help="runs of each cell, from seed 0 (3)",
    )
    parser.add_argument(
        "--preset", default="tied-fast", metavar="NAME", help="all but the cell (tied-fast)"
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/shootout"))
    args = parser.parse_args()
    cells = planned(args)
    with lock(args.run_dir):
        keep(args.run_dir / "settings.json", shared_settings(args))
        for cell in cells:
            cell.folder.mkdir(parents=True, exist_ok=True)
            keep(cell.folder / "epochs.json", cell.config.train.epochs)
        shares = [
            args.seeds + args.trials * epochs_of_trial(one, args.share) / one.config.train.epochs
            for one in cells
        ]
        hours = sum(cell.minutes * share for cell, share in zip(cells, shares, strict=True)) / 60
        print(f"{len(cells)} cells, about {hours:.1f} hours in all", flush=True)
        for cell in cells:
            point = tuned(cell, space_of(args, cell.config), args.trials, args.share)
            write_rows(points_of(args.run_dir), args.run_dir / "shootout_tuning.csv")
            for seed in range(args.seeds):
                run(cell, point, seed)
                write_rows(rows_of(args.run_dir), args.run_dir / "shootout.csv")
        rows = rows_of(args.run_dir)
        print(table(rows))
        print(plot(rows, args.run_dir / "shootout.png"))


if __name__ == "__main__":
    sys.exit(exit_code(main))
