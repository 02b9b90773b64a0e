"""Tiny Shakespeare by characters, beside nanoGPT on the same cores.

    # Our presets alone, a seed each
    python experiments/shakespeare.py
    # With nanoGPT: a checkout of it, and a Python that has torch and numpy
    python experiments/shakespeare.py --nanogpt ../nanoGPT --python ../torch/bin/python --seeds 3
    # Fewer epochs; the last 32% of the training part, once
    python experiments/shakespeare.py --presets hawk:1 shakespeare:2 transformer:1:32
    # Two presets at once, each on a core of its own, mixed
    python experiments/shakespeare.py --presets shakespeare-small+shakespeare-blocks

nanoGPT is trained by the command of its README for a CPU (4 layers, 128 wide, blocks of 64, batches
of 12, 2,000 iterations) as it stands. Its last checkpoint reads the whole validation part in blocks
of 64, and its mean is over all characters, not over random blocks. Our presets are trained and read
the same part by `jaxlm train` and `jaxlm evaluate`: plainly; interpolated with a 7-gram model of
characters, which is a row of its own; adaptively, learning from each 64 characters once they are
scored, with the 7-gram model; and presets with their own epochs by dynamic evaluation with the
training text's statistics. Two presets with a plus between them are trained at once, and read as a
mixture in which each has the same weight, and the 7-gram model too. Where a text is read but once,
nothing is dropped. Seconds are of the whole command of training: start, compilation and all
validations, without installation; those of reading adaptively are beside them, counting the 7-gram
included.

Each run is kept in --run-dir (runs/shakespeare), and a second start does not repeat it. Nothing
else should run beside it. The results are shakespeare.csv there, a line a run.
"""

import argparse
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import product
from pathlib import Path

import jax
import numpy as np
from shootout import keep, write_rows
from speedrun import commit, machine

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.base.units import mean_and_deviation, spread
from jaxlm.cli.arguments import whole
from jaxlm.cli.ending import exit_code
from jaxlm.config.config import PRESETS
from jaxlm.config.protocols import Dynamic, Interpolation
from jaxlm.data.known_texts import SHAKESPEARE, find_known_text
from jaxlm.ngrams import folder as ngrams_folder
from jaxlm.runs.lock import lock
from jaxlm.scoring.language_model import NgramModel

NANOGPT = "nanogpt"
NGRAM = "7-gram"
ONCE = ["--epochs", "1", "--keep-output", "none"]
NOTHING_MORE = (None, None, None, None)  # mixed, dynamic, adaptive and its seconds
DYNAMIC = Dynamic(segment_length=20)
OURS = [name for name in PRESETS if jaxlm.preset(name).data.corpus == "shakespeare"]
# Chosen on seed 0 of `transformer:1`, of three.
ADAPTIVE = Dynamic(rule="sgd", segment_length=64, learning_rate=0.1, lambda_=1e-3)
NGRAM_WEIGHT = 0.4
# Its README's line for a CPU, but for its seed, which its code fixes at 1337.
LINE = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
# Run in nanoGPT's folder by its Python: the mean over the whole validation part.
WHOLE = """
import sys, numpy, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
block = model.config.block_size
ids = torch.from_numpy(numpy.fromfile("data/shakespeare_char/val.bin", "uint16").astype("int64"))
nats = 0.0
with torch.no_grad():
    for start in range(0, len(ids) - 1, block):
        x = ids[start : start + block + 1]
        nats += model(x[None, :-1], x[None, 1:])[1].item() * (len(x) - 1)
print(nats / (len(ids) - 1), sum(p.numel() for p in model.parameters()))
"""


@dataclass(frozen=True)
class Row:
    """A line of shakespeare.csv; losses are of the whole validation part, in nats a character."""

    system: str
    seed: int
    parameters: int
    seconds: float
    nats: float
    mixed: float | None  # interpolated with the 7-gram model
    dynamic: float | None  # by dynamic evaluation
    adaptive: float | None  # by a step after each 64 characters, with the 7-gram model
    adaptive_seconds: float | None  # of counting the 7-gram model, and of reading so
    date: str
    commit: str
    machine: str


def preset_and_epochs(text: str) -> str:
    """The type of an argument PRESET[:EPOCHS], PRESET:1:PERCENT or PRESET+PRESET."""
    if text.count("+") == 1 and all(name in OURS for name in text.split("+")):
        return text
    preset, *numbers = text.split(":")
    is_share = len(numbers) == 2 and numbers[0] == "1"
    is_known = preset in OURS and all(number.isdecimal() for number in numbers)
    if not is_known or not (len(numbers) < 2 or is_share):
        raise argparse.ArgumentTypeError(
            f"expected PRESET[:EPOCHS] or PRESET+PRESET of {OURS}, or PRESET:1:PERCENT, "
            f"found {text!r}"
        )
    return text


def timed(command: Sequence[object], folder: Path | None = None) -> tuple[str, float]:
    """What a command prints, and its seconds, with no programs that an earlier one compiled.

    Args:
        command: Its words.
        folder: Where it runs; None: here.

    Raises:
        JaxlmError: It fails.
    """
    with tempfile.TemporaryDirectory() as programs:
        start = time.monotonic()
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": programs},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - start
    if done.returncode:
        raise JaxlmError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout, seconds


