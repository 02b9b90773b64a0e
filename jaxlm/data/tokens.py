"""What a token is: a kind cuts text into units, and each unit into the names of its tokens; names are joined to text.

Units are what a corpus counts: `encoding` cuts each distinct one once. Text that is cut before white space may be cut
into units piece by piece.
"""

import base64
import codecs
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any, ClassVar

from jaxlm.errors import DataError
from jaxlm.fields import shown

EOS = "<eos>"  # the token of a newline among words
UNK = "<unk>"  # the token of whatever is outside the vocabulary
SPACE = "\u2581"  # how SentencePiece writes a space
MOST_BYTES = 64 << 20  # of a tokenizer's file
_ENDS = (
    "<0x0A>",
    "</s>",
    "<|endoftext|>",
    EOS,
    "[SEP]",
)  # of the token of a newline, where none is named after it
_LONGEST = 4096  # characters of a unit of subwords
_CACHED = 1 << 17  # units of subwords that are remembered: words come again
UNITS = re.compile(rf"\n| *[^ \n]{{1,{_LONGEST}}}| +")
_LINE_ENDS = re.compile(r"(?<![ \t])[ \t]*\n[ \t\n]*")  # (each run of blanks is tried once)
_KEEP_SPACES = b"\x1a\x04\x18\x00\x20\x00"  # merged into a SentencePiece model (protobuf): adds and removes no space


def normalize_newlines(text: str) -> str:
    """The text with every CR LF and CR replaced by LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def stripped(text: str) -> str:
    """The text without the blanks beside its newlines."""
    return re.sub(r"(?<![ \t])[ \t]*\n[ \t]*", "\n", normalize_newlines(text))


def unwrapped(text: str) -> str:
    """The text with a line for each paragraph: a single newline becomes a space, blank lines become one newline."""

    def joined(found: re.Match[str]) -> str:
        if found[0].count("\n") > 1 or found.end() == len(text):
            return "\n"
        return " "

    text = normalize_newlines(text)
    return _LINE_ENDS.sub(joined, text)


@dataclass(frozen=True)
class Words:
    """What stands between white space. A newline is `<eos>`; other white space is not kept."""

    kind: ClassVar[str] = "words"
    newline: ClassVar[str] = EOS  # the unit of a newline
    ends: ClassVar[tuple[str, ...]] = (
        EOS,
        UNK,
    )  # names of the token that ends a sentence: the first that there is
    names: ClassVar[tuple[str, ...]] = ()  # of all tokens, where no text decides them
    unknown: ClassVar[str] = UNK
    errors: ClassVar[str] = "strict"  # what becomes of bytes that are not UTF-8

    def units(self, text: str) -> list[str]:
        """Cuts text into units."""
        return normalize_newlines(text).replace("\n", f" {EOS} ").split()

    def split(self, unit: str) -> list[str]:
        """The names of a unit's tokens."""
        return [unit]

    def data(self, name: str) -> bytes:
        """The UTF-8 that a token stands for; a word has the space before it."""
        if name == EOS:
            return b"\n"
        return f" {name}".encode()

    def pieces(self, names: Iterable[str]) -> Iterator[str]:
        """The text of tokens as they come: all pieces together."""
        begins = True
        for name in names:
            yield "\n" if name == EOS else name if begins else f" {name}"
            begins = name == EOS

    def fields(self) -> dict[str, Any]:
        """The fields of the kind as JSON has them."""
        return dict(vars(self))


class _Exact(Words):
    """Tokens that give back exactly the text that they were read from."""

    newline = "\n"

    def pieces(self, names: Iterable[str]) -> Iterator[str]:
        return codecs.iterdecode(map(self.data, names), "utf-8", "replace")


@dataclass(frozen=True)
class Characters(_Exact):
    """Unicode code points, composed (`nfc`) or as they are (`none`)."""

    kind = "characters"
    ends = ("\n", " ")
    normalize: str = "nfc"

    def units(self, text: str) -> list[str]:
        return list(unicodedata.normalize("NFC", text) if self.normalize == "nfc" else text)

    def split(self, unit: str) -> list[str]:
        return list(unit)

    def data(self, name: str) -> bytes:
        if name == UNK:
            return "\ufffd".encode()
        return name.encode()


