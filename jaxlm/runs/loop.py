"""The one host loop: train, log, validate, save; for a run alone and for the members of a sweep."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Integer

from jaxlm.base.errors import JaxlmError
from jaxlm.config.settings import TrainConfig
from jaxlm.data.windows import batch
from jaxlm.distributed import hosts
from jaxlm.distributed.mesh import put_rows
from jaxlm.runs.run import Run
from jaxlm.training.members import member_at
from jaxlm.training.step import Metrics, TrainState

WHOLE_TOKENS = 1 << 26  # of a split, up to which all of it is put on the device

# (row, next row) -> tokens from that row or an earlier one on, and the row that they begin with
Take = Callable[[int, int], tuple[Integer[Array, "R B"], int]]


class Group(Protocol):
    """Runs at the same window of their epochs, with their states on the devices (`group.py`).

    Attributes:
        runs: The run of each slot; None: the slot is empty.
        mesh: The devices; None: one device.
    """

    runs: list[Run | None]
    mesh: Mesh | None

    def train(
        self,
        tokens: Integer[Array, "R B"],
        first_row: int,
        count: int,
        ahead: int,
    ) -> Metrics:
        """Begins to train windows of each run.

        Args:
            tokens: The text at hand.
            first_row: The row of the whole text with which it begins.
            count: How many windows to train.
            ahead: How many windows before them are not logged yet.

        Returns:
            The metrics to come, each [W]; of members [M, W].
        """
        ...

    def validate(self) -> list[float]:
        """Validates each slot's run, and updates the states' records; the perplexities."""
        ...

    def state(self, slot: int) -> TrainState:
        """A run's state, whole."""
        ...

    def nats(
        self,
        slot: int,
        ids: Integer[np.ndarray, " N"],
        batch_size: int = 1,
        bptt_length: int = 1,
    ) -> tuple[float, int]:
        """Evaluates a run's parameters.

        Args:
            slot: The run's.
            ids: The text.
            batch_size: The rows to read it in.
            bptt_length: The steps of a window.

        Returns:
            The summed nats, and the number of predictions.
        """
        ...


class Observer:
    """What the caller of the loop does along the way; nothing, unless a method is overridden."""

    def stopped(self) -> int | None:
        """The signal that asks to stop, if there is one. Asked after each call, and at the end."""
        return None

    def trained(self) -> None:
        """Called after each call of windows is logged."""

    def doing(self, task: str) -> None:
        """Called before a task that takes time between windows: "validating" or "saving"."""

    def diverged(
        self,
        group: Group,
        slot: int,
        problem: str,
    ) -> None:
        """Called for a window that was not finite: ends the run, or raises.

        Args:
            group: The group.
            slot: The run's slot, which must be empty afterwards.
            problem: A sentence about the window.
        """

    def epoch_ended(self, group: Group, stopping: bool) -> None:
        """Called after an epoch is validated, logged and saved.

        Args:
            group: The group, whose free slots may be filled unless it is stopping.
            stopping: Whether a signal asks to stop.
        """


def fit(group: Group, observer: Observer) -> int | None:
    """Trains a group's runs until none is left, or a signal asks to stop.

    All runs of a group are at the same window of their epochs. At an epoch's end each is validated;
    there, at the last window, at a signal, and every `checkpoint_every` windows, each is saved. The
    metrics of a call are logged while the device computes the next one.

    Args:
        group: The runs.
        observer: What to call along the way.

    Returns:
        The signal, if one asked to stop.

    Raises:
        JaxlmError: A file cannot be read or written; and what the observer raises.
    """
    signal = observer.stopped()
    if not _unfinished(group):
        return signal
    first = _unfinished(group)[0]
    with feed(first.corpus.train, first.config.train, group.mesh) as take:
        unlogged: tuple[Metrics, int] | None = None  # the last call's metrics and windows
        while signal is None and _unfinished(group):
            ahead = unlogged[1] if unlogged else 0
            metrics, count, at_edge = _begin_call(group, take, ahead)
            if unlogged:
                _log(group, observer, *unlogged)
            unlogged = (metrics, count)
            jax.block_until_ready(metrics)
            signal = observer.stopped()
            if signal is not None or at_edge:
                _log(group, observer, *unlogged)
                unlogged = None
                _end_call(group, observer, signal)
    return observer.stopped()  # also what came in the last validation


