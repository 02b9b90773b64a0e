"""The verbs that train: `jaxlm train` and `reproduce`."""

import argparse
from contextlib import ExitStack

import jax

from jaxlm.base.errors import JaxlmError
from jaxlm.base.packaged import DIRECTORY, NAME
from jaxlm.base.terminal import say, say_line
from jaxlm.cli.arguments import (
    DATA_DIR,
    RUN,
    argument,
    command,
    pathname,
    run_path,
    switch,
    whole,
)
from jaxlm.cli.config_flags import PRESET_NAMES, START, add_config_flags, changes, starting_config
from jaxlm.cli.dated_runs import new_run, newest_unfinished
from jaxlm.cli.ending import FAILED, SIGNALLED
from jaxlm.cli.opening import check_run, open_model
from jaxlm.config.config import changed_kinds
from jaxlm.distributed import hosts
from jaxlm.report.trackers import tracked
from jaxlm.runs import reproduction, trainer
from jaxlm.runs.directory import saved_config, saved_record
from jaxlm.runs.loading import init_config, init_corpus
from jaxlm.runs.metrics import read_metrics
from jaxlm.sweeps.report_file import write_report


@command(
    *START,
    pathname("--run-dir", "DIR", "where everything is kept (default: runs/PRESET-DATE-TIME)"),
    switch("--resume", "resume --run-dir, or the newest run that has not finished"),
    argument("--init", "RUN", "begin from another run's parameters and text", type=run_path),
    switch("--report", "write RUN/report.html at the end"),
    argument("--steps", "N", "stop after N windows in all", type=whole()),
    argument("--track", "NAME", "send the metrics to tensorboard or wandb too"),
    DATA_DIR,
    argument(
        "--devices",
        "N",
        "devices that share a batch's rows (default: most that divide)",
        type=whole(1),
        rare=True,
    ),
    argument(
        "--model-devices",
        "M",
        "spread the vocabulary too (1)",
        type=whole(1),
        default=1,
        rare=True,
    ),
    argument(
        "--profile",
        "N",
        "trace N windows by JAX's profiler, into the run's directory",
        type=whole(1),
        rare=True,
    ),
    argument("--coordinator", "HOST:PORT", "address of process 0", rare=True),
    argument("--processes", "N", "number of processes (1: train alone)", type=whole(1), rare=True),
    argument("--process", "I", "this process's index, from 0", type=whole(), rare=True),
    add_config_flags,
    epilog=PRESET_NAMES,
)
def train(args: argparse.Namespace) -> int:
    """Trains a model: a new run, one from another run's parameters, or a run that is resumed."""
    if args.resume and (args.init or args.config):
        flag = "--init" if args.init else "--config"
        raise JaxlmError(f"--resume takes the run's own parameters and config: leave {flag} out")
    run_dir = args.run_dir
    if args.resume:
        run_dir = run_dir or newest_unfinished(args.preset)
        start = saved_config(run_dir)
        if args.preset not in (None, start.preset):
            raise JaxlmError(
                f"{run_dir} holds a run of {start.preset}, not of {args.preset}: leave --preset out"
            )
    else:
        start = starting_config(args.config, args.preset)
    # Before JAX's devices are used.
    if hosts.join_processes(args.coordinator, args.processes, args.process) and not args.run_dir:
        raise JaxlmError("many processes need --run-dir: a directory that all of them see")
    flags = changes(args)
    corpus = None
    params = None
    if args.init:
        model = open_model(args.init, "last")
        config = init_config(model, start, flags, own_model=bool(args.config))
        corpus = init_corpus(model, config, str(args.init), args.data_dir)
        params = model.params
    else:
        config = start.replace(**flags)
        for sentence in changed_kinds(start, flags):
            say(sentence)
    with ExitStack() as stack:
        if run_dir is None:
            run_dir = stack.enter_context(new_run(config.preset))
        on_metrics = None
        if args.track and jax.process_index() == 0:  # Of many processes the first has the metrics.
            fields = {name: str(value) for _, name, _, value in config.every_field()}
            on_metrics = stack.enter_context(
                tracked(args.track, run_dir, {**config.kinds, **fields})
            )
        result = trainer.train(
            config,
            corpus=corpus,
            run_dir=run_dir,
            params=params,
            on_metrics=on_metrics,
            resume=args.resume,
            steps=args.steps,
            data_dir=args.data_dir,
            devices=args.devices,
            model_devices=args.model_devices,
            profile=args.profile,
        )
    if result.stopped_by:
        return SIGNALLED + result.stopped_by
    if args.report and result.run_dir:
        if result.epochs:
            say_line(f"report: {write_report([result.run_dir], data_dir=args.data_dir)}")
        else:
            say("there is no report: no epoch has ended")
    return 0


@command(
    RUN,
    pathname("--run-dir", "NEW", "where the new run is kept (default: RUN-again)"),
    DATA_DIR,
)
def reproduce(args: argparse.Namespace) -> int:
    """Trains a run again, and says what differs from it."""
    check_run(args.run)
    if args.run == DIRECTORY:
        _say_how_to_make()
        return 0
    again = reproduction.reproduce(args.run, args.run_dir, data_dir=args.data_dir)
    for line in again.surroundings:
        say_line(f"not as it was then: {line}")
    if again.stopped_by is not None:
        return SIGNALLED + again.stopped_by
    for line in again.results:
        say_line(f"differs: {line}")
    if again.results:
        say_line(f"{args.run} and {again.run_dir} are NOT the same, byte for byte")
        return FAILED
    say_line(f"{args.run} and {again.run_dir} are the same, byte for byte")
    return 0


def _say_how_to_make() -> None:
    """Says how the model that comes with jaxlm is made anew."""
    rows = read_metrics(DIRECTORY)
    valid = [row["valid_perplexity"] for row in rows if row["kind"] == "epoch"][-1]
    test = [row["test_perplexity"] for row in rows if row["kind"] == "test"][-1]
    sha256 = saved_record(DIRECTORY)["corpus"]["sha256"]
    dtype = saved_config(DIRECTORY).model.compute_dtype
    say(
        f"""{NAME} is made anew in a clone of jaxlm (docs/{NAME}.md):

    python experiments/english.py corpus corpus
    jaxlm train --preset {NAME} --corpus corpus --compute-dtype {dtype} --run-dir runs/{NAME}
    python experiments/english.py pack runs/{NAME} jaxlm/{NAME}

The run's corpus has the sha256 {sha256}.
It ends at a perplexity of about {valid:.1f} a subword on valid and {test:.1f} on test:
on another machine numbers differ by rounding, which training amplifies."""
    )
