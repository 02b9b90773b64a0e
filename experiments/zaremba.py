"""The three models of "Recurrent Neural Network Regularization" (Zaremba et al. 2014,
arXiv:1409.2329).

    python experiments/zaremba.py small     # 2 x 200, no dropout, 13 epochs
    python experiments/zaremba.py medium    # 2 x 650, keep 0.5, 39 epochs
    python experiments/zaremba.py large     # 2 x 1500, keep 0.35, 55 epochs

The published code reaches a perplexity of 115.5, 83.5 and 78.5 on the test split (the paper says
114.5, 82.7 and 78.4).

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
            f"error: name a size first, one of {', '.join(SIZES)}, "
            "as in: python experiments/zaremba.py small"
        )
    sys.exit(main(["train", "--preset", f"zaremba-{sys.argv[1]}", *sys.argv[2:]]))
