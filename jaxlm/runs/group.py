"""The device side of runs: one spread over a mesh, or the members of a sweep in one program.

Both do the same four things for the loop (`loop.py`): train windows, validate, save and test.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxlm.distributed import hosts
from jaxlm.distributed.mesh import members_mesh, put_rows
from jaxlm.report.units import perplexity
from jaxlm.runs.run import Run
from jaxlm.scoring.stream import members_nats, stream_nats
from jaxlm.training import members
from jaxlm.training.feed import Put
from jaxlm.training.step import Metrics, TrainState, put_state, train_windows, whole_state


class SingleGroup:
    """One run, its batch and vocabulary spread over a mesh of devices (None: one device)."""

    def __init__(self, run: Run, state: TrainState, mesh: Mesh | None):
        self.runs: list[Run | None] = [run]
        self._run, self._mesh = run, mesh
        self._recipe = jax.tree.map(jnp.float32, run.config.recipe)
        self._state = put_state(mesh, run.config.recipe, state)
        self.put: Put = partial(put_rows, mesh)

    def train(self, tokens: jax.Array, first_row: int, count: int) -> list[Metrics]:
        """Trains `count` windows; the metrics of each slot."""
        counts = self._run.config.train
        windows = self._run.plan.windows(self._run.step, count, counts.windows_per_call, first_row)
        self._state, metrics = train_windows(
            self._recipe, self._state, tokens, windows, jnp.int32(count), jnp.bool_(counts.on_nonfinite == "skip"),
            bptt_length=counts.longest, small_batch=counts.small_batch, mesh=self._mesh)
        return [jax.device_get(metrics)]

    def validate(self) -> list[float]:
        """The validation perplexity of each slot."""
        counts = self._run.config.train
        return [perplexity(*self._nats(self._run.corpus.valid, counts.batch_size, counts.bptt_length))]

    def test(self, slot: int) -> float:
        """Tests the last parameters at batch 1, every prediction."""
        return self._run.log_test("last", self._run.step, *self._nats(self._run.corpus.test))

    def save(self, slot: int) -> None:
        """Saves a checkpoint. Every process must call it."""
        state = self.state(slot)
        hosts.together(lambda: self._run.save(state))

    def state(self, slot: int = 0) -> TrainState:
        """The state, whole. Every process must call it."""
        return whole_state(self._mesh, self._run.config.recipe, self._state)

    def _nats(self, ids: np.ndarray, batch_size: int = 1, bptt_length: int = 1) -> tuple[float, int]:
        return stream_nats(self._recipe.model, self._state.evaluated, ids, batch_size, bptt_length, self._mesh)


class MemberGroup:
    """Members of equal shapes in `size` slots, spread over this process's devices; an empty slot costs nothing.

    Members share each operation (`vmapped`) or follow one another on their device.
    """

    def __init__(self, size: int, vmapped: bool):
        self.runs: list[Run | None] = [None] * size
        self._vmapped, self._mesh = vmapped, members_mesh(size)
        self._members: members.Group | None = None
        self.put: Put = self._put

    def add(self, slot: int, run: Run, state: TrainState) -> None:
        """Puts a run into a free slot."""
        recipe = run.config.recipe
        self._members = (members.stacked(recipe, state, len(self.runs), self._mesh) if self._members is None else
                         members.replaced(self._members, slot, recipe, state))
        self.runs[slot] = run

    def train(self, tokens: jax.Array, first_row: int, count: int) -> list[Metrics]:
        """Trains `count` windows of each member; the metrics of each slot."""
        assert self._members is not None
        some = next(run for run in self.runs if run is not None)
        size = some.config.train.windows_per_call
        each = [(run or some).plan.windows((run or some).step, count, size, first_row) for run in self.runs]
        counts = jnp.array([count if run is not None or self._vmapped else 0 for run in self.runs], jnp.int32)
        recipes, states = self._members
        states, metrics = members.train_members(
            recipes, states, tokens, jax.tree.map(lambda *columns: np.stack(columns), *each), counts,
            bptt_length=some.config.train.longest, small_batch=some.config.train.small_batch, vmapped=self._vmapped,
            mesh=self._mesh)
        self._members = recipes, states
        metrics = jax.device_get(metrics)
        return [members.taken(metrics, slot) for slot in range(len(self.runs))]

    def validate(self) -> list[float]:
        """The validation perplexity of each slot."""
        assert self._members is not None
        some = next(run for run in self.runs if run is not None)
        what = some.corpus.valid, some.config.train.batch_size, some.config.train.bptt_length
        if self._vmapped and self._mesh is None:
            recipes, states = self._members
            nats, predictions = members_nats(recipes.model, states.evaluated, *what)
            return [perplexity(one, predictions) for one in nats]
        return [np.nan if run is None else perplexity(*self._nats(slot, *what)) for slot, run in enumerate(self.runs)]

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

    def _nats(self, slot: int, ids: np.ndarray, batch_size: int = 1, bptt_length: int = 1) -> tuple[float, int]:
        assert self._members is not None
        recipe = jax.device_put(members.taken(self._members[0], slot), jax.local_devices()[0])
        return stream_nats(recipe.model, self.state(slot).evaluated, ids, batch_size, bptt_length)

    def _of(self, slot: int) -> Run:
        run = self.runs[slot]
        assert run is not None
        return run

    def _put(self, shape: tuple[int, int], read: Any) -> jax.Array:
        tokens = put_rows(None, shape, read)
        return tokens if self._mesh is None else jax.device_put(tokens, jax.NamedSharding(self._mesh, jax.P()))


Group = SingleGroup | MemberGroup
