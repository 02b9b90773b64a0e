"""Which tokens for which text: bits per byte of one small model on texts of several kinds.

The texts come from Debian packages (`TEXTS` names them): get and unpack them, then measure.

    apt-get download PACKAGE && dpkg -x PACKAGE*.deb unpacked     # for each package
    python experiments/tokens.py unpacked -o docs/lab/tokens.csv

Every model is an LSTM of 128 units, trained for four epochs on 270,000 bytes; the test is 15,000.
"""

import argparse
import csv
import gzip
import io
import re
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import output
from jaxlm.cli.ending import exit_code
from jaxlm.runs.metrics import read_metrics

BYTES = 300_000  # of a text, of which 90% train
EPOCHS = 4
BASES = 1000  # of DNA in a line


class Text(NamedTuple):
    """A text that is measured.

    Attributes:
        kind: Its line in the table.
        source: What it is, and the package that has it.
        read: Reads it from the folder of unpacked packages.
        words: Whether white space separates its words.
    """

    kind: str
    source: str
    read: Callable[[Path], str]
    words: bool = False


def first_file(folder: Path, name: str) -> Path:
    """The file of this name at any depth. Raises JaxlmError where there is none."""
    for path in sorted(folder.rglob(name)):
        return path
    raise JaxlmError(f"there is no {name} below {folder}: unpack the package that has it")


def reference(language: str, between: str = "", foreign: float = 0.3) -> Callable[[Path], str]:
    """Reads the prose of the Debian reference in a language: a paragraph a line, without tables.

    Args:
        language: The language, as the file is called.
        between: What joins two lines of a paragraph.
        foreign: The least share of characters that are not ASCII's: parts are not translated.
    """

    def read(folder: Path) -> str:
        packed = first_file(folder, f"debian-reference.{language}.txt.gz").read_bytes()
        text = gzip.decompress(packed).decode().replace("\xa0", " ")
        paragraphs = []
        for lines in re.split(r"\n\s*\n", text):
            paragraph = between.join(line.strip() for line in lines.splitlines())
            other = sum(not character.isascii() for character in paragraph)
            is_prose = len(paragraph) > 20 and not re.search(r"\||\. \. \.", paragraph)
            if is_prose and other >= foreign * len(paragraph):
                paragraphs.append(paragraph)
        return "\n".join(paragraphs)

    return read


def thai(folder: Path) -> str:
    """Reads the messages of a browser in Thai, a line each."""
    messages: dict[str, None] = {}
    with zipfile.ZipFile(first_file(folder, "langpack-th@*.xpi")) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith((".ftl", ".properties")):
                text = archive.read(name).decode()
                for message in re.findall(r'[\u0e00-\u0e7f][^\n"{}<>=]{20,}', text):
                    messages[message.strip()] = None
    return "\n".join(messages)


def code(_: Path) -> str:
    """Reads modules of Python's standard library, in the order of their names."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(path.read_text() for path in modules)


def dna(folder: Path) -> str:
    """Reads the genome of Escherichia coli 536, some bases a line."""
    genome = gzip.decompress(first_file(folder, "NC_008253.fna.gz").read_bytes()).decode()
    bases = "".join(genome.splitlines()[1:])
    return "\n".join(bases[start : start + BASES] for start in range(0, len(bases), BASES))


TEXTS = (
    Text("German", "debian-reference-de", reference("de", " ", 0), words=True),
    Text("Chinese", "debian-reference-zh-cn", reference("zh-cn")),
    Text("Japanese", "debian-reference-ja", reference("ja")),
    Text("Thai", "firefox-esr-l10n-th (messages)", thai),
    Text("Python code", "the standard library", code),
    Text("DNA", "bowtie-examples (E. coli 536)", dna),
)
TOKENS: dict[str, dict[str, Any]] = {
    "bytes": {},
    "characters": {"min_count": 2},
    "subwords": {"pieces": 2000},
    "words": {},
}


def measure(path: Path, tokens: str) -> dict[str, Any]:
    """Trains one model on a text and returns the row of its test."""
    config = jaxlm.preset("char-small").replace(
        corpus=str(path),
        tokens=tokens,
        hidden_sizes=(128,),
        epochs=EPOCHS,
        baseline_order=0,
        batch_size=20,
        bptt_length=64,
        **TOKENS[tokens],
    )
    with tempfile.TemporaryDirectory() as folder:
        jaxlm.train(config, run_dir=Path(folder) / "run", quiet=True)
        rows = read_metrics(Path(folder) / "run")
        tests = [row for row in rows if row["kind"] == "test" and row["checkpoint"] == "last"]
    return {
        "bits_per_byte": round(tests[0]["test_bits_per_byte"], 3),
        "unknown": round(tests[0]["unknown_test"], 4),
    }


def run(folder: Path, out: Path) -> None:
    """Measures every text with every kind of token, and writes a CSV file after each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as texts:
        for text in TEXTS:
            content = text.read(folder).encode()
            start = max(0, (len(content) - BYTES) // 2)  # Long texts begin with tables of contents.
            path = Path(texts) / f"{text.kind.replace(' ', '-')}.txt"
            path.write_text(content[start : start + BYTES].decode(errors="ignore"))
            for tokens in TOKENS:
                if tokens != "words" or text.words:
                    row = {"text": text.kind, "source": text.source, "tokens": tokens}
                    rows.append(row | measure(path, tokens))
                    print(*rows[-1].values(), sep="\t", flush=True)
                    table = io.StringIO()
                    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
                    with output(out) as file:
                        file.write(table.getvalue().encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the packages are unpacked")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the CSV file")
    args = parser.parse_args()
    sys.exit(exit_code(lambda: run(args.folder, args.output)))
