"""The Penn Treebank LSTM of TensorFlow 1's tutorial: the main experiment.

10,000 words -> embedding 200 -> LSTM 256 -> LSTM 128 -> softmax over 10,000; 15 epochs of SGD from
rate 1.0, halved each epoch after the fourth, the gradient clipped to norm 5; 60 rows of 20 steps,
the LSTM's state carried from window to window. TensorFlow 2.15 with the same hyperparameters
reached a perplexity of 123.0 on validation and 118.4 on test.

    # The whole run
    python experiments/ptb_small.py
    # The first 500 windows
    python experiments/ptb_small.py --steps 500
    python experiments/ptb_small.py --learning-rate 0.5 --hidden-sizes 200,200 --keep-output 0.8
    python experiments/ptb_small.py --model gru --optimizer adamw --schedule cosine --tied \\
        --hidden-sizes 256,200
    # Resume the newest run in runs/
    python experiments/ptb_small.py --resume
    # Every flag of the kinds chosen
    python experiments/ptb_small.py --model mingru --help-all

From Python: `jaxlm.train(jaxlm.preset("small"), run_dir="runs/mine")`.
"""

import sys

from jaxlm.cli import main

if __name__ == "__main__":
    own = (
        []
        if any(token.partition("=")[0] == "--config" for token in sys.argv)
        else ["--preset", "small"]
    )
    sys.exit(main(["train", *own, *sys.argv[1:]]))
