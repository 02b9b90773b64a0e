"""`jaxlm generate`: text from a model, word by word as it comes."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator

from jaxlm.cli.parsing import read_text, some_path
from jaxlm.cli.using import MOST_INPUT, say_unknown, standard_input
from jaxlm.cli.verbs import MODEL, argument, loaded, verb
from jaxlm.errors import JaxlmError
from jaxlm.terminal import printable, say

OPTIONS = ("words", "seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "ban", "no_unk", "stop")


@verb(
    "text that goes on from a prompt",
    *MODEL,
    argument("prompt", nargs="?", metavar="PROMPT", help="words that come before (-: standard input; default: none)"),
    argument("--prompt-file", type=some_path, metavar="FILE", help="take the prompt from a file"),
    argument("--words", type=int, default=100, metavar="N", help="most words of a text (default 100)"),
    argument("--samples", type=int, default=1, metavar="N", help="how many texts (default 1)"),
    argument("--seed", type=int, default=0, metavar="N", help="a seed gives a text, however many samples (default 0)"),
    argument("--temperature", type=float, default=1.0, metavar="X", help="divides the logits; 0: the likeliest word"),
    argument("--top-k", type=int, metavar="K", help="draw from the K likeliest words"),
    argument("--top-p", type=float, metavar="P", help="draw from the likeliest words that together have probability P"),
    argument("--min-p", type=float, metavar="P", help="draw from words at least P times as probable as the likeliest"),
    argument("--repetition-penalty", type=float, metavar="X", help="above 1 makes words that came before less likely"),
    argument("--beam", type=int, metavar="K", help="search for the most probable text, keeping K at each word"),
    argument("--ban", action="append", default=[], metavar="WORD", help="a word that never comes; once for each"),
    argument("--no-unk", action="store_true", help="<unk> never comes"),
    argument("--stop", choices=("eos", "none"), default="none", help="end a text at its first <eos> (default none)"),
    argument("--detokenize", action="store_true", help="join clitics and punctuation to their words"),
    argument("--format", choices=("text", "jsonl"), default="text", help="text, or each word with its nats as JSON"),
)
def generate(args: argparse.Namespace) -> None:
    if not 0 <= args.seed < 2**63:
        raise JaxlmError(f"--seed must be from 0 to 2**63 - 1; it is {args.seed}")
    prompt = _prompt(args)
    lm = loaded(args.run, args.checkpoint)
    say_unknown(lm, prompt)
    options = {name: getattr(args, name) for name in OPTIONS}
    if args.samples == 1 and args.beam is None:
        texts: Iterable[Iterable[tuple[str, float]]] = [lm.stream(prompt, **options)]
    else:
        texts = (
            zip(text.words, text.log_probs.tolist(), strict=True)
            for text in lm.generate(prompt, samples=args.samples, beam=args.beam, **options)
        )
    for sample, text in enumerate(texts, 1):
        if args.format == "jsonl":
            for place, (word, log_prob) in enumerate(text, 1):
                row = {"sample": sample, "position": place, "word": word, "log_prob": round(log_prob, 6)}
                say(json.dumps(row), flush=True)
            continue
        if sample > 1:
            say()
        _print_text((word for word, _ in text), args.detokenize)


def _print_text(words: Iterable[str], joined: bool) -> None:
    """Prints words as they come, in lines no wider than the terminal, if there is one."""
    from jaxlm.scoring.detokenizer import detokenized, spaced

    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    end, encoding = "\n", getattr(sys.stdout, "encoding", None)
    for piece in wrapped((detokenized if joined else spaced)(words), width, encoding):
        say(piece, end="", flush=terminal)
        end = "" if piece.endswith("\n") else "\n"
    say(end=end)


def wrapped(pieces: Iterable[str], width: int | None, encoding: str | None = None) -> Iterator[str]:
    """Pieces of text; the space before a piece that would exceed the width, in columns, becomes a newline."""
    from rich.cells import cell_len

    column = 0
    for piece in pieces:
        if piece == "\n":
            column = 0
            yield piece
            continue
        space = piece.startswith(" ")
        word = printable(piece.lstrip(" "), encoding=encoding)
        if width is not None and space and column + 1 + cell_len(word) > width:
            column, space = 0, False
            yield "\n"
        column += space + cell_len(word)
        yield " " * space + word


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None and args.prompt_file is not None:
        raise JaxlmError("the prompt is given twice: leave PROMPT or --prompt-file out")
    if args.prompt_file is not None:
        return read_text(args.prompt_file, MOST_INPUT).removesuffix("\n")
    return standard_input("expected a prompt").removesuffix("\n") if args.prompt == "-" else args.prompt or ""
