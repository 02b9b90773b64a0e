"""The verbs that make runs, and text for them: `jaxlm train`, `prepare`, `reproduce`, `import` and `sweep`."""

import argparse
import json
import re
import shlex
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from jaxlm.cli.ending import FAILED, SIGNALLED
from jaxlm.cli.parsing import Parser, add_config_flags, add_field, changes, starting_config, whole
from jaxlm.cli.verbs import DATA_DIR, RUN, argument, check_run, loaded, pathname, switch, verb
from jaxlm.config.config import PRESETS, Config, changed_kinds, preset
from jaxlm.config.settings import DataConfig
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.terminal import flag_text, say, say_line

RUNS = Path("runs")
EPILOG = textwrap.fill(
    f"presets: {', '.join(PRESETS)}", 78, subsequent_indent="  ", break_on_hyphens=False
)
START = (
    argument(
        "--preset",
        metavar="NAME",
        values=[*PRESETS],
        help="the recipe to start from, see below (default small)",
    ),
    pathname("--config", "FILE", "start from a config.json instead"),
)
VOCAB = (
    "a file of one word a line, or vocab.json of a hub's folder, or for PyTorch the folder of train.txt, valid.txt, "
    "test.txt; a hub's folder has one"
)
PREPARED = ("vocab_size", *DataConfig().options)  # the fields that `prepare` takes
SPACES = """a field's SPACE is one of:
  0.5,1,2            listed values; true,false; a text
  256x128,200x200    widths of the layers, for hidden_sizes
  range:2:8:2        2, 4, 6 and 8
  uniform:0.5:1      any number between; whole where the field is
  log:0.1:10         any number between, uniform in the logarithm
and every field is a flag too, as in `jaxlm train --help-all`

examples:
  jaxlm sweep --epochs 6 --set learning_rate=0.5,1,2 --set clip_norm=1,5
  jaxlm sweep --set hidden_sizes=256x128,200x200 --set keep_output=0.5,0.7
  jaxlm sweep --set learning_rate=log:0.1:10 --strategy tpe --trials 30
  jaxlm sweep --run-dir runs/mine --resume     on this machine or another
"""
STORAGE = "the URL of a database for Optuna's study ($JAXLM_STORAGE, else a journal in RUN_DIR); it is not saved"


@contextmanager
def new_run(label: str) -> Iterator[Path]:
    """A new directory in the usual place, numbered where another began in the same second; left empty, it goes."""
    from jaxlm.files import Folder, explained

    label = re.sub(r"[^\w.-]", "-", label)  # of a config that others wrote it may be any text
    first = RUNS / f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    remedy = "fix that, or choose another place with --run-dir"
    with (
        explained(RunDirError, f"no run can begin in {RUNS}", remedy),
        Folder.open(RUNS, create=True) as runs,
    ):
        while True:
            found = first.with_name(f"{first.name}-{number}") if number > 1 else first
            number = number + 1
            with suppress(FileExistsError):
                found.mkdir()
                break
        runs.sync()
    try:
        yield found
    finally:
        with suppress(OSError):  # a run began in it
            found.rmdir()


