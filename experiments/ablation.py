"""A ladder of regularisation on one small LSTM: each rung adds one thing to the rung before it.

    # Penn Treebank, 13 epochs, one seed
    python experiments/ablation.py
    # Three seeds: mean and standard deviation
    python experiments/ablation.py --seeds 3 --epochs 20
    python experiments/ablation.py --corpus embedded-tiny --epochs 1 --width 8
    # Writes the table into that page too
    python experiments/ablation.py --markdown docs/lab/ablation.md

Each rung and seed is a run in --run-dir (default: runs/ablation), which a second start resumes or
reads. The table goes to the terminal, the plot to ablation.png in that directory.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jaxlm
from jaxlm.base.errors import Diverged, JaxlmError
from jaxlm.base.units import mean_and_deviation, spread
from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code
from jaxlm.report.figure import BLUE, ORANGE, figure, save
from jaxlm.runs.directory import saved_config

RUNGS = {
    "baseline": {},
    "+ dropout": {"keep_embedding": 0.6, "keep_output": 0.6},
    "+ AdamW": {
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "final": 0.0,
    },
    "+ tying": {"tied": True},
    "+ variational": {"locked_dropout": True},
    "+ averaging": {"average_decay": 0.999},
}
START = "<!-- the table -->\n"
END = "<!-- its end -->\n"  # around the table in a page
Scores = list[tuple[float, float]]  # of each seed, on validation and test


def climb(args: argparse.Namespace) -> dict[str, Scores]:
    """Trains every rung with every seed; each keeps the changes of those before it."""
    config = jaxlm.preset("zaremba-small")
    scores = {}
    config = config.replace(
        hidden_sizes=(args.width, args.width),
        embedding_size=args.width,
        epochs=args.epochs,
        compute_dtype=args.compute_dtype,
    )
    for place, (rung, changes) in enumerate(RUNGS.items()):
        config = config.replace(**changes)
        scores[rung] = []
        for seed in range(args.seeds):
            scores[rung].append(
                trained(
                    config.replace(seed=seed), args.corpus, args.run_dir / f"{place}-seed{seed}"
                )
            )
    return scores


def trained(config: jaxlm.Config, corpus: str, run_dir: Path) -> tuple[float, float]:
    """The last validation and the test perplexity of a run, which is resumed or read where it is
    there already.

    Of a run that diverges, which is said, both are nan.

    Args:
        config: the run's config.
        corpus: as `--corpus` takes it.
        run_dir: the run's directory.
    """
    try:
        result = jaxlm.train(
            config, corpus, run_dir=run_dir, resume=(run_dir / "config.json").exists()
        )
    except Diverged as error:
        print(f"{run_dir}: {error}", flush=True)
        return float("nan"), float("nan")
    if result.test_perplexity is None:
        sys.exit("stopped: start it again to resume")
    return result.epochs[-1].valid_perplexity if result.epochs else float(
        "nan"
    ), result.test_perplexity


def table(found: dict[str, Scores]) -> str:
    """The ladder in Markdown: means over the seeds, with the standard deviation where there are
    several.
    """
    lines = ["| rung | what it sets | valid | test |", "|---|---|---|---|"]
    for rung, scores in found.items():
        sets = (
            ", ".join(f"{name} {value}" for name, value in RUNGS[rung].items()) or "zaremba-small"
        )
        valid, test = (spread(*mean_and_deviation(column)) for column in zip(*scores, strict=True))
        lines.append(f"| {rung} | {sets} | {valid} | {test} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Scores], path: Path) -> Path:
    """The ladder as a picture: a dot a seed, a line through the means.

    Args:
        found: {rung: (validation, test) of each seed}.
        path: the picture's file.
    """
    with figure(7, 4) as drawn:
        axes = drawn.subplots()
        for part, (name, colour) in enumerate((("valid", ORANGE), ("test", BLUE))):
            means = [
                mean_and_deviation([score[part] for score in scores])[0]
                for scores in found.values()
            ]
            axes.plot(range(len(found)), means, color=colour, label=name)
            for place, scores in enumerate(found.values()):
                axes.scatter(
                    [place] * len(scores), [score[part] for score in scores], color=colour, s=14
                )
        axes.set_xticks(range(len(found)), list(found))
        axes.set(ylabel="perplexity")
        axes.legend()
        return save(drawn, path)


def tell(
    args: argparse.Namespace, train: Callable, table: Callable, plot: Callable, picture: Path
) -> None:
    """Trains, prints the table, draws the plot, and puts the table into --markdown's page.

    Args:
        args: the parsed arguments of `arguments`.
        train: trains everything: args -> results.
        table: results -> Markdown.
        plot: results, file -> the picture's file.
        picture: the picture's file.
    """
    if args.markdown:  # raises before hours of training
        into_page(args.markdown, None)
    for path in sorted(args.run_dir.glob("*/config.json")):
        epochs = saved_config(path.parent).train.epochs
        if epochs != args.epochs:
            raise JaxlmError(
                f"{path.parent} holds a run of {epochs} epochs, and this is to be a table of "
                f"{args.epochs}: choose another --run-dir"
            )
    found = train(args)
    text = table(found)
    print(text)
    print(plot(found, picture))
    if args.markdown:
        into_page(args.markdown, text)


def into_page(page: Path, text: str | None) -> None:
    """Puts the table between the page's two marks; None only looks for them.

    Args:
        page: a page of Markdown with both marks.
        text: the table in Markdown, or None.
    """
    try:
        before, rest = page.read_text().split(START)
        _, after = rest.split(END)
    except (OSError, ValueError):
        raise JaxlmError(
            f"{page} is not a page with {START.strip()} once and {END.strip()} after it"
        ) from None
    if text is not None:
        page.write_text(before + START + text + END + after)


def arguments(
    description: str | None, name: str, epochs: int, width: int, dtype: str
) -> argparse.ArgumentParser:
    """The parser of an experiment that keeps its runs in runs/NAME.

    Args:
        description: the experiment's help.
        name: of the experiment.
        epochs: the default of --epochs.
        width: the default of --width.
        dtype: the default of --compute-dtype.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", default="auto", help="as jaxlm train has it (default: Penn Treebank)"
    )
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument(
        "--width", type=int, default=width, help="of the embedding and of each layer"
    )
    parser.add_argument("--compute-dtype", default=dtype, help=f"as jaxlm train has it ({dtype})")
    parser.add_argument("--run-dir", type=Path, default=Path("runs") / name)
    parser.add_argument("--markdown", type=Path, help="a page whose table is replaced")
    return parser


def main() -> None:
    """Climbs, prints the table, draws the plot."""
    parser = arguments(__doc__, "ablation", 13, 200, "float32")
    parser.add_argument("--seeds", type=whole(1), default=1, help="runs of each rung")
    args = parser.parse_args()
    tell(args, climb, table, plot, args.run_dir / "ablation.png")


if __name__ == "__main__":
    sys.exit(exit_code(main))
