"""The command line: arguments and exit codes only.

Exit codes: 0 done; 1 a mistake that the message explains; 2 arguments that do not parse; 3 the training diverged;
128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1), saved and ready for --resume; the same signal
again ends it at once.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.config.config import PRESETS, Config, DataConfig, ModelConfig, every_field, preset
from jaxlm.errors import Diverged, JaxlmError

FAILED, DIVERGED, SIGNALLED = 1, 3, 128
SPACES = """a field's SPACE is one of:
  0.5,1,2            these values; true,false; a text
  256x128,200x200    the same for hidden_sizes: widths of the layers
  range:2:8:2        2, 4, 6 and 8
  uniform:0.5:1      any number between; a whole one where the field takes whole ones
  log:0.1:10         the same, uniform in the logarithm

examples:
  jaxlm sweep --epochs 6 --set learning_rate=0.5,1,2 --set clip_norm=1,5
  jaxlm sweep --set learning_rate=log:0.1:10 --set hidden_sizes=256x128,200x200 --strategy tpe --trials 30 --seeds 2
  jaxlm sweep --run-dir runs/mine --resume           go on, or help, from this machine or another
"""


class _Parser(argparse.ArgumentParser):
    """Flags are never guessed from a prefix, and a mistake is one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """`jaxlm VERB ...`."""
    parser = _Parser(prog="jaxlm", description="Train and use recurrent language models.", epilog=__doc__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, action: Callable[[argparse.Namespace], Any], help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help)
        added.set_defaults(action=action)
        return added

    def verb_of_a_run(name: str, action: Callable[[argparse.Namespace], Any], help: str) -> argparse.ArgumentParser:
        added = verb(name, action, help)
        added.add_argument("run", type=Path, metavar="RUN", help="the run's directory")
        added.add_argument("--checkpoint", default="last", metavar="WHICH",
                           help="last (the default), best (on validation), or a step")
        return added

    train = verb("train", lambda args: _train(args), "train a model")
    train.add_argument("--preset", default="small", choices=sorted(PRESETS), help="the recipe to start from (small)")
    _add_train_arguments(train)

    prepare = verb("prepare", _prepare, "make a corpus of text larger than memory; after an interruption the same "
                                        "command goes on")
    prepare.add_argument("text", type=Path, metavar="TEXT", help="a file, or a folder of train/valid/test text")
    prepare.add_argument("out", type=Path, metavar="OUT", help="the folder to make, for --corpus OUT")
    for item in (*fields(ModelConfig), *fields(DataConfig)):
        if item.name in ("vocab_size", "min_count", "lowercase"):
            _add_field(prepare, item, f"{item.metadata['help']} (default {item.default})", item.default)

    sweep = verb("sweep", _sweep, "train many points of a space, and say which is best")
    _add_sweep_arguments(sweep)

    evaluate = verb_of_a_run("evaluate", _evaluate, "perplexity of a trained model on a split or on a text file")
    evaluate.add_argument("--split", default="test", choices=("train", "valid", "test"), help="default: test")
    evaluate.add_argument("--text", type=Path, metavar="FILE", help="a text file instead of a split")
    evaluate.add_argument("--data-dir", type=Path, metavar="DIR", help="where Penn Treebank's files lie")

    perplexity = verb_of_a_run("perplexity", _perplexity, "perplexity of a text given here, or on standard input")
    perplexity.add_argument("text", nargs="?", help="default: standard input")

    predict = verb_of_a_run("predict", _predict, "the most probable next words after a text")
    predict.add_argument("text")
    predict.add_argument("-k", type=int, default=10, help="how many (10)")

    neighbors = verb_of_a_run("neighbors", _neighbors, "the words whose embeddings are nearest to a word's")
    neighbors.add_argument("word")
    neighbors.add_argument("-k", type=int, default=10, help="how many (10)")

    plot = verb_of_a_run("plot", _plot, "draw the learning curve and a map of the embedding")
    plot.add_argument("--words", type=int, default=400, help="how many of the most frequent words the map shows (400)")
    plot.add_argument("--method", default="tsne", choices=("tsne", "pca"), help="how the map is drawn (tsne)")

    reproduce = verb("reproduce", _reproduce, "train a run again, and compare every byte with it")
    reproduce.add_argument("run", type=Path, metavar="RUN", help="the run's directory")
    reproduce.add_argument("--run-dir", type=Path, metavar="NEW", help="where the new run is kept (RUN-again)")
    reproduce.add_argument("--data-dir", type=Path, metavar="DIR", help="where Penn Treebank's files lie")

    verb_of_a_run("info", _info, "what a run holds: its config, corpus, results and checkpoints")
    return _run(parser, arguments)