@verb(
    "train a model",
    *START,
    pathname("--run-dir", "DIR", "where everything is kept (default: runs/PRESET-DATE-TIME)"),
    switch("--resume", "resume --run-dir, or the newest run that has not finished"),
    pathname("--init", "RUN", "begin from another run's parameters and text"),
    switch("--report", "write RUN/report.html at the end"),
    argument("--steps", type=whole(), metavar="N", help="stop after N windows in all"),
    argument(
        "--track",
        metavar="NAME",
        help="send the metrics to tensorboard, wandb, trackio or mlflow too",
    ),
    DATA_DIR,
    argument(
        "--devices",
        type=whole(1),
        metavar="N",
        rare=True,
        help="devices that share a batch's rows (default: most that divide)",
    ),
    argument(
        "--model-devices",
        type=whole(1),
        metavar="M",
        default=1,
        rare=True,
        help="spread the vocabulary too (1)",
    ),
    argument("--coordinator", metavar="HOST:PORT", rare=True, help="address of process 0"),
    argument(
        "--processes",
        type=whole(1),
        metavar="N",
        rare=True,
        help="number of processes (1: train alone)",
    ),
    argument(
        "--process", type=whole(), metavar="I", rare=True, help="this process's index, from 0"
    ),
    add_config_flags,
    epilog=EPILOG,
)
def train(args: argparse.Namespace) -> int:
    from jaxlm.distributed.hosts import join_processes

    if args.resume and (args.init or args.config):
        flag = "--init" if args.init else "--config"
        raise JaxlmError(f"--resume takes the run's own parameters and config: leave {flag} out")
    args.joined = join_processes(args.coordinator, args.processes, args.process)
    if args.joined and args.run_dir is None:
        raise JaxlmError("many processes need --run-dir: a directory that all of them see")
    corpus = None
    params = None
    folder = args.run_dir
    if args.resume:
        from jaxlm.runs.directory import saved_config

        folder = folder or _unfinished_run(args.preset)
        config = saved_config(folder)
        if args.preset not in (None, config.preset):
            raise JaxlmError(
                f"{folder} holds a run of {config.preset}, not of {args.preset}: leave --preset out"
            )
        config = config.replace(**changes(args))
    elif args.init:
        from jaxlm.runs.loading import init_config, init_corpus

        model = loaded(args.init, "last")
        start = starting_config(args.config, args.preset)
        config = init_config(model, start, changes(args), own_model=bool(args.config))
        corpus = init_corpus(model, config, str(args.init), args.data_dir)
        params = model.params
    else:
        start = starting_config(args.config, args.preset)
        config = start.replace(**changes(args))
        limited = args.config and config.data.tokens in ("words", "characters")
        if (
            limited
            and {"corpus", "tokens"} & changes(args).keys()
            and "vocab_size" not in changes(args)
        ):
            say(
                f"vocab_size is {config.model.vocab_size:,}, as in {args.config}: --vocab-size changes it"
            )
        for sentence in changed_kinds(start, changes(args)):
            say(sentence)

    import jax

    from jaxlm.report.trackers import tracked
    from jaxlm.runs import trainer

    fields = {name: str(value) for _, name, _, value in config.every_field()}
    track = (
        args.track if jax.process_index() == 0 else None
    )  # (of many processes the first alone has metrics to send)
    with (
        nullcontext(folder) if folder else new_run(config.preset) as folder,
        tracked(track, folder, {**config.kinds, **fields})
        if track
        else nullcontext() as on_metrics,
    ):
        options = {
            name: getattr(args, name)
            for name in ("resume", "steps", "data_dir", "devices", "model_devices")
        }
        result = trainer.train(
            config, corpus=corpus, run_dir=folder, params=params, on_metrics=on_metrics, **options
        )
    if args.report and result.run_dir and not result.stopped_by:
        from jaxlm.sweeps.report_file import write_report

        if result.epochs:
            say_line(f"report: {write_report([result.run_dir], data_dir=args.data_dir)}")
        else:
            say("there is no report: no epoch has ended")
    if result.stopped_by:
        return SIGNALLED + result.stopped_by
    return 0


def _unfinished_run(name: str | None) -> Path:
    """The newest run in its usual place that has not finished, of a preset if one is named. Raises JaxlmError."""
    from jaxlm.runs.metrics import read_metrics

    if name:
        preset(name)  # raises where there is no such preset
    begun = re.compile(r"(.+)-([0-9]{8}-[0-9]{6})(?:-([0-9]+))?")  # as `new_run` names them
    found = (
        (begun.fullmatch(path.parent.name), path.parent) for path in RUNS.glob("*/config.json")
    )
    runs = sorted(
        (one[2], int(one[3] or 1), run) for one, run in found if one and name in (None, one[1])
    )
    for *_, run in reversed(runs):
        rows = []
        with suppress(JaxlmError):
            rows = read_metrics(run)
        if not any(row["kind"] == "test" for row in rows):
            say_line(f"resuming {run}")
            return run
    what = f"dated run of {name}" if name else "dated run"
    if runs:
        newest = f"every {what} in {RUNS}/ has finished, the newest is {runs[-1][-1]}"
        raise JaxlmError(
            f"{newest}: name it with --run-dir to resume it with more --epochs or --steps"
        )
    raise JaxlmError(
        f"there is no {what} in {RUNS}/ to resume: name one with --run-dir, or start one without --resume"
    )


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

    corpus = prepared.prepare(
        args.text, args.out, max_vocab=config.model.vocab_size, **config.data.options
    )
    words = len(corpus.vocab)
    command = f"jaxlm train {flag_text('--corpus', args.out)}"
    size = (
        f" --vocab-size {words}"
        if words > Config().model.vocab_size and not corpus.vocab.tokens.names
        else ""
    )
    for line in (
        *corpus.notes,
        f"{corpus.name}: {corpus.description}",
        f"train on it with: {command}{size}",
    ):
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
    say_line(
        f"{args.run} and {found.run_dir} are {'NOT ' if found.results else ''}the same, byte for byte"
    )
    if found.results:
        return FAILED
    return 0