def _begin_call(
    group: Group,
    take: Take,
    ahead: int,
) -> tuple[Metrics, int, bool]:
    """Begins a call, after the windows `ahead` that are not logged yet.

    Returns:
        The metrics to come, of how many windows, and whether an epoch or a checkpoint's span ends
            with them.
    """
    runs = _unfinished(group)
    edge = min(run.edge_after(run.step + ahead) - run.step for run in runs) - ahead
    first = runs[0]
    count = min(edge, first.config.train.windows_per_call)
    step = first.step + ahead
    places = [first.plan.locate(at) for at in (step, step + count)]
    row, next_row = (first.plan.row(index, epoch) for epoch, index in places)
    tokens, first_row = take(row, next_row)
    return group.train(tokens, first_row, count, ahead), count, count == edge


def _log(
    group: Group,
    observer: Observer,
    metrics: Metrics,
    count: int,
) -> None:
    """Logs a call's windows, and ends each run with a window that was not finite."""
    columns = jax.tree.map(np.atleast_2d, jax.device_get(metrics))  # [M, W], also of a run alone
    for slot, run in enumerate(group.runs):
        if run is not None:
            problem = run.trained(member_at(columns, slot), count)
            if problem:
                observer.diverged(group, slot, problem)
    observer.trained()


def _end_call(
    group: Group,
    observer: Observer,
    signal: int | None,
) -> None:
    """Validates, logs and saves where an epoch or a call's edge asks for it."""
    runs = {slot: run for slot, run in enumerate(group.runs) if run is not None}
    ended = any(run.index == 0 for run in runs.values())
    if ended:
        observer.doing("validating")
        perplexities = group.validate()
        for slot, run in runs.items():
            run.end_epoch(perplexities[slot])
    for slot, run in runs.items():
        if run.step == run.edge_after(run.step - 1) or signal is not None:
            observer.doing("saving")
            hosts.together(partial(run.save, group.state(slot)))
    if ended:
        observer.epoch_ended(group, signal is not None)
        for run in group.runs:
            if run is not None:
                run.start_clock()


def _unfinished(group: Group) -> list[Run]:
    """The runs that have windows left to train."""
    return [run for run in group.runs if run is not None and not run.finished]


@contextmanager
def feed(
    ids: Integer[np.ndarray, " N"],
    counts: TrainConfig,
    mesh: Mesh | None = None,
) -> Iterator[Take]:
    """Reads a text's tokens for the windows, ahead of their use.

    Tokens in memory are put on the device once, all of [N // B, B]. Of a memory-mapped file slabs
    of [windows_per_call * T + 1, B] are read, T being the longest window; they are padded at the
    epoch's end, so that nothing compiles anew. While one slab is in use, a thread reads the next
    one and puts it on the device. On a mesh, a process reads the rows of its own devices alone
    (`put_rows`).

    Args:
        ids: The text [N].
        counts: The batch size, the windows of a call and their length.
        mesh: The devices.

    Yields:
        A function that takes the row of [N // B, B] to read from, and the row to be read from next.
        It returns tokens that begin with the first row or an earlier one, and the row that they
        begin with. It raises DataError where the file cannot be read any more.

    Raises:
        JaxlmError: Rows are rolled, and the text is too large to be put on the device.
    """
    T = counts.longest
    B = counts.batch_size
    if not isinstance(ids, np.memmap) or len(ids) <= WHOLE_TOKENS:
        tokens = put_rows(mesh, (len(ids) // B, B), lambda rows: batch(ids, B, rows))
        yield lambda row, next_row: (tokens, 0)
        return

    if counts.roll_rows:
        raise JaxlmError(
            f"roll_rows needs the whole text on the device, at most {WHOLE_TOKENS:,} tokens, and "
            f"it has {len(ids):,}: leave roll_rows out"
        )
    height = counts.windows_per_call * T + 1

    def slab(row: int) -> Integer[Array, "R B"]:
        def padded_columns(columns: slice) -> np.ndarray:
            tokens = batch(ids, B, columns, row, row + height)
            return np.pad(tokens, ((0, height - len(tokens)), (0, 0)))

        return put_rows(mesh, (height, B), padded_columns)

    ahead: dict[int, Future[Array]] = {}
    with ThreadPoolExecutor(1, "feed") as reader:

        def take(row: int, next_row: int) -> tuple[Integer[Array, "R B"], int]:
            """Waits for the slab of a row, and lets the thread read the next one."""
            future = ahead.pop(row, None) or reader.submit(slab, row)
            ahead.clear()
            ahead[next_row] = reader.submit(slab, next_row)
            return future.result(), row

        yield take
