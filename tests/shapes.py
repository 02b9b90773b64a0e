"""Traces the library with every annotation checked:
`test_shapes.py` starts it in a process of its own.

The ops refuse wrong shapes by sentences of their own, which a checker in the tests' process would
precede.
"""

import importlib
import inspect
import pkgutil
import sys
import typing
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable
from jaxtyping import TypeCheckError, install_import_hook

CHECKED = ("jaxlm.ops", "jaxlm.models", "jaxlm.published", "jaxlm.training")


def checked(function):
    """Checks arguments and results, and the fields of those that are dataclasses or named tuples.

    Fields come first: the sizes that they name may be met in the other arguments. Constructors are
    left alone: JAX makes pytrees of anything.
    """
    if function.__name__ == "__init__":
        return function
    plain = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    signature = inspect.signature(function)

    def check(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            check_fields(value, signature.parameters[name].annotation)
        result = plain(*args, **kwargs)
        hint = signature.return_annotation
        for (
            name,
            value,
        ) in given.items():  # a layer's parameters name the sizes of its input and its state
            kind = signature.parameters[name].annotation
            for key, one in (
                typing.get_type_hints(kind).items() if typing.is_typeddict(kind) else ()
            ):
                die_if_unbearable(value[key], one)
        for part in (
            zip(result, typing.get_args(hint), strict=False)
            if type(result) is tuple
            else [(result, hint)]
        ):
            check_fields(*part)
        return result

    return check


def check_fields(value, hint):
    """Checks the fields of a value that is known to be a pytree of ours."""
    for name, one in fields(type(value)).items() if hint is not typing.Any else ():
        die_if_unbearable(getattr(value, name), one)


@cache
def fields(kind):
    """The annotations of a pytree's fields, those that name a shape."""
    # (ArrayTree is of optax's types.)
    hints = (
        typing.get_type_hints(kind, localns={"ArrayTree": object})
        if kind.__module__.startswith(CHECKED)
        else {}
    )
    return {name: hint for name, hint in hints.items() if "jaxtyping." in str(hint)}


def import_checked():
    """Imports the checked rooms; every annotation has a meaning."""
    with install_import_hook(CHECKED, "shapes.checked"):
        importlib.import_module("jaxlm")
        rooms = [importlib.import_module(name) for name in CHECKED]
        names = [
            info.name
            for room in rooms
            for info in pkgutil.iter_modules(room.__path__, f"{room.__name__}.")
        ]
        modules = [importlib.import_module(name) for name in names]
    classes = [one for module in modules for _, one in inspect.getmembers(module, inspect.isclass)]
    for owner in (*modules, *(one for one in classes if one.__module__.startswith(CHECKED))):
        for _, one in inspect.getmembers(owner, inspect.isfunction):
            inspect.get_annotations(one, eval_str=True)


def trace(config):
    """Traces the first windows of a run of a config, their evaluation and generated words;
    nothing is compiled.
    """
    from jaxlm.runs.run import window_plan
    from jaxlm.scoring.generation import Position, advance
    from jaxlm.scoring.sampling import Sampling
    from jaxlm.scoring.stream import eval_step
    from jaxlm.scoring.token_scores import Network
    from jaxlm.training.step import fresh_state, train_windows
    from jaxlm.training.validations import validated

    counts = config.train
    B = config.train.batch_size
    sizes = {"bptt_length": counts.longest, "small_batch": counts.small_batch}

    def run(recipe, seed, tokens, windows):
        state, _ = train_windows(
            recipe, fresh_state(recipe, seed, B, 1), tokens, windows, 4, **sizes
        )
        carry = jax.tree.map(lambda leaf: leaf[:B], state.carry)  # not of every dropout sample
        nats, carry = eval_step(recipe.model, state.evaluated, tokens[:-1], tokens[1:], carry)
        position = Position(carry, tokens[-1], jnp.int32(0), tokens[-1] == 0, None)
        advance(
            Network(recipe.model, state.evaluated), Sampling(), position, jax.random.key(seed), 1, 0
        )
        return validated(recipe, state.validations, nats.mean())

    tokens = np.zeros((97, B), np.int32)
    windows = window_plan(config, 97).windows(0, 4, 4)
    jax.eval_shape(run, jax.tree.map(np.float32, config.recipe), np.uint32(0), tokens, windows)


def trace_ops():
    """Traces ops with wrong shapes, which are refused."""
    from jaxlm.ops import lstm, scans, softmax

    T, B, E, H, V = range(2, 7)
    x = array(T, B, E)
    y = array(T, B, H)
    state = lstm.LSTMState(array(B, H), array(B, H))
    gates = (array(E + H, 4 * H), array(4 * H))
    layer = (array(H, V), array(V))
    ids = array(T, B, dtype=int)
    weights = array(T, B)
    for op, *arguments in (
        (softmax.with_bias, True, y, layer[0].T, layer[1]),
        (lstm.lstm, x, gates[0].T, gates[1], state),
        (lstm.lstm, x, *gates, lstm.LSTMState(array(B, H), array(B, E))),
        (softmax.token_nats, y, layer[0].T, layer[1], ids),
        (softmax.token_nats, y, *layer, weights),  # no ids
        (scans.linear_recurrence, y, y, array(H, B)),
    ):
        try:
            jax.eval_shape(op, *arguments)
        except TypeCheckError:
            continue
        raise AssertionError(f"{op} took wrong shapes")


def array(*shape: int, dtype: typing.Any = np.float32) -> typing.Any:
    return np.zeros(shape, dtype)


if __name__ == "__main__":
    import_checked()
    from recipes import CASES, MODEL_CASES

    narrow = {
        f"{name} in bfloat16": case.replace(compute_dtype="bfloat16")
        for name, case in MODEL_CASES.items()
    }
    cases = MODEL_CASES | CASES | narrow
    trace_ops()
    for name in sys.argv[1:] or cases:
        print(name)
        trace(cases[name])
