"""`jaxlm import` and `jaxlm export`: models from other programs, and for them."""

import argparse
import shlex

from jaxlm.cli.verbs import MODEL, argument, check_run, output, pathname, verb
from jaxlm.terminal import say_line

TARGETS = ("safetensors", "torch", "hub", "onnx", "stablehlo")  # (whose code imports JAX: too slow for --help)
TARGET = "safetensors or torch (a PyTorch state_dict), hub (a folder with a model card), onnx or stablehlo"
VOCAB = "a file of one word a line, or for PyTorch the folder of train.txt, valid.txt, test.txt; a hub's folder has one"


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


@verb(
    "write a run's model for another program",
    *MODEL,
    argument("--to", choices=TARGETS, required=True, metavar="TARGET", help=TARGET),
    output("the file or folder to make", required=True),
)
def export(args: argparse.Namespace) -> None:
    check_run(args.run)

    from jaxlm.interop.exporting import export_model

    for note in export_model(args.run, args.to, args.output, args.checkpoint):
        say_line(note)
    say_line(f"exported to {args.output}")
