"""The files of a hub's folder: their names, and what those of the tokenizer hold."""

import base64
import io
import json
from typing import Any

import sentencepiece

from jaxlm.data.subwords import SPACE, UNITS, Subwords, without_spelled_bytes
from jaxlm.data.tokens import EOS
from jaxlm.data.vocab import Vocab
from jaxlm.scoring.language_model import LanguageModel

FORMAT = 1  # of a hub's folder, whose files are:
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CODE = "modeling_jaxlm.py"
VOCAB = "vocab.json"
SUMS = "SHA256SUMS"  # of the others, as the program sha256sum writes it
# What str.split splits at, as a class of a regular expression.
WHITE_SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_UNIGRAM = 1  # the model type of a SentencePiece model; else BPE


def special_tokens(vocab: Vocab) -> dict[str, int]:
    """{name in tokenizer_config.json: id}. What ends a sentence also begins and pads a text."""
    end = vocab.newline_id
    ids = {"bos_token": end, "eos_token": end, "pad_token": end}
    if vocab.kind == "words" or is_json(vocab):  # in other texts <unk> is letters
        ids["unk_token"] = vocab.unknown_id
    return {name: place for name, place in ids.items() if place >= 0}


def tokenizer_files(model: LanguageModel) -> dict[str, bytes]:
    """The files of the tokenizer; the vocabulary as checkpoints have it, and words one a line."""
    vocab = model.vocab
    names = list(vocab.words)
    special = special_tokens(vocab)
    if vocab.kind != "words" and not is_json(vocab) and vocab.token_bytes[vocab.eos] == b"\n":
        names[vocab.eos] = "\n"  # some kinds have another name for it
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **{name: names[place] for name, place in special.items()},
    }
    contents = {
        "tokenizer.json": as_json(_tokenizer(model, names, special)),
        "tokenizer_config.json": as_json(settings),
        VOCAB: vocab.to_json().encode(),
    }
    if vocab.kind == "words":
        contents["vocab.txt"] = "".join(f"{word}\n" for word in vocab.words).encode()
    return contents


def _tokenizer(
    model: LanguageModel,
    names: list[str],
    special: dict[str, int],
) -> dict[str, Any]:
    """tokenizer.json, of the names of all tokens and the ids of the special ones."""
    vocab = model.vocab
    data = model.config.data
    normalizers = list(_LINES[data.lines])
    # A program writes bos_token, then the text. Where bos_token is a newline, the rules above join
    # lines before newlines are cut out as tokens.
    normalized = bool(normalizers)
    if normalized and isinstance(vocab.tokens, Subwords) and not is_json(vocab):
        normalizers.append(_replace("\n", "\ue000"))  # SentencePiece's rules may make it a space
    if data.lowercase:
        normalizers = [_FINAL_SIGMA, {"type": "Lowercase"}, *normalizers]
    added = [
        {
            "id": place,
            "content": names[place],
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": normalized,
        }
        for place in sorted(set(special.values()))
    ]
    pipeline = _pipeline(vocab, {name: place for place, name in enumerate(names)})
    if normalizers:
        pipeline["normalizer"] = _sequence("normalizer", *normalizers, pipeline.get("normalizer"))
    return {"version": "1.0", "added_tokens": added, **pipeline}


def as_json(tree: Any) -> bytes:
    """JSON of any text, for people and programs; what is not UTF-8 in a path is escaped."""
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _sequence(kind: str, *parts: Any) -> dict[str, Any]:
    """A pipeline of `tokenizers`, such as that of its normalizers; parts that are None are none."""
    return {"type": "Sequence", f"{kind}s": [part for part in parts if part]}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


# A capital sigma at a word's end, as `str.lower` lowers it: `tokenizers` knows no final sigma. It
# stands behind a cased letter and before none, letters that case ignores left out (Unicode 3.13).
_CASED = r"[\p{Cased}&&\P{Case_Ignorable}]"
_FINAL_SIGMA = _replace(
    rf"{_CASED}\p{{Case_Ignorable}}*\KΣ(?!\p{{Case_Ignorable}}*{_CASED})",
    "ς",
)
_NEWLINES = _replace("\r\n?", "\n")
_LINES = {
    "eos": (),
    "stripped": (_NEWLINES, _replace("(?<![ \t])[ \t]*\n[ \t]*", "\n")),
    # As `unwrapped` does: a newline alone becomes a space, several become one. But a newline with
    # which a text begins may be the bos_token, and stays.
    "unwrap": (
        _NEWLINES,
        _replace("\\A[ \t]+\n[ \t]*(?![ \t\n]|\\z)", " "),
        _replace("(?<=[^ \t\n])[ \t]*\n[ \t]*(?![ \t\n]|\\z)", " "),
        _replace("(?<![ \t])[ \t]*\n[ \t\n]*", "\n"),
    ),
}
_FUSE = {"type": "Fuse"}
_TO_TEXT = _sequence("decoder", {"type": "ByteFallback"}, _FUSE)


