"""The verbs that convert texts and models: `jaxlm prepare`, `import` and `export`."""

import argparse
import shlex

from jaxlm.cli.arguments import MODEL, Parser, argument, command, output, pathname
from jaxlm.cli.config_flags import add_field, changes
from jaxlm.cli.opening import check_run
from jaxlm.config.config import Config
from jaxlm.config.settings import DataConfig
from jaxlm.data import corpora
from jaxlm.interop.exporting import TARGETS, export_model
from jaxlm.interop.importing import import_model
from jaxlm.runs.directory import saved_record
from jaxlm.terminal import flag_text, say, say_line, say_written

_PREPARED_FIELDS = ("vocab_size", *DataConfig().options)


def _add_prepared_fields(parser: Parser) -> None:
    for _, name, spec, default in Config().every_field():
        if name in _PREPARED_FIELDS:
            add_field(parser, name, spec, default)


def _target(name: str) -> str:
    """The type of --to."""
    if name == "torch":
        raise argparse.ArgumentTypeError(
            "torch is gone: --to safetensors writes the same state_dict, "
            "for safetensors.torch.load_file"
        )
    return name


@command(
    pathname("text", "TEXT", "a file, a folder or a pattern, as train's --corpus"),
    pathname("out", "OUT", "the folder to make, for --corpus OUT"),
    _add_prepared_fields,
)
def prepare(args: argparse.Namespace) -> None:
    """Converts a text, and says how to train on it."""
    config = Config().replace(**changes(args))  # It checks them.
    corpus = corpora.prepare(
        args.text, args.out, max_vocab=config.model.vocab_size, **config.data.options
    )
    for note in corpus.notes:
        say(note)
    say(f"{corpus.name}: {corpus.description}")
    train = f"jaxlm train {flag_text('--corpus', args.out)}"
    size = len(corpus.vocab)
    if size > Config().model.vocab_size and not corpus.vocab.tokens.names:
        train += f" --vocab-size {size}"
    say(f"train on it with: {train}")


@command(
    pathname(
        "file",
        "FILE",
        "from torch.save, safetensors or TensorFlow 1, or a hub's folder; never executed",
    ),
    pathname(
        "--vocab",
        "VOCAB",
        "a file of one word a line, or vocab.json of a hub's folder, or for PyTorch the folder of "
        "train.txt, valid.txt, test.txt; a hub's folder has one",
    ),
    pathname("run", "RUN", "the directory to make"),
)
def import_(args: argparse.Namespace) -> None:
    """Makes a run of another program's model."""
    model = import_model(args.file, args.vocab, args.run)
    for note in saved_record(args.run)["corpus"]["notes"]:
        say_line(note)
    sizes = model.config.model
    layers = ", ".join(map(str, sizes.hidden_sizes)) + (", tied" if sizes.tied else "")
    say_line(
        f"{args.run}: {len(model.vocab):,} {model.vocab.kind}, embedding {sizes.embedding_size}, "
        f"layers {layers}; try: jaxlm evaluate {shlex.quote(str(args.run))} --text FILE"
    )


@command(
    *MODEL,
    argument(
        "--to",
        type=_target,
        choices=TARGETS,
        required=True,
        metavar="TARGET",
        help="safetensors (a PyTorch state_dict), hub (a folder with a model card), "
        "onnx or stablehlo",
    ),
    output("the file or folder to make", required=True),
)
def export(args: argparse.Namespace) -> None:
    """Writes a run's model for another program."""
    check_run(args.run)
    for note in export_model(args.run, args.to, args.output, args.checkpoint):
        say_written(args.output, note)
    say_written(args.output, f"exported to {args.output}")
