"""A report card: what each recurrent cell can learn, beyond the tasks' lengths of training too.

    # All tasks, all cells, three seeds: some five hours of one core
    python experiments/abilities.py
    # Two processes share the cells, on a core each
    taskset -c 0 python experiments/abilities.py & taskset -c 1 python experiments/abilities.py
    python experiments/abilities.py --tasks parity s5 --cells lstm mingru gated-deltanet
    # Fewer windows; another width
    python experiments/abilities.py --windows 1000 --width 32
    # Writes the table into that page too
    python experiments/abilities.py --markdown docs/lab/abilities.md

A task is a text of generated lines, each a question and its exact answer, such as

    1 0 1 1 = odd

The cells are the kinds of `--model`, bare, but attention, which stands in its block (then it is a
Transformer), and `negative`, Gated DeltaNet with eigenvalues down to -1. A model of two layers
reads a task as any text, by the library's tokens, step and sweep: it learns to predict all words,
of which the answers alone can be known. Lines for training ask of 1 to 40 words (half of them of at
most 2, so that short questions lead to long ones). The answers of new lines of 40 and of 160 words
are then tested, each line read after the last one, as in training: an answer is right where each of
its words is the likeliest, given those before it. Rates are the same for all cells; the least
validation perplexity chooses.

All is kept in --run-dir (runs/abilities). Started again, the experiment resumes; started beside
itself, it leaves each cell to the process that has it, and the last to end has all results. They
are abilities.csv, a line for each task, cell, seed and length, and abilities.png.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import factorial, isnan
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import jax
from ablation import into_page
from matplotlib.patches import Rectangle
from shootout import above_zero, keep, write_rows

import jaxlm
from jaxlm.base.errors import JaxlmError, RunDirError
from jaxlm.base.files import explained, output
from jaxlm.base.units import mean_and_deviation
from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code
from jaxlm.models.recurrent import MODELS
from jaxlm.report.figure import BLUE, INK, figure, save
from jaxlm.runs.lock import InUse, lock
from jaxlm.sweeps.storage import import_optuna
from jaxlm.sweeps.study import JOURNAL

CELLS: dict[str, dict[str, Any]] = {
    name: {"model": name}
    for name, kind in MODELS.items()
    if kind.__module__.startswith("jaxlm.models.")
}
CELLS["negative"] = {"model": "gated-deltanet", "negative_eigenvalues": True}
# Attention reads back as far as the longest line; bare layers of it have nothing but sums.
CELLS["attention"] |= {"attention_window": 330, "block": "residual", "activation": "swiglu"}
LONGEST = 40  # words of a question in training
LENGTHS = (LONGEST, 4 * LONGEST)  # of the questions that are tested
SHORTER = 2  # 1: the logarithm of a question's length is uniform; more: short ones are more
ROWS = 32  # of a batch
STEPS = 64  # of a window
HELD_OUT = 400  # lines of each length that validate, and as many that test


@dataclass(frozen=True)
class Line:
    """A line of a task's text.

    Attributes:
        words: All of it.
        answers: The places of each answer's words in it, [start, end).
        chance: The probability that a guess at an answer, of the right form, is right.
    """

    words: list[str]
    answers: list[tuple[int, int]]
    chance: float

    @classmethod
    def asked(cls, question: Sequence[str], answer: Sequence[str], chance: float) -> "Line":
        """A question, and its answer behind a sign: all of the answer's words or none count.

        Args:
            question: The words that are given.
            answer: The words to be found.
            chance: As of a line.
        """
        words = [*question, "=", *answer]
        return cls(words, [(len(words) - len(answer), len(words))], chance)


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        draw: A line, from a generator of numbers and the number of its question's words.
        asks: What it asks for.
    """

    draw: Callable[[Random, int], Line]
    asks: str


@dataclass(frozen=True)
class Result:
    """A line of abilities.csv; accuracy and chance are shares of the answers."""

    task: str
    cell: str
    seed: int
    length: int
    accuracy: float
    chance: float
    learning_rate: float
    parameters: int
    windows: int
    valid_perplexity: float


def parity(random: Random, length: int) -> Line:
    """Whether the ones among some bits are odd."""
    bits = [random.randrange(2) for _ in range(length)]
    return Line.asked([str(bit) for bit in bits], ["odd" if sum(bits) % 2 else "even"], 1 / 2)


