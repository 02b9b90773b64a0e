"""`jaxlm train`, `prepare` and `reproduce`."""

import argparse
import re
import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.ending import FAILED, SIGNALLED
from jaxlm.cli.help import later
from jaxlm.cli.parsing import (
    LARGEST,
    add_config_flags,
    add_field,
    add_start,
    changes,
    some_path,
    starting_config,
    whole,
)
from jaxlm.cli.verbs import DATA_DIR, RUN, argument, check_run, verb
from jaxlm.config.config import Config, spec_of_field
from jaxlm.config.presets import preset
from jaxlm.errors import JaxlmError
from jaxlm.terminal import printable, say

if TYPE_CHECKING:
    from jaxlm.data.corpus import Corpus
    from jaxlm.models.cell import Params

RUNS = Path("runs")
PREPARED_FIELDS = {
    "vocab_size": Config().model.vocab_size,
    "min_count": Config().data.min_count,
    "lowercase": Config().data.lowercase,
}


def new_run(label: str) -> Path:
    """The usual place of a run that begins now; with a number where another began in the same second."""
    first = found = RUNS / f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 2
    while found.exists():
        found, number = first.with_name(f"{first.name}-{number}"), number + 1
    return found


def train_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str], start: Config | None = None) -> None:
    """Adds the flags of one run, and one for every field of the config.

    Args:
        parser: what to add to.
        arguments: the command line, which decides the kinds that `--help` shows.
        start: the config of a script that trains one preset; None adds --preset.
    """
    run = parser.add_argument_group("the run")
    add_start(run, with_preset=start is None)
    add_run_arguments(
        run,
        "where everything is kept (default: runs/PRESET-DATE-TIME)",
        "continue the run in --run-dir from its newest checkpoint (default: the newest run of this preset in runs/)",
    )
    run.add_argument(
        "--init",
        type=some_path,
        metavar="RUN",
        help="begin from another run's last checkpoint (its "
        "parameters, model, vocabulary, and its text unless --corpus names one)",
    )
    run.add_argument("--report", action="store_true", help="write RUN/report.html at the end, as `jaxlm report` does")
    run.add_argument("--steps", type=whole(), metavar="N", help="stop after so many windows in all (at least 0)")
    run.add_argument("--track", metavar="NAME", help="send the metrics to tensorboard, wandb, trackio or mlflow too")
    _add_device_arguments(parser)
    add_config_flags(parser, arguments, start)


def add_run_arguments(group: Any, run_dir: str, resume: str) -> None:
    """Adds --run-dir, --resume and --data-dir, with the help of the first two."""
    group.add_argument("--run-dir", type=some_path, metavar="DIR", help=run_dir)
    group.add_argument("--resume", action="store_true", help=resume)
    group.add_argument(
        "--data-dir",
        type=some_path,
        metavar="DIR",
        help="where Penn Treebank's files are (else $JAXLM_DATA, data/ptb, the user's cache, a download)",
    )


@verb("train a model", train_arguments)
def train(args: argparse.Namespace) -> int:
    from jaxlm.distributed.hosts import join

    if args.init and args.resume:
        raise JaxlmError("--init begins a run and --resume continues one: to resume a run, leave --init out")
    args.joined = join(args.coordinator, args.processes, args.process)
    if args.joined and args.run_dir is None:
        raise JaxlmError("many processes need --run-dir: a directory that all of them see")
    if args.resume:
        if args.config:
            raise JaxlmError("--resume takes the run's own config: leave --config out")
        run_dir = args.run_dir or _newest_run(args.preset)
        from jaxlm.runs.directory import saved_config

        config = saved_config(run_dir)
    else:
        config = starting_config(args)
        run_dir = args.run_dir or new_run(config.preset)
    corpus = params = None
    if args.init:
        config, corpus, params = _initial(args, config)
    else:
        config = config.replace(**changes(args))

    if args.report:
        from jaxlm.report.page.vega import chart_library

        chart_library()  # raises before hours of training, where it is not installed
    from jaxlm.report import trackers
    from jaxlm.runs import trainer

    with ExitStack() as stack:
        on_metrics = None
        if args.track is not None:
            fields = {name: str(value) for _, name, _, value in config.every_field()}
            on_metrics = stack.enter_context(trackers.tracked(args.track, run_dir, {**config.kinds, **fields}))
        result = trainer.train(
            config,
            corpus=corpus,
            run_dir=run_dir,
            params=params,
            resume=args.resume,
            steps=args.steps,
            data_dir=args.data_dir,
            devices=args.devices,
            model_devices=args.model_devices,
            on_metrics=on_metrics,
        )
    if args.report and result.run_dir and not result.stopped_by:
        from jaxlm.sweeps.reporting import write_report

        say(
            printable(f"report: {write_report([result.run_dir], data_dir=args.data_dir)}")
            if result.epochs
            else "there is no report: no epoch has ended"
        )
    return SIGNALLED + result.stopped_by if result.stopped_by else 0


