"""What is read from other programs' files: named arrays, and the language model that is made of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxlm.config.config import Config
from jaxlm.errors import JaxlmError
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params, Recurrent

MOST_PATH = 1000  # letters of a path in a message
MOST_SHARING = (
    4  # how many times the stored bytes a model's tensors may take; tied ones are counted twice
)


@dataclass(frozen=True)
class ForeignModel:
    """A language model read from a file of another program."""

    config: Recurrent
    params: Params  # jaxlm's tree, in float32
    notes: tuple[str, ...]  # what a user should know: what was left out, added up or assumed
    files: tuple[Path, ...]  # that the parameters are in
    run: Config | None = None  # of the run that jaxlm exported it from

    @staticmethod
    def of_lstm(params: Params, notes: list[str], *files: Path) -> "ForeignModel":
        """The model of an LSTM's parameter tree, which gives its sizes."""
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
    """{role: name} of an LSTM's tensors, and {part: name} of each layer; the roles of layer K are `PART of layer K`.

    Raises JaxlmError where `ends` or `parts` of a layer are missing, a role has two names, or a name has none.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(role_of(name) or "", []).append(name)
    unknown = found.pop("", [])
    layers = 1 + max(
        (int(role.split(" of layer ")[1]) for role in found if " of layer " in role), default=0
    )
    wanted = {*ends, *(f"{part} of layer {layer}" for layer in range(layers) for part in parts)}
    twice = [f"{role} ({listed(several)})" for role, several in found.items() if len(several) > 1]
    if wanted - found.keys() or unknown or twice:
        problem = f"missing are {listed(wanted - found.keys()) or 'none'}; unknown are {listed(unknown) or 'none'}"
        problem += f"; given more than once are {', '.join(twice[:4])}" if twice else ""
        raise JaxlmError(f"expected the weights of an LSTM language model; {problem}")
    roles = {role: several[0] for role, several in found.items()}
    return roles, [
        {part: roles[f"{part} of layer {layer}"] for part in parts} for layer in range(layers)
    ]


def as_float32(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this name in float32, C order. Raises JaxlmError if of another shape or kind, or not finite."""
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
    """The two sizes of the matrix of this name. Raises JaxlmError where it is none, or empty."""
    if array.ndim != 2 or not array.size:
        raise JaxlmError(f"{quote(name)} has the shape {list(array.shape)}, expected a matrix")
    return array.shape


def check_sharing(claimed: Iterable[int], stored: int) -> None:
    """Raises JaxlmError where tensors share so much that their bytes would be far more than the bytes stored."""
    if sum(claimed) > MOST_SHARING * stored:
        raise JaxlmError(f"its tensors claim over {MOST_SHARING} times the bytes that are stored")


def quote(text: object, most: int = 80) -> str:
    """A file's own words, safe for a terminal: quote, control characters escaped, cut at `most` characters."""
    text = str(text)
    return repr(text if len(text) <= most else text[:most] + "...")


def listed(names: Iterable[str]) -> str:
    """Names for a message, in order; those beyond eight are only counted."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 8} more" if len(ordered) > 8 else ""
    return ", ".join(map(quote, ordered[:8])) + more
