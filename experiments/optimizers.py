"""Muon against AdamW and SGD, each at several rates, on one small LSTM trained for equally many
epochs.

    # Penn Treebank, two epochs of 128 units
    python experiments/optimizers.py
    python experiments/optimizers.py --corpus embedded-tiny --epochs 1 --width 8
    python experiments/optimizers.py --markdown docs/lab/optimizers.md \\
        --picture docs/lab/optimizers.png

Model, batch and schedule (half a cosine to zero) are those of the preset tied-fast; optimiser and
rate differ. Each run is kept in --run-dir (default: runs/optimizers), which a second start resumes
or reads.
"""

import argparse
import math
import sys
from pathlib import Path

from ablation import arguments, tell, trained

import jaxlm
from jaxlm.cli.ending import exit_code
from jaxlm.report.figure import figure, save

# Of each optimiser what it sets beside the rate, and the rates. SGD's gradient is of the sum over
# 35 steps: its clip is a quarter a step, as AWD-LSTM's.
TRIED = {
    "Muon": ({"optimizer": "muon"}, (0.0125, 0.025, 0.05)),
    "AdamW": ({"optimizer": "adamw"}, (0.005, 0.01, 0.02, 0.04)),
    "SGD": ({"optimizer": "sgd", "clip_norm": 8.75}, (0.6, 1.2, 2.4, 4.8)),
    "SGD, momentum 0.9": (
        {"optimizer": "sgd", "clip_norm": 8.75, "momentum": 0.9},
        (0.06, 0.12, 0.24, 0.48),
    ),
}
Scores = dict[
    str, dict[float, tuple[float, float]]
]  # of each optimiser and rate, on validation and test


def compare(args: argparse.Namespace) -> Scores:
    """Trains with every optimiser at every rate."""
    base = jaxlm.preset("tied-fast").replace(
        embedding_size=args.width,
        hidden_sizes=(args.width,),
        epochs=args.epochs,
        compute_dtype=args.compute_dtype,
    )
    return {
        name: {
            rate: trained(
                base.replace(**changes).replace(learning_rate=rate),
                args.corpus,
                args.run_dir / f"{place}-{rate:g}",
            )
            for rate in rates
        }
        for place, (name, (changes, rates)) in enumerate(TRIED.items())
    }


def best(scores: dict[float, tuple[float, float]]) -> float:
    """The rate with the lowest perplexity on validation, of those that did not diverge."""
    return min(scores, key=lambda rate: (math.isnan(scores[rate][0]), scores[rate][0]))


def table(found: Scores) -> str:
    """In Markdown: validation at each rate, and the test at the rate that validation chose."""
    lines = [
        "| optimiser | valid at each rate | best rate | valid | test |",
        "|---|---|---|---|---|",
    ]
    for name, scores in found.items():
        each = ", ".join(f"{rate:g}: {valid:.1f}" for rate, (valid, _) in scores.items())
        rate = best(scores)
        lines.append(
            f"| {name} | {each} | {rate:g} | {scores[rate][0]:.1f} | {scores[rate][1]:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(found: Scores, path: Path) -> Path:
    """Validation over the rate, each as a multiple of its optimiser's best.

    Args:
        found: {optimiser: {rate: (validation, test)}}.
        path: the picture's file.
    """
    with figure(7, 4) as drawn:
        axes = drawn.subplots()
        for name, scores in found.items():
            rates = [rate / best(scores) for rate in scores]
            axes.plot(rates, [valid for valid, _ in scores.values()], marker="o", label=name)
        axes.set_xscale("log", base=2)
        ticks = (0.25, 0.5, 1, 2, 4)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(
            xlabel="rate, as a multiple of the optimiser's best", ylabel="validation perplexity"
        )
        axes.legend()
        return save(drawn, path)


def main() -> None:
    """Trains, prints the table, draws the plot."""
    parser = arguments(__doc__, "optimizers", 2, 128, "auto")
    parser.add_argument(
        "--picture", type=Path, help="where the plot goes (optimizers.png in --run-dir)"
    )
    args = parser.parse_args()
    if args.picture:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
    tell(args, compare, table, plot, args.picture or args.run_dir / "optimizers.png")


if __name__ == "__main__":
    sys.exit(exit_code(main))