def counting(random: Random, length: int) -> Line:
    """The number of ones among some bits, modulo 5."""
    bits = [random.randrange(2) for _ in range(length)]
    return Line.asked([str(bit) for bit in bits], [f"mod{sum(bits) % 5}"], 1 / 5)


def permutations(items: int) -> Callable[[Random, int], Line]:
    """The order of some items after swaps of neighbours, of which one word is no swap."""

    def draw(random: Random, length: int) -> Line:
        order = list(range(items))
        words = []
        for _ in range(length):
            place = random.randrange(items)
            if place + 1 == items:
                words.append("stay")
            else:
                words.append(f"swap{place}")
                order[place : place + 2] = reversed(order[place : place + 2])
        return Line.asked(words, [f"item{item}" for item in order], 1 / factorial(items))

    return draw


def brackets(random: Random, length: int) -> Line:
    """The brackets that close a beginning of a word of Dyck-2, at most 8 deep."""
    closing = {"(": ")", "[": "]"}
    opened: list[str] = []
    words = []
    for _ in range(length):
        if not opened or (len(opened) < 8 and random.random() < 0.5):
            opened.append(random.choice("(["))
            words.append(opened[-1])
        else:
            words.append(closing[opened.pop()])
    answer = [closing[bracket] for bracket in reversed(opened)] or ["none"]
    return Line.asked(words, answer, 0.5 ** len(opened))


def recall(pairs: int) -> Callable[[Random, int], Line]:
    """The values of four keys among pairs of a key and a value.

    At the longest length of training there are `pairs` pairs; four times as many are tested too.
    """

    def draw(random: Random, length: int) -> Line:
        count = max(1, round(pairs * length / LONGEST))
        keys = random.sample(range(4 * pairs), count)
        values = [random.randrange(8) for _ in keys]
        words = []
        for key, value in zip(keys, values, strict=True):
            words += [f"key{key}", f"value{value}"]
        words.append("=")
        answers = []
        for asked in random.choices(range(count), k=4):
            words += [f"key{keys[asked]}", f"value{values[asked]}"]
            answers.append((len(words) - 1, len(words)))
        return Line(words, answers, 1 / 8)

    return draw


def copying(random: Random, length: int) -> Line:
    """Some letters again, each of which counts alone."""
    letters = [random.choice("abcdefgh") for _ in range(length)]
    words = [*letters, "=", *letters]
    return Line(words, [*pairwise(range(length + 1, len(words) + 1))], 1 / 8)


TASKS = {
    "parity": Task(parity, "are the ones odd?"),
    "modulo5": Task(counting, "how many ones, modulo 5?"),
    "s3": Task(permutations(3), "the order of 3 items after swaps"),
    "s5": Task(permutations(5), "the order of 5 items after swaps"),
    "dyck2": Task(brackets, "the brackets that close a word of depth 8"),
    "recall8": Task(recall(8), "the values of keys, of 8 pairs"),
    "recall32": Task(recall(32), "the values of keys, of 32 pairs"),
    "copy": Task(copying, "the letters again"),
}


def drawn(task: Task, lengths: Callable[[Random], int], seed: str, words: int) -> list[Line]:
    """Lines of a task, until they have so many words.

    Args:
        task: The task.
        lengths: Draws the number of words of a question.
        seed: Of the generator; equal for all cells.
        words: How many words to draw at least, with the end of each line.
    """
    random = Random(seed)
    lines = []
    while words > 0:
        lines.append(task.draw(random, lengths(random)))
        words -= len(lines[-1].words) + 1
    return lines


def tested(name: str, length: int) -> list[Line]:
    """The lines that test a task at a length.

    Args:
        name: The task's.
        length: Words of a question.
    """
    random = Random(f"{name} test {length}")
    return [TASKS[name].draw(random, length) for _ in range(HELD_OUT)]


