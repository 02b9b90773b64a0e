"""The device side of runs: one spread over a mesh, or the members of a sweep in one program.

Both do the same four things for the loop (`loop.py`): train windows, validate, save and test.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.distributed import hosts
from jaxlm.distributed.mesh import MEMBER, fetch, members_mesh, place, put_rows
from jaxlm.runs.run import Run
from jaxlm.scoring.stream import members_nats, stream_nats
from jaxlm.training import members
from jaxlm.training.step import Metrics, TrainState, traced, train_windows
from jaxlm.training.validations import validated

_validated, _all_validated = jax.jit(validated), jax.jit(jax.vmap(validated))


class SingleGroup:
    """One run, its batch and vocabulary spread over a mesh of devices (None: one device)."""

    def __init__(self, run: Run, state: TrainState, mesh: Mesh | None):
        self.runs: list[Run | None] = [run]
        self._run, self._mesh = run, mesh
        self._recipe = traced(run.config.recipe)
        self._state = place(mesh, state)
        run.remember(jax.device_get(state.validations))

    def train(self, tokens: jax.Array, first_row: int, count: int) -> Metrics:
        """Begins to train `count` windows; the metrics, which the device may still be computing."""
        counts = self._run.config.train
        windows = self._run.plan.windows(self._run.next, count, counts.windows_per_call, first_row)
        self._state, metrics = train_windows(
            self._recipe,
            self._state,
            tokens,
            windows,
            np.int32(count),
            np.bool_(counts.on_nonfinite == "skip"),
            bptt_length=counts.longest,
            small_batch=counts.small_batch,
            mesh=self._mesh,
        )
        return metrics

    def by_slot(self, metrics: Metrics) -> list[Metrics]:
        """The metrics of each slot."""
        return [metrics]

    def validate(self) -> list[float]:
        """The validation perplexity of each slot; what follows from it is in the state afterwards."""
        run, counts = self._run, self._run.config.train
        found = run.perplexity(*self._nats(run.corpus.valid, counts.batch_size, counts.bptt_length), counts.batch_size)
        if (record := self._state.validations) is not None:
            record = jax.device_get(_validated(self._recipe, record, _loss(found)))
            self._state = replace(self._state, validations=place(self._mesh, jax.device_put(record)))
            run.remember(record)
        return [found]

    def test(self, slot: int) -> float:
        """Tests the last parameters at batch 1, every prediction."""
        return self._run.log_test("last", self._run.step, *self._nats(self._run.corpus.test))

    def save(self, slot: int) -> None:
        """Saves a checkpoint. Every process must call it."""
        state = self.state(slot)
        hosts.together(lambda: self._run.save(state))

    def state(self, slot: int = 0) -> TrainState:
        """The state, whole. Every process must call it."""
        return fetch(self._mesh, self._state, self._recipe.model.vocab_size)

    def put(self, shape: tuple[int, int], read: Callable[[slice], np.ndarray]) -> jax.Array:
        """Tokens onto the mesh, each device getting its own rows."""
        return put_rows(self._mesh, shape, read)

    def _nats(self, ids: np.ndarray, batch_size: int = 1, bptt_length: int = 1) -> tuple[float, int]:
        return stream_nats(self._recipe.model, self._state.evaluated, ids, batch_size, bptt_length, self._mesh)


class MemberGroup:
    """Members of equal shapes in `size` slots, spread over this process's devices; an empty slot costs nothing.

    Members share each operation (`vmapped`) or follow one another on their device.
    """

    def __init__(self, size: int, vmapped: bool):
        self.runs: list[Run | None] = [None] * size
        self._vmapped, self._mesh = vmapped, members_mesh(size)
        self._members: members.Members | None = None

    def add(self, slot: int, run: Run, state: TrainState) -> None:
        """Puts a run into a free slot."""
        recipe = run.config.recipe
        if self._members is None:
            self._members = members.stacked(recipe, state, len(self.runs), self._mesh)
        else:
            self._members = members.replaced(self._members, slot, recipe, state)
        self.runs[slot] = run
        run.remember(jax.device_get(state.validations))

    def train(self, tokens: jax.Array, first_row: int, count: int) -> Metrics:
        """Begins to train `count` windows of each member; the metrics, which the device may still be computing."""
        assert self._members is not None
        some = next(run for run in self.runs if run is not None)
        size = some.config.train.windows_per_call
        each = [(run or some).plan.windows((run or some).next, count, size, first_row) for run in self.runs]
        counts = np.array([count if run is not None or self._vmapped else 0 for run in self.runs], np.int32)
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
            mesh=self._mesh,
        )
        self._members = recipes, states
        return metrics

    def by_slot(self, metrics: Metrics) -> list[Metrics]:
        """The metrics of each slot."""
        return [members.taken(metrics, slot) for slot in range(len(self.runs))]

    def validate(self) -> list[float]:
        """The validation perplexity of each slot; what follows from it is in the states afterwards."""
        assert self._members is not None
        some = next(run for run in self.runs if run is not None)
        rows = some.config.train.batch_size
        what = some.corpus.valid, rows, some.config.train.bptt_length
        recipes, states = self._members
        if self._vmapped and self._mesh is None:
            nats, predictions = members_nats(recipes.model, states.evaluated, *what)
            found = [some.perplexity(one, predictions, rows) for one in nats]
        else:
            each = enumerate(self.runs)
            found = [run.perplexity(*self._nats(slot, *what), rows) if run else np.nan for slot, run in each]
        if states.validations is not None:
            record = jax.device_get(_all_validated(recipes, states.validations, np.array([*map(_loss, found)])))
            placed = place(self._mesh, jax.device_put(record), MEMBER)
            self._members = recipes, replace(states, validations=placed)
            for slot, run in enumerate(self.runs):
                if run is not None:
                    run.remember(members.taken(record, slot))
        return found

    def test(self, slot: int) -> float:
        """Tests a member's last parameters at batch 1, every prediction."""
        run = self._of(slot)
        return run.log_test("last", run.step, *self._nats(slot, run.corpus.test))

    def save(self, slot: int) -> None:
        """Saves a member's checkpoint."""
        self._of(slot).save(self.state(slot))

    def state(self, slot: int) -> TrainState:
        """One member's state."""
        assert self._members is not None
        return jax.device_put(members.taken(self._members[1], slot), jax.local_devices()[0])

    def put(self, shape: tuple[int, int], read: Callable[[slice], np.ndarray]) -> jax.Array:
        """Tokens onto every device."""
        tokens = put_rows(None, shape, read)
        return tokens if self._mesh is None else jax.device_put(tokens, jax.NamedSharding(self._mesh, jax.P()))

    def _nats(self, slot: int, ids: np.ndarray, batch_size: int = 1, bptt_length: int = 1) -> tuple[float, int]:
        assert self._members is not None
        recipe = jax.device_put(members.taken(self._members[0], slot), jax.local_devices()[0])
        return stream_nats(recipe.model, self.state(slot).evaluated, ids, batch_size, bptt_length)

    def _of(self, slot: int) -> Run:
        run = self.runs[slot]
        assert run is not None
        return run


def _loss(perplexity: float) -> np.float32:
    """Mean nats."""
    return np.float32(math.log(perplexity) if perplexity > 0 else math.nan)


Group = SingleGroup | MemberGroup