def train_command(recipe: str, description: str, arguments: Sequence[str] | None = None) -> int:
    """The whole of a script that trains one preset; returns the exit code."""
    parser = _Parser(description=description)
    _add_train_arguments(parser, preset(recipe))
    parser.set_defaults(action=_train, preset=recipe)
    return _run(parser, arguments)


def sweep_command(recipe: str, description: str, space: dict[str, Any], arguments: Sequence[str] | None = None,
                  **fields: Any) -> int:
    """The whole of a script that sweeps one preset, some of its fields changed; `--set` replaces the space."""
    parser = _Parser(description=description)
    _add_sweep_arguments(parser, preset(recipe).replace(**fields))
    parser.set_defaults(action=_sweep, preset=recipe, default_space=space, default_fields=fields)
    return _run(parser, arguments)


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    args = parser.parse_args(arguments)
    from jaxlm.data.cache import compilation_cache

    # Read when JAX is first imported; whatever the user has set stands.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    code = _reported(args)
    if getattr(args, "joined", False) and 0 < code < SIGNALLED:
        sys.stdout.flush()
        os._exit(code)  # a usual exit would wait for the other processes, and they for this one
    return code


def _reported(args: argparse.Namespace) -> int:
    try:
        return args.action(args) or 0
    except Diverged as error:
        return _fail(str(error), DIVERGED)
    except JaxlmError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; what was saved before is whole")
    except KeyboardInterrupt:
        return _fail("interrupted", SIGNALLED + 2)


def _fail(message: str, code: int = FAILED) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _add_train_arguments(parser: argparse.ArgumentParser, config: Config | None = None) -> None:
    """Flags of one run and one for every field of the config."""
    run = parser.add_argument_group("the run")
    _add_run_arguments(run, "where everything is kept (default: runs/PRESET-DATE-TIME)",
                       "go on from the newest checkpoint of --run-dir (default: the newest run of this preset)")
    run.add_argument("--steps", type=int, metavar="WINDOWS", help="stop after so many windows in all")
    _add_device_arguments(parser)
    _add_fields(parser, config)


def _add_sweep_arguments(parser: argparse.ArgumentParser, config: Config | None = None) -> None:
    """Flags of a sweep and one for every field of the config."""
    parser.epilog = SPACES
    parser.set_defaults(default_space={}, default_fields={})
    run = parser.add_argument_group("the sweep")
    if config is None:
        run.add_argument("--preset", default="small", choices=sorted(PRESETS),
                         help="the recipe to start from (small)")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=SPACE", dest="settings",
                     help="try these values of a field (see below); once for each field")
    run.add_argument("--space", type=Path, metavar="FILE", help="the same from a file of TOML or JSON: FIELD = SPACE")
    run.add_argument("--strategy", choices=("grid", "random", "tpe"),
                     help="every point (grid, the default), random ones, or Optuna's choice, which prunes (tpe)")
    run.add_argument("--trials", type=int, metavar="N", help="how many points; a grid needs none")
    run.add_argument("--seeds", type=int, metavar="K", help="train each point with so many seeds, from --seed on (1)")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the work (1)")
    run.add_argument("--group", type=int, metavar="M", help="members that train in one program (by memory)")
    run.add_argument("--storage", metavar="WHERE",
                     help="a journal file or a database URL for Optuna's study ($JAXLM_STORAGE, else "
                          "RUN_DIR/study.journal); a URL's password is kept nowhere")
    _add_run_arguments(run, "where everything is kept, each trial in a run directory (default: "
                            "runs/PRESET-sweep-DATE-TIME)",
                       "go on with the sweep in --run-dir, beside whoever works on it already")
    run.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of --workers' processes
    _add_fields(parser, config)


def _add_run_arguments(run: Any, run_dir: str, resume: str) -> None:
    run.add_argument("--run-dir", type=Path, metavar="DIR", help=run_dir)
    run.add_argument("--resume", action="store_true", help=resume)
    run.add_argument("--data-dir", type=Path, metavar="DIR",
                     help="where Penn Treebank's files lie (else $JAXLM_DATA, data/ptb, the user's cache, a download)")
    run.add_argument("--config", type=Path, metavar="FILE", help="start from a config.json instead of the preset")