def nanogpt(args: argparse.Namespace, seed: int) -> Row:
    """Trains nanoGPT and reads the validation part.

    Args:
        args: The parsed arguments.
        seed: Takes the place of its own.
    """
    folder = args.run_dir / f"{NANOGPT}-seed{seed}"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(args.nanogpt, folder, ignore=shutil.ignore_patterns(".git", "out-*"))
    write_nanogpt_text(folder / "data" / "shakespeare_char")
    train = folder / "train.py"
    train.write_text(train.read_text().replace("manual_seed(1337", f"manual_seed({1337 + seed}"))
    _, seconds = timed([args.python, "train.py", *LINE], folder)
    text, _ = timed([args.python, "-c", WHOLE, "out-shakespeare-char/ckpt.pt"], folder)
    nats, parameters = text.splitlines()[-1].split()  # below what its model prints
    return Row(NANOGPT, seed, int(parameters), seconds, float(nats), *NOTHING_MORE, **about())


def ngram(args: argparse.Namespace) -> Row:
    """Counts a 7-gram model of characters and reads the validation part.

    Args:
        args: The parsed arguments.
    """
    folder = args.run_dir / NGRAM
    seconds = count_ngram("shakespeare", folder)
    model = NgramModel.of(ngrams_folder.load(folder))
    nats = math.log(model.evaluate("test").perplexity)
    return Row(NGRAM, 0, model.ngram.grams, seconds, nats, *NOTHING_MORE, **about())


def count_ngram(text: str | Path, folder: Path) -> float:
    """Counts a 7-gram model of characters, and returns its seconds.

    Args:
        text: What it counts.
        folder: Where it goes; one that lies there is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "jaxlm", "ngram", text, "--tokens", "characters"]
    _, seconds = timed([*command, "--order", "7", "-o", folder])
    return seconds


def nanogpt_parts() -> tuple[str, str]:
    """Tiny Shakespeare's training and validation parts, as nanoGPT cuts it."""
    text = find_known_text(SHAKESPEARE, None, True)["input"].read_text()
    border = int(0.9 * len(text))
    return text[:border], text[border:]


def write_nanogpt_text(folder: Path) -> None:
    """Writes the ids of tiny Shakespeare as nanoGPT's `prepare.py` does, from the text found here.

    Args:
        folder: For train.bin, val.bin and meta.pkl.
    """
    train, valid = nanogpt_parts()
    letters = sorted(set(train + valid))
    number = {letter: place for place, letter in enumerate(letters)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("val", valid)):
        ids = np.array([number[letter] for letter in part], np.uint16)
        ids.tofile(folder / f"{name}.bin")
    meta = {"vocab_size": len(letters), "stoi": number, "itos": dict(enumerate(letters))}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def ours(args: argparse.Namespace, system: str, seed: int) -> Row:
    """Trains a preset by the command line and reads the validation part.

    Args:
        args: The parsed arguments.
        system: The preset's name, with :EPOCHS if they are not its own.
        seed: Of the run.
    """
    folder = args.run_dir / f"{system}-seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # what a start that was stopped left
    preset, *numbers = system.split(":")
    command = [sys.executable, "-m", "jaxlm", "train", "--preset", preset]
    if numbers:
        command += ONCE if numbers[0] == "1" else ["--epochs", numbers[0]]
    counted = args.run_dir / NGRAM
    if len(numbers) == 2:
        text = args.run_dir / f"last{numbers[1]}"
        write_last_part(text, int(numbers[1]))
        command += ["--corpus", str(text), "--tokens", "characters"]
        counted = args.run_dir / f"{NGRAM}-last{numbers[1]}"
        counting = count_ngram(text, counted)
    else:
        counting = json.loads((args.run_dir / f"{NGRAM}-seed0.json").read_text())["seconds"]
    _, seconds = timed([*command, "--seed", str(seed), "--run-dir", folder])
    lm = jaxlm.load(folder)
    # The test split is the validation part, read in one row.
    nats = math.log(lm.evaluate("test").perplexity)
    mixed = math.log(lm.tune(Interpolation(with_=str(counted))).test.perplexity)
    protocol = replace(ADAPTIVE, with_=str(counted), weight=NGRAM_WEIGHT)
    start = time.monotonic()
    adaptive = math.log(lm.evaluate("test", protocol=protocol).perplexity)
    adaptive_seconds = counting + time.monotonic() - start
    dynamic = None
    if not numbers:
        dynamic = math.log(lm.evaluate("test", protocol=DYNAMIC).perplexity)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    losses = nats, mixed, dynamic, adaptive, adaptive_seconds
    return Row(system, seed, parameters, seconds, *losses, **about())