@verb(
    "make a run of a model of PyTorch, TensorFlow 1 or a hub",
    pathname(
        "file",
        "FILE",
        "from torch.save, safetensors or TensorFlow 1, or a hub's folder; never executed",
    ),
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
    layers = ", ".join(map(str, sizes.hidden_sizes)) + ", tied" * sizes.tied
    what = f"{len(model.vocab):,} {model.vocab.kind}, embedding {sizes.embedding_size}, layers {layers}"
    say_line(f"{args.run}: {what}; try: jaxlm evaluate {shlex.quote(str(args.run))} --text FILE")


@verb(
    "train many points of a space, and find the best",
    *START,
    argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=SPACE",
        help="a field's SPACE (below); repeatable",
    ),
    pathname("--space", "FILE", "a file of FIELD = SPACE lines in TOML, or JSON", rare=True),
    argument(
        "--strategy",
        choices=("grid", "random", "tpe"),
        help="tpe is Optuna's choice, and prunes (default grid)",
    ),
    argument("--trials", type=whole(1), metavar="N", help="how many points; a grid needs none"),
    argument(
        "--seeds",
        type=whole(1),
        metavar="K",
        help="seeds of each point, from --seed on (default 1)",
    ),
    argument(
        "--workers",
        type=whole(1),
        metavar="N",
        help="processes (default: one a core for a long sweep)",
    ),
    argument(
        "--group",
        type=whole(1),
        metavar="M",
        rare=True,
        help="members in one program (default: by memory)",
    ),
    argument("--storage", metavar="URL", rare=True, help=STORAGE),
    pathname("--run-dir", "DIR", "where everything is kept (default: runs/PRESET-sweep-DATE-TIME)"),
    switch("--resume", "resume the sweep in --run-dir, or join its processes"),
    # Makes this one of the sweep's processes: options of `supervisor.join` in JSON.
    argument("--as-worker", dest="worker", type=json.loads, help=argparse.SUPPRESS),
    DATA_DIR,
    partial(add_config_flags, often=()),
    epilog=f"{EPILOG}\n\n{SPACES}",
)
def sweep(args: argparse.Namespace) -> int:
    if (args.resume or args.worker) and (args.run_dir is None or args.config):
        raise JaxlmError(
            "--resume takes the sweep in --run-dir and its own config: name it, and leave --config out"
        )

    from jaxlm.sweeps import space as spaces
    from jaxlm.sweeps import supervisor

    given = changes(args)
    space = spaces.read_space_file(args.space) if args.space else {}
    space = spaces.with_settings(space, args.set)
    both = sorted(space.keys() & given.keys())
    if both:
        raise JaxlmError(f"{both[0]} is in the space and has a flag too: leave one of them out")
    if args.worker:
        stopped_by = supervisor.join(args.run_dir, args.data_dir, **args.worker)
        if stopped_by:
            return SIGNALLED + stopped_by
        return 0
    if "keep_last" in given:
        say(
            "--keep-last is for a single run: a sweep's members keep their last and their best checkpoint"
        )
    names = ("strategy", "trials", "seeds", "group", "storage")
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.resume:
        config, space, options = supervisor.saved_options(args.run_dir, space, options)
        if args.preset not in (None, config.preset):
            raise JaxlmError(
                f"{args.run_dir} is a sweep of {config.preset}, not of {args.preset}: leave --preset out"
            )
        config = config.replace(**given)
    else:
        config = starting_config(args.config, args.preset)
        try:
            config = config.replace(**given)
        except JaxlmError:  # a flag may need a kind that only the space names, as a rate of adamw
            config = config.replace(**spaces.first_values(space), **given)
    space = spaces.with_flags(space, given, config)
    options |= {name: getattr(args, name) for name in ("resume", "workers", "data_dir")}
    with nullcontext(args.run_dir) if args.run_dir else new_run(f"{config.preset}-sweep") as folder:
        result = supervisor.sweep(config, space, run_dir=folder, **options)
    if result.stopped_by:
        return SIGNALLED + result.stopped_by
    if result.best and not result.damaged:
        return 0
    return FAILED
