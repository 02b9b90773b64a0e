"""`jaxlm report`: one page of HTML about runs and sweeps."""

import argparse

from jaxlm.cli.parsing import some_path
from jaxlm.cli.verbs import CHECKPOINT, DATA_DIR, argument, verb
from jaxlm.errors import RunDirError
from jaxlm.terminal import printable, say


@verb(
    "write a page of HTML about runs and sweeps",
    argument("runs", type=some_path, nargs="+", metavar="RUN", help="directories of runs and of sweeps"),
    argument(
        "-o",
        "--out",
        type=some_path,
        metavar="FILE",
        help="the file to write (default: report.html in the one directory)",
    ),
    argument(
        "--text",
        action="append",
        default=[],
        metavar="TEXT",
        dest="texts",
        help="colour this text by its surprisal too; may be given again",
    ),
    CHECKPOINT,
    DATA_DIR,
)
def report(args: argparse.Namespace) -> None:
    for run in args.runs:
        if not run.is_dir():
            raise RunDirError(f"there is no directory {run}: name that of a run or a sweep")

    from jaxlm.sweeps.reporting import write_report

    say(
        printable(
            str(write_report(args.runs, args.out, which=args.checkpoint, texts=args.texts, data_dir=args.data_dir))
        )
    )
