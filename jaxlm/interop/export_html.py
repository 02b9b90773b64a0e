"""A model as one page of HTML that runs it: no server, no request.

The page's scripts lie in `report/live/`. A matrix is int8 with a scale for 32 inputs each, vectors
are float32. `cells.js` has the same cells as `jaxlm.models`, one function a kind.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import sentencepiece

from jaxlm.data.tokens import Subwords
from jaxlm.errors import JaxlmError
from jaxlm.interop.export_hub import tokenizer_files
from jaxlm.models.gru import GRU
from jaxlm.models.lstm import LSTM
from jaxlm.models.mingru import MinGRU, MinLSTM
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Params
from jaxlm.report.live import page
from jaxlm.runs.state_arrays import SHARING, rounded_blocks
from jaxlm.scoring.language_model import LanguageModel

KINDS = (LSTM, GRU, MinGRU, MinLSTM, Mogrifier)
_WITH_CELL = (LSTM, Mogrifier)


def to_html(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A page that runs a model.

    Args:
        model: The model.

    Returns:
        The page in UTF-8, and notes for the user.

    Raises:
        JaxlmError: No function of the page runs this kind of model, or reads its tokens.
    """
    network = model.config.model
    name = model.config.kinds["model"]
    kinds = [kind.kind_name for kind in KINDS]
    if network.title not in kinds:
        raise JaxlmError(
            f"a page runs models of the kinds {', '.join(kinds)}, and this model is {network.title}"
        )
    weights = _Weights()
    params = {
        "embedding": weights.matrix(model.params["embedding"][: len(model.vocab)]),
        "layers": [
            _layer(name, layer, width, weights)
            for layer, width in zip(model.params["layers"], network.hidden_sizes, strict=True)
        ],
        "softmax": _head(model.params["softmax"], len(model.vocab), weights),
    }
    scale = network.embedding_size**0.5 if network.scale_embedding else 1.0
    config = {
        "title": f"A language model: {name}",
        "about": _about(model),
        "kind": name,
        "params": params,
        "widths": list(network.hidden_sizes),
        "has_cell": isinstance(network, _WITH_CELL),
        "skip": network.skip,
        "running_sum": network.running_sum,
        "embedding_scale": scale,
        "forget_bias": float(getattr(network, "forget_bias", 0.0)),
        "positive": getattr(network, "positive", False),
        "input_gate": getattr(network, "input_gate", ""),
        "cell_clip": getattr(network, "cell_clip", None),
        "mixture_epsilon": float(network.mixture_epsilon or 0.0),
        **_tokens(model),
    }
    notes = ["the page's weights are rounded to 8 bits: surprisals differ by hundredths of a bit"]
    return page(config, weights.bytes(), _first_text(model)).encode(), notes


class _Weights:
    """Collects arrays one after the other, and names where each lies."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def _add(self, data: bytes) -> int:
        offset = self._size
        padded = data + bytes(-len(data) % 4)
        self._parts.append(padded)
        self._size += len(padded)
        return offset

    def matrix(self, array: Any) -> dict[str, int]:
        """Adds a matrix [outputs, inputs], rounded to int8 with a scale for 32 inputs each."""
        values = np.asarray(array, np.float32)
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % SHARING)))
        rounded, scales = rounded_blocks(padded.reshape(len(values), -1, SHARING))
        offset = self._add(scales.astype("<f4").tobytes() + rounded.tobytes())
        return {"offset": offset, "rows": len(values), "columns": values.shape[1]}

    def vector(self, array: Any) -> dict[str, int]:
        """Adds a vector as float32."""
        values = np.asarray(array, "<f4")
        return {"offset": self._add(values.tobytes()), "size": len(values)}

    def bytes(self) -> bytes:
        """All arrays."""
        return b"".join(self._parts)


def _layer(
    kind: str,
    params: Params,
    width: int,
    weights: _Weights,
) -> dict[str, Any]:
    """Where a layer's arrays lie, by the names that `cells.js` reads."""
    if kind != "mogrifier":
        return {name: _array(value, weights) for name, value in params.items()}
    kernel = np.asarray(params["kernel"])
    inputs = len(kernel) - width
    rounds = [
        {name: _array(value, weights) for name, value in matrices.items()}
        for matrices in params["rounds"]
    ]
    norms = params.get("norms")
    return {
        "input_kernel": weights.matrix(kernel[:inputs].T),
        "state_kernel": weights.matrix(kernel[inputs:].T),
        "bias": weights.vector(params["bias"]),
        "rounds": rounds,
        "norms": norms and {name: weights.vector(value) for name, value in norms.items()},
    }


def _array(value: Any, weights: _Weights) -> dict[str, int]:
    array = np.asarray(value)
    if array.ndim == 2:
        return weights.matrix(array.T)
    return weights.vector(array)


def _head(
    head: Params,
    words: int,
    weights: _Weights,
) -> dict[str, Any]:
    """Where the head's arrays lie; without a kernel it reads the embedding."""
    arrays = {name: np.asarray(value) for name, value in head.items()}
    arrays["bias"] = arrays["bias"][:words]
    if "kernel" in arrays:
        arrays["kernel"] = arrays["kernel"][:, :words]
    return {name: _array(value, weights) for name, value in arrays.items()}


def _tokens(model: LanguageModel) -> dict[str, Any]:
    """What `tokens.js` needs to read a text: the names of the tokens and how a text is cut."""
    vocab = model.vocab
    fields: dict[str, Any] = {
        "tokens": vocab.kind,
        "names": list(vocab.words),
        "lowercase": model.config.data.lowercase or _all_lower(vocab.words),
        "end": vocab.eos,
        "unknown": vocab.unknown_id,
    }
    tokens = vocab.tokens
    if isinstance(tokens, Subwords):
        tokenizer = json.loads(tokenizer_files(model)["tokenizer.json"])
        if tokens.is_json:
            raise JaxlmError(
                "a page reads subwords by a SentencePiece model, and this run has a "
                "tokenizer.json: train with --tokens subwords, without a --tokenizer-file"
            )
        model_of_pieces = sentencepiece.SentencePieceProcessor(
            model_proto=tokens.model,
        )
        fields["algorithm"] = tokenizer["model"]["type"].lower()
        fields["scores"] = [
            model_of_pieces.GetScore(model_of_pieces.PieceToId(name)) for name in vocab.words
        ]
    return fields


def _all_lower(words: Sequence[str]) -> bool:
    """Whether a vocabulary has no capital letter, but in the N of Penn Treebank's numbers."""
    return all(word == word.lower() for word in words if word.strip("N\\/"))


def _about(model: LanguageModel) -> str:
    """What the model is, in a sentence."""
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    text = model.corpus.get("name", "an unknown text")
    pieces = "" if model.vocab.kind == "words" else " A word's surprisal is the sum of its pieces'."
    return (
        f"{size:,} parameters, {len(model.vocab):,} {model.vocab.kind}, trained on {text}. It runs "
        f"in this page: nothing that you type leaves it.{pieces}"
    )


def _first_text(model: LanguageModel) -> str:
    """A text of common words to begin with."""
    words = [word for word in model.vocab.words if word.isalpha() and len(word) > 1]
    if model.vocab.kind != "words" or not words:
        return "the old man" if _all_lower(model.vocab.words) else "The old man"
    return " ".join(words[:3])
