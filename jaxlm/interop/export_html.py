"""A model as one page of HTML that runs it: no server, no request.

The page's scripts lie in `report/live/`, and beside the Python that they repeat: `models/cells.js`
has one function a kind. Matrices are whole numbers of as many bits as fit into the page, with a
scale for some inputs each; vectors are float32.
"""

import io
import json
from typing import Any

import jax
import numpy as np
import sentencepiece

from jaxlm.base.errors import JaxlmError
from jaxlm.data.subwords import Subwords
from jaxlm.interop.hub_files import tokenizer_files
from jaxlm.models.gru import GRU
from jaxlm.models.lstm import LSTM
from jaxlm.models.mingru import MinGRU, MinLSTM
from jaxlm.models.mogrifier import Mogrifier
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.report.live import page
from jaxlm.runs.state_arrays import SHARING, rounded_blocks
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.sentences import Boundaries
from jaxlm.scoring.tokenizers import PTBTokenizer

KINDS = (LSTM, GRU, MinGRU, MinLSTM, Mogrifier)
MOST_BYTES = 7_990_000  # of a page, about, where weights of LEAST_BITS allow it
LEAST_BITS = 8
MOST_BITS = 16
INPUTS = 128  # that share a scale
BASE64_BITS = 6  # of the weights in a byte of the page


def to_html(model: LanguageModel) -> tuple[bytes, list[str]]:
    """A page that runs a model.

    Args:
        model: The model.

    Returns:
        The page in UTF-8, and notes for the user.

    Raises:
        JaxlmError: No function of the page runs this kind of model, or reads its tokens.
    """
    model.check_network("a page that runs it")
    network = model.config.model
    kinds = [kind.kind_name for kind in KINDS]
    if network.title not in kinds:
        raise JaxlmError(
            f"a page runs models of the kinds {', '.join(kinds)}, and this model is "
            f"{network.title}: export it --to hub or stablehlo"
        )
    smallest, numbers = _page(model, LEAST_BITS)
    room = BASE64_BITS * (MOST_BYTES - len(smallest)) // max(1, numbers)
    bits = min(MOST_BITS, LEAST_BITS + max(0, room))
    html, _ = _page(model, bits)
    notes = [f"the page's weights are rounded to {bits} bits, so its surprisals differ a little"]
    return html, notes


def _page(model: LanguageModel, bits: int) -> tuple[bytes, int]:
    """The page with weights of `bits` bits, and how many weights there are of these."""
    network = model.config.model
    name = model.config.kinds["model"]
    words = len(model.vocab)
    softmax = {**model.params["softmax"]}
    softmax["bias"] = softmax["bias"][:words]
    if "kernel" in softmax:
        softmax["kernel"] = softmax["kernel"][:, :words]
    layers = [
        _as_cells_read(network, layer, width)
        for layer, width in zip(model.params["layers"], network.hidden_sizes, strict=True)
    ]
    weights = _Weights(bits)
    params = {
        "embedding": weights.matrix(model.params["embedding"][:words]),
        **jax.tree.map(weights.add, {"layers": layers, "softmax": softmax}),
    }
    scale = network.embedding_size**0.5 if network.scale_embedding else 1.0
    config = {
        "title": f"A language model: {name}",
        "about": _about(model),
        "kind": name,
        "params": params,
        "widths": list(network.hidden_sizes),
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
    return page(config, weights.bytes(), _first_text(model)).encode(), weights.numbers


class _Weights:
    """Collects arrays one after the other, and names where each lies.

    Attributes:
        bits: Of each number of a matrix.
        numbers: How many numbers have them.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.numbers = 0
        self._file = io.BytesIO()

    def add(self, array: Any) -> dict[str, int]:
        """Adds a matrix [inputs, outputs] or a vector."""
        if array.ndim == 2:
            return self.matrix(array.T)
        values = np.asarray(array, "<f4")
        return {"offset": self._append(values.tobytes()), "size": len(values)}

    def _append(self, data: bytes) -> int:
        offset = self._file.tell()
        self._file.write(data + bytes(-len(data) % 4))
        return offset

    def matrix(self, array: Any) -> dict[str, int]:
        """Adds a matrix [outputs, inputs], rounded; one that was rounded before stays as it is."""
        values = np.asarray(array, np.float32)
        bits, inputs = LEAST_BITS, SHARING
        numbers, scales = _rounded(values, bits, inputs)
        restored = numbers * np.repeat(scales, inputs, axis=1)[:, : values.shape[1]]
        if not np.allclose(restored, values, rtol=1e-6, atol=0):
            bits, inputs = self.bits, INPUTS
            numbers, scales = _rounded(values, bits, inputs)
            self.numbers += values.size
        offset = self._append(scales.astype("<f4").tobytes() + _packed(numbers, bits))
        rows, columns = values.shape
        return {"offset": offset, "rows": rows, "columns": columns, "bits": bits, "inputs": inputs}

    def bytes(self) -> bytes:
        """All arrays that were added, one after the other."""
        return self._file.getvalue()


def _rounded(
    matrix: np.ndarray,
    bits: int,
    inputs: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [outputs, inputs] as whole numbers, and a scale for each `inputs` inputs."""
    rows, columns = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -columns % inputs)))
    blocks, scales = rounded_blocks(padded.reshape(rows, -1, inputs), bits)
    return blocks.reshape(rows, -1)[:, :columns], scales