def _pipeline(vocab: Vocab, ids: dict[str, int]) -> dict[str, Any]:
    """The steps of tokenizer.json for a kind of tokens."""
    words = {"type": "WordLevel", "vocab": ids, "unk_token": vocab.tokens.unknown}
    if vocab.kind == "words":
        return {
            "normalizer": _replace("\r\n|\r|\n", f" {EOS} "),
            "pre_tokenizer": _split(f"[{WHITE_SPACE}]+", "Removed"),
            "model": words,
        }
    if vocab.kind == "characters":
        composed = vocab.tokens.fields()["normalize"] == "nfc"
        return {
            "normalizer": {"type": "NFC"} if composed else None,
            "pre_tokenizer": _split(r"[\s\S]"),
            "model": words,
            "decoder": _FUSE,
        }
    if vocab.kind == "bytes":
        return {
            "model": {"type": "BPE", "vocab": ids, "merges": [], "byte_fallback": True},
            "decoder": _TO_TEXT,
        }
    if is_json(vocab):
        # The tokenizer.json of the model's training, after the text is cut into units.
        assert isinstance(vocab.tokens, Subwords)
        tree = json.loads(vocab.tokens.model)
        if not vocab.tokens.is_byte_level:
            tree = without_spelled_bytes(tree)
        cut = _sequence("pretokenizer", _split(UNITS.pattern), tree.get("pre_tokenizer"))
        return {**tree, "pre_tokenizer": cut}
    return _sentencepiece(vocab, ids)


def is_json(vocab: Vocab) -> bool:
    """Whether the tokens are those of a tokenizer.json."""
    return isinstance(vocab.tokens, Subwords) and vocab.tokens.is_json


def _sentencepiece(vocab: Vocab, ids: dict[str, int]) -> dict[str, Any]:
    """What `tokenizers` needs of a SentencePiece model.

    Pieces are written with plain spaces, so that a text's own U+2581 is a letter like others. Of
    its message ModelProto, trainer_spec = 2 {model_type = 3} and normalizer_spec = 3
    {precompiled_charsmap = 2} are read here, which the library does not tell.
    """
    assert isinstance(vocab.tokens, Subwords)
    ids = {name.replace(SPACE, " "): place for name, place in ids.items()}
    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocab.tokens.model)
    scores = {name: pieces.GetScore(place) for name, place in ids.items()}
    model: dict[str, Any] = {
        "unk_token": vocab.tokens.unknown,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    proto = _message_fields(vocab.tokens.model)
    trainer = _message_fields(b"".join(proto.get(2, [])))
    if trainer.get(3, [_UNIGRAM])[-1] == _UNIGRAM:
        scored_pieces = []
        for name, place in ids.items():
            is_special = pieces.IsUnknown(place) or pieces.IsControl(place)
            # No text has a noncharacter, so none has the name of a special piece.
            prefix = "\ufdd0" if is_special and name != "\n" else ""
            scored_pieces.append((prefix + name, scores[name]))
        model |= {"type": "Unigram", "vocab": scored_pieces, "unk_id": vocab.unknown_id}
    else:
        merges = []
        for name in sorted(scores, key=scores.__getitem__, reverse=True):
            for cut in range(1, len(name)):
                if name[:cut] in scores and name[cut:] in scores:
                    merges.append((name[:cut], name[cut:]))
        model |= {"type": "BPE", "vocab": ids, "merges": merges}
    # A message that stands several times is one: their bytes add up.
    normalizer = _message_fields(b"".join(proto.get(3, [])))
    charsmap = base64.b64encode(normalizer.get(2, [b""])[-1]).decode()
    precompiled = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    return {
        "normalizer": precompiled if charsmap else None,
        "pre_tokenizer": _split(UNITS.pattern),
        "model": model,
        "decoder": _TO_TEXT,
    }


def _message_fields(data: bytes) -> dict[int, list[Any]]:
    """The values of a protocol buffer's message, by the number of their field.

    A number is an int, all else its bytes. The message must be sound, as a model that SentencePiece
    has loaded is.
    """
    stream = io.BytesIO(data)
    fields: dict[int, list[Any]] = {}
    while stream.tell() < len(data):
        tag = _varint(stream)
        match tag & 7:
            case 0:
                value = _varint(stream)
            case 1:
                value = stream.read(8)
            case 5:
                value = stream.read(4)
            case _:
                value = stream.read(_varint(stream))
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(stream: io.BytesIO) -> int:
    """A number of seven bits a byte, lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value