def mixture(args: argparse.Namespace, system: str, seed: int) -> Row:
    """Trains two presets at once, each on a core of its own, and reads the validation part by both.

    Args:
        args: The parsed arguments.
        system: The names of both, with a plus between them.
        seed: Of both runs.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise JaxlmError(f"{system} takes two cores, and there is one: name one preset")
    folders = [args.run_dir / f"{preset}-of-two-seed{seed}" for preset in system.split("+")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # what a start that was stopped left
    train = [sys.executable, "-m", "jaxlm", "train", "--seed", seed]
    commands = [
        ["taskset", "--cpu-list", core, *train, "--preset", preset, "--run-dir", folder]
        for preset, folder, core in zip(system.split("+"), folders, cores, strict=False)
    ]
    start = time.monotonic()
    with ThreadPoolExecutor(len(commands)) as pool:
        list(pool.map(timed, commands))
    seconds = time.monotonic() - start
    first, second = map(jaxlm.load, folders)
    halves = Interpolation(with_=str(folders[1]), weight=(1 / 2,))
    thirds = Interpolation(with_=f"{folders[1]},{args.run_dir / NGRAM}", weight=(1 / 3, 1 / 3))
    nats = math.log(first.evaluate("test", protocol=halves).perplexity)
    mixed = math.log(first.evaluate("test", protocol=thirds).perplexity)
    parameters = sum(leaf.size for lm in (first, second) for leaf in jax.tree.leaves(lm.params))
    return Row(system, seed, parameters, seconds, nats, mixed, None, None, None, **about())


def write_last_part(folder: Path, percent: int) -> None:
    """Writes the end of the training part as a text to train on, with the same validation part.

    Args:
        folder: For train.txt, valid.txt and test.txt.
        percent: How much of the training part.
    """
    train, valid = nanogpt_parts()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text(train[len(train) - len(train) * percent // 100 :])
    for split in ("valid", "test"):
        (folder / f"{split}.txt").write_text(valid)


def measured(args: argparse.Namespace, system: str, seed: int) -> Row:
    """Trains a system and reads the validation part.

    Args:
        args: The parsed arguments.
        system: Its name in the table.
        seed: Of the run.
    """
    if system == NGRAM:
        return ngram(args)
    if system == NANOGPT:
        return nanogpt(args, seed)
    if "+" in system:
        return mixture(args, system, seed)
    return ours(args, system, seed)


def about() -> dict[str, str]:
    """Date, commit and machine of a row."""
    return {"date": date.today().isoformat(), "commit": commit(), "machine": machine()}


def table(rows: Sequence[Row]) -> str:
    """Means and deviations over the seeds, in Markdown."""
    lines = [
        "| system | parameters | seconds | nats | with the 7-gram | dynamically | adaptively | "
        "seconds of that | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for system in dict.fromkeys(row.system for row in rows):
        runs = [row for row in rows if row.system == system]
        seconds, _ = mean_and_deviation([row.seconds for row in runs])
        losses = [
            shown_mean([getattr(row, name) for row in runs])
            for name in ("nats", "mixed", "dynamic", "adaptive")
        ]
        more = [row.adaptive_seconds for row in runs if row.adaptive_seconds is not None]
        losses.append(f"{mean_and_deviation(more)[0]:.0f}" if more else "")
        lines.append(
            f"| {system} | {runs[0].parameters:,} | {seconds:.0f} | {' | '.join(losses)} | "
            f"{len(runs)} |"
        )
    return "\n".join(lines) + "\n"


def shown_mean(losses: Sequence[float | None]) -> str:
    """Mean and deviation of losses as text; empty where they were not measured."""
    measured = [loss for loss in losses if loss is not None]
    if not measured:
        return ""
    return spread(*mean_and_deviation(measured), shown="{:.3f}".format)


def main() -> None:
    """Trains each system with each seed, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--presets",
        nargs="+",
        type=preset_and_epochs,
        default=OURS,
        metavar="PRESET[:EPOCHS[:PERCENT]] or PRESET+PRESET",
        help=f"of {', '.join(OURS)} (all, each with its own epochs)",
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--python", default=sys.executable, help="that has torch, for nanoGPT")
    parser.add_argument("--seeds", type=whole(1), default=1, help="runs of each (1)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/shakespeare"))
    args = parser.parse_args()
    if args.nanogpt and not (args.nanogpt / "train.py").is_file():
        raise JaxlmError(f"{args.nanogpt} is no checkout of nanoGPT: it has no train.py")
    args.run_dir = Path(os.path.abspath(args.run_dir))
    with lock(args.run_dir):
        rows: list[Row] = []
        systems = [NGRAM, *([NANOGPT] if args.nanogpt else []), *args.presets]
        for system, seed in product(systems, range(args.seeds)):
            if system == NGRAM and seed:
                continue  # counting draws nothing
            path = args.run_dir / f"{system}-seed{seed}.json"
            if not path.exists():
                row = measured(args, system, seed)
                keep(path, asdict(row))
                print(f"{system}, seed {seed}: {row.nats:.4f} in {row.seconds:.0f} s", flush=True)
            rows.append(Row(**json.loads(path.read_text())))
            write_rows([asdict(row) for row in rows], args.run_dir / "shakespeare.csv")
        print(table(rows))


if __name__ == "__main__":
    sys.exit(exit_code(main))
