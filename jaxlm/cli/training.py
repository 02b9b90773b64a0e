"""The verbs that make runs, and text for them: `jaxlm train`, `prepare`, `reproduce` and `import`."""

import argparse
import re
import shlex
import textwrap
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from jaxlm.cli.ending import FAILED, SIGNALLED
from jaxlm.cli.parsing import Parser, add_config_flags, add_field, changes, starting_config, whole
from jaxlm.cli.verbs import DATA_DIR, RUN, Adder, argument, check_run, loaded, pathname, switch, verb
from jaxlm.config.config import PRESETS, Config, changed_kinds, preset
from jaxlm.config.settings import DataConfig
from jaxlm.errors import JaxlmError
from jaxlm.terminal import say, say_line

RUNS = Path("runs")
_EPILOG = f"presets: {', '.join(PRESETS)}"
EPILOG = textwrap.fill(_EPILOG, 78, subsequent_indent="  ", break_on_hyphens=False)
START = (
    argument("--preset", metavar="NAME", values=[*PRESETS], help="the recipe to start from, see below (default small)"),
    pathname("--config", "FILE", "start from a config.json instead"),
)
VOCAB = "a file of one word a line, or for PyTorch the folder of train.txt, valid.txt, test.txt; a hub's folder has one"
PREPARED = ("vocab_size", *DataConfig().options)  # the fields that `prepare` takes


def new_run(label: str) -> Path:
    """The usual place of a run that begins now; with a number where another began in the same second."""
    first = found = RUNS / f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 2
    while found.exists():
        found, number = first.with_name(f"{first.name}-{number}"), number + 1
    return found


def run_dir(default: str) -> Adder:
    """`--run-dir`."""
    return pathname("--run-dir", "DIR", f"where everything is kept (default: {default})")


@verb(
    "train a model",
    *START,
    run_dir("runs/PRESET-DATE-TIME"),
    switch("--resume", "resume --run-dir, or the newest run that has not finished"),
    pathname("--init", "RUN", "begin from another run's parameters and text"),
    switch("--report", "write RUN/report.html at the end"),
    argument("--steps", type=whole(), metavar="N", help="stop after N windows in all"),
    argument("--track", metavar="NAME", help="send the metrics to tensorboard, wandb, trackio or mlflow too"),
    DATA_DIR,
    argument("--devices", type=whole(1), metavar="N", rare=True, help="spread a batch's rows over N devices (all)"),
    argument("--model-devices", type=whole(1), metavar="M", default=1, rare=True, help="spread the vocabulary too (1)"),
    argument("--coordinator", metavar="HOST:PORT", rare=True, help="where process 0 of many can be reached"),
    argument("--processes", type=whole(1), metavar="N", rare=True, help="how many there are (1: train alone)"),
    argument("--process", type=whole(), metavar="I", rare=True, help="which one this is, from 0"),
    add_config_flags,
    epilog=EPILOG,
)
def train(args: argparse.Namespace) -> int:
    from jaxlm.distributed.hosts import join

    if args.resume and (args.init or args.config):
        flag = "--init" if args.init else "--config"
        raise JaxlmError(f"--resume takes the run's own parameters and config: leave {flag} out")
    args.joined = join(args.coordinator, args.processes, args.process)
    if args.joined and args.run_dir is None:
        raise JaxlmError("many processes need --run-dir: a directory that all of them see")
    corpus, params, folder = None, None, args.run_dir
    if args.resume:
        from jaxlm.runs.directory import saved_config

        folder = folder or _unfinished_run(args.preset)
        config = saved_config(folder).replace(**changes(args))
    elif args.init:
        from jaxlm.runs.loading import tuning_config, tuning_corpus

        model = loaded(args.init, "last")
        start = starting_config(args.config, args.preset)
        config = tuning_config(model, start, changes(args), own_model=bool(args.config))
        corpus, params = tuning_corpus(model, config, str(args.init), args.data_dir), model.params
    else:
        start = starting_config(args.config, args.preset)
        config = start.replace(**changes(args))
        for sentence in changed_kinds(start, changes(args)):
            say(sentence)
    folder = folder or new_run(config.preset)

    from jaxlm.report.trackers import tracked
    from jaxlm.runs import trainer

    fields = {name: str(value) for _, name, _, value in config.every_field()}
    with tracked(args.track, folder, {**config.kinds, **fields}) if args.track else nullcontext() as on_metrics:
        options = {name: getattr(args, name) for name in ("resume", "steps", "data_dir", "devices", "model_devices")}
        result = trainer.train(config, corpus=corpus, run_dir=folder, params=params, on_metrics=on_metrics, **options)
    if args.report and result.run_dir and not result.stopped_by:
        from jaxlm.sweeps.report_file import write_report

        if result.epochs:
            say_line(f"report: {write_report([result.run_dir], data_dir=args.data_dir)}")
        else:
            say("there is no report: no epoch has ended")
    return SIGNALLED + result.stopped_by if result.stopped_by else 0


