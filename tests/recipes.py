"""The tables that every law is tested over:
each kind of model, optimiser and schedule, and each mechanism by itself.

A new kind is in them as soon as it is in its table. By default the laws are tested over a few cases
(`USUAL_MODELS` has every model, `COVERING` every optimiser and schedule); over all cases with the
slow tests.
"""

from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.config.config import KINDS as TABLES
from jaxlm.models import stack
from jaxlm.schedules import SCHEDULES
from jaxlm.training.step import init_state

# The laws hold for published kinds as for those that they derive from, which stand for them.
MODELS, OPTIMIZERS = (
    {name: kind for name, kind in TABLES[slot].items() if "published" not in kind.__module__}
    for slot in ("model", "optimizer")
)
V = 11
E = 8
HIDDEN = (12, 8)
B = 4
T = 5
BASE = jaxlm.preset("small").replace(
    vocab_size=V,
    embedding_size=E,
    hidden_sizes=HIDDEN,
    batch_size=B,
    bptt_length=T,
    init_scale=0.5,
    epochs=2,
    windows_per_call=4,
    hold=1.0,
)
ONE_LAYER = BASE.replace(hidden_sizes=(E,))  # of what does not depend on the layers' number
BLOCK = dict(block="residual", hidden_sizes=(E,), inner_size=4, convolution=3, feed_forward_size=6)
BLOCKS = {f"{name}-block": BASE.replace(model=name, **BLOCK) for name in MODELS} | {
    "gated-block": BASE.replace(
        model="mlstm",
        block="gated",
        block_norm="layer",
        hidden_sizes=(6, 6),
        convolution=2,
        projection=True,
    ),
    "tied-block": BASE.replace(
        model="gru",
        block="residual",
        hidden_sizes=(E, E),
        tied=True,
        feed_forward_size=4,
        activation="gelu",
    ),
}
MODEL_CASES = (
    {name: BASE.replace(model=name, hidden_sizes=HIDDEN[:1]) for name in MODELS}
    | {f"{name}-tied": BASE.replace(model=name, tied=True) for name in MODELS}
    | {
        "two-layers": BASE,
        "mixed": BASE.replace(model="gru,attention", attention_window=3, tied=True),
        "attention-short": BASE.replace(model="attention", attention_window=3),
        "lstm-skip": BASE.replace(hidden_sizes=(4, 4), skip=True),
        "mogrifier-all": BASE.replace(
            model="mogrifier",
            hidden_sizes=(E, E),
            skip=True,
            rounds=3,
            rank=2,
            cell_clip=0.5,
            input_gate="capped",
            layer_norm=True,
            forget_bias=1.0,
        ),
        "mogrifier-coupled": BASE.replace(model="mogrifier", rounds=0, input_gate="coupled"),
        "projection": BASE.replace(hidden_sizes=(5, 6), tied=True, projection=True),
        "mixture": BASE.replace(experts=3, latent_size=6),
        "tied-mixture": BASE.replace(hidden_sizes=(5, 6), tied=True, experts=3),
    }
    | BLOCKS
)
# Every kind in one layer, and what else a model may have. A block is one function around any kind:
# cells of matrices (the gated one), of a convolution's inputs and of none.
USUAL_MODELS = {*MODELS} | {
    "hawk-block",
    "gated-block",
    "tied-block",
    "attention-short",
    "mixed",
    "mogrifier-all",
    "tied-mixture",
    "projection",
}
# Of the cases, those with another head, or another way from the features to it.
HEADS = {"lstm", "lstm-tied", "projection", "mixture", "tied-mixture"}
EVERY_DROPOUT = dict(
    locked_dropout=True, keep_embedding=0.8, keep_output=0.6, keep_last_output=0.9, keep_words=0.8
)
LAMB = dict(model="lamb-mogrifier", optimizer="adamw", tied=True, keep_update=0.8, **EVERY_DROPOUT)
RANDOM_WINDOWS = dict(
    length_deviation=1.0, short_probability=0.3, shortest_window=2, longest_window=7
)
MECHANISMS = (
    dict(keep_output=0.7, average_decay=0.5),
    # At a rate of 1 six windows make 1e-4 of one rounding of the parameters; at this, 5e-7.
    dict(tied=True, locked_dropout=True, keep_output=0.7, keep_last_output=0.8, learning_rate=0.1)
    | BLOCK,
    EVERY_DROPOUT,
    dict(tied=True, keep_words=0.8),
)
TRAINED = (
    "lstm",
    "gru",
    "mogrifier",
    "mlstm,gru",
)  # by default; every kind is trained by the slow tests
# The Mogrifier has one layer: its rounds take longest to compile.
COVERING = {
    f"{model}-{optimizer}-{schedule}": BASE.replace(
        **{"hidden_sizes": HIDDEN[1:] if model == "mogrifier" else HIDDEN, **mechanisms},
        model=model,
        optimizer=optimizer,
        schedule=schedule,
    )
    for model, optimizer, schedule, mechanisms in islice(
        zip(*map(cycle, (TRAINED, OPTIMIZERS, SCHEDULES, MECHANISMS)), strict=True),
        max(map(len, (TRAINED, OPTIMIZERS, SCHEDULES))),
    )
}
CASES = (
    COVERING
    | {name: BASE.replace(model=name, learning_rate=0.03) for name in MODELS}
    # Its keys are normalised: gradients of small ones are sums of large numbers. At 0.5 six windows
    # make 5e-5 of a gradient's norm of rounding on one machine, more on another; at this, 3e-6.
    | {"gated-deltanet": BASE.replace(model="gated-deltanet", learning_rate=0.03, init_scale=0.25)}
    | {name: BASE.replace(optimizer=name, clip_norm=0.5) for name in OPTIMIZERS if name != "sgd"}
    | {name: BASE.replace(schedule=name) for name in SCHEDULES if name != "piecewise"}
    | {
        "tied": BASE.replace(tied=True),
        "dropout": BASE.replace(keep_embedding=0.8, keep_output=0.6),
        "locked-dropout": BASE.replace(**EVERY_DROPOUT),
        "weight-drop": BASE.replace(
            keep_recurrent_weights=0.6, keep_state=0.7, tied=True, keep_words=0.7, keep_carry=0.7
        ),
        "gru-weight-drop": BASE.replace(model="gru", keep_recurrent_weights=0.6),
        "projection": MODEL_CASES["projection"].replace(keep_latent=0.7),
        "mixture": MODEL_CASES["mixture"],
        "tied-mixture": MODEL_CASES["tied-mixture"].replace(mixture_epsilon=1e-8, keep_latent=0.7),
        "random-windows": BASE.replace(**RANDOM_WINDOWS, keep_output=0.7, tied=True),
        "random-windows-small-batches": BASE.replace(
            **RANDOM_WINDOWS, **EVERY_DROPOUT, small_batch=2, experts=2
        ),
        "awd-lstm-mos": BASE.replace(
            **RANDOM_WINDOWS,
            **EVERY_DROPOUT,
            hidden_sizes=(5, 6),
            tied=True,
            experts=2,
            keep_latent=0.8,
            keep_recurrent_weights=0.7,
            optimizer="asgd",
            nonmonotone=0,
            cost="mean",
            activation_penalty=0.2,
            temporal_penalty=0.1,
            weight_decay=1e-4,
        ),
        "samples": BASE.replace(
            hidden_sizes=(4, 4, 4),
            running_sum=True,
            dropout_samples=3,
            keep_output=0.6,
            keep_last_output=0.8,
            keep_state=0.7,
            optimizer="adamw",
            rectified=True,
            small_batch=2,
            roll_rows=True,
            two_tailed=True,
            restart_factor=0.9,
        ),
        "penalties": BASE.replace(
            cost="mean",
            learning_rate=3.0,
            activation_penalty=0.1,
            temporal_penalty=0.1,
            l2_penalty=1e-3,
            weight_decay=1e-3,
            keep_output=0.9,
        ),
        "weight-decay": BASE.replace(weight_decay=0.01, momentum=0.5, learning_rate=0.1),
        "asgd-from-the-start": BASE.replace(
            optimizer="asgd", nonmonotone=0, schedule="plateau", patience=9
        ),
        "awd-lstm": BASE.replace(
            **EVERY_DROPOUT,
            keep_recurrent_weights=0.8,
            optimizer="awd-lstm",
            nonmonotone=0,
            cost="mean",
            learning_rate=3.0,
            weight_decay=1e-3,
            tied=True,
            activation_penalty=0.1,
            temporal_penalty=0.1,
        ),
        "momentum": BASE.replace(momentum=0.9, nesterov=True, learning_rate=0.1),
        "sampled": BASE.replace(sampled_words=4, sampled_share=0.5, learning_rate=0.3),
        "tied-sampled": BASE.replace(
            sampled_words=8, tied=True, **EVERY_DROPOUT, dropout_ramp=0.5, learning_rate=0.2
        ),
        "average": BASE.replace(average_decay=0.9),
        "mogrifier-all": MODEL_CASES["mogrifier-all"].replace(layer_norm=False, **LAMB),
        # One layer and no word without an embedding: a norm divides by a deviation, and two layers
        # of four units, whose deviations are small, make a hundred roundings of one.
        "layer-norm": MODEL_CASES["mogrifier-all"].replace(
            embedding_size=8, hidden_sizes=(8,), **LAMB | {"keep_words": 1.0}
        ),
        "adamw-average": BASE.replace(optimizer="adamw", nonmonotone=0, learning_rate=0.01),
        "untied-lamb": BASE.replace(optimizer="lamb-adam", clip_norm=0.5),
        "mogrifier-coupled-muon": MODEL_CASES["mogrifier-coupled"].replace(
            optimizer="muon",
            newton_schulz_rule="polar-express",
            adam_weight_decay=0.1,
            keep_state=0.7,
            keep_recurrent_weights=0.7,
            keep_update=0.8,
            scale_embedding=True,
        ),
        "tied-muon-average": BASE.replace(
            tied=True, optimizer="muon", schedule="cosine", average_decay=0.5, keep_output=0.7
        ),
    }
)


