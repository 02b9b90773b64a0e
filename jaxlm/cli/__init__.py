# PYTHON_ARGCOMPLETE_OK
"""The command line: arguments and exit codes only.

Exit codes: 0 done; 1 a mistake or a damaged file, which the message explains; 2 arguments that do not parse; 3 the
run diverged; 128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1), saved and ready for --resume; the
same signal again ends it at once.

A verb is one function, in one of the files imported below (or a new one, to be imported here):

    @verb("the nats of every word of a text", RUN, CHECKPOINT, argument("text"))
    def surprisal(args: argparse.Namespace) -> None:
        from jaxlm.scoring.surprisal import surprisal  # heavy imports inside, so that `jaxlm --help` is instant

        for word, nats in surprisal(loaded(args), args.text):
            say(f"{nats:.4f}  {printable(word)}")

Its name is the function's (`minimal_pairs` is `jaxlm minimal-pairs`). It returns an exit code or None, raises
JaxlmError for a mistake, and prints by `terminal.say` alone. `ending.py` turns what it raises into exit codes.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxlm.cli import completion, help
from jaxlm.cli.ending import EXIT_CODES, SIGNALLED, check_limits, exit_code
from jaxlm.cli.parsing import Parser
from jaxlm.cli.sweeping import sweep_arguments
from jaxlm.cli.training import train_arguments
from jaxlm.cli.verbs import VERBS
from jaxlm.config.config import Config
from jaxlm.config.presets import preset
from jaxlm.terminal import say

# These add their verbs to VERBS, in the order of the help.
# isort: off
import jaxlm.cli.training
import jaxlm.cli.sweeping
import jaxlm.cli.using
import jaxlm.cli.inspecting
import jaxlm.cli.scoring
import jaxlm.cli.generating
import jaxlm.cli.exchanging
import jaxlm.cli.reporting  # noqa: F401
# isort: on


def main(arguments: Sequence[str] | None = None) -> int:
    """`jaxlm VERB ...`.

    Args:
        arguments: those after `jaxlm` (default: the process's own).

    Returns:
        The exit code.

    Raises:
        SystemExit: help was asked for, or the arguments do not parse.
    """
    given = completion.words() or _given(arguments)
    if not given:
        return exit_code(lambda: say(help.tasks(), end=""))
    lines = {one.name: one.help for one in VERBS.values()}
    parser = Parser(
        prog="jaxlm",
        description="Train and use recurrent language models.",
        epilog=EXIT_CODES,
        help_text=lambda: help.verbs(lines, EXIT_CODES.split("\n\n")[0]),
    )
    parser.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for one in VERBS.values():
        added = verbs.add_parser(one.name, help=one.help, description=one.help)
        added.set_defaults(verb=one)
        if one.name in given:
            one.add_arguments(added, given)
    completion.complete(parser)
    return _run(parser, given)


def train_command(recipe: str, description: str, arguments: Sequence[str] | None = None) -> int:
    """The whole of a script that trains one preset.

    Args:
        recipe: the preset's name.
        description: what `--help` shows first.
        arguments: those after the script (default: the process's own).

    Returns:
        The exit code.

    Raises:
        SystemExit: help was asked for, or the arguments do not parse.
    """
    return _script(description, arguments, "train", train_arguments, preset(recipe))


def sweep_command(
    recipe: str, description: str, space: Mapping[str, Any], arguments: Sequence[str] | None = None, **fields: Any
) -> int:
    """The whole of a script that sweeps one preset.

    Args:
        recipe: the preset's name.
        description: what `--help` shows first.
        space: what to try, unless `--set` or `--space` replaces it.
        arguments: those after the script (default: the process's own).
        **fields: fields of the preset to change.

    Returns:
        The exit code.

    Raises:
        SystemExit: help was asked for, or the arguments do not parse.
    """
    return _script(
        description,
        arguments,
        "sweep",
        sweep_arguments,
        preset(recipe).replace(**fields),
        default_space=dict(space),
        default_fields=fields,
    )


def _script(
    description: str,
    arguments: Sequence[str] | None,
    name: str,
    add: Callable[..., None],
    start: Config,
    **defaults: Any,
) -> int:
    """Runs a verb whose fields start from a script's own config."""
    given = _given(arguments)
    parser = Parser(description=description, epilog=EXIT_CODES)
    add(parser, given, start)
    parser.set_defaults(verb=VERBS[name], preset=start.preset, **defaults)
    return _run(parser, given)


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from jaxlm.runs.checkpoint import library_versions

        say(f"jaxlm {library_versions()['jaxlm']}")
        parser.exit()


def _given(arguments: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if arguments is None else arguments)


def _run(parser: Parser, arguments: Sequence[str]) -> int:
    """Parses, acts, and turns what is raised into an exit code."""
    args = argparse.Namespace()

    def act() -> int | None:
        parser.parse_args(arguments, args)
        if args.verb.uses_jax:
            check_limits()
            _use_compilation_cache()
            gc.set_threshold(50_000)  # as Python sets it, collections take 0.1 s while JAX is imported and traces
        return args.verb.action(args)

    code = exit_code(act)
    if getattr(args, "joined", False) and 0 < code < SIGNALLED:
        os._exit(code)  # a usual exit would wait for the other processes, and they for this one
    return code


def _use_compilation_cache() -> None:
    """Names the folder of compiled programs, which is read when JAX is first imported; what the user has set stands.

    It holds what took a tenth of a second to compile: to read it takes hundredths.
    """
    from jaxlm.data.cache import compilation_cache

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
