"""The verbs that draw runs: `jaxlm plot` and `report`."""

import argparse

from jaxlm.base.errors import RunDirError
from jaxlm.base.packaged import place_for_files
from jaxlm.base.terminal import say, say_line, say_written
from jaxlm.cli.arguments import (
    CHECKPOINT,
    DATA_DIR,
    MODEL,
    argument,
    choice,
    command,
    pathname,
    run_path,
    switch,
    whole,
)
from jaxlm.cli.opening import open_model
from jaxlm.interop.export_html import to_html
from jaxlm.report.curve import learning_curve
from jaxlm.report.word_map import embedding_map
from jaxlm.runs.metrics import read_metrics
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.sweeps.report_file import write_report


@command(
    *MODEL,
    argument(
        "--words",
        "N",
        "most frequent words on the map (default 400)",
        type=whole(1),
        default=400,
    ),
    choice("--method", ("tsne", "pca"), "how the map is drawn (default tsne)", default="tsne"),
)
def plot(args: argparse.Namespace) -> None:
    """Draws a run's learning curve, and a map of its embedding."""
    lm = open_model(args.run, args.checkpoint)
    lm.check_network("a learning curve")
    rows = read_metrics(args.run)
    place = place_for_files(args.run)
    if any(row["kind"] == "epoch" for row in rows):
        say_line(learning_curve(rows, lm.config, place / "curve.png"))
    else:
        say("there is no learning curve: no epoch has ended")
    picture = place / "embedding.png"
    embedding = lm.params["embedding"]
    say_line(
        embedding_map(
            embedding,
            lm.vocab.words,
            picture,
            count=args.words,
            method=args.method,
            tokens=lm.vocab.kind,
        )
    )


@command(
    argument(
        "runs", "RUN", "directories of runs, n-gram models and sweeps", nargs="+", type=run_path
    ),
    pathname(
        "-o --output", "FILE", "the file to write (default: report.html in the one directory)"
    ),
    argument(
        "--text", "TEXT", "colour a text by its surprisal; repeatable", action="append", default=[]
    ),
    switch("--live", "the page also runs the best run's model"),
    CHECKPOINT,
    DATA_DIR,
)
def report(args: argparse.Namespace) -> None:
    """Writes a page of HTML about runs and sweeps."""
    for run in args.runs:
        if not run.is_dir():
            raise RunDirError(f"there is no directory {run}: name that of a run or a sweep")
    page = write_report(
        args.runs,
        args.output,
        which=args.checkpoint,
        texts=args.text,
        data_dir=args.data_dir,
        live=_live_page if args.live else None,
    )
    say_written(page, page)


def _live_page(model: LanguageModel) -> str:
    return to_html(model)[0].decode()