def _add_fields(parser: argparse.ArgumentParser, config: Config | None) -> None:
    """One flag for every field of the config; without a config no defaults are shown."""
    titles = {"model": "the model's shape", "train": "the training's counts", "data": "the text",
              "hyper": "numbers (changing one compiles nothing)"}
    groups = {section: parser.add_argument_group(title) for section, title in titles.items()}
    for section, item in every_field():
        default = "" if config is None else f", default {_shown(getattr(getattr(config, section), item.name))}"
        _add_field(groups[section], item, f"{item.metadata['help']} ({item.metadata['unit'] or 'no unit'}{default})")


def _add_device_arguments(parser: argparse.ArgumentParser) -> None:
    devices = parser.add_argument_group("many devices")
    devices.add_argument("--devices", type=int, metavar="N",
                         help="spread a batch's rows over N devices (default: as many as they divide over)")
    devices.add_argument("--model-devices", type=int, metavar="M", default=1,
                         help="spread the vocabulary over M devices, for each of the N (1)")
    many = parser.add_argument_group("many processes", "copies of one command, which train together; SLURM, Open MPI, "
                                     "Kubernetes and TPU hosts are found by themselves")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    many.add_argument("--processes", type=int, metavar="N", help="how many they are (1: train alone)")
    many.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


