"""The verbs that convert texts and models: `jaxlm prepare`, `import` and `export`."""

import argparse
import shlex

from jaxlm.base.terminal import flag_text, say, say_line, say_written
from jaxlm.base.units import perplexity_text
from jaxlm.cli.arguments import (
    DATA_DIR,
    MODEL,
    Parser,
    argument,
    command,
    pathname,
    whole,
)
from jaxlm.cli.config_flags import add_field, changes
from jaxlm.cli.opening import check_run
from jaxlm.config.config import Config
from jaxlm.config.settings import DataConfig
from jaxlm.data import corpora
from jaxlm.interop.exporting import TARGETS, export_model
from jaxlm.interop.importing import import_model
from jaxlm.ngrams.folder import is_ngram_folder
from jaxlm.runs.directory import saved_record
from jaxlm.runs.ngram_models import ngram as make_ngram

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
    pathname("text", "TEXT", "a corpus, as train's --corpus"),
    argument("--order", "N", "the most tokens of an n-gram (5)", type=whole(1), default=5),
    pathname("-o --output", "FILE", "the directory to make", required=True),
    DATA_DIR,
    _add_prepared_fields,
)
def ngram(args: argparse.Namespace) -> None:
    """Makes an n-gram model, and says its perplexity on valid and test."""
    config = Config().replace(**changes(args))
    corpus = corpora.load_corpus(
        str(args.text),
        data_dir=args.data_dir,
        max_vocab=config.model.vocab_size,
        **config.data.options,
    )
    for note in corpus.notes:
        say(note)
    model = make_ngram(corpus, args.order, args.output, say_line)
    for split in ("valid", "test"):
        evaluation = model.evaluate(split, corpus=corpus)
        say_line(f"{corpus.name} {split}: perplexity {perplexity_text(evaluation.perplexity)}")
    say_line(f"evaluate it with: jaxlm evaluate {shlex.quote(str(args.output))}")


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
    if is_ngram_folder(args.run):
        say_line(f"{args.run}: {model!r}")
        return
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
        "TARGET",
        "safetensors (a PyTorch state_dict), hub (a folder with a model card), onnx, stablehlo, "
        "sherpa-onnx (of a recogniser), html (a page that runs it), or arpa (of an n-gram model)",
        type=_target,
        choices=TARGETS,
        required=True,
    ),
    pathname("-o --output", "FILE", "the file or folder to make", required=True),
)
def export(args: argparse.Namespace) -> None:
    """Writes a run's model for another program."""
    check_run(args.run)
    for note in export_model(args.run, args.to, args.output, args.checkpoint):
        say_written(args.output, note)
    say_written(args.output, f"exported to {args.output}")
