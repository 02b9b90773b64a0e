"""The model in what a PyTorch file holds, and its tensors under the names that its state_dict would give them."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from jaxlm.errors import JaxlmError
from jaxlm.interop.foreign import LazyTensor, check_sharing, listed, shown
from jaxlm.interop.torch_pickle import Instance

MOST_NAMES, MOST_DEPTH, MOST_VALUES = 100_000, 50, 200_000
MOST_PREFIX = 1000  # letters of the way to a module


def model_tensors(value: Any, stored: int) -> tuple[dict[str, LazyTensor], str]:
    """The tensors, by name, of the one model in a file, and what they were found in, in words.

    The value is a module, a state_dict, or a list or dict with one of these; `stored` are the bytes of all storages.
    Raises JaxlmError where there is no model, there are several, or it computes something that jaxlm does not.
    """
    models, left = [], [MOST_NAMES]
    for place, candidate in _candidates(value):
        module = isinstance(candidate, Instance)
        named = _module_tensors(candidate, "", 0, left) if module else candidate.items()
        what = f"module {shown(candidate.kind)}" if module else "state_dict"
        if tensors := {name: leaf for name, leaf in named if isinstance(leaf, LazyTensor)}:
            models.append((place, tensors, what))
    models = [model for model in models if any("weight_ih_l" in name for name in model[1])] or models
    if not models:
        found = f"a dict of {listed(value) or 'nothing'}" if isinstance(value, dict) else f"a {type(value).__name__}"
        found = f"an object of {shown(value.kind)}" if isinstance(value, Instance) else found
        raise JaxlmError(f"expected a model or a state_dict, found {found} without named weights in it")
    if len(models) > 1:
        names = listed(place for place, _, _ in models)
        raise JaxlmError(f"it holds {len(models)} models ({names}); save alone the one to import")
    place, tensors, what = models[0]
    check_sharing(tensors.values(), stored)
    return tensors, what + (f" at {shown(place)}" if place else "")


def _candidates(value: Any) -> Iterator[tuple[str, Any]]:
    """Modules and dicts of weights, nearest first, each with the way to it; nothing inside one is looked at again."""
    queue, seen = deque([("", value)]), {id(value)}
    while queue:
        place, item = queue.popleft()
        if _is_module(item) or (isinstance(item, dict) and any(_is_weight(*entry) for entry in item.items())):
            yield place, item
            continue
        item = item.state if isinstance(item, Instance) else item
        items = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list | tuple) else ()
        for name, child in items:
            if isinstance(child, dict | list | tuple | Instance) and id(child) not in seen and len(seen) < MOST_VALUES:
                seen.add(id(child))
                queue.append((f"{place}.{name}"[-200:].lstrip("."), child))


def _is_weight(name: str, leaf: Any) -> bool:
    return isinstance(leaf, LazyTensor) and (name.endswith(".weight") or "weight_ih_l" in name)


def _is_module(item: Any) -> bool:
    return isinstance(item, Instance) and isinstance(item.state.get("_parameters"), dict)


def _module_tensors(module: Instance, prefix: str, depth: int, left: list[int]) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers of a module and those below it, as its state_dict names them.

    `left` holds how many names may still be visited: modules may share parts, so paths can outnumber modules.
    """
    found = (module.state.get(kind) for kind in ("_parameters", "_buffers", "_modules"))
    parameters, buffers, modules = (part if isinstance(part, dict) else {} for part in found)
    left[0] -= 1 + len(parameters) + len(buffers) + len(modules)
    if depth > MOST_DEPTH or left[0] < 0 or len(prefix) > MOST_PREFIX:
        raise JaxlmError(f"its modules are nested over {MOST_DEPTH} deep, or have over {MOST_NAMES:,} names")
    _check_module(module, prefix)
    yield from ((prefix + name, leaf) for name, leaf in [*parameters.items(), *buffers.items()])
    for name, child in modules.items():
        if _is_module(child):
            yield from _module_tensors(child, f"{prefix}{name}.", depth + 1, left)


def _check_module(module: Instance, prefix: str) -> None:
    """Refuses what the names and shapes of the tensors would not give away."""
    state, kind, name = module.state, module.kind, shown(prefix.rstrip(".") or module.kind.name)
    mode, splits, size = (state.get(key) for key in ("mode", "nsplits", "proj_size"))
    problem = ""
    if kind.module == "torch.nn.modules.rnn" and (kind.name != "LSTM" or mode not in (None, "LSTM")):
        cell = mode if isinstance(mode, str) and mode != "LSTM" else kind.name
        why = " (PyTorch's GRU resets the state after its product, and has two biases)" if cell == "GRU" else ""
        problem = f"is a {shown(cell)}{why}; only LSTMs are imported"
    elif state.get("bidirectional") is True:
        problem = "is bidirectional, so it sees the words that a language model is to predict"
    elif isinstance(size, int) and size > 0:
        problem = "projects its state to another size (proj_size), which jaxlm's LSTM does not"
    elif kind.name == "Embedding" and state.get("max_norm") is not None:
        problem = "shortens its vectors as it reads them (max_norm), which jaxlm's embedding does not"
    elif isinstance(splits, int) and splits > 1:
        splits = min(splits, 10**9)  # (of thousands of digits none would be printed)
        problem = f"splits the vocabulary ({shown(kind.name)} with {splits:,} splits); only plain softmax is imported"
    if problem:
        raise JaxlmError(f"the module {name} {problem}")
