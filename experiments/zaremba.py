"""The three models of "Recurrent Neural Network Regularization" (Zaremba et al. 2014, arXiv:1409.2329).

    python experiments/zaremba.py small      2 x 200, no dropout, 13 epochs     published test 115.5 (the paper: 114.5)
    python experiments/zaremba.py medium     2 x 650, keep 0.5, 39 epochs                       83.5             (82.7)
    python experiments/zaremba.py large      2 x 1500, keep 0.35, 55 epochs                     78.5             (78.4)

Every flag of `ptb_small.py` works here too: python experiments/zaremba.py medium --help
"""

import sys

from jaxlm.cli import main

SIZES = ("small", "medium", "large")

if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(print(__doc__))
    if sys.argv[1:2] == [] or sys.argv[1] not in SIZES:
        sys.exit(
            f"error: name a size first, one of {', '.join(SIZES)}, as in: python experiments/zaremba.py small"
        )
    sys.exit(main(["train", "--preset", f"zaremba-{sys.argv[1]}", *sys.argv[2:]]))
