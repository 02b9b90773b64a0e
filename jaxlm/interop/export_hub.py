"""Export to a folder as model hubs expect it, which `transformers` loads with `trust_remote_code=True`.

config.json  model.safetensors (jaxlm's parameters, under its own names)  modeling_jaxlm.py (the model in PyTorch)
tokenizer.json (of the library `tokenizers`)  tokenizer_config.json  vocab.json  vocab.txt  README.md (card.md)
"""

import base64
import io
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.serialization import to_state_dict
from jinja2 import StrictUndefined, Template

from jaxlm.data.tokens import EOS, SPACE, UNITS, Subwords, without_spelled_bytes
from jaxlm.data.vocab import Vocab
from jaxlm.errors import JaxlmError
from jaxlm.files import Folder, new_folder
from jaxlm.interop.importing import CODE, CONFIG, FORMAT, VOCAB, WEIGHTS
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Recurrent
from jaxlm.report.curve import by_kind
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.state_arrays import flat
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.terminal import printable
from jaxlm.units import perplexity_text

CELLS = ("lstm", "gru", "mingru", "mogrifier")  # that modeling_jaxlm.py has
WHITE_SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # that str.split splits at
_UNIGRAM = 1  # the model type of a SentencePiece model; else BPE
_UNKNOWN = 2  # types of pieces of a SentencePiece model
_CONTROL = 3


def export_hub(model: LanguageModel, out: Path, run: Path | None, which: str) -> None:
    """Writes the folder, of the step `which` of a run; each checkpoint that the run kept by words is a folder in it.

    Raises JaxlmError where modeling_jaxlm.py has no such layer, or other programs no such tokenizer; OSError.
    """
    _cell_of(model.config.model)  # raises before a directory is made
    end = model.vocab.words[model.vocab.eos]
    if _is_json(model.vocab) and end not in ("\n", "\u010a", "<0x0A>"):
        why = f"other programs would not read a newline as {end!r}, as the model does"
        raise JaxlmError(f"{why}: export it --to stablehlo")
    if model.vocab.kind != "words" and model.vocab.newline_id < 0:
        why = "other programs begin a text with a newline, and the model's training text had none"
        raise JaxlmError(
            f"{why}: export it --to stablehlo, or train on a text of more than one line"
        )
    exported = run and int(which)
    with new_folder(out) as folder:
        _fill(
            folder,
            model,
            [row for row in read_metrics(run) if row.get("step") == exported] if run else [],
        )
        for step, manifest in checkpoint.manifests(run).items() if run else ():
            if run and manifest.words:
                with folder.new_folder(_revision(manifest.words)) as inner:
                    _fill(inner, load(run, str(step)), [])


def _fill(folder: Folder, model: LanguageModel, metrics: Sequence[dict[str, Any]]) -> None:
    """Writes the files of one model."""
    config = model.config.model
    params = {**model.params, "embedding": {"weight": model.params["embedding"]}}
    described = {
        "model_type": "jaxlm",
        "jaxlm_format": FORMAT,
        "architectures": ["JaxlmForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_jaxlm.JaxlmConfig",
            "AutoModel": "modeling_jaxlm.JaxlmModel",
            "AutoModelForCausalLM": "modeling_jaxlm.JaxlmForCausalLM",
            "AutoModelForSequenceClassification": "modeling_jaxlm.JaxlmForSequenceClassification",
        },
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_sizes[-1],
        "num_hidden_layers": len(config.hidden_sizes),
        "tie_word_embeddings": False,  # (tied or not, there is nothing for transformers to tie)
        **{f"{name}_id": place for name, place in special_tokens(model.vocab).items()},
        "cell": _cell_of(config),
        "shapes": jax.tree.map(
            lambda leaf: list(leaf.shape), to_state_dict(params)
        ),  # (lists as dicts)
        "jaxlm": json.loads(model.config.to_json()),
    }
    weights = {name: np.asarray(leaf, np.float32, order="C") for name, leaf in flat(params).items()}
    text = files("jaxlm.interop").joinpath("card.md").read_text("utf-8")
    card = Template(
        text, trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    ).render(
        kind=config.kind_name,
        model=config,
        vocab=model.vocab,
        corpus=_cell(model.corpus.get("name", "an unknown corpus")),
        count=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        results=_results(metrics),
    )
    contents = {
        CONFIG: as_json(described),
        CODE: files("jaxlm.interop").joinpath(CODE).read_bytes(),
        WEIGHTS: safetensors.numpy.save(weights, {"format": "pt"}),
        **tokenizer_files(model),
        "README.md": card.encode(),
    }
    for name, data in contents.items():
        folder.write(name, data)


def _revision(words: int) -> str:
    """The name of a model that saw so many words, as BabyLM has it: chck_10M."""
    unit, factor = next(
        (unit, factor)
        for unit, factor in (("M", 10**6), ("k", 10**3), ("", 1))
        if not words % factor
    )
    return f"chck_{words // factor}{unit}"


