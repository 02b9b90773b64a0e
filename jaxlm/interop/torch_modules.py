"""The model in what a PyTorch file holds, and its tensors under the names that its state_dict would give them."""

from collections.abc import Iterator
from typing import Any

from jaxlm.errors import JaxlmError
from jaxlm.interop.tensors import LazyTensor, check_sharing, listed, shown
from jaxlm.interop.torch_pickle import Instance

MOST_NAMES, MOST_DEPTH, MOST_VALUES = 100_000, 50, 200_000
MOST_PREFIX = 1000  # letters of the way to a module


def model_tensors(value: Any, stored: int) -> tuple[dict[str, LazyTensor], str]:
    """The tensors of the one model in a file.

    Args:
        value: what the file holds: a module, a state_dict, or a list or dict with one of these among other things.
        stored: the bytes of all storages.
    Returns:
        The tensors by their names, and what they were found in, in words.
    Raises:
        JaxlmError: there is no model, there are several, or it computes something that jaxlm does not; says what.
    """
    found: list[tuple[str, dict[str, LazyTensor], str]] = []
    for place, candidate in _candidates(value):
        if isinstance(candidate, Instance):
            tensors, what = dict(_module_tensors(candidate, "", 0, [MOST_NAMES])), f"module {shown(candidate.kind)}"
        else:
            tensors, what = (
                {name: leaf for name, leaf in candidate.items() if isinstance(leaf, LazyTensor)},
                "state_dict",
            )
        if tensors:
            found.append((place, tensors, what))
    models = [entry for entry in found if any("weight_ih_l" in name for name in entry[1])] or found
    if not models:
        raise JaxlmError(f"expected a model or a state_dict, found {_described(value)} without named weights in it")
    if len(models) > 1:
        raise JaxlmError(
            f"it holds {len(models)} models ({listed(place for place, _, _ in models)}); save alone the one to import"
        )
    place, tensors, what = models[0]
    check_sharing(tensors.values(), stored)
    return tensors, what + (f" at {shown(place)}" if place else "")


def _candidates(value: Any) -> Iterator[tuple[str, Any]]:
    """Modules and dicts of weights, nearest first, each with the way to it; nothing inside one is looked at again."""
    level, seen, visited = [("", value)], {id(value)}, 0
    while level:
        below: list[tuple[str, Any]] = []
        for place, item in level:
            if _is_module(item) or (
                isinstance(item, dict)
                and any(isinstance(leaf, LazyTensor) and _is_weight(name) for name, leaf in item.items())
            ):
                yield place, item
                continue
            for name, child in _children(item):
                visited += 1
                if visited > MOST_VALUES:
                    return
                if isinstance(child, dict | list | tuple | Instance) and id(child) not in seen:
                    seen.add(id(child))
                    below.append((f"{place}.{name}"[-200:].lstrip("."), child))
        level = below


def _children(item: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(item, Instance):
        item = item.state
    yield from item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list | tuple) else ()


def _is_weight(name: str) -> bool:
    return name.endswith(".weight") or "weight_ih_l" in name


def _is_module(item: Any) -> bool:
    return isinstance(item, Instance) and isinstance(item.state.get("_parameters"), dict)


def _module_tensors(module: Instance, prefix: str, depth: int, left: list[int]) -> Iterator[tuple[str, LazyTensor]]:
    """Parameters and buffers of a module and those below it, in the order of its state_dict.

    `left` holds how many names may still be visited: modules may share parts, so paths can outnumber modules.
    """
    passing = module.state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, list | tuple) else ()
    left[0] -= 1 + len(passing) + sum(len(_dict(module, kind)) for kind in ("_parameters", "_buffers", "_modules"))
    if depth > MOST_DEPTH or left[0] < 0 or len(prefix) > MOST_PREFIX:
        raise JaxlmError(f"its modules are nested over {MOST_DEPTH} deep, or have over {MOST_NAMES:,} names")
    _check_module(module, prefix)
    passing = {name for name in passing if isinstance(name, str)}
    for kind in ("_parameters", "_buffers"):
        for name, leaf in _dict(module, kind).items():
            if isinstance(leaf, LazyTensor) and (kind == "_parameters" or name not in passing):
                yield prefix + name, leaf
    for name, child in _dict(module, "_modules").items():
        if _is_module(child):
            yield from _module_tensors(child, f"{prefix}{name}.", depth + 1, left)


def _dict(module: Instance, kind: str) -> dict[str, Any]:
    found = module.state.get(kind)
    return found if isinstance(found, dict) else {}


def _check_module(module: Instance, prefix: str) -> None:
    """Refuses what the names and shapes of the tensors would not give away."""
    state, what = module.state, f"the module {shown(prefix.rstrip('.') or module.kind.name)}"
    mode = state.get("mode", "LSTM")
    if module.kind.module == "torch.nn.modules.rnn" and (module.kind.name != "LSTM" or mode != "LSTM"):
        kind = mode if isinstance(mode, str) and mode != "LSTM" else module.kind.name
        why = " (PyTorch's GRU resets the state after its product, and has two biases)" if kind == "GRU" else ""
        raise JaxlmError(f"{what} is a {shown(kind)}{why}; only LSTMs are imported")
    if state.get("bidirectional") is True:
        raise JaxlmError(f"{what} is bidirectional, so it sees the words that a language model is to predict")
    if isinstance(state.get("proj_size"), int) and state["proj_size"] > 0:
        raise JaxlmError(f"{what} projects its state to another size (proj_size), which jaxlm's LSTM does not")
    if module.kind.name == "Embedding" and state.get("max_norm") is not None:
        raise JaxlmError(f"{what} shortens its vectors as it reads them (max_norm), which jaxlm's embedding does not")
    if isinstance(state.get("nsplits"), int) and state["nsplits"] > 1:
        splits = min(state["nsplits"], 10**9)  # (of thousands of digits none would be printed)
        raise JaxlmError(
            f"{what} splits the vocabulary ({shown(module.kind.name)} with {splits:,} splits); only plain "
            f"softmax is imported"
        )


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict of {listed(value)}" if value else "an empty dict"
    if isinstance(value, Instance):
        return f"an object of {shown(value.kind)}"
    return f"a {type(value).__name__}"
