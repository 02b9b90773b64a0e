"""JSON as jaxlm keeps it: strict to read, and sealed, so that any changed byte shows."""

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def seal(tree: dict[str, Any]) -> str:
    """Canonical JSON of a tree with the sha256 of the rest inside: any changed byte shows."""
    body = json.dumps(tree, indent=1, sort_keys=True)
    return json.dumps(
        {**tree, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True
    )


def unseal(data: bytes, seal: Callable[[dict[str, Any]], str] = seal) -> dict[str, Any]:
    """The tree that `seal` was given. Raises ValueError where the bytes are not those of the text that it returned."""
    tree = strict_json(data)
    if not isinstance(tree, dict) or tree.pop("sha256", None) is None:
        raise ValueError("it carries no seal")
    with suppress(RecursionError):
        if seal(tree).encode() == data:
            return tree
    raise ValueError("it is not what was written: its sha256 is another")


def strict_json(text: str | bytes) -> Any:
    """Parsed JSON (UTF-8). Raises ValueError for anything else, for too deep a nesting, and for a name given twice.

    Of two values for one name another reader might believe the other.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            raise ValueError("a name is given twice in one object")
        return tree

    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text, object_pairs_hook=once
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(tree: Any) -> Any:
    """The tree with None for the numbers that JSON lacks."""
    if isinstance(tree, dict):
        return {str(name): finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