def _packed(numbers: np.ndarray, bits: int) -> bytes:
    """The lowest bits of each number, one number after the other."""
    halves = numbers.astype("<i2").reshape(-1, 1).view(np.uint8)
    lowest = np.unpackbits(halves, axis=1, count=bits, bitorder="little")
    return np.packbits(lowest, bitorder="little").tobytes()


def _as_cells_read(network: Recurrent, layer: Params, width: int) -> Params:
    """A layer's arrays under the names that `cells.js` reads: a Mogrifier's kernel in two."""
    if not isinstance(network, Mogrifier):
        return layer
    renamed = {**layer}
    kernel = renamed.pop("kernel")
    return {**renamed, "input_kernel": kernel[:-width], "state_kernel": kernel[-width:]}


def _tokens(model: LanguageModel) -> dict[str, Any]:
    """What `tokens.js` needs to read a text: the names of the tokens and how a text is cut."""
    vocab = model.vocab
    data = model.config.data
    tokenizer = model.tokenizer()
    fields: dict[str, Any] = {
        "tokens": vocab.kind,
        "names": list(vocab.words),
        "lowercase": data.lowercase,
        "normalize": data.normalize,
        "lines": data.lines,
        "end": vocab.eos,
        "newline": vocab.newline_id,
        "unknown": vocab.unknown_id,
        "ptb": tokenizer.rules() if isinstance(tokenizer, PTBTokenizer) else None,
    }
    boundaries = Boundaries.of(vocab, "word")
    for name in ("begins", "blank"):
        marked = [] if boundaries is None else getattr(boundaries, name)
        fields[name] = np.flatnonzero(marked).tolist()
    tokens = vocab.tokens
    if isinstance(tokens, Subwords):
        tree = json.loads(tokenizer_files(model)["tokenizer.json"])
        if tokens.is_json or "Precompiled" in json.dumps(tree.get("normalizer")):
            raise JaxlmError(
                "a page reads subwords by a SentencePiece model that changes no letter, and this "
                "run has another: train with --tokens subwords, without a --tokenizer-file"
            )
        model_of_pieces = sentencepiece.SentencePieceProcessor(
            model_proto=tokens.model,
        )
        fields["algorithm"] = tree["model"]["type"].lower()
        fields["scores"] = [
            model_of_pieces.GetScore(model_of_pieces.PieceToId(name)) for name in vocab.words
        ]
    return fields


def _about(model: LanguageModel) -> str:
    """What the model is, in a sentence."""
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    text = model.corpus.get("name", "an unknown text")
    return (
        f"{size:,} parameters, {len(model.vocab):,} {model.vocab.kind}, trained on {text}. It runs "
        "in this page: nothing that you type leaves it."
    )


def _first_text(model: LanguageModel) -> str:
    """A text of common words to begin with."""
    words = [word for word in model.vocab.words if word.isalpha() and len(word) > 1]
    if model.vocab.kind == "words" and words:
        return " ".join(words[:3])
    return "the old man"