def _cell_of(model: Recurrent) -> dict[str, Any]:
    """What modeling_jaxlm.py has to know of a kind beside its fields. Raises JaxlmError for one that it lacks."""
    kind = model.kind_name.removeprefix("lamb-")
    if kind not in CELLS:
        raise JaxlmError(
            f"the model has layers of the kind {kind}, not {', '.join(CELLS)}: export it --to stablehlo"
        )
    scale = model.update_scale(None) if isinstance(model, Mogrifier) else None
    return {"kind": kind, "update_scale": 1.0 if scale is None else float(scale)}


def _results(metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, perplexity) of the test and the validation of a checkpoint, of which the metrics are."""
    _, epochs, tests = by_kind(metrics)
    rows = [("test", row, "test_perplexity") for row in tests[-1:]]
    rows += [
        (f"validation, epoch {row.get('epoch', '')}", row, "valid_perplexity")
        for row in epochs[-1:]
    ]
    known = [
        (_cell(f"{row.get('corpus', '')} {name}"), row.get(field)) for name, row, field in rows
    ]
    return [
        (name, perplexity_text(value) if isinstance(value, float | int) else "unknown")
        for name, value in known
    ]


def _cell(text: object) -> str:
    """Text of a run within a line of a table."""
    found = re.sub(r"([\\`*\[\]!|])", r"\\\1", printable(str(text))[:200])
    return found.replace("<", "&lt;").replace("{", "(").replace("}", ")")


def special_tokens(vocab: Vocab) -> dict[str, int]:
    """{name in tokenizer_config.json: id}. What ends a sentence also begins and pads a text."""
    end = vocab.newline_id
    named = vocab.kind == "words" or _is_json(vocab)  # else a text's <unk> is letters
    unknown = vocab.unknown_id if named else -1
    ids = {"bos_token": end, "eos_token": end, "pad_token": end, "unk_token": unknown}
    return {name: place for name, place in ids.items() if place >= 0}


def tokenizer_files(model: LanguageModel) -> dict[str, bytes]:
    """The bytes of each file: the tokenizer's, the vocabulary as checkpoints have it, and of words one a line."""
    vocab = model.vocab
    names = [*model.vocab.words]
    special = special_tokens(model.vocab)
    if vocab.kind != "words" and not _is_json(vocab) and vocab.token_bytes[vocab.eos] == b"\n":
        names[vocab.eos] = "\n"  # (some kinds have another name for it)
    data = model.config.data
    lines = _LINES[model.config.data.lines]
    # Programs write bos_token + text. Where it is a newline, lines are joined before newlines are cut out.
    if (
        lines and isinstance(vocab.tokens, Subwords) and not _is_json(vocab)
    ):  # (whose rules may make one a space)
        lines = (*lines, _replace("\n", "\ue000"))
    flags = {**dict.fromkeys(("single_word", "lstrip", "rstrip"), False), "normalized": bool(lines)}
    added = [
        {"id": place, "content": names[place], "special": True, **flags}
        for place in sorted({*special.values()})
    ]
    parts = _parts(vocab, {name: i for i, name in enumerate(names)})
    read = [*lines]
    if data.lowercase:
        read = [_final_sigma(), {"type": "Lowercase"}, *lines]
    if read:
        parts["normalizer"] = _sequence("normalizer", *read, parts.get("normalizer"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **{name: names[place] for name, place in special.items()},
    }
    words = (
        {"vocab.txt": "".join(f"{word}\n" for word in vocab.words).encode()}
        if vocab.kind == "words"
        else {}
    )
    return {
        "tokenizer.json": as_json({"version": "1.0", "added_tokens": added, **parts}),
        "tokenizer_config.json": as_json(settings),
        VOCAB: vocab.to_json().encode(),
        **words,
    }


def as_json(tree: Any) -> bytes:
    """JSON of any text, for people and programs; what is not UTF-8 in a path is escaped."""
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _sequence(kind: str, *parts: Any) -> dict[str, Any]:
    """The parts of a pipeline in their order, without the empty ones."""
    return {"type": "Sequence", f"{kind}s": [part for part in parts if part]}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


@cache
def _final_sigma() -> dict[str, Any]:
    """What makes a capital sigma at a word's end the letter that `str.lower` makes of it.

    `tokenizers` knows no final sigma. It is one where a cased letter stands before it and none
    behind it, letters that case ignores left out (Unicode 3.13); `str.lower` tells which are which.
    """
    letters = [chr(code) for code in range(sys.maxunicode + 1)]
    cased = {letter for letter in letters if f"{letter}Σ".lower().endswith("ς")}
    ignored = {letter for letter in letters if f"A{letter}Σ".lower().endswith("ς")} - cased
    return _replace(
        f"{_char_class(cased)}{_char_class(ignored)}*\\KΣ"
        f"(?!{_char_class(ignored)}*{_char_class(cased)})",
        "ς",
    )


def _char_class(letters: set[str]) -> str:
    """A regular expression for one of these letters."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, letters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges) + "]"


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
_TO_TEXT = _sequence("decoder", {"type": "ByteFallback"}, {"type": "Fuse"})


def _parts(vocab: Vocab, ids: dict[str, int]) -> dict[str, Any]:
    """What tokenizer.json holds of a kind of tokens."""
    words = {"type": "WordLevel", "vocab": ids, "unk_token": vocab.tokens.unknown}
    if vocab.kind == "words":
        split = _split(f"[{WHITE_SPACE}]+", "Removed")
        return {
            "normalizer": _replace("\r\n|\r|\n", f" {EOS} "),
            "pre_tokenizer": split,
            "model": words,
        }
    if vocab.kind == "characters":
        normalizer = {"type": "NFC"} if vocab.tokens.fields()["normalize"] == "nfc" else None
        split = _split(r"[\s\S]")
        return {
            "normalizer": normalizer,
            "pre_tokenizer": split,
            "model": words,
            "decoder": {"type": "Fuse"},
        }
    if vocab.kind == "bytes":
        return {
            "model": {"type": "BPE", "vocab": ids, "merges": [], "byte_fallback": True},
            "decoder": _TO_TEXT,
        }
    if _is_json(
        vocab
    ):  # the tokenizer.json that the model was trained with, its text cut into units first
        assert isinstance(vocab.tokens, Subwords)
        tree = json.loads(vocab.tokens.model)
        if not vocab.tokens.is_byte_level:
            tree = without_spelled_bytes(tree)
        cut = _sequence("pretokenizer", _split(UNITS.pattern), tree.get("pre_tokenizer"))
        return {**tree, "pre_tokenizer": cut}
    return _sentencepiece(vocab, ids)


def _is_json(vocab: Vocab) -> bool:
    return isinstance(vocab.tokens, Subwords) and vocab.tokens.model[:1] == b"{"


def _message_fields(data: Any) -> dict[int, list[Any]]:
    """The values of a protocol buffer's message, by the number of their field.

    A number is an int, all else its bytes. The message must be sound, as a model that SentencePiece
    has loaded is.
    """
    stream = io.BytesIO(data)

    def varint() -> int:
        value = 0
        for shift in range(0, 70, 7):  # seven bits a byte, lowest first
            byte = stream.read(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
        return value

    fields: dict[int, list[Any]] = {}
    while stream.tell() < len(data):
        tag = varint()
        match tag & 7:
            case 0:
                value = varint()
            case 1:
                value = stream.read(8)
            case 5:
                value = stream.read(4)
            case _:
                value = stream.read(varint())
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _sentencepiece(vocab: Vocab, ids: dict[str, int]) -> dict[str, Any]:
    """What `tokenizers` needs of a SentencePiece model (its message ModelProto).

    Pieces are written with plain spaces, so that a text's own U+2581 is a letter like others.
    """
    assert isinstance(vocab.tokens, Subwords)
    ids = {name.replace(SPACE, " "): place for name, place in ids.items()}
    proto = _message_fields(vocab.tokens.model)
    bits = b"".join(_message_fields(piece).get(2, [bytes(4)])[-1] for piece in proto[1])
    scores = dict(zip(ids, np.frombuffer(bits, "<f4").tolist(), strict=True))
    model: dict[str, Any] = {
        "unk_token": vocab.tokens.unknown,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    if _message_fields(proto.get(2, [b""])[-1]).get(3, [_UNIGRAM])[-1] == _UNIGRAM:
        kinds = [_message_fields(piece).get(3, [1])[-1] for piece in proto[1]]
        named = []
        for (name, score), kind in zip(scores.items(), kinds, strict=True):
            if kind in (_UNKNOWN, _CONTROL) and name != "\n":
                name = f"\ufdd0{name}"  # a noncharacter, so that no text spells the name
            named.append((name, score))
        model |= {"type": "Unigram", "vocab": named, "unk_id": vocab.unknown_id}
    else:
        pieces = sorted(scores, key=scores.__getitem__, reverse=True)
        cuts = ((name[:at], name[at:]) for name in pieces for at in range(1, len(name)))
        merges = [pair for pair in cuts if pair[0] in scores and pair[1] in scores]
        model |= {"type": "BPE", "vocab": ids, "merges": merges}
    charsmap = b"".join(
        bytes(part) for spec in proto.get(3, []) for part in _message_fields(spec).get(2, [])
    )
    precompiled = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(charsmap).decode(),
    }
    return {
        "normalizer": precompiled if charsmap else None,
        "pre_tokenizer": _split(UNITS.pattern),
        "model": model,
        "decoder": _TO_TEXT,
    }
