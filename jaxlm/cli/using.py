"""The verbs that use a trained model: `jaxlm evaluate`, `perplexity`, `predict` and `neighbors`."""

import argparse
import sys
from typing import TYPE_CHECKING

from jaxlm.cli.parsing import add_protocol_flags, changes, given_protocol, some_path, text_of, whole
from jaxlm.cli.verbs import DATA_DIR, MODEL, TOKENIZER, argument, loaded, verb
from jaxlm.config.protocols import described
from jaxlm.errors import DataError, JaxlmError
from jaxlm.report.units import perplexity_text
from jaxlm.terminal import printable, say, say_line

if TYPE_CHECKING:
    from jaxlm.scoring.language_model import LanguageModel

MOST_INPUT = 64 << 20  # bytes of standard input
HOW_MANY = argument("-k", type=whole(1), default=10, metavar="K", help="how many (default 10)")


@verb(
    "perplexity of a trained model on a split or on a text file",
    *MODEL,
    argument("--split", choices=("train", "valid", "test"), help="which split (default test)"),
    argument("--text", type=some_path, metavar="FILE", help="a text file instead of a split"),
    TOKENIZER,
    argument("--corpus", metavar="TEXT", help="a split of another corpus (as train's --corpus), in the run's words"),
    DATA_DIR,
    argument(
        "--tune", action="store_true", help="choose the protocol's numbers on valid, then read test once with them"
    ),
    add_protocol_flags,
)
def evaluate(args: argparse.Namespace) -> None:
    if args.text and args.corpus:
        raise JaxlmError("--text is a whole text and --corpus one with splits: give one of them")
    protocol = given_protocol(args)
    if args.tune and (args.text or args.split):
        given = "--text" if args.text else "--split"
        raise JaxlmError(f"--tune chooses on valid and then reads test: leave {given} out")
    lm = loaded(args.run, args.checkpoint)
    if args.tune:
        grid = {name: values for name, values in protocol.grid.items() if name not in changes(args)}
        tuned = lm.tune(protocol, grid=grid, corpus=args.corpus, data_dir=args.data_dir)
        best = perplexity_text(tuned.valid)
        say(f"the best of {len(tuned.tried)} on valid: perplexity {best}; test is read once, with it")
        protocol, found = tuned.protocol, tuned.test
    else:
        options = {"text": args.text, "corpus": args.corpus, "data_dir": args.data_dir, "tokenizer": args.tokenizer}
        found = lm.evaluate(args.split or "test", protocol=protocol, **options)

    from jaxlm.data.unknown import unknown_text, unknown_warning

    how = "" if args.protocol == "plain" else f"; protocol {described(protocol)}"
    say_line(
        f"{found.text}: perplexity {perplexity_text(found.perplexity)} ({found.nats:.1f} nats over "
        f"{found.predictions:,} predictions, {unknown_text(found.unknown)}; {args.checkpoint} checkpoint of "
        f"{args.run}{how})"
    )
    if (args.text or args.corpus) and (warning := unknown_warning(found.unknown, found.text)):
        say(printable(warning), file=sys.stderr)


@verb(
    "perplexity of a text given here, or on standard input",
    *MODEL,
    argument("text", nargs="?", metavar="TEXT", help="default: standard input"),
    TOKENIZER,
)
def perplexity(args: argparse.Namespace) -> None:
    text = args.text
    if text is None:
        text = standard_input("write it to a file, and use `jaxlm evaluate RUN --text FILE`")
    lm = loaded(args.run, args.checkpoint)
    say(perplexity_text(lm.perplexity(text, tokenizer=args.tokenizer)))
    say_unknown(lm, text, args.tokenizer)


@verb(
    "the most probable next words after a text",
    *MODEL,
    argument("text", metavar="TEXT", help="the words so far"),
    TOKENIZER,
    HOW_MANY,
)
def predict(args: argparse.Namespace) -> None:
    lm = loaded(args.run, args.checkpoint)
    say_unknown(lm, args.text, args.tokenizer)
    for word, probability in lm.predict(args.text, args.k, tokenizer=args.tokenizer):
        say_line(f"{probability:.4f}  {word}")


@verb(
    "the words whose embeddings are nearest to a word's",
    *MODEL,
    argument("word", metavar="WORD", help="one of the model's vocabulary"),
    HOW_MANY,
)
def neighbors(args: argparse.Namespace) -> None:
    for word, cosine in loaded(args.run, args.checkpoint).neighbors(args.word, args.k):
        say_line(f"{cosine:.4f}  {word}")


def say_unknown(lm: "LanguageModel", text: str, tokenizer: str | None = None) -> None:
    """Says on standard error which words of a text are read as `<unk>`, and their share; a warning if it is large."""
    from jaxlm.data.unknown import MOST_UNKNOWN, unknown_text

    unknown = lm.unknown_words(text, tokenizer)
    if not unknown:
        return
    share, others = len(unknown) / len(lm.tokens(text, tokenizer)), len({*unknown}) - 1
    named = f"{unknown[0]!r}{f' and {others:,} more' if others else ''}"
    kind = "warning" if share > MOST_UNKNOWN else "note"
    told = f"{kind}: {named} not in the vocabulary, read as <unk>: {unknown_text(share)}"
    say(printable(told), file=sys.stderr)


def standard_input(too_long: str) -> str:
    """All of standard input. Raises DataError where it is closed, not UTF-8, or long, which `too_long` explains."""
    if sys.stdin is None:
        raise DataError("standard input is closed: give the text as an argument, or by a pipe")
    if sys.stdin.isatty():
        say("reading standard input until its end (Ctrl-D)", file=sys.stderr)
    data = sys.stdin.buffer.read(MOST_INPUT + 1)
    if len(data) > MOST_INPUT:
        raise DataError(f"standard input has more than {MOST_INPUT:,} bytes: {too_long}")
    return text_of(data, "standard input")
