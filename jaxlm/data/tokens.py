"""What a token is: a word, a character or a byte; `subwords` has the pieces of words.

A kind of tokens cuts text into *units*, and each unit into the names of its tokens; the names are
joined to text again. Units are what a corpus counts: each distinct unit is cut once. A text may be
cut into units piece by piece, if each piece ends before white space.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

EOS = "<eos>"  # the token of a newline among words
UNK = "<unk>"  # the token of whatever is outside the vocabulary
_LINE_ENDS = re.compile(r"(?<![ \t])[ \t]*\n[ \t\n]*")  # tries each run of blanks once


def normalize_newlines(text: str) -> str:
    """Replaces every CR LF and CR by LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def stripped(text: str) -> str:
    """Removes the blanks beside newlines."""
    return re.sub(r"(?<![ \t])[ \t]*\n[ \t]*", "\n", normalize_newlines(text))


def unwrapped(text: str) -> str:
    """Makes a line of each paragraph.

    A single newline becomes a space, and blank lines become one newline.
    """
    text = normalize_newlines(text)

    def joined(match):
        if match[0].count("\n") > 1 or match.end() == len(text):
            return "\n"
        return " "

    return _LINE_ENDS.sub(joined, text)


@dataclass(frozen=True)
class Words:
    """Words are what stands between white space. A newline is `<eos>`; other white space is lost.

    It is the base of the other kinds of tokens, too.

    Attributes:
        kind: words, characters, bytes or subwords.
        newline: The unit of a newline.
        ends: Names that a token which ends a sentence may have, the newline's first; the first that
            a vocabulary has is its own.
        names: The names of all tokens; empty where they depend on the text.
        unknown: The name of the token for what is outside the vocabulary.
        errors: What becomes of bytes that are not UTF-8 (`text.FilePart.blocks`).
    """

    kind: ClassVar[str] = "words"
    newline: ClassVar[str] = EOS
    ends: ClassVar[tuple[str, ...]] = (EOS, UNK)
    names: ClassVar[tuple[str, ...]] = ()
    unknown: ClassVar[str] = UNK
    errors: ClassVar[str] = "strict"

    def units(self, text: str) -> list[str]:
        """Cuts text into units."""
        return normalize_newlines(text).replace("\n", f" {EOS} ").split()

    def split(self, unit: str) -> list[str]:
        """Returns the names of a unit's tokens."""
        return [unit]

    def data(self, name: str) -> bytes:
        """Returns the UTF-8 that a token stands for; a word has the space before it."""
        if name == EOS:
            return b"\n"
        return f" {name}".encode()

    def pieces(self, names: Iterable[str]) -> Iterator[str]:
        """Yields the text of tokens as they come, in pieces that are joined without more."""
        begins_line = True
        for name in names:
            if name == EOS:
                yield "\n"
            elif begins_line:
                yield name
            else:
                yield f" {name}"
            begins_line = name == EOS

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the kind as JSON has them."""
        return dict(vars(self))


class ExactTokens(Words):
    """Base of the kinds whose tokens give back exactly the text that they were read from."""

    newline = "\n"

    def pieces(self, names) -> Iterator[str]:
        return codecs.iterdecode(map(self.data, names), "utf-8", "replace")


@dataclass(frozen=True)
class Characters(ExactTokens):
    """Characters are Unicode code points.

    Attributes:
        normalize: Whether accents are composed (`nfc`), or stay as they are (`none`).
    """

    kind = "characters"
    ends = ("\n", " ")
    normalize: str = "nfc"

    def units(self, text) -> list[str]:
        return list(unicodedata.normalize("NFC", text) if self.normalize == "nfc" else text)

    def data(self, name) -> bytes:
        if name == UNK:
            return "\ufffd".encode()
        return name.encode()


_BYTES = {chr(byte) if 32 < byte < 127 else f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@dataclass(frozen=True)
class Bytes(ExactTokens):
    """Bytes are all 256: none is unknown, and what is not UTF-8 is read too."""

    kind = "bytes"
    ends = ("<0x0A>",)
    names = tuple(_BYTES)
    errors = "surrogateescape"

    def units(self, text) -> list[str]:
        return list(text)

    def split(self, unit) -> list[str]:
        return [self.names[byte] for byte in unit.encode(errors=self.errors)]

    def data(self, name) -> bytes:
        return _BYTES[name]


WORDS = Words()
