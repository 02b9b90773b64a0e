"""JSON as jaxlm keeps it: read strictly, with a hash of itself inside that shows a changed byte."""

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def to_hashed_json(tree: dict[str, Any]) -> str:
    """Canonical JSON of a tree, with the sha256 of that JSON as one more field."""
    text = json.dumps(tree, indent=1, sort_keys=True)
    hashed = {**tree, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(hashed, indent=1, sort_keys=True)


def from_hashed_json(
    data: bytes, to_text: Callable[[dict[str, Any]], str] = to_hashed_json
) -> dict[str, Any]:
    """Reads hashed JSON back.

    Args:
        data: The bytes of a file.
        to_text: What wrote them.

    Returns:
        The tree that `to_text` was given.

    Raises:
        ValueError: The bytes are not those that `to_text` writes of any tree.
    """
    tree = _parsed(data)
    if not isinstance(tree, dict) or tree.pop("sha256", None) is None:
        raise ValueError("it carries no sha256 of itself")
    with suppress(RecursionError):
        if to_text(tree).encode() == data:
            return tree
    raise ValueError("it is not what was written: its sha256 is another")


def strict_json(text: str | bytes) -> Any:
    """Parses JSON, which other readers understand in the same way.

    Args:
        text: The text, or its bytes in UTF-8.

    Returns:
        The tree.

    Raises:
        ValueError: It is no JSON (NaN and Infinity are none), is nested too deeply, or gives one
            name twice in an object: of two values another reader might believe the other.
    """
    return _parsed(text, parse_constant=_refuse_constant)


def finite(tree: Any) -> Any:
    """The tree with None in place of infinities and nan, which JSON lacks."""
    if isinstance(tree, dict):
        return {str(name): finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def _parsed(text: str | bytes, **options: Any) -> Any:
    """Parses JSON without repeated names. Raises ValueError."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return json.loads(text, object_pairs_hook=_without_repeats, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise ValueError("a name is given twice in one object")
    return tree


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
