"""The device side of runs: one spread over a mesh, or the members of a sweep in one program.

Each is a `loop.Group`, whose methods are told there.
"""

import math
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.config.recipe import Recipe
from jaxlm.distributed.mesh import MEMBER, fetch, members_mesh, place
from jaxlm.runs.run import Run
from jaxlm.scoring.stream import stream_nats
from jaxlm.training import members
from jaxlm.training.step import Metrics, TrainState, traced, train_windows
from jaxlm.training.validations import switched, validated

_validated = jax.jit(validated)
_all_validated = jax.jit(jax.vmap(validated))


class SingleGroup:
    """One run, its batch and vocabulary spread over a mesh of devices.

    Attributes:
        runs: The run, in slot 0.
        mesh: The devices (None: one device).
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        mesh: Mesh | None,
    ):
        """Places the run's state on the mesh."""
        self.runs: list[Run | None] = [run]
        self.mesh = mesh
        self._run = run
        self._recipe = traced(run.config.recipe)
        self._state = place(mesh, state)
        run.remember(jax.device_get(state.validations))

    def train(
        self,
        tokens: jax.Array,
        first_row: int,
        count: int,
        ahead: int,
    ) -> Metrics:
        """As `Group.train`; metrics [W]."""
        counts = self._run.config.train
        step = self._run.step + ahead
        self._state, metrics = train_windows(
            self._recipe,
            self._state,
            tokens,
            self._run.plan.windows(step, count, counts.windows_per_call, first_row),
            np.int32(count),
            np.bool_(counts.on_nonfinite == "skip"),
            ranked=self._run.ranked_words,
            bptt_length=counts.longest,
            small_batch=counts.small_batch,
            mesh=self.mesh,
        )
        return metrics

    def validate(self) -> list[float]:
        """As `Group.validate`."""
        run = self._run
        counts = run.config.train
        text = (run.corpus.valid, counts.batch_size, counts.bptt_length)
        nats, predictions = self.nats(0, *text)
        nats, self._state = _switched(self._recipe, self._state, nats, *text, self.mesh)
        valid = run.perplexity(nats, predictions, counts.batch_size)
        record = self._state.validations
        if record is not None:
            record = jax.device_get(_validated(self._recipe, record, _loss(valid)))
            self._state = replace(self._state, validations=place(self.mesh, jax.device_put(record)))
            run.remember(record)
        return [valid]

    def state(self, slot: int = 0) -> TrainState:
        """As `Group.state`. Every process must call it."""
        return fetch(self.mesh, self._state, self._recipe.model.vocab_size)

    def nats(
        self,
        slot: int,
        ids: np.ndarray,
        batch_size: int = 1,
        bptt_length: int = 1,
    ) -> tuple[float, int]:
        """As `Group.nats`."""
        return stream_nats(
            self._recipe.model, self._state.evaluated, ids, batch_size, bptt_length, self.mesh
        )


