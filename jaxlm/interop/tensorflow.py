"""The parameter tree under the names that TensorFlow 1's PTB tutorial gives its variables."""

import re
from collections.abc import Mapping

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.models.lstm import Params

EMBEDDING, SOFTMAX_KERNEL, SOFTMAX_BIAS = "m/embedding_vocab:0", "m/softmax_w:0", "m/softmax_b:0"
LAYER = "m/rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}:0"


def to_tensorflow(params: Params) -> dict[str, np.ndarray]:
    """{variable's name: array}, in the order of TensorFlow's own list; shapes and gate order are the same."""
    layers = {LAYER.format(i, part): layer[part] for i, layer in enumerate(params["lstm"])
              for part in ("kernel", "bias")}
    variables = {EMBEDDING: params["embedding"], **layers, SOFTMAX_KERNEL: params["softmax"]["kernel"],
                 SOFTMAX_BIAS: params["softmax"]["bias"]}
    return {name: np.asarray(array) for name, array in variables.items()}


def from_tensorflow(variables: Mapping[str, np.ndarray]) -> Params:
    """The parameter tree of `to_tensorflow`'s variables. Raises JaxlmError for missing or unknown names."""
    count = len({found[1] for name in variables if (found := re.search(r"/cell_(\d+)/", name))})
    names = [LAYER.format(i, part) for i in range(count) for part in ("kernel", "bias")]
    expected = {EMBEDDING, SOFTMAX_KERNEL, SOFTMAX_BIAS, *names}
    if expected != set(variables) or not count:
        raise JaxlmError(f"expected TensorFlow's variables {sorted(expected)}; missing are "
                         f"{sorted(expected - set(variables))}, unknown {sorted(set(variables) - expected)}")
    arrays = {name: np.asarray(array) for name, array in variables.items()}
    return {
        "embedding": arrays[EMBEDDING],
        "lstm": [{part: arrays[LAYER.format(i, part)] for part in ("kernel", "bias")} for i in range(count)],
        "softmax": {"kernel": arrays[SOFTMAX_KERNEL], "bias": arrays[SOFTMAX_BIAS]},
    }
