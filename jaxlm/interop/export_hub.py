"""Export to a folder as model hubs expect it, for `transformers` with `trust_remote_code=True`.

Its files: config.json, model.safetensors (jaxlm's parameters, under its own names),
modeling_jaxlm.py (the model in PyTorch), tokenizer.json (of the library `tokenizers`),
tokenizer_config.json, vocab.json, vocab.txt, README.md (from card.md) and SHA256SUMS.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import sentencepiece
from flax.serialization import to_state_dict
from jinja2 import StrictUndefined, Template

from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import Folder, new_folder
from jaxlm.base.terminal import printable
from jaxlm.base.units import perplexity_text
from jaxlm.data.tokens import EOS, SPACE, UNITS, Subwords, without_spelled_bytes
from jaxlm.data.vocab import Vocab
from jaxlm.interop.importing import CODE, CONFIG, FORMAT, SUMS, VOCAB, WEIGHTS
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Recurrent
from jaxlm.report.curve import by_kind
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.state_arrays import flat
from jaxlm.scoring.language_model import LanguageModel

CELLS = ("lstm", "gru", "mingru", "mogrifier")  # that modeling_jaxlm.py has
# What str.split splits at, as a class of a regular expression.
WHITE_SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
NEWLINES = ("\n", "\u010a", "<0x0A>")  # its names in a tokenizer.json
_UNIGRAM = 1  # the model type of a SentencePiece model; else BPE


def export_hub(
    model: LanguageModel,
    out: Path,
    run: Path | None,
    which: str,
) -> None:
    """Writes a folder, and within it one for each checkpoint that the run kept by words.

    Args:
        model: The model.
        out: The folder, which must not exist.
        run: The directory of the run that the model is of.
        which: The step of the run.

    Raises:
        JaxlmError: modeling_jaxlm.py has no such layer, or other programs no such tokenizer.
        OSError: The folder cannot be written.
    """
    _cell_of(model.config.model)  # raises before a folder is made
    _check_newline(model.vocab)
    with new_folder(out) as folder:
        if run is None:
            _fill(folder, model, [])
            return
        step = int(which)
        _fill(folder, model, [row for row in read_metrics(run) if row.get("step") == step])
        for step, manifest in checkpoint.manifests(run).items():
            if manifest.words:
                with folder.new_folder(_revision(manifest.words)) as inner:
                    _fill(inner, load(run, str(step)), [])


def _check_newline(vocab: Vocab) -> None:
    """Raises JaxlmError where other programs would not read a newline as the model does."""
    end = vocab.words[vocab.eos]
    if _is_json(vocab) and end not in NEWLINES:
        raise JaxlmError(
            f"other programs would not read a newline as {end!r}, as the model does: "
            "export it --to stablehlo"
        )
    if vocab.kind != "words" and vocab.newline_id < 0:
        raise JaxlmError(
            "other programs begin a text with a newline, and the model's training text had none: "
            "export it --to stablehlo, or train on a text of more than one line"
        )


def _fill(
    folder: Folder,
    model: LanguageModel,
    metrics: Sequence[dict[str, Any]],
) -> None:
    """Writes the files of one model."""
    config = model.config.model
    params = {**model.params, "embedding": {"weight": model.params["embedding"]}}
    description = {
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
        "tie_word_embeddings": False,  # also where jaxlm ties them: the file has one matrix
        **{f"{name}_id": place for name, place in special_tokens(model.vocab).items()},
        "cell": _cell_of(config),
        "shapes": jax.tree.map(lambda leaf: list(leaf.shape), to_state_dict(params)),
        "jaxlm": json.loads(model.config.to_json()),
    }
    weights = {name: np.asarray(leaf, np.float32, order="C") for name, leaf in flat(params).items()}
    contents = {
        CONFIG: as_json(description),
        CODE: files("jaxlm.interop").joinpath(CODE).read_bytes(),
        WEIGHTS: safetensors.numpy.save(weights, {"format": "pt"}),
        **tokenizer_files(model),
        "README.md": _card(model, metrics),
    }
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items()]
    contents[SUMS] = "".join(sums).encode()
    for name, data in contents.items():
        folder.write(name, data)


def _card(model: LanguageModel, metrics: Sequence[dict[str, Any]]) -> bytes:
    """The folder's README.md."""
    template = Template(
        files("jaxlm.interop").joinpath("card.md").read_text("utf-8"),
        trim_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    card = template.render(
        kind=model.config.model.kind_name,
        model=model.config.model,
        vocab=model.vocab,
        corpus=_cell(model.corpus.get("name", "an unknown corpus")),
        count=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        results=_results(metrics),
    )
    return card.encode()


def _revision(words: int) -> str:
    """The name of a model that saw so many words, as BabyLM has it: chck_10M."""
    for unit, factor in (("M", 10**6), ("k", 10**3)):
        if words % factor == 0:
            return f"chck_{words // factor}{unit}"
    return f"chck_{words}"


def _cell_of(model: Recurrent) -> dict[str, Any]:
    """What modeling_jaxlm.py has to know of a kind beside its fields.

    Raises:
        JaxlmError: It has no such kind.
    """
    kind = model.kind_name.removeprefix("lamb-")
    if kind not in CELLS:
        raise JaxlmError(
            f"the model has layers of the kind {kind}, not {', '.join(CELLS)}: "
            "export it --to stablehlo"
        )
    scale = model.update_scale(None) if isinstance(model, Mogrifier) else None
    return {"kind": kind, "update_scale": 1.0 if scale is None else float(scale)}


def _results(metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, perplexity) of the test and of the validation among a checkpoint's metrics."""
    _, epochs, tests = by_kind(metrics)
    results = []
    for row in tests[-1:]:
        results.append(("test", row, row.get("test_perplexity")))
    for row in epochs[-1:]:
        name = f"validation, epoch {row.get('epoch', '')}"
        results.append((name, row, row.get("valid_perplexity")))
    return [
        (
            _cell(f"{row.get('corpus', '')} {name}"),
            perplexity_text(value) if isinstance(value, float | int) else "unknown",
        )
        for name, row, value in results
    ]


def _cell(text: object) -> str:
    """A run's own words, for a cell of a table in Markdown."""
    escaped = re.sub(r"([\\`*\[\]!|])", r"\\\1", printable(str(text))[:200])
    return escaped.replace("<", "&lt;").replace("{", "(").replace("}", ")")


def special_tokens(vocab: Vocab) -> dict[str, int]:
    """{name in tokenizer_config.json: id}. What ends a sentence also begins and pads a text."""
    end = vocab.newline_id
    ids = {"bos_token": end, "eos_token": end, "pad_token": end}
    if vocab.kind == "words" or _is_json(vocab):  # in other texts <unk> is letters
        ids["unk_token"] = vocab.unknown_id
    return {name: place for name, place in ids.items() if place >= 0}


def tokenizer_files(model: LanguageModel) -> dict[str, bytes]:
    """The files of the tokenizer; the vocabulary as checkpoints have it, and words one a line."""
    vocab = model.vocab
    names = list(vocab.words)
    special = special_tokens(vocab)
    if vocab.kind != "words" and not _is_json(vocab) and vocab.token_bytes[vocab.eos] == b"\n":
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
    if normalized and isinstance(vocab.tokens, Subwords) and not _is_json(vocab):
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
    parts = _parts(vocab, {name: place for place, name in enumerate(names)})
    if normalizers:
        parts["normalizer"] = _sequence("normalizer", *normalizers, parts.get("normalizer"))
    return {"version": "1.0", "added_tokens": added, **parts}


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


def _parts(vocab: Vocab, ids: dict[str, int]) -> dict[str, Any]:
    """What tokenizer.json holds of a kind of tokens."""
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
    if _is_json(vocab):
        # The tokenizer.json of the model's training, after the text is cut into units.
        assert isinstance(vocab.tokens, Subwords)
        tree = json.loads(vocab.tokens.model)
        if not vocab.tokens.is_byte_level:
            tree = without_spelled_bytes(tree)
        cut = _sequence("pretokenizer", _split(UNITS.pattern), tree.get("pre_tokenizer"))
        return {**tree, "pre_tokenizer": cut}
    return _sentencepiece(vocab, ids)


def _is_json(vocab: Vocab) -> bool:
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
        named = []
        for name, place in ids.items():
            unspelled = pieces.IsUnknown(place) or pieces.IsControl(place)
            # No text spells a piece with a noncharacter.
            prefix = "\ufdd0" if unspelled and name != "\n" else ""
            named.append((prefix + name, scores[name]))
        model |= {"type": "Unigram", "vocab": named, "unk_id": vocab.unknown_id}
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