class MemberGroup:
    """Members of equal shapes in slots, over this process's devices.

    Members share each operation (`vmapped`), or follow one another on their device, where an empty
    slot costs nothing.

    Attributes:
        runs: The run of each slot; None: the slot is empty.
        mesh: The devices (None: one device).
    """

    _members: members.Members  # from the first member on

    def __init__(self, size: int, vmapped: bool):
        """Makes empty slots."""
        self.runs: list[Run | None] = [None] * size
        self.mesh = members_mesh(size)
        self._vmapped = vmapped

    def add(
        self,
        slot: int,
        run: Run,
        state: TrainState,
    ) -> None:
        """Puts a run into a free slot.

        Args:
            slot: The slot.
            run: The run, whose recipe has the structure of the others'.
            state: Its state.
        """
        recipe = run.config.recipe
        if hasattr(self, "_members"):
            self._members = members.with_member(self._members, slot, recipe, state)
        else:
            self._members = members.stacked(recipe, state, len(self.runs), self.mesh)
        self.runs[slot] = run

    @property
    def _any_run(self) -> Run:
        """One of the runs, which are all at the same window of their epochs."""
        return next(run for run in self.runs if run is not None)

    def train(
        self,
        tokens: jax.Array,
        first_row: int,
        count: int,
        ahead: int,
    ) -> Metrics:
        """As `Group.train`; metrics [M, W].

        An empty slot reads another slot's windows, to no effect. It trains none of them, unless
        members share each operation.
        """
        any_run = self._any_run
        counts = any_run.config.train
        windows = []
        trained = []
        for slot_run in self.runs:
            run = slot_run or any_run
            step = run.step + ahead
            windows.append(run.plan.windows(step, count, counts.windows_per_call, first_row))
            is_empty = slot_run is None
            trained.append(0 if is_empty and not self._vmapped else count)
        recipes, states = self._members
        states, metrics = members.train_members(
            recipes,
            states,
            tokens,
            jax.tree.map(lambda *columns: np.stack(columns), *windows),
            np.array(trained, np.int32),
            ranked=any_run.ranked_words,
            bptt_length=counts.longest,
            small_batch=counts.small_batch,
            vmapped=self._vmapped,
            mesh=self.mesh,
        )
        self._members = recipes, states
        return metrics

    def validate(self) -> list[float]:
        """As `Group.validate`; nan for an empty slot."""
        config = self._any_run.config
        counts = config.train
        text = (self._any_run.corpus.valid, counts.batch_size, counts.bptt_length)
        recipes, states = self._members
        nats_of_members = None
        if self._vmapped and self.mesh is None and not config.optimizer.two_tailed:
            nats_of_members, predictions = stream_nats(
                recipes.model, states.evaluated, *text, members=True
            )
        perplexities = [math.nan] * len(self.runs)
        for slot, run in enumerate(self.runs):
            if run is None:
                continue
            if nats_of_members is not None:
                nats = nats_of_members[slot]
            else:
                nats, predictions = self.nats(slot, *text)
            if config.optimizer.two_tailed:
                recipe, state = self._member(slot)
                nats, state = _switched(recipe, state, nats, *text)
                self._members = members.with_member(self._members, slot, recipe, state)
            perplexities[slot] = run.perplexity(nats, predictions, counts.batch_size)
        recipes, states = self._members
        if states.validations is not None:
            losses = np.array([_loss(perplexity) for perplexity in perplexities])
            record = jax.device_get(_all_validated(recipes, states.validations, losses))
            placed = place(self.mesh, jax.device_put(record), MEMBER)
            self._members = recipes, replace(states, validations=placed)
            for slot, run in enumerate(self.runs):
                if run is not None:
                    run.remember(members.member_at(record, slot))
        return perplexities

    def state(self, slot: int) -> TrainState:
        """As `Group.state`, on the first device."""
        return self._member(slot)[1]

    def _member(self, slot: int) -> tuple[Recipe, TrainState]:
        """A member's recipe and state, on the first device."""
        return jax.device_put(members.member_at(self._members, slot), jax.local_devices()[0])

    def nats(
        self,
        slot: int,
        ids: np.ndarray,
        batch_size: int = 1,
        bptt_length: int = 1,
    ) -> tuple[float, int]:
        """As `Group.nats`."""
        recipe, state = self._member(slot)
        return stream_nats(recipe.model, state.evaluated, ids, batch_size, bptt_length)


def _switched(
    recipe: Recipe,
    state: TrainState,
    nats: float,
    ids: np.ndarray,
    batch_size: int,
    bptt_length: int,
    mesh: Mesh | None = None,
) -> tuple[float, TrainState]:
    """Two-tailed averaging at a validation (arXiv:2209.12581, algorithm 1).

    Args:
        recipe: The run's.
        state: Its state.
        nats: Of the validation split, by the longer average.
        ids: The split [N].
        batch_size: The rows to read it in.
        bptt_length: The steps of a window.
        mesh: The devices.

    Returns:
        The nats of the better average, and the state whose longer average it is; without two
        averages both as they were.
    """
    average = state.average
    if average is None or average.short is None:
        return nats, state
    short_nats, _ = stream_nats(
        recipe.model, average.short.params, ids, batch_size, bptt_length, mesh
    )
    if not short_nats <= nats:
        return nats, state
    return short_nats, replace(state, average=switched(average))


def _loss(perplexity: float) -> np.float32:
    """Mean nats."""
    return np.float32(math.log(perplexity) if perplexity > 0 else math.nan)