def drawn_params(model, seed=0):
    """Parameters of a model, each within its `init_scale`. They are drawn by NumPy, which compiles
    nothing: `init_params` compiles a program for each shape.
    """
    tree = _shapes(model)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put(
            rng.uniform(-model.init_scale, model.init_scale, leaf.shape).astype(leaf.dtype)
        ),
        tree,
    )


def begun(recipe, key, batch_size, seed=0):
    """The state before the first step, with drawn parameters: op by op, as few ops have a shape."""
    return init_state(recipe, key, batch_size, drawn_params(recipe.model, seed))


@cache
def _shapes(model):
    return jax.eval_shape(partial(stack.init_params, model), jax.random.key(0))


def parameters(cases, usual):
    """The cases of a table for `pytest.mark.parametrize`;
    those that are not usual with the slow tests.
    """
    return [
        pytest.param(case, id=name, marks=[] if name in usual else [pytest.mark.slow])
        for name, case in cases.items()
    ]


KINDS = parameters(
    {name: name for name in MODELS}, (*TRAINED, "mlstm", "hawk", "attention")
)  # by default those that cover a carry's shapes


def sentences(folder: Path, **lines: int) -> Path:
    """A folder with so many lines of random words for each split."""
    rng = np.random.default_rng(0)
    for split, count in lines.items():
        words = [
            " ".join(f"w{word}" for word in rng.integers(0, 9, rng.integers(3, 8)))
            for _ in range(count)
        ]
        (folder / f"{split}.txt").write_text("\n".join(words) + "\n")
    return folder
