"""What a token is.

A kind of tokens cuts text into *units*, and each unit into the names of its tokens; the names are
joined to text again. Units are what a corpus counts: each distinct one is cut once. A text that is
cut before white space may be cut into units piece by piece.
"""

import base64
import codecs
import json
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any, ClassVar, NamedTuple

from jaxlm.base.errors import DataError
from jaxlm.base.fields import shown

EOS = "<eos>"  # the token of a newline among words
UNK = "<unk>"  # the token of whatever is outside the vocabulary
SPACE = "\u2581"  # how SentencePiece writes a space
DEFAULT_PIECES = 8000  # of a model of subwords, where the text allows so many
MOST_BYTES = 64 << 20  # of a tokenizer's file
_LONGEST = 4096  # characters of a unit of subwords
_CACHED = 1 << 17  # units of subwords that are remembered, since words come again
UNITS = re.compile(rf"\n| *[^ \n]{{1,{_LONGEST}}}| +")
_LINE_ENDS = re.compile(r"(?<![ \t])[ \t]*\n[ \t\n]*")  # tries each run of blanks once
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # the name of a byte
_NEWLINES = ("<0x0A>", "</s>", "<|endoftext|>", EOS, "[SEP]")  # names of a line's end, best first
_KEEP_SPACES = b"\x1a\x04\x18\x00\x20\x00"  # appended to a SentencePiece model: adds no space
_HIDDEN = "\ufdd0"  # begins the name of an added token that no text may spell; a noncharacter


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

    def joined(match):
        if match[0].count("\n") > 1 or match.end() == len(text):
            return "\n"
        return " "

    text = normalize_newlines(text)
    return _LINE_ENDS.sub(joined, text)


