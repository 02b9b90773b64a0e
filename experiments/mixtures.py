"""Mixtures of networks and a 5-gram model on Penn Treebank, by seconds: the speedrun's best tests.

    # Every mixture, three seeds: a table and mixtures.csv
    python experiments/mixtures.py
    # Keep the runs as a record, and check one from its directory alone
    python experiments/mixtures.py --keep records
    python experiments/mixtures.py --verify records/mix-71

The members are rungs of `experiments/speedrun.py`, each trained by `jaxlm train` in a process of
its own with an empty compilation cache, one after the other; then `jaxlm ngram` counts the training
text, and `jaxlm evaluate --protocol interpolation --tune` finds the weights on validation and reads
the test split once. Parameters and weights are fixed while test is read. The seconds are those of
all of these commands. The unit is the speedrun's: TensorFlow 1's whole training of `small`, its
step measured in the same run.

    DIR/record.json            what is claimed of the mixture
    DIR/MEMBER                 the record of each member, as speedrun.py keeps it

A record is checked by the check of each member's record, and by mixing its runs again.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import records
import speedrun
from benchmark import Worker

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import Folder
from jaxlm.base.hashed_json import strict_json
from jaxlm.base.units import mean_and_deviation, spread
from jaxlm.cli.ending import exit_code
from jaxlm.config.protocols import Interpolation

MIXTURES = {"mix-71": ("fast-80", "fast-82-blocks")}  # named by its test perplexity
ORDER = 5  # of the n-gram model
COMMANDS_BESIDE = 2  # the one that counts n-grams, and the one that mixes


class Mixed(NamedTuple):
    """One seed's mixture, and a line of the history."""

    date: str
    commit: str
    machine: str
    mixture: str
    seed: int
    seconds: float  # of all commands
    tensorflow_seconds: float | None
    weights: str  # of the first member, the others and the n-gram model
    valid: float
    test: float


