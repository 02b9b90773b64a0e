"""`jaxlm train`, `prepare` and `reproduce`."""

import argparse
import re
import shlex
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.ending import FAILED, SIGNALLED
from jaxlm.cli.parsing import Parser, add_config_flags, add_field, add_start, changes, some_path, starting_config, whole
from jaxlm.cli.verbs import DATA_DIR, RUN, argument, check_run, loaded, verb
from jaxlm.config.config import Config, spec_of_field
from jaxlm.config.presets import preset
from jaxlm.errors import JaxlmError
from jaxlm.terminal import say, say_line

if TYPE_CHECKING:
    from jaxlm.data.corpus import Corpus
    from jaxlm.models.recurrent import Params

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


def train_arguments(parser: Parser, start: Config | None = None) -> None:
    """Adds the flags of one run, and one for every field of the config.

    Args:
        parser: what to add to.
        start: the config of a script that trains one preset; None adds --preset.
    """
    run = parser.add_argument_group("the run")
    add_start(parser, run, with_preset=start is None)
    add_run_arguments(
        run,
        "where everything is kept (default: runs/PRESET-DATE-TIME)",
        "resume the run in --run-dir (default: the newest in runs/ that has not finished, of --preset if given)",
    )
    run.add_argument("--init", type=some_path, metavar="RUN", help="begin from another run's parameters and text")
    run.add_argument("--report", action="store_true", help="write RUN/report.html at the end")
    run.add_argument("--steps", type=whole(), metavar="N", help="stop after N windows in all")
    run.add_argument("--track", metavar="NAME", help="send the metrics to tensorboard, wandb, trackio or mlflow too")
    devices, rare = parser.add_argument_group("many devices"), parser.rare
    rows = rare("spread a batch's rows over N devices (default: as many as divide them)")
    devices.add_argument("--devices", type=whole(1), metavar="N", help=rows)
    words = rare("spread the vocabulary over M devices, for each of the N (default 1)")
    devices.add_argument("--model-devices", type=whole(1), metavar="M", default=1, help=words)
    many = parser.add_argument_group("many processes: copies of one command; SLURM, Open MPI and others are found")
    many.add_argument("--coordinator", metavar="HOST:PORT", help=rare("where process 0 can be reached"))
    many.add_argument("--processes", type=whole(1), metavar="N", help=rare("how many there are (1: train alone)"))
    many.add_argument("--process", type=whole(), metavar="I", help=rare("which one this is, from 0"))
    add_config_flags(parser, start)


def add_run_arguments(group: Any, run_dir: str, resume: str) -> None:
    """Adds --run-dir, --resume and --data-dir, with the help of the first two."""
    group.add_argument("--run-dir", type=some_path, metavar="DIR", help=run_dir)
    group.add_argument("--resume", action="store_true", help=resume)
    where = "where Penn Treebank's files are (default: they are searched for)"
    group.add_argument("--data-dir", type=some_path, metavar="DIR", help=where)


@verb("train a model", train_arguments)
def train(args: argparse.Namespace) -> int:
    from jaxlm.distributed.hosts import join

    if args.resume and (args.init or args.config):
        flag = "--init" if args.init else "--config"
        raise JaxlmError(f"--resume takes the run's own parameters and config: leave {flag} out")
    args.joined = join(args.coordinator, args.processes, args.process)
    if args.joined and args.run_dir is None:
        raise JaxlmError("many processes need --run-dir: a directory that all of them see")
    corpus = params = None
    if args.resume:
        from jaxlm.runs.directory import saved_config

        run_dir = args.run_dir or _unfinished_run(args.preset)
        config = saved_config(run_dir).replace(**changes(args))
    elif args.init:
        config, corpus, params = _initial(args)
        run_dir = args.run_dir or new_run(config.preset)
    else:
        config = starting_config(args).replace(**changes(args))
        run_dir = args.run_dir or new_run(config.preset)

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

        if result.epochs:
            say_line(f"report: {write_report([result.run_dir], data_dir=args.data_dir)}")
        else:
            say("there is no report: no epoch has ended")
    return SIGNALLED + result.stopped_by if result.stopped_by else 0


def _initial(args: argparse.Namespace) -> "tuple[Config, Corpus, Params]":
    """The config, the text and the parameters of a run with --init."""
    model = loaded(args.init, "last")

    from jaxlm.runs import finetuning

    config = finetuning.tuning_config(model, starting_config(args), changes(args), own_model=args.config is not None)
    return config, finetuning.tuning_corpus(model, config, str(args.init), args.data_dir), model.params


def _unfinished_run(name: str | None) -> Path:
    """The newest run in its usual place that has not finished, of a preset if one is named. Raises JaxlmError."""
    if name:
        preset(name)  # raises where there is no such preset
    begun = re.compile(r"(.+)-([0-9]{8}-[0-9]{6})(?:-([0-9]+))?")  # as `new_run` names them
    runs = sorted(
        (found[2], int(found[3] or 1), path.parent)
        for path in RUNS.glob("*/config.json")
        if (found := begun.fullmatch(path.parent.name)) and name in (None, found[1])
    )
    for *_, run in reversed(runs):
        if not _is_finished(run):
            say_line(f"resuming {run}")
            return run
    what = f"run of {name}" if name else "run"
    if runs:
        raise JaxlmError(
            f"every {what} in {RUNS}/ has finished, the newest is {runs[-1][-1]}: name it with --run-dir to resume it "
            f"with more --epochs"
        )
    raise JaxlmError(
        f"there is no {what} in {RUNS}/ to resume: name one with --run-dir, or start one with `jaxlm train`"
    )


def _is_finished(run: Path) -> bool:
    from jaxlm.runs.metrics import read_metrics

    with suppress(JaxlmError):
        return any(row["kind"] == "test" for row in read_metrics(run))
    return False


def _prepare_arguments(parser: Parser) -> None:
    for name, default in PREPARED_FIELDS.items():
        add_field(parser, name, spec_of_field(name), default)


@verb(
    "convert text larger than memory; the same command resumes",
    argument("text", type=some_path, metavar="TEXT", help="a file, or a folder of train/valid/test text"),
    argument("out", type=some_path, metavar="OUT", help="the folder to make, for --corpus OUT"),
    _prepare_arguments,
    uses_jax=False,
)
def prepare(args: argparse.Namespace) -> None:
    config = Config().replace(**{**PREPARED_FIELDS, **changes(args)})  # which checks them

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
        say_line(f"not as it was then: {line}")
    if found.stopped_by is not None:
        return SIGNALLED + found.stopped_by
    for line in found.results:
        say_line(f"differs: {line}")
    say_line(f"{args.run} and {found.run_dir} are {'NOT ' if found.results else ''}the same, byte for byte")
    return FAILED if found.results else 0
