"""A corpus larger than memory: how fast it is prepared, and trained on from its file.

    python experiments/large_corpus.py            100 million tokens: about 1.2 GB of disk for a while, and 3 minutes
    python experiments/large_corpus.py --tokens 5000000 --turns 2        for a quick look

The text is made by the embedded corpus's generator: streams of Penn Treebank's size, one after another. Two processes
then train the preset small on its ids, one from memory and one from the file; they take turns, their medians are
compared, and each prints its own peak memory. Needs a quiet machine.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from jaxlm.cli.ending import exit_code
from jaxlm.cli.parsing import whole

CALLS = 4  # of 16 windows each, in a turn


def write_text(path: Path, tokens: int) -> None:
    """Text of at least so many tokens; a sentence a line."""
    from jaxlm.data import embedded

    source = embedded.Source(embedded.Spec.of("embedded"))
    words, stream = np.array([*("\n", *source.words[1:])], object), 10
    with open(path, "w", encoding="utf-8") as file:
        while tokens > 0:
            ids = source.draw(min(tokens, 929_589), stream)
            file.write(" ".join(words[ids].tolist()).replace(" \n", "\n").replace("\n ", "\n") + "\n")
            tokens, stream = tokens - len(ids), stream + 1


def turns(folder: str, mode: str) -> Iterator[float]:
    """Trains CALLS calls whenever asked; seconds of each turn."""
    import jax
    import jax.numpy as jnp

    from jaxlm.config.config import preset
    from jaxlm.data.corpora import load_corpus
    from jaxlm.data.windows import WindowPlan
    from jaxlm.runs.trainer import new_state
    from jaxlm.training.feed import feed
    from jaxlm.training.step import train_windows

    corpus = load_corpus(folder)
    ids = corpus.train if mode == "file" else np.asarray(corpus.train, np.int32)
    config = preset("small").replace(vocab_size=len(corpus.vocab))
    T, B, most = config.train.bptt_length, config.train.batch_size, config.train.windows_per_call
    state, recipe = new_state(config), jax.tree.map(jnp.float32, config.recipe)
    step, plan = 0, WindowPlan(len(ids) // B, T, 1000)
    with feed(ids, config.train) as take:
        while True:
            started = time.perf_counter()
            for _ in range(CALLS):
                index = plan.locate(step)[1]
                count = min(most, plan.per_epoch - index)
                tokens, first_row = take(plan.row(index), plan.row((index + count) % plan.per_epoch))
                windows = plan.windows(step, count, most, first_row)
                state, _ = train_windows(recipe, state, tokens, windows, jnp.int32(count), bptt_length=T)
                step = int(state.step)
            yield time.perf_counter() - started


def peak() -> float:
    """MB of this process's memory at its largest."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1000 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=whole(100_000), default=100_000_000)
    parser.add_argument("--turns", type=whole(1), default=7)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        turn = turns(*args.worker)
        for _ in sys.stdin:
            print(next(turn), peak(), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="jaxlm-") as scratch:
        text, out = Path(scratch, "text.txt"), Path(scratch, "out")
        write_text(text, args.tokens)
        code = "from large_corpus import peak; from jaxlm.cli import main; main() or print(peak())"
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, "prepare", text, out],
            cwd=Path(__file__).parent,
            text=True,
            stdout=subprocess.PIPE,
        )
        if done.returncode:  # it has said why
            raise SystemExit(done.returncode)
        seconds, most = time.perf_counter() - started, float(done.stdout.splitlines()[-1])
        ids = sum(path.stat().st_size for path in out.glob("*.ids"))
        print(
            f"prepared {text.stat().st_size / 1e6:,.0f} MB of text into {ids / 1e6:,.0f} MB in {seconds:.1f} s "
            f"({args.tokens / seconds:,.0f} tokens/s), at most {most:,.0f} MB of memory"
        )
        workers = {
            mode: subprocess.Popen(
                [sys.executable, __file__, "--worker", str(out), mode],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for mode in ("memory", "file")
        }
        took: dict[str, list[float]] = {mode: [] for mode in workers}
        peaks = {}
        for turn in range(args.turns + 1):
            for mode, worker in sorted(workers.items(), reverse=bool(turn % 2)):
                assert worker.stdin and worker.stdout
                print(file=worker.stdin, flush=True)
                one, peaks[mode] = map(float, worker.stdout.readline().split())
                if turn:  # the first compiles
                    took[mode].append(one)
        for mode, worker in workers.items():
            worker.communicate()
            print(
                f"trained from {mode}: {CALLS * 16 * 60 * 20 / median(took[mode]):,.0f} words/s, at most "
                f"{peaks[mode]:,.0f} MB of memory"
            )


if __name__ == "__main__":
    sys.exit(exit_code(main))
