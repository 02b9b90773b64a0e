"""The model `english`: its corpus, of books of Project Gutenberg, and its place in the package.

    python experiments/english.py corpus DIR
    python experiments/english.py corpus DIR --books FOLDER
    jaxlm train --preset english --corpus DIR --run-dir RUN
    python experiments/english.py pack RUN jaxlm/english

`english_books.csv` names each book by its number, the address of its file at one commit of the
GITenberg project on GitHub, and the file's SHA-256. `DIR` gets `train.txt`, `valid.txt` and
`test.txt`, with a paragraph a line. `FOLDER` keeps the files as `NUMBER.txt`: what lies there
already is not downloaded.

`pack` makes a run that can be used and not trained further: its one checkpoint has the parameters,
rounded to 8 bits (`jaxlm.runs.state_arrays.rounded`), its metrics are those of epochs and test.
"""

import argparse
import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unicodedata import lookup
from urllib.request import urlopen

from jaxlm.base.files import new_folder
from jaxlm.data.corpora import UNKNOWN
from jaxlm.runs import checkpoint, directory, state_arrays
from jaxlm.runs.loading import load, unread_corpus
from jaxlm.runs.metrics import NAME as METRICS
from jaxlm.runs.metrics import Prefix, read_metrics

BOOKS = Path(__file__).with_name("english_books.csv")
SPLITS = ("train", "valid", "test")
START = re.compile(r"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG.*$", re.MULTILINE)
END = re.compile(r"^(?:\*\*\* ?END OF TH|End of (?:the |this )?Project Gutenberg)", re.MULTILINE)
# What an editor or a transcriber wrote: whole paragraphs, and parts of them.
EDITORIAL = re.compile(
    r"gutenberg|transcrib|e-?text|produced by|proofread|html version|https?:|www\.|\.(?:com|org)\b",
    re.IGNORECASE,
)
BRACKETS = re.compile(r"\[[^\[\]]*\]|\{\d+\}")
TYPEWRITTEN = {  # Unicode's name of a character: what a typewriter has in its place
    "LEFT DOUBLE QUOTATION MARK": '"',
    "RIGHT DOUBLE QUOTATION MARK": '"',
    "LEFT SINGLE QUOTATION MARK": "'",
    "RIGHT SINGLE QUOTATION MARK": "'",
    "ACUTE ACCENT": "'",
    "GRAVE ACCENT": "'",
    "HORIZONTAL ELLIPSIS": "...",
    "NO-BREAK SPACE": " ",
    "EM DASH": "--",
    "EN DASH": "-",
    "HYPHEN": "-",
    "LOW LINE": "",
    "ASTERISK": "",
}
TO_TYPE = str.maketrans({lookup(name): typed for name, typed in TYPEWRITTEN.items()})
DASHES = re.compile(r" *-{2,} *")
ENDS = tuple(".!?:;,\"')-")
LEAST_WORDS = 4
LEAST_SMALL_LETTERS = 0.6  # of a paragraph's characters; titles, tables and lists have fewer