def _initial(args: argparse.Namespace, start: Config) -> "tuple[Config, Corpus, Params]":
    """The config, the text and the parameters of a run with --init."""
    check_run(args.init)

    from jaxlm.runs import finetuning
    from jaxlm.runs.loading import load

    model = load(args.init)
    config = finetuning.tuning_config(model, start, changes(args), own_model=args.config is not None)
    return config, finetuning.tuning_corpus(model, config, str(args.init), args.data_dir), model.params


def _prepare_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    for name, default in PREPARED_FIELDS.items():
        add_field(parser, name, spec_of_field(name), default)


@verb(
    "make a corpus of text larger than memory; after an interruption the same command continues",
    argument("text", type=some_path, metavar="TEXT", help="a file, or a folder of train/valid/test text"),
    argument("out", type=some_path, metavar="OUT", help="the folder to make, for --corpus OUT"),
    _prepare_arguments,
    uses_jax=False,
)
def prepare(args: argparse.Namespace) -> None:
    fields = {**PREPARED_FIELDS, **changes(args)}
    config = Config().replace(**fields)  # which checks them

    from jaxlm.data import prepared

    corpus = prepared.prepare(
        args.text,
        args.out,
        max_vocab=config.model.vocab_size,
        min_count=config.data.min_count,
        lowercase=config.data.lowercase,
    )
    size = f" --vocab-size {len(corpus.vocab)}" if len(corpus.vocab) > PREPARED_FIELDS["vocab_size"] else ""
    for line in (
        *corpus.notes,
        f"{corpus.name}: {corpus.description}",
        f"train on it with: jaxlm train --corpus {shlex.quote(str(args.out))}{size}",
    ):
        say(line)


@verb(
    "train a run again, and compare every byte with it",
    RUN,
    argument("--run-dir", type=some_path, metavar="NEW", help="where the new run is kept (default: RUN-again)"),
    DATA_DIR,
)
def reproduce(args: argparse.Namespace) -> int:
    check_run(args.run)

    from jaxlm.runs import reproduction

    found = reproduction.reproduce(args.run, args.run_dir, data_dir=args.data_dir)
    for line in found.surroundings:
        say(printable(f"not as it was then: {line}"))
    if found.stopped_by is not None:
        return SIGNALLED + found.stopped_by
    for line in found.results:
        say(printable(f"differs: {line}"))
    say(printable(f"{args.run} and {found.run_dir} are {'NOT ' if found.results else ''}the same, byte for byte"))
    return FAILED if found.results else 0


def _newest_run(name: str) -> Path:
    """The newest run of a preset that was kept in its usual place."""
    preset(name)  # raises where there is no such preset
    begun = re.compile(re.escape(name) + r"-([0-9]{8}-[0-9]{6})(?:-([0-9]+))?")  # as `new_run` names them
    mine = sorted(
        (found[1], int(found[2] or 1), path.parent)
        for path in RUNS.glob(f"{name}-*/config.json")
        if (found := begun.fullmatch(path.parent.name))
    )
    if not mine:
        raise JaxlmError(
            f"there is no run of {name} in {RUNS}/ to resume: name one with --run-dir, or start one with "
            f"`jaxlm train --preset {name}`"
        )
    return mine[-1][-1]


def _add_device_arguments(parser: argparse.ArgumentParser) -> None:
    devices = parser.add_argument_group("many devices")
    later(
        devices.add_argument(
            "--devices",
            type=whole(1),
            metavar="N",
            help="spread a batch's rows over N devices (default: as many as divide them)",
        )
    )
    later(
        devices.add_argument(
            "--model-devices",
            type=whole(1),
            metavar="M",
            default=1,
            help="spread the vocabulary over M devices, for each of the N (default 1)",
        )
    )
    many = parser.add_argument_group(
        "many processes",
        "copies of one command, which train together; SLURM, Open\n"
        "MPI, Kubernetes and TPU hosts are found automatically",
    )
    later(many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached"))
    later(many.add_argument("--processes", type=whole(1), metavar="N", help="how many they are (1: train alone)"))
    later(many.add_argument("--process", type=whole(0, LARGEST), metavar="I", help="which one this is, from 0"))
