"""What is read from other programs' files: named arrays, and the language model they make."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.config.config import Config
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params, Recurrent

LSTM_GATES = (0, 2, 1, 3)  # from jaxlm's order i, j, f, o to PyTorch's i, f, g (j), o, and back
MOST_PATH = 1000  # letters of a path in a message
MOST_SHARING = 4  # times the stored bytes: what a model's tensors may take (tied ones count twice)


@dataclass(frozen=True)
class ForeignModel:
    """A language model read from a file of another program.

    Attributes:
        config: The recipe of the model.
        params: jaxlm's parameter tree, in float32.
        notes: What a user should know: what was left out, added up or assumed.
        files: The files with the parameters.
        run: The config of the run that jaxlm exported the model from, if it did.
    """

    config: Recurrent
    params: Params
    notes: tuple[str, ...]
    files: tuple[Path, ...]
    run: Config | None = None

    @staticmethod
    def of_lstm(
        params: Params,
        notes: list[str],
        *files: Path,
    ) -> "ForeignModel":
        """Makes the model of an LSTM's parameter tree, which gives its sizes.

        Args:
            params: The tree.
            notes: What a user should know.
            files: The files with the parameters.

        Returns:
            The model.
        """
        vocab_size, width = params["embedding"].shape
        tied = "kernel" not in params["softmax"]
        widths = tuple(len(layer["bias"]) // 4 for layer in params["layers"])
        config = LSTM(vocab_size=vocab_size, embedding_size=width, hidden_sizes=widths, tied=tied)
        return ForeignModel(config, params, tuple(notes), files)


def by_role(
    names: Iterable[str],
    role_of: Callable[[str], str | None],
    ends: Iterable[str],
    parts: Sequence[str],
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Finds which tensor of an LSTM language model is which.

    Args:
        names: The names of all tensors.
        role_of: The role of a name; None: it has none. The roles of layer K are `PART of layer K`.
        ends: The roles that embedding and output layer must have.
        parts: The parts that each layer must have.

    Returns:
        {role: name}, and {part: name} of each layer.

    Raises:
        JaxlmError: A role has no name or two, or a name has no role. They are named.
    """
    names_of: dict[str, list[str]] = {}
    unknown = []
    layers = 1
    for name in names:
        role = role_of(name)
        if role is None:
            unknown.append(name)
            continue
        names_of.setdefault(role, []).append(name)
        _, _, layer = role.partition(" of layer ")
        layers = max(layers, int(layer or 0) + 1)
    of_layers = (f"{part} of layer {layer}" for layer in range(layers) for part in parts)
    missing = {*ends, *of_layers} - names_of.keys()
    repeated = [
        f"{role} ({listed(several)})" for role, several in names_of.items() if len(several) > 1
    ]
    if missing or unknown or repeated:
        problem = (
            f"missing are {listed(missing) or 'none'}; unknown are {listed(unknown) or 'none'}"
        )
        if repeated:
            problem += f"; given more than once are {', '.join(repeated[:4])}"
        raise JaxlmError(f"expected the weights of an LSTM language model; {problem}")
    roles = {role: several[0] for role, several in names_of.items()}
    by_layer = [
        {part: roles[f"{part} of layer {layer}"] for part in parts} for layer in range(layers)
    ]
    return roles, by_layer


def as_float32(
    name: str,
    array: np.ndarray,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Converts a tensor.

    Args:
        name: Its name, for errors.
        array: Its values.
        shape: The shape that it should have.

    Returns:
        The values in float32, in C order.

    Raises:
        JaxlmError: It has another shape, or does not hold finite floating-point numbers.
    """
    if array.shape != shape:
        raise JaxlmError(f"{quote(name)} has the shape {list(array.shape)}, expected {list(shape)}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise JaxlmError(
            f"{quote(name)} holds {array.dtype.name!r}, expected floating-point numbers"
        )
    with np.errstate(over="ignore"):
        values = array.astype(np.float32, order="C", copy=False)
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise JaxlmError(f"{quote(name)} holds {wrong:,} numbers that are not finite in float32")
    return values


def matrix_shape(name: str, array: np.ndarray) -> tuple[int, int]:
    """The shape of a matrix.

    Args:
        name: Its name, for errors.
        array: Its values.

    Returns:
        Rows and columns, neither of them 0.

    Raises:
        JaxlmError: It is no matrix, or is empty.
    """
    if array.ndim != 2 or not array.size:
        raise JaxlmError(f"{quote(name)} has the shape {list(array.shape)}, expected a matrix")
    return array.shape


def reordered(rows: np.ndarray, gates: Sequence[int]) -> np.ndarray:
    """Rows of a layer's gates, one gate below the other, with the gates in another order."""
    blocks = np.split(rows, len(gates))
    return np.concatenate([blocks[place] for place in gates])


def check_sharing(claimed: Iterable[int], stored: int) -> None:
    """Checks that tensors do not unpack to far more than a file holds.

    Args:
        claimed: The bytes of each tensor.
        stored: The bytes that are stored for all of them.

    Raises:
        JaxlmError: They share too much.
    """
    if sum(claimed) > MOST_SHARING * stored:
        raise JaxlmError(f"its tensors claim over {MOST_SHARING} times the bytes that are stored")


def quote(text: object, most: int = 80) -> str:
    """Quotes a file's own words, safe for a terminal.

    Args:
        text: The words.
        most: Where they are cut, in characters.

    Returns:
        The words in quotation marks, control characters escaped.
    """
    text = str(text)
    if len(text) > most:
        text = f"{text[:most]}..."
    return repr(text)


def listed(names: Iterable[str]) -> str:
    """Names for a message, in order; those beyond eight are only counted."""
    ordered = sorted(names)
    sentence = ", ".join(map(quote, ordered[:8]))
    if len(ordered) > 8:
        sentence += f" and {len(ordered) - 8} more"
    return sentence