def _unfinished_run(name: str | None) -> Path:
    """The newest run in its usual place that has not finished, of a preset if one is named. Raises JaxlmError."""
    from jaxlm.runs.metrics import read_metrics

    if name:
        preset(name)  # raises where there is no such preset
    begun = re.compile(r"(.+)-([0-9]{8}-[0-9]{6})(?:-([0-9]+))?")  # as `new_run` names them
    found = ((begun.fullmatch(path.parent.name), path.parent) for path in RUNS.glob("*/config.json"))
    runs = sorted((one[2], int(one[3] or 1), run) for one, run in found if one and name in (None, one[1]))
    for *_, run in reversed(runs):
        rows = []
        with suppress(JaxlmError):
            rows = read_metrics(run)
        if not any(row["kind"] == "test" for row in rows):
            say_line(f"resuming {run}")
            return run
    what = f"run of {name}" if name else "run"
    if runs:
        newest = f"every {what} in {RUNS}/ has finished, the newest is {runs[-1][-1]}"
        raise JaxlmError(f"{newest}: name it with --run-dir to resume it with more --epochs")
    raise JaxlmError(f"there is no {what} in {RUNS}/ to resume: name one with --run-dir, or start one without --resume")


def _prepared_fields(parser: Parser) -> None:
    for _, name, spec, default in Config().every_field():
        if name in PREPARED:
            add_field(parser, name, spec, default)


@verb(
    "convert text larger than memory; the same command resumes",
    pathname("text", "TEXT", "a file, a folder or a pattern, as train's --corpus"),
    pathname("out", "OUT", "the folder to make, for --corpus OUT"),
    _prepared_fields,
    uses_jax=False,
)
def prepare(args: argparse.Namespace) -> None:
    config = Config().replace(**changes(args))  # which checks them

    from jaxlm.data import prepared

    corpus = prepared.prepare(args.text, args.out, max_vocab=config.model.vocab_size, **config.data.options)
    words, command = len(corpus.vocab), f"jaxlm train --corpus {shlex.quote(str(args.out))}"
    size = f" --vocab-size {words}" if words > Config().model.vocab_size and not corpus.vocab.tokens.names else ""
    for line in (*corpus.notes, f"{corpus.name}: {corpus.description}", f"train on it with: {command}{size}"):
        say(line)


@verb(
    "train a run again, and compare every byte with it",
    RUN,
    pathname("--run-dir", "NEW", "where the new run is kept (default: RUN-again)"),
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


@verb(
    "make a run of a model of PyTorch, TensorFlow 1 or a hub",
    pathname("file", "FILE", "from torch.save, safetensors or TensorFlow 1, or a hub's folder; never executed"),
    pathname("--vocab", "VOCAB", VOCAB),
    pathname("run", "RUN", "the directory to make"),
)
def import_(args: argparse.Namespace) -> None:
    from jaxlm.interop.importing import import_model
    from jaxlm.runs.directory import saved_record

    model = import_model(args.file, args.vocab, args.run)
    for note in saved_record(args.run)["corpus"]["notes"]:
        say_line(note)
    sizes = model.config.model
    say_line(
        f"{args.run}: {len(model.vocab):,} {model.vocab.kind}, embedding {sizes.embedding_size}, layers "
        f"{', '.join(map(str, sizes.hidden_sizes))}{', tied' if sizes.tied else ''}; try: jaxlm evaluate "
        f"{shlex.quote(str(args.run))} --text FILE"
    )