@dataclass(frozen=True)
class Words:
    """Words are what stands between white space. A newline is `<eos>`; other white space is lost.

    The other kinds of tokens are made as this one.

    Attributes:
        kind: words, characters, bytes or subwords.
        newline: The unit of a newline.
        ends: Names of the token that ends a sentence; the first that the vocabulary has counts.
        names: The names of all tokens, where no text decides them.
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


class _Exact(Words):
    """Tokens that give back exactly the text that they were read from."""

    newline = "\n"

    def pieces(self, names) -> Iterator[str]:
        return codecs.iterdecode(map(self.data, names), "utf-8", "replace")


@dataclass(frozen=True)
class Characters(_Exact):
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
class Bytes(_Exact):
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


class _Tokenizer(NamedTuple):
    """A model of subwords that is loaded.

    Attributes:
        names: The name of each id.
        unknown: The name of the token for unknown letters.
        encode: Cuts a text without newlines into names; unknown letters may stand as they are.
    """

    names: tuple[str, ...]
    unknown: str
    encode: Callable[[str], list[str]]


@dataclass(frozen=True)
class Subwords(_Exact):
    """Subwords are pieces of words, by a SentencePiece model or a `tokenizer.json`.

    A newline is a token by itself, and no space is added or removed. The model's own normalisation
    is applied. A `tokenizer.json` needs the extra `tokenizers`.

    Attributes:
        model: The content of the model's file, changed so that it adds and removes no space.
    """

    kind = "subwords"
    model: bytes = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies the model alone: a copy loads its tokenizer anew."""
        return Subwords, (self.model,)

    @classmethod
    def read(cls, model: bytes, where: str) -> "Subwords":
        """Reads the content of a file, which a stranger may have made.

        Args:
            model: A SentencePiece model or a `tokenizer.json`.
            where: The file, for an error.

        Raises:
            DataError: The file is damaged or of another kind, or its tokens do not give back a
                plain text.
        """
        text = "a b a"
        try:
            if model.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
                made = cls(_plain_json(model, where))
                _check_loads(made.model)
            else:
                made = cls(model.removesuffix(_KEEP_SPACES) + _KEEP_SPACES)
            names = [name for unit in made.units(text) for name in made.split(unit)]
            read_back = b"".join(map(made.data, names)).decode()
            knows_newline = made.split("\n")[0] in made.names
            keeps_rare = bool(made.split("\U00013000"))  # a hieroglyph
        except (DataError, KeyboardInterrupt):
            raise
        except BaseException as error:  # such as a panic of Rust, which is no Exception
            line = str(error).strip().split("\n")[0]
            why = re.sub(r"^INTERNAL: (src/.*\])?", "", line)[:200].strip(" .")
            raise DataError(
                f"{where} is no SentencePiece model or tokenizer.json that can be read "
                f"({why or 'it is damaged'}): restore it from a copy"
            ) from None
        if not knows_newline:
            raise DataError(
                f"the tokenizer of {where} has no token for the end of a line, such as \\n, <0x0A> "
                "or </s>: make it with byte_fallback, or with \\n as a symbol"
            )
        if not keeps_rare:
            raise DataError(
                f"the tokenizer of {where} drops unknown letters: take one with a token for them, "
                "or with bytes"
            )
        if not re.fullmatch("[a\ufffd] [b\ufffd] [a\ufffd]", read_back):  # letters may be unknown
            raise DataError(
                f"the tokenizer of {where} reads {text!r} and gives back {read_back!r}: take one "
                "that keeps spaces, such as a SentencePiece model or a byte-level BPE"
            )
        return made

    @classmethod
    def train(
        cls,
        counts: Mapping[str, int],
        pieces: int | None,
        algorithm: str,
    ) -> "Subwords":
        """Trains a SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226).

        Bytes stand for rare characters, so that nothing is unknown.

        Args:
            counts: How often each unit occurs in the text.
            pieces: How many pieces the model shall have; None for `DEFAULT_PIECES`, or as many as
                the text allows.
            algorithm: `bpe` or `unigram`.

        Raises:
            DataError: The text does not have so many pieces, or needs more.
        """
        import sentencepiece

        parts: Counter[str] = Counter()
        for unit, count in counts.items():
            for part in unit.replace(SPACE, "\t").split("\t"):  # a tab separates the columns below
                if part.strip("\n"):
                    parts[part] += count
        size = pieces or DEFAULT_PIECES
        out = BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=(f"{part}\t{count}" for part, count in sorted(parts.items())),
                model_writer=out,
                input_format="tsv",
                vocab_size=size,
                model_type=algorithm,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                byte_fallback=True,
                user_defined_symbols=["\n"],
                required_chars=SPACE,
                bos_id=-1,
                eos_id=-1,
                max_sentence_length=8 * _LONGEST,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            most = re.search(r"<= (\d+)", str(error))
            if most and pieces is None and int(most[1]) < size:
                return cls.train(counts, int(most[1]), algorithm)
            least = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
            if most:
                reason = f"is more than this text allows: at most {most[1]}"
            elif least:
                reason = f"is fewer than this text's characters need: at least {least[1]}"
            else:
                why = str(error).split("] ")[-1].strip() or "it has no words"
                reason = f"cannot be made of this text: {why.split('. ')[0][:200]}"
            raise DataError(f"pieces {size:,} {reason}") from None
        return cls.read(out.getvalue(), "the trained model")

    @property
    def is_json(self) -> bool:
        """Whether the model is a `tokenizer.json`."""
        return self.model.startswith(b"{")

    @property
    def is_byte_level(self) -> bool:
        """Whether the model is a byte-level BPE, such as GPT-2's."""
        return self.is_json and b'"ByteLevel"' in self.model

    @cached_property
    def _tokenizer(self) -> _Tokenizer:
        if self.is_json:
            return _load_json(self.model, self.is_byte_level)
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        names = tuple(map(model.id_to_piece, range(len(model))))

        @lru_cache(_CACHED)
        def encode(text: str) -> list[str]:
            # Interned, a piece is one object however long the text.
            return [sys.intern(piece) for piece in model.encode(text, out_type=str)]

        return _Tokenizer(names, names[model.unk_id()], encode)

    @property
    def names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._tokenizer.names

    @property
    def unknown(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._tokenizer.unknown

    @cached_property
    def ends(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (_newline_name(set(self.names), bool(self._bytes)),)

    @cached_property
    def _bytes(self) -> dict[str, bytes]:
        """The byte of each character of a byte-level BPE (GPT-2); {} for other kinds."""
        if not self.is_byte_level:
            return {}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in plain]
        table = {chr(byte): bytes([byte]) for byte in plain}
        return table | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}

    def units(self, text) -> list[str]:
        text.encode()  # raises UnicodeError: SentencePiece calls a lone surrogate no string
        return UNITS.findall(text)

    def split(self, unit) -> list[str]:
        if unit == "\n":
            return [*self.ends]
        encode = self._tokenizer.encode
        if self._bytes or SPACE not in unit:
            return [*encode(unit)]
        # The model writes its spaces with this letter. The text's own is three bytes.
        names = []
        for place, part in enumerate(unit.split(SPACE)):
            if place:
                names += [f"<0x{byte:02X}>" for byte in SPACE.encode()]
            names += encode(part)
        return names

    def data(self, name) -> bytes:
        if name == self.ends[0]:
            return b"\n"
        if self._bytes:
            return b"".join(self._bytes.get(letter, letter.encode()) for letter in name)
        if name == self.unknown:
            return "\ufffd".encode()
        byte = _BYTE.fullmatch(name)
        if byte:
            return bytes.fromhex(byte[1])
        return name.replace(SPACE, " ").encode()

    def fields(self) -> dict[str, Any]:
        return {"model": base64.b64encode(self.model).decode()}


WORDS = Words()


def from_fields(kind: str, fields: Mapping[str, Any]) -> Words:
    """Makes a kind from what `fields` returned.

    Args:
        kind: characters, bytes or subwords.
        fields: The fields of the kind.

    Raises:
        ValueError: They are anything else.
        DataError: A model of subwords cannot be read.
    """
    match kind, fields:
        case "characters", {"normalize": "nfc" | "none" as normalize, **rest} if not rest:
            return Characters(normalize)
        case "bytes", {**rest} if not rest:
            return Bytes()
        case "subwords", {"model": str(model), **rest} if not rest:
            return Subwords.read(base64.b64decode(model, validate=True), "the vocabulary")
    raise ValueError(f"{kind!r:.40} with {', '.join(fields)} is no kind of tokens")


