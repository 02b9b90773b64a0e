"""A sweep over the Penn Treebank LSTM of `ptb_small.py`: four learning rates by two clip norms,
five epochs each.

The rate is halved after each epoch from the third on, so that five epochs suffice to compare the
points. `--set` replaces the space, and every field has a flag as in `ptb_small.py`.

    # The eight points, on CPUs a process a core
    python experiments/ptb_sweep.py
    # One process, one compiled program
    python experiments/ptb_sweep.py --workers 1
    python experiments/ptb_sweep.py --epochs 1 --set learning_rate=0.5,1
    # Points of a distribution, each trained with two seeds
    python experiments/ptb_sweep.py --set learning_rate=log:0.1:4 --set keep_output=uniform:0.5:1 \\
        --strategy tpe --trials 24 --seeds 2
    # And again after a kill, or on a second machine
    python experiments/ptb_sweep.py --run-dir runs/ptb-sweep
    python experiments/ptb_sweep.py --run-dir runs/ptb-sweep --resume

From Python:

    jaxlm.sweep(jaxlm.preset("small").replace(epochs=5, hold=2.0),
                {"learning_rate": [0.25, 0.5, 1.0, 2.0], "clip_norm": [1.0, 5.0]},
                run_dir="runs/ptb-sweep")
"""

import sys

from jaxlm.cli import main

SPACE = {"learning_rate": "0.25,0.5,1,2", "clip_norm": "1,5"}


def arguments(given: list[str]) -> list[str]:
    """The arguments of `jaxlm sweep`: those given, after this sweep's own, unless they replace
    these.
    """
    flags = {token.partition("=")[0] for token in given}
    if "--resume" in flags:
        return given
    start = [] if "--config" in flags else ["--preset", "small", "--epochs", "5"]
    scheduled = {"--config", "--preset", "--schedule"} & flags or any(
        "schedule=" in token for token in given
    )
    start += [] if scheduled else ["--hold", "2"]
    if not {"--set", "--space"} & flags:
        fields = {name: f"--{name.replace('_', '-')}" for name in SPACE}
        start += [
            f"--set={name}={SPACE[name]}" for name, flag in fields.items() if flag not in flags
        ]
    return [*start, *given]


if __name__ == "__main__":
    sys.exit(main(["sweep", *arguments(sys.argv[1:])]))