def _add_field(group: Any, item: Field, help: str, default: Any = MISSING) -> None:
    flag, help = "--" + item.name.replace("_", "-"), help.replace("%", "%%")
    options: dict[str, Any] = {"dest": item.name, "default": default, "help": help}
    if isinstance(item.default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif isinstance(item.default, tuple):
        group.add_argument(flag, type=_whole_numbers, metavar="N,N", **options)
    else:
        kind = type(item.default)
        group.add_argument(flag, type=kind, metavar={int: "N", float: "X", str: "TEXT"}[kind], **options)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas between, as in 256,128, not {text!r}") from None


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(
        value)


def _train(args: argparse.Namespace) -> int:
    from jaxlm.distributed.hosts import join

    args.joined = join(args.coordinator, args.processes, args.process)
    if args.joined and args.run_dir is None:
        raise JaxlmError("many processes need --run-dir: a directory that all of them see")
    runs = Path("runs")
    if args.resume and args.run_dir is None:
        mine = sorted(path.parent for path in runs.glob(f"{args.preset}-*/config.json"))
        if not mine:
            raise JaxlmError(f"there is no run of {args.preset} in {runs}/ to resume: name one with --run-dir")
        args.run_dir = mine[-1]
    if args.resume and args.config:
        raise JaxlmError("--resume takes the run's own config: leave --config out")
    if args.resume:
        from jaxlm.runs.directory import saved_config

        config = saved_config(args.run_dir)
    else:
        config = _start(args)
    config = config.replace(**_given(args))
    if args.steps is not None and args.steps < 0:
        raise JaxlmError(f"--steps must be at least 0; it is {args.steps}")
    run_dir = args.run_dir or runs / f"{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}"

    from jaxlm.runs.loop import train

    result = train(config, run_dir=run_dir, resume=args.resume, steps=args.steps, data_dir=args.data_dir,
                   devices=args.devices, model_devices=args.model_devices)
    return SIGNALLED + result.stopped_by if result.stopped_by else 0


def _prepare(args: argparse.Namespace) -> None:
    from jaxlm.data.prepared import prepare

    corpus = prepare(args.text, args.out, max_vocab=args.vocab_size, min_count=args.min_count, lowercase=args.lowercase)
    size = f" --vocab-size {len(corpus.vocab)}" if len(corpus.vocab) > ModelConfig().vocab_size else ""
    for line in (*corpus.notes, f"{corpus.name}: {corpus.description}",
                 f"train on it with: jaxlm train --corpus {shlex.quote(str(args.out))}{size}"):
        print(line)


def _start(args: argparse.Namespace) -> Config:
    """The config that the flags' fields change."""
    return Config.from_json(_read(args.config)) if args.config else preset(args.preset)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that have a flag on the command line."""
    return {item.name: value for _, item in every_field() if (value := getattr(args, item.name)) is not MISSING}


def _sweep(args: argparse.Namespace) -> int:
    if args.worker:
        from jaxlm.sweeps.supervisor import join

        return SIGNALLED + stopped_by if (stopped_by := join(args.run_dir, args.workers, args.data_dir)) else 0
    space, given = _space(args), _given(args)
    if args.resume and (args.run_dir is None or args.config):
        raise JaxlmError("--resume goes on with the sweep in --run-dir, and with its own config: name the directory, "
                         "and leave --config out")
    if both := sorted(space.keys() & given.keys()):
        raise JaxlmError(f"{both[0]} is in the space and has a flag too: leave one of them out")
    options = {name: value for name in ("strategy", "trials", "seeds", "group", "storage")
               if (value := getattr(args, name)) is not None}

    from jaxlm.sweeps.supervisor import saved_options, sweep

    if args.resume:
        config, space, options = saved_options(args.run_dir, space, options)
    else:
        config = _start(args).replace(**({} if args.config else args.default_fields))
        space = space or {name: values for name, values in args.default_space.items() if name not in given}
    run_dir = args.run_dir or Path("runs") / f"{config.preset}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    result = sweep(config.replace(**given), space, run_dir=run_dir, resume=args.resume, workers=args.workers,
                   data_dir=args.data_dir, **options)
    return SIGNALLED + result.stopped_by if result.stopped_by else 0 if result.best and not result.damaged else FAILED


def _space(args: argparse.Namespace) -> dict[str, Any]:
    """What `--space` and `--set` say."""
    from jaxlm.sweeps.space import read_space_file

    space = read_space_file(args.space) if args.space else {}
    for setting in args.settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise JaxlmError(f"--set takes FIELD=SPACE, as in learning_rate=0.5,1,2; it is {setting!r}")
        if name in space:
            raise JaxlmError(f"{name} is in the space twice: leave one of them out")
        space[name] = value
    return space


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JaxlmError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _load(args: argparse.Namespace) -> Any:
    from jaxlm.runs.loading import load

    return load(args.run, args.checkpoint)


def _evaluate(args: argparse.Namespace) -> None:
    result = _load(args).evaluate(args.split, text=args.text, data_dir=args.data_dir)
    print(f"{result.text}: perplexity {result.perplexity:.2f} ({result.nats:.1f} nats over "
          f"{result.predictions:,} predictions; {args.checkpoint} checkpoint of {args.run})")


def _perplexity(args: argparse.Namespace) -> None:
    print(f"{_load(args).perplexity(sys.stdin.read() if args.text is None else args.text):.2f}")


def _predict(args: argparse.Namespace) -> None:
    for word, probability in _load(args).predict(args.text, args.k):
        print(f"{probability:.4f}  {word}")


def _neighbors(args: argparse.Namespace) -> None:
    for word, cosine in _load(args).neighbors(args.word, args.k):
        print(f"{cosine:.4f}  {word}")


def _plot(args: argparse.Namespace) -> None:
    from jaxlm.report.curve import learning_curve
    from jaxlm.report.word_map import embedding_map

    lm = _load(args)
    print(learning_curve(args.run))
    print(embedding_map(lm.params["embedding"], lm.vocab.words, args.run / "embedding.png", count=args.words,
                        method=args.method))


def _reproduce(args: argparse.Namespace) -> int:
    from jaxlm.runs.reproduction import reproduce

    found = reproduce(args.run, args.run_dir, data_dir=args.data_dir)
    for line in found.surroundings:
        print(f"not as it was then: {line}")
    if found.stopped_by is not None:
        return SIGNALLED + found.stopped_by
    for line in found.results:
        print(f"differs: {line}")
    print(f"{args.run} and {found.run_dir} are {'NOT ' if found.results else ''}the same, byte for byte")
    return FAILED if found.results else 0


def _info(args: argparse.Namespace) -> None:
    from jaxlm.report.metrics import read_metrics
    from jaxlm.runs import checkpoint
    from jaxlm.runs import directory as rundir

    print(rundir.saved_config(args.run).to_json(), end="")
    found = checkpoint.manifests(args.run)
    for step, manifest in found.items():
        labels = [name for name, at in (("last", max(found)), ("best", checkpoint.best_step(found))) if at == step]
        print(f"checkpoint {step}: epoch {manifest.epoch}, valid perplexity "
              f"{'-' if manifest.valid_perplexity is None else f'{manifest.valid_perplexity:.2f}'} on "
              f"{manifest.corpus['name']} {' '.join(labels)}")
    for row in read_metrics(args.run):
        if row["kind"] != "window":
            print("  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in row.items()))
