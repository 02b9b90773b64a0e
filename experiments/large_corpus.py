"""A corpus larger than memory: how fast it is prepared, and trained on from its file.

    # 100 million tokens: about 1.2 GB of disk for a while, and 3 minutes
    python experiments/large_corpus.py
    # For a quick look
    python experiments/large_corpus.py --tokens 5000000 --turns 2

The text is made by the embedded corpus's generator: streams of Penn Treebank's size, one after
another. Two processes then train the preset small on its ids, one from memory and one from the
file; they take turns, their medians are compared, and each prints its own peak memory. Needs a
quiet machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmark import Contender, compare

from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code
from jaxlm.data import embedded

WINDOWS = 64  # in a turn


def write_text(path: Path, tokens: int) -> None:
    """Text of at least so many tokens; a sentence a line.

    Args:
        path: the file to write.
        tokens: at least so many.
    """
    source = embedded.Generator(embedded.Size.of("embedded"))
    words = np.array([*("\n", *source.words[1:])], object)
    stream = 10
    with open(path, "w", encoding="utf-8") as file:
        while tokens > 0:
            ids = source.draw(min(tokens, 929_589), stream)
            file.write(
                " ".join(words[ids].tolist()).replace(" \n", "\n").replace("\n ", "\n") + "\n"
            )
            tokens = tokens - len(ids)
            stream = stream + 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=whole(100_000), default=100_000_000)
    parser.add_argument("--turns", type=whole(1), default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxlm-") as scratch:
        text = Path(scratch, "text.txt")
        out = Path(scratch, "out")
        write_text(text, args.tokens)
        command = [sys.executable, "-m", "jaxlm", "prepare", text, out]
        started = time.perf_counter()
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if code:  # it has said why
            raise SystemExit(code)
        seconds = time.perf_counter() - started
        ids = sum(path.stat().st_size for path in out.glob("*.ids"))
        print(
            f"prepared {text.stat().st_size / 1e6:,.0f} MB of text into {ids / 1e6:,.0f} MB "
            f"in {seconds:.1f} s "
            f"({args.tokens / seconds:,.0f} tokens/s)"
        )
        places = ("memory", "file")
        contenders = [
            Contender(place, f"from-{place}", "small", {"corpus": str(out)}) for place in places
        ]
        for row in compare(contenders, args.turns, WINDOWS):
            print(
                f"trained from {row['contender']}: {row['words_per_second']:,.0f} words/s, at most "
                f"{row['peak_mib']:,.0f} MiB of memory"
            )


if __name__ == "__main__":
    sys.exit(exit_code(main))
