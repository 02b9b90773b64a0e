"""The command line: arguments and exit codes (`EXIT_CODES` in `ending.py`) only.

A verb is one function under `@verb`, in one of the files imported below or a new one, to be imported here (`perplexity`
in `using.py` is an example). `import_` is `jaxlm import`, `minimal_pairs` is `jaxlm minimal-pairs`. A verb imports
heavy modules inside, so that `jaxlm --help` is instant. It returns an exit code or None, raises JaxlmError for a
mistake, and prints by `terminal.say` alone. `ending.py` turns exceptions into exit codes.
"""

import argparse
import difflib
import gc
import os
import sys
from collections.abc import Mapping, Sequence

from jaxlm.cli.ending import EXIT_CODES, SIGNALLED, check_limits, exit_code, fail
from jaxlm.cli.parsing import Parser
from jaxlm.cli.verbs import VERBS, complete
from jaxlm.terminal import say

# Each module adds its verbs to VERBS, in the order of the help.
# isort: off
import jaxlm.cli.training
import jaxlm.cli.using
import jaxlm.cli.inspecting
import jaxlm.cli.scoring  # noqa: F401
# isort: on


TASKS = {  # by task, a command
    "train a model": "jaxlm train",
    "on your own text": "jaxlm train --corpus novel.txt",
    "resume a stopped run": "jaxlm train --resume",
    "search hyperparameters": "jaxlm sweep --set learning_rate=0.5,1,2",
    "evaluate": "jaxlm evaluate RUN",
    "predict the next word": 'jaxlm predict RUN "the company said"',
    "surprisal of every word": "jaxlm surprisal RUN stimuli.txt",
    "generate text": 'jaxlm generate RUN "the company"',
    "show what a run holds": "jaxlm info RUN",
    "a page of its curves": "jaxlm report RUN",
    "load others' models": "jaxlm import model.pt --vocab vocab.txt RUN",
}
# Settings of JAX by which a run would have other numbers, or arrays of other types: commands have JAX's defaults.
UNSET = (
    "ENABLE_X64",
    "DEFAULT_PRNG_IMPL",
    "THREEFRY_PARTITIONABLE",
    "NUMPY_DTYPE_PROMOTION",
    "NUMPY_RANK_PROMOTION",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """`jaxlm VERB ...`, from the process's own arguments or others.

    Returns the exit code. Raises SystemExit where help was asked for, or the arguments do not parse.
    """
    complete()
    name, *given = (sys.argv[1:] if arguments is None else arguments) or ("",)
    if name in VERBS:
        return _run(VERBS[name].parser(given), given)
    return exit_code(lambda: _without_verb(name))


def _without_verb(name: str) -> int:
    """Answers a command line that begins with no verb."""
    if not name:
        say(
            f"jaxlm trains and uses recurrent language models. RUN is the directory of a run.\n\n{_table(TASKS)}\n\n"
            "All verbs: jaxlm --help    Flags: jaxlm VERB --help    All flags: --help-all"
        )
    elif name in ("-h", "--help", "--help-all"):
        say(
            "usage: jaxlm VERB ...    (jaxlm VERB --help explains one; jaxlm alone: by task)\n"
            f"{_table({one.name: one.help for one in VERBS.values()})}\n\n{EXIT_CODES}"
        )
    elif name == "--version":
        from jaxlm.runs.checkpoint import library_versions

        say(f"jaxlm {library_versions()['jaxlm']}")
    else:
        near = difflib.get_close_matches(name, VERBS, 1)
        return fail(
            f"there is no verb {name!r}{f'; did you mean {near[0]}?' if near else ''} (see jaxlm --help)",
            2,
        )
    return 0


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())


def _run(parser: Parser, given: Sequence[str]) -> int:
    """Parses the arguments, acts, and turns exceptions into an exit code."""
    args = argparse.Namespace()

    def act() -> int | None:
        parser.parse_args(given, args)
        if args.verb.uses_jax:
            check_limits()
            from jaxlm.data.cache import compilation_cache

            # JAX reads these when it is imported. What took a tenth of a second to compile is read in hundredths.
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache()))
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
            for name in UNSET:
                os.environ.pop(f"JAX_{name}", None)
            gc.set_threshold(
                50_000
            )  # as Python sets it, collections take 0.1 s while JAX is imported and traces
        return args.verb.action(args)

    code = exit_code(act)
    if getattr(args, "joined", False):
        if 0 < code < SIGNALLED:
            os._exit(code)  # a usual exit would wait for the other processes, and they for this one
        import jax

        jax.distributed.shutdown()  # once all do: one that ended earlier would count as dead, and end the others
    return code
