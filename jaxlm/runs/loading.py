"""From a run's directory to its model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxlm.config.protocols import Plain
from jaxlm.data.corpora import Corpus
from jaxlm.runs import checkpoint
from jaxlm.scoring.evaluation import Evaluation, Tuned
from jaxlm.scoring.language_model import LanguageModel


def load(run_dir: str | Path, which: str = "last") -> LanguageModel:
    """The model of a run's checkpoint.

    Args:
        run_dir: the run's directory.
        which: `last`, `best` (on validation), or a step.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    found = checkpoint.load(Path(run_dir), which)
    return LanguageModel(found.state.evaluated, found.config, found.vocab, found.manifest.corpus)


def evaluate(
    run: str | Path | LanguageModel,
    split: str = "test",
    *,
    text: str | Path | None = None,
    which: str = "last",
    corpus: Corpus | str | Path | None = None,
    data_dir: str | Path | None = None,
    protocol: str | Plain | None = None,
) -> Evaluation:
    """`LanguageModel.evaluate` of a run's checkpoint."""
    loaded = run if isinstance(run, LanguageModel) else load(run, which)
    return loaded.evaluate(split, text=text, corpus=corpus, data_dir=data_dir, protocol=protocol)


def tune_protocol(
    run: str | Path | LanguageModel,
    protocol: str | Plain,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    which: str = "last",
    corpus: Corpus | str | Path | None = None,
    data_dir: str | Path | None = None,
) -> Tuned:
    """`LanguageModel.tune` of a run's checkpoint."""
    loaded = run if isinstance(run, LanguageModel) else load(run, which)
    return loaded.tune(protocol, grid=grid, corpus=corpus, data_dir=data_dir)