def write_text(name: str, folder: Path, windows: int) -> None:
    """Writes a task's text, as `--corpus` takes it, where it is not there already.

    Args:
        name: The task's.
        folder: For the files of its splits.
        windows: How many the train split shall have.
    """
    task = TASKS[name]
    random = Random(f"{name} valid")
    splits = {
        "train": drawn(
            task,
            lambda random: round(LONGEST ** random.random() ** SHORTER),
            f"{name} train",
            ROWS * (STEPS * windows + 1),
        ),
        "valid": [task.draw(random, LONGEST) for _ in range(HELD_OUT)],
        "test": tested(name, LONGEST),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():
        path = folder / f"{split}.txt"
        if not path.exists():
            with output(path) as file:
                file.write("".join(f"{' '.join(line.words)}\n" for line in lines).encode())


def accuracy(lm: jaxlm.LanguageModel, lines: Sequence[Line]) -> float:
    """The share of answers whose every word is the likeliest in its place.

    Args:
        lm: The model.
        lines: What it reads, each after the last: a model of a text knows no other beginning.
    """
    table = lm.surprisal([" ".join(line.words) for line in lines], context="stream")
    likeliest = table.rank == 1
    start = 0
    right = []
    for line in lines:
        right += [bool(likeliest[start + a : start + b].all()) for a, b in line.answers]
        start += len(line.words)
    return mean(right)


def results_file(args: argparse.Namespace, name: str, cell: str) -> Path:
    """The file of a cell's results in a task, which is there as soon as they are."""
    return args.run_dir / cell / name / "results.json"


def kept_results(args: argparse.Namespace) -> list[Result]:
    """The results of all processes so far, in the order of the arguments."""
    results = []
    for name in dict.fromkeys(args.tasks):
        for cell in dict.fromkeys(args.cells):
            path = results_file(args, name, cell)
            if path.exists():
                results += [Result(**line) for line in json.loads(path.read_text())]
    return results


def learn(args: argparse.Namespace, name: str, cell: str) -> None:
    """Trains a cell on a task by a sweep over rates and seeds, tests the best rate, keeps results.

    Args:
        args: The parsed arguments.
        name: The task's.
        cell: The cell's, of `CELLS`.
    """
    path = results_file(args, name, cell)
    if path.exists():
        return
    folder = path.parent
    settings = dict(CELLS[cell])
    if settings.get("block"):
        settings["feed_forward_size"] = 2 * args.width
    config = jaxlm.preset("small").replace(
        **settings,
        corpus=str(args.run_dir / "texts" / name),
        embedding_size=args.width,
        hidden_sizes=(args.width,) * 2,
        optimizer="muon",
        clip_norm=1.0,
        schedule="linear",
        batch_size=ROWS,
        bptt_length=STEPS,
        epochs=1,
        torch_init=True,
    )
    found = jaxlm.sweep(
        config,
        {"learning_rate": args.rates},
        seeds=args.seeds,
        run_dir=folder,
        resume=(folder / JOURNAL).exists(),
        quiet=True,
    )
    if found.stopped_by:
        sys.exit("stopped: start it again to resume")
    best = found.trials[0]
    results = []
    for member in best.members:
        if member.run_dir is None or member.status != "done":
            print(f"{name}, {cell}, seed {member.seed}: {member.note or member.status}", flush=True)
            continue
        lm = jaxlm.load(member.run_dir)
        for length in LENGTHS:
            lines = tested(name, length)
            results.append(
                Result(
                    task=name,
                    cell=cell,
                    seed=member.seed,
                    length=length,
                    accuracy=accuracy(lm, lines),
                    chance=mean(line.chance for line in lines for _ in line.answers),
                    learning_rate=best.values["learning_rate"],
                    parameters=sum(leaf.size for leaf in jax.tree.leaves(lm.params)),
                    windows=args.windows,
                    valid_perplexity=member.valid_perplexity,
                )
            )
    keep(path, [asdict(result) for result in results])
    newest = means(results).get((name, LONGEST), {}).get(cell)
    if newest:
        print(f"{name}, {cell}: {100 * newest[0]:.0f}% of {LONGEST}", flush=True)


def means(results: Sequence[Result]) -> dict[tuple[str, int], dict[str, tuple[float, float]]]:
    """Mean and deviation of the accuracy over seeds: (task, length) -> cell -> both."""
    table: dict[tuple[str, int], dict[str, list[float]]] = {}
    for result in results:
        row = table.setdefault((result.task, result.length), {})
        row.setdefault(result.cell, []).append(result.accuracy)
    return {
        place: {cell: mean_and_deviation(shares) for cell, shares in row.items()}
        for place, row in table.items()
    }


def table(results: Sequence[Result]) -> str:
    """The accuracies in Markdown, in percent: a row for each task and length, the cells beside."""
    cells = list(dict.fromkeys(result.cell for result in results))
    chance = {(result.task, result.length): result.chance for result in results}
    lines = [
        f"| task | length | chance | {' | '.join(cells)} |",
        "|" + "---|" * (3 + len(cells)),
    ]
    for (task, length), row in means(results).items():
        shares = []
        for cell in cells:
            if cell in row:
                share, deviation = row[cell]
                spread = "" if isnan(deviation) else f" ± {100 * deviation:.0f}"  # of one seed
                shares.append(f"{100 * share:.0f}{spread}")
            else:
                shares.append("")
        share = 100 * chance[task, length]
        lines.append(f"| {task} | {length} | {share:.0f} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result], path: Path) -> Path:
    """Tasks by cells, a panel for each length: how far an answer is above chance.

    Args:
        results: The lines of abilities.csv.
        path: The picture's file.
    """
    tasks = list(dict.fromkeys(result.task for result in results))
    cells = list(dict.fromkeys(result.cell for result in results))
    shares = means(results)
    with figure(2 + 0.55 * len(cells) * len(LENGTHS), 1.6 + 0.4 * len(tasks)) as drawn:
        panels = drawn.subplots(1, len(LENGTHS), squeeze=False)[0]
        for axes, length in zip(panels, LENGTHS, strict=True):
            for row, task in enumerate(tasks):
                for column, cell in enumerate(cells):
                    if cell in shares.get((task, length), {}):
                        share = shares[task, length][cell][0]
                        axes.add_patch(_square(column, row, share))
                        ink = "white" if share > 0.6 else INK
                        axes.annotate(
                            f"{100 * share:.0f}", (column, row), ha="center", va="center", color=ink
                        )
            axes.set_xticks(range(len(cells)), cells, rotation=60, ha="right")
            axes.set_yticks(range(len(tasks)), tasks)
            axes.set(
                title=f"questions of {length} words",
                xlim=(-0.5, len(cells) - 0.5),
                ylim=(len(tasks) - 0.5, -0.5),
            )
            axes.grid(visible=False)
        return save(drawn, path)


def _square(column: int, row: int, share: float) -> Rectangle:
    """A square of the table, the darker the more answers are right."""
    return Rectangle((column - 0.5, row - 0.5), 1, 1, color=BLUE, alpha=share, linewidth=0)


def main() -> None:
    """Trains every cell on every task, prints the table, draws the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL")
    parser.add_argument("--windows", type=whole(1), default=1500, help="to train (1500)")
    parser.add_argument("--width", type=whole(1), default=32, help="of embedding and layers (32)")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=above_zero,
        default=[0.01, 0.03],
        metavar="RATE",
        help="learning rates of which the best on validation counts (0.01 0.03)",
    )
    parser.add_argument("--seeds", type=whole(1), default=3, help="runs of each (3)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/abilities"))
    parser.add_argument("--markdown", type=Path, help="a page whose table is replaced")
    args = parser.parse_args()
    import_optuna()  # raises JaxlmError where it is not installed
    if args.markdown:  # raises before an hour of training
        into_page(args.markdown, None)
    os.environ.pop("JAXLM_STORAGE", None)  # a database holds one sweep; each cell and task is one
    shared = {name: getattr(args, name) for name in ("windows", "width", "rates")}
    settings = args.run_dir / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != shared:
        raise JaxlmError(
            f"{args.run_dir} holds results of {settings.read_text()}, not of "
            f"{json.dumps(shared)}: name another --run-dir"
        )
    with explained(RunDirError, f"{args.run_dir} cannot be used"):
        args.run_dir.mkdir(parents=True, exist_ok=True)
    keep(settings, shared)
    for name in args.tasks:
        write_text(name, args.run_dir / "texts" / name, args.windows)
    for cell in dict.fromkeys(args.cells):
        try:
            with lock(args.run_dir / cell):
                for name in dict.fromkeys(args.tasks):
                    learn(args, name, cell)
        except InUse:
            print(f"{cell}: another process has it", flush=True)
    results = kept_results(args)
    if not results:
        sys.exit("no results yet")
    write_rows([asdict(result) for result in results], args.run_dir / "abilities.csv")
    text = table(results)
    print(text)
    print(plot(results, args.run_dir / "abilities.png"))
    if args.markdown:
        into_page(args.markdown, text)


if __name__ == "__main__":
    sys.exit(exit_code(main))
