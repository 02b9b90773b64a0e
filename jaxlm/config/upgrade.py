"""The config.json of older versions, as this version writes it.

Format 1 (version 0.1) had four sections: model, train, data and hyper, an LSTM trained by SGD in every case. Dropout
was a switch beside the probabilities.
"""

from typing import Any

from jaxlm.errors import JaxlmError

_HYPER = {
    "model": ("init_scale", "forget_bias", "keep_embedding", "keep_output"),
    "optimizer": ("learning_rate", "clip_norm"),
    "schedule": ("decay", "hold", "schedule_offset"),
}
_MODEL = {"vocab_size", "embedding_size", "hidden_sizes", "dropout", "compute_dtype", "recurrent_op"}
_KINDS = {"model": "lstm", "optimizer": "sgd", "schedule": "piecewise"}


def upgraded(tree: dict[str, Any]) -> dict[str, Any]:
    """A config as the present format has it; unchanged where it says a format of its own.

    Raises:
      JaxlmError: a config without a format has fields that format 1 had not.
    """
    if "format" in tree:
        return tree
    hyper, model = tree.get("hyper", {}), tree.get("model", {})
    if not isinstance(hyper, dict) or not isinstance(model, dict):
        raise JaxlmError("a config without a format is one of version 0.1, whose model and hyper are JSON objects")
    known = {name for names in _HYPER.values() for name in names}
    wrong = [f"hyper.{name}" for name in hyper if name not in known] + [
        f"model.{name}" for name in model if name not in _MODEL
    ]
    wrong += [name for name in tree if name not in ("model", "train", "data", "hyper", "preset")]
    if wrong:
        raise JaxlmError(f"a config without a format is one of version 0.1, which has no field {', '.join(wrong)}")
    parts = {
        section: {"kind": kind, **{name: hyper[name] for name in _HYPER[section] if name in hyper}}
        for section, kind in _KINDS.items()
    }
    parts["model"].update({name: value for name, value in model.items() if name not in ("dropout", "recurrent_op")})
    if not model.get("dropout", False):
        parts["model"].update(keep_embedding=None, keep_output=None)
    else:
        parts["model"] = {"keep_embedding": 1.0, "keep_output": 1.0, **parts["model"]}
    return {
        "format": 2,
        "preset": tree.get("preset", "custom"),
        **parts,
        "train": tree.get("train", {}),
        "data": tree.get("data", {}),
    }
