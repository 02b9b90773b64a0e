"""Muon: the layers' matrices by orthogonalised momentum, one matrix a gate; all else by Adam."""

from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.base.fields import choice, count, flag, number
from jaxlm.models import block
from jaxlm.models.recurrent import Recurrent
from jaxlm.ops.devices import shared_by_devices
from jaxlm.ops.newton_schulz import orthogonalized
from jaxlm.optimizers.adamw import Adaptive
from jaxlm.optimizers.optimizer import OPTIMIZERS, matrices


@OPTIMIZERS.kind("muon")
class Muon(Adaptive):
    """Muon on the layers' kernels, gate by gate; Adam on the rest (Jordan et al. 2024)."""

    learning_rate: float = number(
        0.02,
        "rate of the layers' kernels before the schedule's factor",
        above=0,
        kind_specific=True,
    )
    momentum: float = number(
        0.95, "decay of the accumulated gradient of the layers' kernels", low=0, below=1
    )
    nesterov: bool = flag(True, "Nesterov's momentum")
    newton_schulz_steps: int = count(
        5, "iterations that orthogonalise an update", "iterations", low=1, high=100
    )
    newton_schulz_rule: str = choice(
        "jordan",
        "polynomials of the iterations: jordan, one for all, or polar-express, the best for each "
        "(arXiv:2505.16932)",
        ("jordan", "polar-express"),
    )
    weight_decay: float = number(
        0.0, "decay of the layers' kernels, times their learning rate", low=0
    )
    adam_learning_rate: float = number(
        0.002, "rate of Adam for the embedding, the softmax and all else", above=0
    )
    adam_weight_decay: float | None = number(
        None, "decay of Adam's matrices, times Adam's rate (none: absent)", low=0
    )

    def rule(self, model, factor) -> optax.GradientTransformation:
        muon = optax.chain(
            optax.trace(self.momentum, self.nesterov),
            self._orthogonalized_by_gate(model),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(self.learning_rate * factor),
        )
        adam = [self.adam(), optax.scale_by_learning_rate(self.adam_learning_rate * factor)]
        if self.adam_weight_decay is not None:
            adam.insert(1, optax.add_decayed_weights(self.adam_weight_decay, matrices))
        labels = partial(jax.tree_util.tree_map_with_path, _label)
        return optax.transforms.partition({"muon": muon, "adam": optax.chain(*adam)}, labels)

    def _orthogonalized_by_gate(self, model: Recurrent) -> optax.GradientTransformation:
        """Orthogonalises each gate's matrix in every kernel [I, gates * H], in compute_dtype.

        Matrices of one shape are orthogonalised together.
        """
        layers = model.layers

        def split(path, kernel):
            layer = layers[path[1].idx]
            counts = {**dict.fromkeys(block.KERNELS, 1), **layer.kernel_gates}
            return jnp.split(kernel, counts.get(path[-1].key, layer.gates), 1)

        def orthogonal(gates):
            return orthogonalized(
                gates, self.newton_schulz_steps, model.compute_dtype, self.newton_schulz_rule
            )

        def update(kernels, _):
            gates, tree = jax.tree.flatten(jax.tree_util.tree_map_with_path(split, kernels))
            places = defaultdict(list)
            for place, gate in enumerate(gates):
                places[gate.shape].append(place)
            for of_shape in places.values():
                stacked = jnp.stack([gates[place] for place in of_shape])
                done = shared_by_devices(orthogonal, stacked)
                for place, gate in zip(of_shape, done, strict=True):
                    gates[place] = gate
            of_kernels = jax.tree.unflatten(tree, gates)
            return jax.tree.map(lambda _, gates: jnp.concatenate(gates, 1), kernels, of_kernels)

        return optax.stateless(update)


def _label(path: Any, leaf: jax.Array) -> str:
    """The rule of a parameter: "muon" for a layer's kernel, known by its name, else "adam"."""
    if path[0].key == "layers" and leaf.ndim == 2 and path[-1].key.endswith("kernel"):
        return "muon"
    return "adam"