def printed(arguments: Sequence[str], environment: dict[str, str]) -> str:
    """What a command of jaxlm prints. Raises SystemExit where it fails."""
    words = [sys.executable, "-m", "jaxlm", *arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: jaxlm {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def mixed(runs: Sequence[Path], corpus: str) -> tuple[list[float], float, float, float]:
    """Mixes runs with a 5-gram model, by the commands that a user types.

    Args:
        runs: the directories of the members.
        corpus: their text.

    Returns:
        The weights of all models, the perplexities of valid and test, and the commands' seconds.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = speedrun.uncompiled(folder)
        grams = f"{folder}/{ORDER}-gram"
        printed(["ngram", corpus, "--order", str(ORDER), "-o", grams], environment)
        others = ",".join([*map(str, runs[1:]), grams])
        words = ["evaluate", str(runs[0]), "--protocol", "interpolation", "--with", others]
        told = json.loads(printed([*words, "--tune", "--json"], environment))
    weights = told["protocol"]["weight"]
    seconds = time.perf_counter() - began
    return [1 - sum(weights), *weights], told["tuned_valid_perplexity"], told["perplexity"], seconds


def claims(name: str, results: Sequence[Mixed], step_seconds: Sequence[float]) -> dict[str, Any]:
    """What a record claims of a mixture, as `record.json` has it.

    Args:
        name: the mixture's name.
        results: those of three seeds, in order.
        step_seconds: what a step of TensorFlow took in each turn.
    """
    centre, interval = records.summary([result.test for result in results])
    fields = ("seed", "seconds", "valid", "test")
    return {
        "mixture": name,
        "members": MIXTURES[name],
        "order": ORDER,
        "step_seconds": [*step_seconds],
        "runs": [{field: getattr(result, field) for field in fields} for result in results],
        "mean": centre,
        "interval": interval,
    }


def verify(folder: Path, rungs: dict[str, records.Rung]) -> list[str]:
    """What is wrong with a record of a mixture.

    Args:
        folder: the record's directory.
        rungs: the target, text and measure of each member.

    Returns:
        A sentence for each thing that is wrong; none, where the record holds.
    """
    try:
        with Folder.open(folder) as opened:
            record = strict_json(opened.read("record.json", records.MOST_BYTES))
        members = MIXTURES.get(record["mixture"])
        if members is None or [*members] != record["members"] or record["order"] != ORDER:
            return [f"another mixture: {record['mixture']} is none, or is not of {members}"]
        directories = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if directories != sorted(members) or any(path.is_symlink() for path in folder.iterdir()):
            return [f"another mixture: the folders are {directories}, expected {members}"]
        wrong = []
        for member in members:
            for line in records.verify(folder / member, rungs):
                wrong.append(f"{member}: {line}")
        wrong = wrong or list(_wrong_claims(record, folder))
        return wrong or list(_wrong_results(record, folder, rungs))
    except FileNotFoundError as error:
        return [f"incomplete: there is no {error.filename}"]
    except (JaxlmError, OSError, ValueError, KeyError, TypeError) as error:
        return [f"unreadable: {error}"]


def _wrong_claims(record: dict[str, Any], folder: Path) -> Iterator[str]:
    """What is claimed against the members' records, which hold."""
    seeds = [run["seed"] for run in record["runs"]]
    if seeds != records.SEEDS:
        yield f"selected seeds: {seeds} claimed; a record has {records.SEEDS}"
        return
    centre, interval = records.summary([run["test"] for run in record["runs"]])
    if [record["mean"], record["interval"]] != [centre, interval]:
        yield f"another mean or interval: the runs have {centre}, {interval}"
    for member in record["members"]:
        unit = json.loads((folder / member / "record.json").read_text())["unit"]
        if unit["step_seconds"] != record["step_seconds"]:
            yield f"another unit: that of {member} has other steps"


def _wrong_results(
    record: dict[str, Any], folder: Path, rungs: dict[str, records.Rung]
) -> Iterator[str]:
    """Whether the runs, mixed again, give the results, in no less than their epochs' seconds."""
    members = record["members"]
    corpus = jaxlm.load_corpus(rungs[members[0]].corpus)
    with tempfile.TemporaryDirectory() as place:
        grams = Path(place) / "grams"
        jaxlm.ngram(corpus, ORDER, grams)
        for claim in record["runs"]:
            named = f"seed {claim['seed']}"
            runs = [folder / member / f"seed{claim['seed']}" for member in members]
            others = ",".join(map(str, [*runs[1:], grams]))
            tuned = jaxlm.load(runs[0]).tune(Interpolation(with_=others), corpus=corpus)
            for split, value in (("valid", tuned.valid), ("test", tuned.test.perplexity)):
                if claim[split] != value:
                    yield f"{named}: another result: {split} is {value} when mixed again"
            least = sum(
                epoch["seconds"] for run in runs for epoch in records.read_timing(run).values()
            )
            most = least + records.START * (len(members) + COMMANDS_BESIDE)
            if not least <= claim["seconds"] <= most:
                yield f"{named}: another time: its epochs took {least:.1f} s"


def table(lines: Sequence[Mixed]) -> str:
    """Mean and standard deviation over the seeds of each mixture."""
    rows = ["| mixture | seconds | of TensorFlow's time | valid | test |", "|" + "---|" * 5]
    for name in dict.fromkeys(line.mixture for line in lines):
        of_mixture = [line for line in lines if line.mixture == name]
        shares = [
            line.seconds / line.tensorflow_seconds for line in of_mixture if line.tensorflow_seconds
        ]
        cells = [f"`{name}`"]
        for values in (
            [line.seconds for line in of_mixture],
            shares,
            [line.valid for line in of_mixture],
            [line.test for line in of_mixture],
        ):
            cells.append(spread(*mean_and_deviation(values), "{:,.2f}".format) if values else "")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixtures", nargs="+", choices=list(MIXTURES), default=list(MIXTURES))
    parser.add_argument(
        "--out", type=Path, default=Path("mixtures.csv"), help="the history (mixtures.csv)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the runs of each mixture as a record"
    )
    parser.add_argument("--verify", type=Path, metavar="DIR", help="check a record, and end")
    args = parser.parse_args()
    if args.verify:
        records.say_verdict(args.verify, verify(args.verify, speedrun.RUNGS))
        return
    names = dict.fromkeys(args.mixtures)
    if args.keep:
        for name in names:
            speedrun.begin_record(args.keep / name)
    speedrun.begin_history(args.out, Mixed._fields)
    tensorflow = speedrun.started_tensorflow()
    lines: list[Mixed] = []
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (args.keep or Path(temporary)) / name
            lines += _measured(name, folder, args.out, tensorflow)
    print(table(lines))
    print(args.out)


def _measured(name: str, folder: Path, out: Path, tensorflow: Worker | None) -> list[Mixed]:
    """Trains and mixes three seeds, and writes the records of the mixture and its members."""
    of_members: dict[str, list[Any]] = {member: [] for member in MIXTURES[name]}
    lines = []
    for seed in records.SEEDS:
        code = speedrun.commit()
        runs = []
        seconds = 0.0
        for member, of_member in of_members.items():
            runs.append(folder / member / f"seed{seed}")
            logs = out.with_name("speedrun-logs")
            rung = speedrun.RUNGS[member]
            record = speedrun.run(member, rung, seed, 0, tensorflow, logs, runs[-1])
            of_member.append(record)
            seconds += record.seconds_in_all
            print(record, flush=True)
        weights, valid, test, seconds_beside = mixed(runs, speedrun.RUNGS[member].corpus)
        line = Mixed(
            date=date.today().isoformat(),
            commit=code,
            machine=speedrun.machine(),
            mixture=name,
            seed=seed,
            seconds=seconds + seconds_beside,
            tensorflow_seconds=speedrun.tensorflow_seconds(tensorflow),
            weights=" ".join(f"{weight:.3f}" for weight in weights),
            valid=valid,
            test=test,
        )
        print(line, flush=True)
        with open(out, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(line)
        lines.append(line)
    if tensorflow:
        steps = tensorflow.seconds
        for member, of_member in of_members.items():
            tree = records.claims(member, speedrun.RUNGS[member], of_member, steps)
            (folder / member / "record.json").write_text(json.dumps(tree, indent=1) + "\n")
        tree = claims(name, lines, steps)
        (folder / "record.json").write_text(json.dumps(tree, indent=1) + "\n")
    return lines


if __name__ == "__main__":
    sys.exit(exit_code(main))
