"""A run's vocabulary as `transformers.AutoTokenizer` loads it: tokenizer.json of the library `tokenizers`."""

import json
from typing import Any

from jaxlm.data.tokens import EOS, UNK
from jaxlm.data.vocab import Vocab
from jaxlm.errors import JaxlmError
from jaxlm.scoring.language_model import LanguageModel

WHITE_SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # that str.split splits at


VOCAB = "vocab.txt"  # a word a line


def special_tokens(vocab: Vocab) -> dict[str, int]:
    """{name in tokenizer_config.json: id}: what begins, ends and pads a text is `<eos>`; of those in the vocabulary."""
    names = {"bos_token": EOS, "eos_token": EOS, "pad_token": EOS, "unk_token": UNK}
    return {name: vocab.ids[word] for name, word in names.items() if word in vocab.ids}


def tokenizer_files(model: LanguageModel) -> dict[str, bytes]:
    """The bytes of each file. Text is split at white space, and each newline is `<eos>`, as `jaxlm.data.text` does."""
    if model.vocab.kind != "words":
        raise JaxlmError(f"a hub's folder has no tokenizer of {model.vocab.kind} yet: export it --to stablehlo")
    vocab, special = model.vocab, special_tokens(model.vocab)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    newline = {"type": "Replace", "pattern": {"Regex": "\r\n|\r|\n"}, "content": f" {EOS} "}
    lower = [{"type": "Lowercase"}] if model.config.data.lowercase else []
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": place, "content": vocab.words[place], "special": True, **flags}
            for place in sorted(set(special.values()))
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*lower, newline]},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": f"[{WHITE_SPACE}]+"},
            "behavior": "Removed",
            "invert": False,
        },
        "model": {"type": "WordLevel", "vocab": vocab.ids, "unk_token": UNK},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **{name: vocab.words[place] for name, place in special.items()},
    }
    return {
        "tokenizer.json": as_json(tokenizer),
        "tokenizer_config.json": as_json(settings),
        "vocab.json": as_json(vocab.ids),
        VOCAB: "".join(f"{word}\n" for word in vocab.words).encode(),
    }


def as_json(tree: Any) -> bytes:
    """JSON of any text, for people and programs."""
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
