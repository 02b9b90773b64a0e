"""`jaxlm report`: one page of HTML about runs and sweeps."""

import argparse

from jaxlm.cli.parsing import some_path
from jaxlm.cli.verbs import CHECKPOINT, DATA_DIR, argument, output, verb
from jaxlm.errors import RunDirError
from jaxlm.terminal import say_line


@verb(
    "write a page of HTML about runs and sweeps",
    argument("runs", type=some_path, nargs="+", metavar="RUN", help="directories of runs and of sweeps"),
    output("the file to write (default: report.html in the one directory)"),
    argument(
        "--text",
        action="append",
        default=[],
        metavar="TEXT",
        dest="texts",
        help="colour this text by its surprisal too; once for each text",
    ),
    CHECKPOINT,
    DATA_DIR,
)
def report(args: argparse.Namespace) -> None:
    for run in args.runs:
        if not run.is_dir():
            raise RunDirError(f"there is no directory {run}: name that of a run or a sweep")

    from jaxlm.sweeps.reporting import write_report

    say_line(write_report(args.runs, args.output, which=args.checkpoint, texts=args.texts, data_dir=args.data_dir))
