"""The device side of runs: one spread over a mesh, or the members of a sweep in one program.

For the loop (`loop.py`) each group trains windows, validates, and gives the states and the tests of its runs.
"""

import math
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.distributed.mesh import MEMBER, fetch, members_mesh, place
from jaxlm.runs.run import Run
from jaxlm.scoring.stream import stream_nats
from jaxlm.training import members
from jaxlm.training.step import Metrics, TrainState, traced, train_windows
from jaxlm.training.validations import validated

_validated = jax.jit(validated)
_all_validated = jax.jit(jax.vmap(validated))


class SingleGroup:
    """One run, its batch and vocabulary spread over a mesh of devices (None: one device)."""

    def __init__(self, run: Run, state: TrainState, mesh: Mesh | None):
        self.runs: list[Run | None] = [run]
        self.mesh = mesh
        self._run = run
        self._recipe = traced(run.config.recipe)
        self._state = place(mesh, state)
        run.remember(jax.device_get(state.validations))

    def train(self, tokens: jax.Array, first_row: int, count: int, ahead: int) -> Metrics:
        """Begins to train `count` windows of each run, after `ahead` that are not logged yet; the metrics to come."""
        counts = self._run.config.train
        windows = self._run.plan.windows(
            self._run.step + ahead, count, counts.windows_per_call, first_row
        )
        self._state, metrics = train_windows(
            self._recipe,
            self._state,
            tokens,
            windows,
            np.int32(count),
            np.bool_(counts.on_nonfinite == "skip"),
            bptt_length=counts.longest,
            small_batch=counts.small_batch,
            mesh=self.mesh,
        )
        return metrics

    def validate(self) -> list[float]:
        """The validation perplexity of each slot; the states then have the new records of validations."""
        run = self._run
        counts = self._run.config.train
        nats = self.nats(0, run.corpus.valid, counts.batch_size, counts.bptt_length)
        found = run.perplexity(*nats, counts.batch_size)
        record = self._state.validations
        if record is not None:
            record = jax.device_get(_validated(self._recipe, record, _loss(found)))
            self._state = replace(self._state, validations=place(self.mesh, jax.device_put(record)))
            run.remember(record)
        return [found]

    def state(self, slot: int = 0) -> TrainState:
        """A run's state, whole. Every process must call it."""
        return fetch(self.mesh, self._state, self._recipe.model.vocab_size)

    def nats(
        self, slot: int, ids: np.ndarray, batch_size: int = 1, bptt_length: int = 1
    ) -> tuple[float, int]:
        """`stream_nats` of a run's parameters."""
        return stream_nats(
            self._recipe.model, self._state.evaluated, ids, batch_size, bptt_length, self.mesh
        )


class MemberGroup:
    """Members of equal shapes in `size` slots, spread over this process's devices; an empty slot costs nothing.

    Members share each operation (`vmapped`) or follow one another on their device. Methods are as in `SingleGroup`.
    """

    _members: members.Members  # from the first member on

    def __init__(self, size: int, vmapped: bool):
        self.runs: list[Run | None] = [None] * size
        self.mesh = members_mesh(size)
        self._vmapped = vmapped

    def add(self, slot: int, run: Run, state: TrainState) -> None:
        """Puts a run into a free slot."""
        recipe = run.config.recipe
        if hasattr(self, "_members"):
            self._members = members.with_member(self._members, slot, recipe, state)
        else:
            self._members = members.stacked(recipe, state, len(self.runs), self.mesh)
        self.runs[slot] = run
        run.remember(jax.device_get(state.validations))

    def train(self, tokens: jax.Array, first_row: int, count: int, ahead: int) -> Metrics:
        some = next(run for run in self.runs if run is not None)
        size = some.config.train.windows_per_call
        there = [run or some for run in self.runs]
        each = [run.plan.windows(run.step + ahead, count, size, first_row) for run in there]
        counts = np.array(
            [count if run is not None or self._vmapped else 0 for run in self.runs], np.int32
        )
        recipes, states = self._members
        states, metrics = members.train_members(
            recipes,
            states,
            tokens,
            jax.tree.map(lambda *columns: np.stack(columns), *each),
            counts,
            bptt_length=some.config.train.longest,
            small_batch=some.config.train.small_batch,
            vmapped=self._vmapped,
            mesh=self.mesh,
        )
        self._members = recipes, states
        return metrics

    def validate(self) -> list[float]:
        some = next(run for run in self.runs if run is not None)
        rows = some.config.train.batch_size
        what = some.corpus.valid, rows, some.config.train.bptt_length
        recipes, states = self._members
        if self._vmapped and self.mesh is None:
            nats, predictions = stream_nats(recipes.model, states.evaluated, *what, members=True)
            found = [some.perplexity(one, predictions, rows) for one in nats]
        else:
            each = enumerate(self.runs)
            found = [
                run.perplexity(*self.nats(slot, *what), rows) if run else np.nan
                for slot, run in each
            ]
        if states.validations is not None:
            record = jax.device_get(
                _all_validated(recipes, states.validations, np.array([*map(_loss, found)]))
            )
            placed = place(self.mesh, jax.device_put(record), MEMBER)
            self._members = recipes, replace(states, validations=placed)
            for slot, run in enumerate(self.runs):
                if run is not None:
                    run.remember(members.member_at(record, slot))
        return found

    def state(self, slot: int) -> TrainState:
        return jax.device_put(members.member_at(self._members[1], slot), jax.local_devices()[0])

    def nats(
        self, slot: int, ids: np.ndarray, batch_size: int = 1, bptt_length: int = 1
    ) -> tuple[float, int]:
        recipe = jax.device_put(members.member_at(self._members[0], slot), jax.local_devices()[0])
        return stream_nats(recipe.model, self.state(slot).evaluated, ids, batch_size, bptt_length)


def _loss(perplexity: float) -> np.float32:
    """Mean nats."""
    return np.float32(math.log(perplexity) if perplexity > 0 else math.nan)


Group = SingleGroup | MemberGroup
