"""Subwords: pieces of words, by a SentencePiece model or a `tokenizer.json`."""

import base64
import codecs
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any, NamedTuple

from jaxlm.base.errors import DataError
from jaxlm.base.fields import shown
from jaxlm.data.tokens import EOS, UNK, ExactTokens

SPACE = "\u2581"  # how SentencePiece writes a space
DEFAULT_PIECES = 8000  # of a model, where the text allows so many
MOST_BYTES = 64 << 20  # of a tokenizer's file
_LONGEST = 4096  # characters of a unit
_CACHED = 1 << 17  # units whose pieces are remembered, since words come again
UNITS = re.compile(rf"\n| *[^ \n]{{1,{_LONGEST}}}| +")
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # the name of a byte
_NEWLINES = ("<0x0A>", "</s>", "<|endoftext|>", EOS, "[SEP]")  # names of a line's end, best first
_KEEP_SPACES = b"\x1a\x04\x18\x00\x20\x00"  # appended to a SentencePiece model: adds no space
_HIDDEN = "\ufdd0"  # begins the name of an added token that no text may spell; a noncharacter


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
class Subwords(ExactTokens):
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
        rare_letter = "\U00013000"  # a hieroglyph
        try:
            if model.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
                made = cls(_plain_json(model, where))
                _check_loads(made.model)
            else:
                made = cls(model.removesuffix(_KEEP_SPACES) + _KEEP_SPACES)
            names = [name for unit in made.units(text) for name in made.split(unit)]
            read_back = b"".join(map(made.data, names)).decode()
            knows_newline = made.split("\n")[0] in made.names
            keeps_rare = bool(made.split(rare_letter))
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

        texts: Counter[str] = Counter()
        for unit, count in counts.items():
            # Without tabs, which separate the columns below.
            for text in unit.replace(SPACE, "\t").split("\t"):
                if text.strip("\n"):
                    texts[text] += count
        size = pieces or DEFAULT_PIECES
        out = BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=(f"{text}\t{count}" for text, count in sorted(texts.items())),
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
        """The model, loaded."""
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
        text.encode()  # raises UnicodeError for half a surrogate pair, as `Vocab.tokenize` expects
        return UNITS.findall(text)

    def split(self, unit) -> list[str]:
        if unit == "\n":
            return [*self.ends]
        encode = self._tokenizer.encode
        if self._bytes or SPACE not in unit:
            return [*encode(unit)]
        # The model writes spaces as SPACE. Where the text has this letter, it is read as bytes.
        names = []
        for place, text in enumerate(unit.split(SPACE)):
            if place:
                names += [f"<0x{byte:02X}>" for byte in SPACE.encode()]
            names += encode(text)
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


def _newline_name(names: Set[str], byte_level: bool) -> str:
    """The name of the token that stands for a newline; `<eos>` if there is none."""
    for name in ("\n", "\u010a", *_NEWLINES):
        # U+010A is a newline to a byte-level BPE, and else a letter of Maltese.
        if name in names and (byte_level or name != "\u010a"):
            return name
    return EOS


def _plain_json(model: bytes, where: str) -> bytes:
    """A tokenizer.json that adds no space, drops and adds no token, and draws nothing at random.

    Raises DataError where it is no tokenizer.json.
    """
    plain = {"add_prefix_space": False, "prepend_scheme": "never"}

    def with_plain_values(json_object):
        if json_object.get("type") == "Prepend":  # the normalizer of Llama 2
            return {"type": "Sequence", "normalizers": []}
        return {
            # A whole number is the id of a token that has one of these names.
            name: value if type(value) is int else plain.get(name, value)
            for name, value in json_object.items()
        }

    try:
        tree = json.loads(model, object_hook=with_plain_values)
        tree |= {"truncation": None, "padding": None, "post_processor": None}
        tree["model"]["dropout"] = None
        return json.dumps(tree).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where} is no tokenizer.json ({str(error)[:100]}): restore it from a copy"
        ) from None


def without_spelled_bytes(tree: dict[str, Any], newline: str = "") -> dict[str, Any]:
    """Keeps a tokenizer.json from reading the letters `<0x0A>` of a text as a byte.

    The library looks for the names of added tokens in each text. A byte's token is no longer among
    them if the model has it too; else it gets a name that no text spells, and keeps its id.

    Args:
        tree: The file's content; not of a byte-level BPE, whose bytes have other names.
        newline: The name of the token of a newline, which is hidden too.

    Returns:
        The content with other added tokens.
    """
    vocab = tree["model"].get("vocab", {})
    names_of_model = vocab if isinstance(vocab, dict) else {name for name, _ in vocab}
    added = []
    for token in tree.get("added_tokens") or []:
        name = token["content"]
        is_spelled = _BYTE.fullmatch(name) or name == newline
        if not is_spelled or name == "\n":
            added.append(token)
        elif name not in names_of_model:
            added.append({**token, "content": _HIDDEN + name})
    return {**tree, "added_tokens": added}


# It ends the process or not. A text that cannot be read is reported by `Subwords.read`.
_PROBE = """
import contextlib, sys, tokenizers
made = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode())
for text in (" a b a", "\\n", "\\U00013000"):
    with contextlib.suppress(Exception):
        made.encode(text, add_special_tokens=False)
"""


@lru_cache(maxsize=8)
def _check_loads(model: bytes) -> None:
    """Loads a tokenizer.json in a process of its own, which a damaged one may end.

    Raises ValueError with the library's own reason.
    """
    _import_tokenizers()
    # -P: no module of the working directory is imported.
    command = [sys.executable, "-P", "-c", _PROBE]
    done = subprocess.run(command, input=model, capture_output=True)
    if done.returncode < 0:
        raise ValueError("it ends the process that loads it")
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise ValueError(reason.partition(": ")[2] or reason)


def _import_tokenizers() -> Any:
    """The library `tokenizers`. Raises DataError where it is not installed."""
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
            return [names[token] for token in made.encode(text, add_special_tokens=False).ids]
        except (KeyboardInterrupt, UnicodeError):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            reason = " ".join(str(error)[:200].split())
            raise DataError(
                f"the tokenizer cannot read {shown(text)} ({reason}): take one with a token for "
                "unknown letters, or with bytes"
            ) from None

    return _Tokenizer(names, unknown, encode)