def paragraphs(raw: bytes) -> Iterator[str]:
    """Cleans a book.

    Headers, footers, headings, lists, notes in brackets and what a transcriber wrote are left out.
    Quotation marks become straight, dashes ` -- `, and underscores that mark italics go.

    Args:
        raw: The book's file, in UTF-8 or else Latin-1.

    Yields:
        Each paragraph in one line.

    Raises:
        ValueError: The text has no line that says where the book starts.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    text = text.replace("\r\n", "\n")
    start = START.search(text)
    if start is None:
        raise ValueError("the book has no line '*** START OF THIS PROJECT GUTENBERG EBOOK'")
    text = text[start.end() :]
    end = END.search(text)
    if end is not None:
        text = text[: end.start()]
    text = BRACKETS.sub("", text).translate(TO_TYPE)
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(DASHES.sub(" -- ", block).split())
        small_letters = sum(character.islower() for character in paragraph)
        is_prose = small_letters >= LEAST_SMALL_LETTERS * len(paragraph)
        is_long = len(paragraph.split()) >= LEAST_WORDS
        if is_long and is_prose and paragraph.endswith(ENDS) and not EDITORIAL.search(paragraph):
            yield paragraph


def fetched(book: dict[str, str], folder: Path) -> bytes:
    """A book's file, from the folder or else from its address.

    Raises:
        ValueError: The file has another SHA-256 than the table says.
    """
    path = folder / f"{book['number']}.txt"
    if not path.exists():
        with urlopen(book["url"]) as answer:
            path.write_bytes(answer.read())
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != book["sha256"]:
        raise ValueError(f"{path}: another file than {BOOKS.name} names; remove it, and try again")
    return raw


def make_corpus(out: Path, folder: Path) -> None:
    """Writes the three parts, and prints what each has, with its SHA-256."""
    out.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with BOOKS.open(encoding="utf-8", newline="") as file:
        books = list(csv.DictReader(file))
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for book in books:
        of_book = list(paragraphs(fetched(book, folder)))
        words = sum(len(paragraph.split()) for paragraph in of_book)
        if words != int(book["words"]):
            print(f"{book['number']}: {words} words, not {book['words']}", file=sys.stderr)
        lines[book["split"]] += of_book
    for split in SPLITS:
        text = "".join(f"{line}\n" for line in lines[split])
        path = out / f"{split}.txt"
        path.write_text(text, encoding="utf-8", newline="")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}: {len(lines[split])} lines, {len(text.split())} words, sha256 {digest}")


def pack(run: Path, out: Path) -> None:
    """Writes a run's last model as the run that comes with jaxlm."""
    model = load(run)
    last = checkpoint.manifests(run)
    manifest = last[max(last)]
    name = "books of Project Gutenberg"
    corpus = unread_corpus(name, model.corpus["sha256"], model.vocab)
    config = model.config.replace(corpus=UNKNOWN)
    rows = [row for row in read_metrics(run) if row["kind"] in ("epoch", "test")]
    lines = "".join(f"{json.dumps({**row, 'corpus': name})}\n" for row in rows).encode()
    sealed = Prefix(len(lines), hashlib.sha256(lines).hexdigest())
    with new_folder(out) as folder:
        directory.begin(folder, config, corpus, directory.Setup(given_params=True))
        record = directory.saved_record(folder)
        record["corpus"]["description"] = "docs/english.md lists the books"
        record["corpus"]["tokens"] = directory.saved_record(run)["corpus"]["tokens"]
        folder.write(directory.RECORD, f"{json.dumps(record, indent=1)}\n".encode())
        folder.write(METRICS, lines)
        checkpoint.save(
            folder,
            state_arrays.rounded(model.params),
            config,
            model.vocab,
            checkpoint.Manifest(
                step=manifest.step,
                epoch=manifest.epoch,
                valid_perplexity=manifest.valid_perplexity,
                corpus=corpus.identity,
                metrics_bytes=sealed.bytes,
                metrics_sha256=sealed.sha256,
            ),
        )
    print(f"{out}: {sum(file.stat().st_size for file in out.rglob('*') if file.is_file()):,} bytes")


def main() -> None:
    """Parses the command line, and makes the corpus or the package's run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    actions = parser.add_subparsers(required=True)
    corpus = actions.add_parser("corpus", help="write train.txt, valid.txt and test.txt")
    corpus.add_argument("dir", type=Path, metavar="DIR")
    corpus.add_argument(
        "--books", type=Path, help="where the books' files are (default: DIR/books)"
    )
    packing = actions.add_parser("pack", help="write a run as the one in the package")
    packing.add_argument("run", type=Path, metavar="RUN")
    packing.add_argument("out", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if "run" in arguments:
        pack(arguments.run, arguments.out)
    else:
        make_corpus(arguments.dir, arguments.books or arguments.dir / "books")


if __name__ == "__main__":
    main()