def _newline_name(names: Set[str], byte_level: bool) -> str:
    """The name of the token that stands for a newline; `<eos>` if there is none."""
    # U+010A is a newline to a byte-level BPE, and else a letter of Maltese.
    usual = ("\n", "\u010a", *_NEWLINES) if byte_level else ("\n", *_NEWLINES)
    return next((name for name in usual if name in names), EOS)


def _plain_json(model: bytes, where: str) -> bytes:
    """A tokenizer.json that adds no space, drops and adds no token, and draws nothing at random.

    Raises DataError where it is no tokenizer.json.
    """
    plain = {"add_prefix_space": False, "prepend_scheme": "never"}

    def plainly(part):
        if part.get("type") == "Prepend":  # the normalizer of Llama 2
            return {"type": "Sequence", "normalizers": []}
        return {
            name: value if type(value) is int else plain.get(name, value)
            for name, value in part.items()
        }

    try:
        tree = json.loads(model, object_hook=plainly)
        tree |= {"truncation": None, "padding": None, "post_processor": None}
        tree["model"]["dropout"] = None
        return json.dumps(tree).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where} is no tokenizer.json ({str(error)[:100]}): restore it from a copy"
        ) from None


def without_spelled_bytes(tree: dict[str, Any], newline: str = "") -> dict[str, Any]:
    """Keeps a tokenizer.json from reading the letters `<0x0A>` of a text as a byte.

    The library looks for the names of added tokens in each text. A name of a byte is no longer
    among them where the model itself has it; else it is hidden, so that its token keeps its id.

    Args:
        tree: The file's content; not of a byte-level BPE, whose bytes have other names.
        newline: The name of the token of a newline, which is hidden too.

    Returns:
        The content with other added tokens.
    """
    vocab = tree["model"].get("vocab", {})
    known = set(vocab) if isinstance(vocab, dict) else {name for name, _ in vocab}
    added = []
    for token in tree.get("added_tokens") or []:
        name = token["content"]
        if _BYTE.fullmatch(name) or name == newline != "\n":
            if name in known:
                continue
            token = {**token, "content": _HIDDEN + name}
        added.append(token)
    return {**tree, "added_tokens": added}


# What a text cannot be is for `read` to name. A panic of Rust is no Exception.
_PROBE = """
import contextlib, sys, tokenizers
made = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode())
for text in (" a b a", "\\n", "\\U00013000"):
    with contextlib.suppress(Exception):
        made.encode(text, add_special_tokens=False)
"""


@lru_cache(maxsize=8)
def _check_loads(model: bytes) -> None:
    """Loads a tokenizer.json in a process apart, since a damaged one may end the process.

    Raises ValueError with the library's own reason.
    """
    _import_tokenizers()
    command = [sys.executable, "-P", "-c", _PROBE]  # -P: the working directory holds no module
    done = subprocess.run(command, input=model, capture_output=True)
    if done.returncode < 0:
        raise ValueError("it ends the process that loads it")
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise ValueError(reason.partition(": ")[2] or reason)


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise DataError(
            "a tokenizer.json needs the extra tokenizers: pip install 'jaxlm[tokenizers]'"
        ) from None
    return tokenizers


def _load_json(model: bytes, byte_level: bool) -> _Tokenizer:
    """Loads a tokenizer.json. Raises DataError where its ids have gaps, or as the library does."""
    library = _import_tokenizers()
    tree = json.loads(model)
    made = library.Tokenizer.from_str(model.decode())
    if not byte_level:
        newline = _newline_name(made.get_vocab().keys(), byte_level=False)
        made = library.Tokenizer.from_str(json.dumps(without_spelled_bytes(tree, newline)))
    ids = made.get_vocab()
    if sorted(ids.values()) != list(range(len(ids))):
        raise DataError(
            "the ids of the tokenizer have gaps: take one whose ids are 0, 1, 2 and so on"
        )
    names = tuple(name.removeprefix(_HIDDEN) for name in sorted(ids, key=ids.__getitem__))
    unknown = tree["model"].get("unk_token") or UNK
    if tree["model"].get("unk_id") is not None:  # a Unigram's
        unknown = names[tree["model"]["unk_id"]]

    @lru_cache(_CACHED)
    def encode(text: str) -> list[str]:
        try:
            return [names[place] for place in made.encode(text, add_special_tokens=False).ids]
        except (KeyboardInterrupt, UnicodeError):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            reason = " ".join(str(error)[:200].split())
            raise DataError(
                f"the tokenizer cannot read {shown(text)} ({reason}): take one with a token for "
                "unknown letters, or with bytes"
            ) from None

    return _Tokenizer(names, unknown, encode)
