"""Sweeps: many trainings of one recipe, in as few programs as there are shapes, shared by as many workers as one likes.

What to try is read by `space.py`; `study.py` keeps who trains what, and what came of it; a `worker.py` trains groups
of members (`members.py`); `trials.py` shows it all.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxlm.config.config import Config, DataConfig
from jaxlm.data.corpora import Corpus
from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.runs import checkpoint, signals
from jaxlm.runs import directory as rundir
from jaxlm.runs.loop import load
from jaxlm.sweeps.results import Sweep, View, write
from jaxlm.sweeps.space import grid, read_space
from jaxlm.sweeps.study import STRATEGIES, Plan, Study
from jaxlm.sweeps.worker import POLL, Corpora, Worker

PLAN, JOURNAL = "plan.json", "study.journal"


def sweep(config: Config, space: Mapping[str, Any], *, strategy: str = "grid", trials: int | None = None,
          seeds: int = 1, prune: bool | None = None, corpus: str | Path | Corpus | None = None,
          run_dir: str | Path | None = None, resume: bool = False, workers: int = 1, storage: str | Path | None = None,
          group: int | None = None, vmap: bool | None = None, data_dir: str | Path | None = None, quiet: bool = False
          ) -> Sweep:
    """Trains the points of a space, each `seeds` times, and says which has the lowest validation perplexity.

    `space` maps fields of the config to values, ranges or distributions (`space.py`); what it leaves out is the
    config's. `strategy` is grid (every point), random or tpe (`trials` points each; tpe is Optuna's, and gives up
    points that are worse than the median unless `prune` is False). Members of equal shapes train together, `group`
    at a time, each exactly as `train` would train it alone, and `vmap` decides whether they share each operation
    (the default on accelerators) or take turns within one program (on CPUs, where that is faster).

    With `run_dir` everything is kept, each member in a run directory of its own, and `resume` goes on, beside
    whoever works on it already. `workers` processes share the work. `storage` names another journal file or a
    database's URL for Optuna's study. Signals end a sweep as they end `train`. Raises JaxlmError.
    """
    for name, number in (("trials", trials), ("seeds", seeds), ("workers", workers), ("group", group)):
        if number is not None and number < 1:
            raise JaxlmError(f"{name} must be at least 1; it is {number}")
    if isinstance(corpus, Corpus) and workers > 1:
        raise JaxlmError("workers load the corpus themselves: name it, instead of giving it as an object")
    other = sorted(space.keys() & {*DataConfig.__dataclass_fields__, "vocab_size"})
    if isinstance(corpus, Corpus) and other:
        raise JaxlmError(f"{other[0]} is in the space, and the corpus is given as an object: name it instead")
    loaded, found = load(config, corpus, data_dir)
    config = loaded.replace(vocab_size=config.model.vocab_size)
    plan = _plan(config, space, strategy, trials, seeds, prune, rundir.named(found))
    kept = run_dir is not None or workers > 1
    with ExitStack() as stack:
        folder = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxlm-sweep-")))
        place = _begin(folder, plan, storage, group, vmap, resume)
        study = Study(plan, folder, place["storage"] or (str(folder / JOURNAL) if kept else None), place["place"])
        checkpoint.write_bytes(folder / PLAN, (json.dumps(place, indent=1) + "\n").encode())
        view = stack.enter_context(View(Console(quiet=quiet)))
        for note in found.notes:
            view.say(f"!! {note}")
        view.say(f"{found.name}: {plan.trials} points" + (f" x {seeds} seeds" if seeds > 1 else "") +
                 f" ({strategy}) in {run_dir or 'a temporary directory'}")

        def result() -> Sweep:
            return Sweep(config, study.records(), folder)

        def show() -> None:
            if view.due():
                view.show(result(), plan.trials)

        with signals.noted() as stop:
            if workers > 1:
                _supervise(folder, workers, data_dir, study, stop, show, view.say)
            else:
                Worker(study, Corpora(found, isinstance(corpus, Corpus), data_dir), place["group"], 1, kept,
                       lambda: stop.signal, show, place["vmap"]).run()
        view.show(result(), plan.trials)
        if stop.signal is not None:
            view.say(f"stopped by {signal.Signals(stop.signal).name}: " +
                     (f"saved; go on with --run-dir {folder} --resume" if run_dir else "nothing is kept"))
        else:
            view.summary(result(), write(result(), folder) if run_dir else [])
        trials_ended = [trial if run_dir else replace(trial, run_dir=None) for trial in study.records()]
        return Sweep(config, trials_ended, folder if run_dir else None, stop.signal)


def join(run_dir: Path, workers: int, data_dir: str | Path | None = None) -> int | None:
    """One of `workers` processes on the sweep in a directory, which `sweep` began; the signal that ended it."""
    place, parent = _saved(run_dir), os.getppid()
    plan = Plan.from_json(place["plan"])
    _, found = load(plan.config, None, data_dir)
    if changed := rundir.different(plan.corpus, rundir.named(found)):
        raise JaxlmError(f"the sweep in {run_dir} has another corpus ({'; '.join(changed)}): name its folder with "
                         f"--data-dir")
    study = Study(plan, run_dir, place["storage"] or str(run_dir / JOURNAL), place["place"])

    def stopped() -> int | None:
        return stop.signal or (None if os.getppid() == parent else signal.SIGTERM)  # or its parent is dead

    with signals.noted() as stop:
        Worker(study, Corpora(found, False, data_dir), place["group"], workers, True, stopped, lambda: None,
               place["vmap"]).run()
        return stopped()


def saved_options(run_dir: Path, space: Mapping[str, Any], options: Mapping[str, Any]
                  ) -> tuple[Config, Mapping[str, Any], dict[str, Any]]:
    """The config, space and options that go on with the sweep in a directory; those given stand, to be compared.

    Raises RunDirError where there is none.
    """
    plan = Plan.from_json(_saved(run_dir)["plan"])
    trials = {} if plan.strategy == "grid" else {"trials": plan.trials}
    return plan.config, space or plan.space, {
        "strategy": plan.strategy, **trials, "seeds": plan.seeds, "prune": plan.prune, **options}


def _saved(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirError(f"{run_dir} holds no sweep that can be resumed (plan.json: "
                          f"{getattr(error, 'strerror', None) or error}): begin one without --resume, or check the "
                          f"path") from None


def _plan(config: Config, space: Mapping[str, Any], strategy: str, trials: int | None, seeds: int,
          prune: bool | None, corpus: dict[str, str]) -> Plan:
    read = read_space(space, config)
    if strategy not in STRATEGIES:
        raise JaxlmError(f"strategy is {', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}; it is {strategy!r}")
    if "seed" in read and seeds > 1:
        raise JaxlmError("seed is in the space, and seeds asks for several of each point: leave one of them out")
    if config.train.epochs < 1 and "epochs" not in read:
        raise JaxlmError("a sweep needs at least 1 epoch, to compare validation perplexities; epochs is 0")
    if strategy == "grid":
        points = len(grid(read))
        if trials not in (None, points):
            raise JaxlmError(f"a grid tries each of its {points} points: leave trials ({trials}) out, or choose the "
                             f"strategy random")
        trials = points
    if trials is None:
        raise JaxlmError(f"the strategy {strategy} has no end of its own: say with trials how many points to try")
    return Plan(config, read, strategy, trials, seeds, strategy == "tpe" if prune is None else prune, corpus)


def _begin(folder: Path, plan: Plan, storage: str | Path | None, group: int | None, vmap: bool | None,
           resume: bool) -> dict[str, Any]:
    """What the directory is to say of its sweep, compared with what it says."""
    if storage is not None:
        storage = str(storage) if "://" in str(storage) else str(Path(storage).absolute())
    if resume:
        saved = _saved(folder)
        if changed := Plan.from_json(saved["plan"]).differences(plan):
            raise RunDirError(f"{folder} holds another sweep ({'; '.join(changed)}): resume it with its own, or choose "
                              f"another --run-dir")
        if storage not in (None, saved["storage"]):
            raise RunDirError(f"the sweep in {folder} has its study in {saved['storage'] or JOURNAL}, not in "
                              f"{storage}: leave --storage out")
        return {**saved, "plan": plan.to_json(), "group": group or saved["group"], "vmap": saved["vmap"] if vmap is None
                else vmap}
    folder.mkdir(parents=True, exist_ok=True)
    # What a process leaves that was killed before there was a sweep is no other thing.
    if names := sorted(path.name for path in folder.iterdir()
                       if path.name[0] != "." and not path.name.startswith(JOURNAL)):
        raise RunDirError(f"{folder} is not empty (it holds {', '.join(names[:4])}): go on with the sweep in it "
                          f"with --resume, or choose another --run-dir")
    return {"plan": plan.to_json(), "storage": storage, "group": group, "vmap": vmap, "place": secrets.token_hex(8)}


def _supervise(folder: Path, workers: int, data_dir: str | Path | None, study: Study, stop: signals.Stop,
               show: Callable[[], None], say: Callable[[str], None]) -> None:
    """Starts the workers, shows what they do, and hands a signal on to them."""
    arguments = ["sweep", "--run-dir", str(folder), "--workers", str(workers), "--worker"]
    arguments += [] if data_dir is None else ["--data-dir", str(data_dir)]
    command = [sys.executable, "-c", "import sys; from jaxlm.cli import main; sys.exit(main())", *arguments]
    running = {number: subprocess.Popen(command, start_new_session=True) for number in range(workers)}
    told = False
    try:
        while running:
            if stop.signal is not None and not told:
                told = True
                for process in running.values():
                    process.send_signal(stop.signal)
            for number, process in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    if process.returncode and stop.signal is None:
                        say(f"!! worker {number} ended with exit code {process.returncode}; what it trained is left "
                            f"to the others")
            show()
            time.sleep(POLL / 2)
    finally:
        for process in running.values():
            process.terminate()
    if stop.signal is None and not study.ended:
        raise JaxlmError(f"every worker ended before the sweep did: what was saved is whole; go on with --run-dir "
                         f"{folder} --resume")
