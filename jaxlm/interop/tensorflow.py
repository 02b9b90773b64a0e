"""The parameter tree under the names that TensorFlow 1's PTB tutorial gives its variables."""

from collections.abc import Mapping

import numpy as np

from jaxlm.errors import JaxlmError
from jaxlm.interop.tensorflow_layout import tensorflow_names
from jaxlm.models.lstm import Params

EMBEDDING, SOFTMAX_KERNEL, SOFTMAX_BIAS = "m/embedding_vocab:0", "m/softmax_w:0", "m/softmax_b:0"
LAYER = "m/rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}:0"


def to_tensorflow(params: Params) -> dict[str, np.ndarray]:
    """{variable's name: array}, in the order of TensorFlow's own list; shapes and gate order are the same.

    Raises:
        JaxlmError: the model's head is more or less than a softmax with a kernel of its own.
    """
    if (found := {*params["softmax"]}) != {"kernel", "bias"}:
        raise JaxlmError(
            f"TensorFlow's tutorial has one softmax with the variables kernel and bias, and this model's "
            f"head has {', '.join(sorted(found))}: export it --to stablehlo or orbax"
        )
    layers = {
        LAYER.format(i, part): layer[part] for i, layer in enumerate(params["layers"]) for part in ("kernel", "bias")
    }
    variables = {
        EMBEDDING: params["embedding"],
        **layers,
        SOFTMAX_KERNEL: params["softmax"]["kernel"],
        SOFTMAX_BIAS: params["softmax"]["bias"],
    }
    return {name: np.asarray(array) for name, array in variables.items()}


def from_tensorflow(variables: Mapping[str, np.ndarray]) -> Params:
    """The parameter tree of `to_tensorflow`'s variables, under any scope.

    Args:
        variables: arrays by name, as TensorFlow's own list has them; slots of an optimiser are left out.
    Raises:
        JaxlmError: names are missing or unknown.
    """
    names, _ = tensorflow_names(variables)
    return {
        "embedding": np.asarray(variables[names.embedding]),
        "layers": [{part: np.asarray(variables[name]) for part, name in cell.items()} for cell in names.cells],
        "softmax": {"kernel": np.asarray(variables[names.kernel]), "bias": np.asarray(variables[names.bias])},
    }