_BYTES = {chr(byte) if 32 < byte < 127 else f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@dataclass(frozen=True)
class Bytes(_Exact):
    """The 256 bytes: none is unknown, and what is not UTF-8 is read too."""

    kind = "bytes"
    ends = ("<0x0A>",)
    names = tuple(_BYTES)
    errors = "surrogateescape"

    def units(self, text: str) -> list[str]:
        return list(text)

    def split(self, unit: str) -> list[str]:
        return [self.names[byte] for byte in unit.encode(errors=self.errors)]

    def data(self, name: str) -> bytes:
        return _BYTES[name]


@dataclass(frozen=True)
class Subwords(_Exact):
    """Pieces of words, by a SentencePiece model or a `tokenizer.json` (extra `tokenizers`).

    A newline is a token by itself; no space is added or removed. What a model of others normalises it normalises here.
    """

    kind = "subwords"
    model: bytes = field(
        repr=False
    )  # the content of the model's file, set to add and remove no space

    def __reduce__(self) -> tuple[Any, ...]:
        return Subwords, (self.model,)  # (a copy makes its tokenizer anew)

    @classmethod
    def read(cls, model: bytes, where: str) -> "Subwords":
        """The subwords of a file's content, which `where` names in an error.

        Raises DataError where the file is damaged or of another kind, or its tokens do not give back a plain text.
        """
        is_json = model.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"
        made = cls(
            _plain_json(model, where)
            if is_json
            else model.removesuffix(_KEEP_SPACES) + _KEEP_SPACES
        )
        try:
            text = "a b a"
            found = b"".join(
                made.data(name) for unit in made.units(text) for name in made.split(unit)
            ).decode()
            end = made.split("\n")[0] in made.names
            rare = made.split("\U00013000")  # a hieroglyph
        except (DataError, KeyboardInterrupt):
            raise
        except (
            BaseException
        ) as error:  # whatever a library makes of a stranger's file, such as a panic of Rust
            why = re.sub(r"^INTERNAL: (src/.*\])?", "", str(error).strip().split("\n")[0])[
                :200
            ].strip(" .")
            what = f"{where} is no SentencePiece model or tokenizer.json that can be read ({why or 'it is damaged'})"
            raise DataError(f"{what}: restore it from a copy") from None
        if not end:
            why = "has no token for the end of a line, such as \\n, <0x0A> or </s>"
            raise DataError(
                f"the tokenizer of {where} {why}: make it with byte_fallback, or with \\n as a symbol"
            )
        if not rare:
            remedy = "take one with a token for them, or with bytes"
            raise DataError(f"the tokenizer of {where} drops unknown letters: {remedy}")
        if not re.fullmatch("[a\ufffd] [b\ufffd] [a\ufffd]", found):  # (letters may be unknown)
            remedy = "take one that keeps spaces, such as a SentencePiece model or a byte-level BPE"
            raise DataError(
                f"the tokenizer of {where} reads {text!r} and gives back {found!r}: {remedy}"
            )
        return made

    @classmethod
    def train(cls, counts: Mapping[str, int], pieces: int, algorithm: str) -> "Subwords":
        """A SentencePiece model of `pieces` pieces, `bpe` or `unigram`, of the units of a text and their counts.

        Bytes stand for rare characters, so that nothing is unknown (Kudo and Richardson 2018, arXiv:1808.06226).
        Raises DataError where the text does not have so many pieces.
        """
        import sentencepiece

        parts: dict[str, int] = {}
        for unit, count in counts.items():
            for part in unit.replace(SPACE, "\t").split("\t"):  # a tab separates the columns below
                if part.strip("\n"):
                    parts[part] = parts.get(part, 0) + count
        out = BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=(f"{part}\t{count}" for part, count in sorted(parts.items())),
                model_writer=out,
                input_format="tsv",
                vocab_size=pieces,
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
            why = str(error).split("] ")[-1].strip() or "it has no words"
            what = f"no model with pieces {pieces:,} can be made of this text: {why.split('. ')[0][:200]}"
            most = re.search(r"<= (\d+)", str(error))
            if most:
                what = f"pieces {pieces:,} is more than this text allows: at most {most[1]}"
            elif least := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
                what = f"pieces {pieces:,} is fewer than this text's characters need: at least {least[1]}"
            raise DataError(what) from None
        return cls.read(out.getvalue(), "the trained model")

    @cached_property
    def _tokenizer(self) -> tuple[tuple[str, ...], str, Callable[[str], list[str]]]:
        """The names of all tokens, the name of unknown ones, and what cuts a text into names (unknown: as they are)."""
        if not self.model.startswith(b"{"):
            import sentencepiece

            model = sentencepiece.SentencePieceProcessor(model_proto=self.model)
            names = tuple(map(model.id_to_piece, range(len(model))))
            encode = lru_cache(_CACHED)(
                lambda text: [*map(sys.intern, model.encode(text, out_type=str))]
            )
            return names, names[model.unk_id()], encode  # one object a piece, however long the text
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise DataError(
                "a tokenizer.json needs the extra tokenizers: pip install 'jaxlm[tokenizers]'"
            ) from None
        made = tokenizers.Tokenizer.from_str(self.model.decode())
        ids = made.get_vocab()
        if sorted(ids.values()) != list(range(len(ids))):
            raise DataError(
                "the ids of the tokenizer have gaps: take one whose ids are 0, 1, 2 and so on"
            )
        names = tuple(sorted(ids, key=ids.__getitem__))
        model = json.loads(self.model)["model"]  # a Unigram's says which id is the unknown token's
        unknown = (
            model.get("unk_token") or UNK if model.get("unk_id") is None else names[model["unk_id"]]
        )

        def encode(text: str) -> list[str]:
            try:
                return [names[place] for place in made.encode(text, add_special_tokens=False).ids]
            except (KeyboardInterrupt, UnicodeError):
                raise
            except BaseException as error:  # (a panic of Rust is no Exception)
                why = f"the tokenizer cannot read {shown(text)} ({' '.join(str(error)[:200].split())})"
                raise DataError(
                    f"{why}: take one with a token for unknown letters, or with bytes"
                ) from None

        return names, unknown, lru_cache(_CACHED)(encode)

    @property
    def names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._tokenizer[0]

    @property
    def unknown(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._tokenizer[1]

    @cached_property
    def ends(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        known = set(self.names)
        usual = (
            ("\n", "\u010a", *_ENDS) if self._bytes else ("\n", *_ENDS)
        )  # (U+010A is a letter of Maltese)
        return (next((name for name in usual if name in known), EOS),)

    @cached_property
    def _bytes(self) -> dict[str, bytes]:
        """The byte of each character of a byte-level BPE (GPT-2); {} for other kinds."""
        if not self.model.startswith(b"{") or b'"ByteLevel"' not in self.model:
            return {}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in plain]
        table = {chr(byte): bytes([byte]) for byte in plain}
        return table | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}

    def units(self, text: str) -> list[str]:
        text.encode()  # raises UnicodeError: of a lone surrogate SentencePiece says that it is no string
        return UNITS.findall(text)

    def split(self, unit: str) -> list[str]:
        if unit == "\n":
            return [*self.ends]
        *_, encode = self._tokenizer
        if self._bytes or SPACE not in unit:
            return [*encode(unit)]
        sign = [f"<0x{byte:02X}>" for byte in SPACE.encode()]  # else it would come back as a space
        first, *rest = map(self.split, unit.split(SPACE))
        return [*first, *(name for part in rest for name in (*sign, *part))]

    def data(self, name: str) -> bytes:
        if name == self.ends[0]:
            return b"\n"
        if self._bytes:
            return b"".join(self._bytes.get(letter, letter.encode()) for letter in name)
        if name == self.unknown:
            return "\ufffd".encode()
        byte = re.fullmatch("<0x([0-9A-F]{2})>", name)
        if byte:
            return bytes.fromhex(byte[1])
        return name.replace(SPACE, " ").encode()

    def fields(self) -> dict[str, Any]:
        return {"model": base64.b64encode(self.model).decode()}


WORDS = Words()


def from_fields(kind: str, fields: Mapping[str, Any]) -> Words:
    """The kind with what `fields` returned. Raises ValueError where it is anything else."""
    match kind, fields:
        case "characters", {"normalize": "nfc" | "none" as normalize, **rest} if not rest:
            return Characters(normalize)
        case "bytes", {**rest} if not rest:
            return Bytes()
        case "subwords", {"model": str(model), **rest} if not rest:
            return Subwords.read(base64.b64decode(model, validate=True), "the vocabulary")
    raise ValueError(f"{kind!r:.40} with {', '.join(fields)} is no kind of tokens")


def _plain_json(model: bytes, where: str) -> bytes:
    """A tokenizer.json that adds no space, drops and adds no token, and draws nothing at random."""
    plain = {"add_prefix_space": False, "prepend_scheme": "never"}

    def plainly(part: dict[str, Any]) -> dict[str, Any]:
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
