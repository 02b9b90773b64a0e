"""How much a model's surprisal explains of how long people read words.

The gain is the log-density of held-out reading times under a regression with surprisal, less that
without it (Goodkind and Bicknell 2018, aclanthology.org/W18-0102; arXiv:2006.01912). Both have the
position of a word, its length and log frequency, and those of the word before; the first adds the
surprisal of both words. A regression that is fitted on other items gives each item's densities.

Letters: `W` words, `N` times, `I` items.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.report.figure import BLUE, figure, label, log_axis, save
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.reading_times import predictors, training_counts
from jaxlm.scoring.regression import LinearModel, fit
from jaxlm.scoring.stimuli import read_table

COLUMNS = {  # a column -> its names in Natural Stories, Provo, a table of Dundee's, UCL's corpus
    "item": ("item", "Text_ID", "TEXT", "sent_nr"),
    "position": ("zone", "Word_Number", "WNUM", "word_pos", "position"),
    "word": ("word", "Word", "WORD"),
    "time": ("RT", "IA_FIRST_RUN_DWELL_TIME", "RTfirstpass", "FDUR", "meanItemRT", "time"),
    "participant": ("WorkerId", "Participant_ID", "SUBJ", "subj_nr", "participant"),
    "frequency": ("log_frequency",),
}
FOLDS = 10
_SAMPLES = 10_000  # of the items, in a bootstrap and in a test
_AT_ONCE = 100  # of the samples


@dataclass(frozen=True, eq=False)
class ReadingTimes:
    """A corpus of reading times.

    Attributes:
        words: The words of all items, each item's in their order [W].
        items: The item of each word, int [W].
        positions: Of each word in its item [W].
        frequencies: The log frequency of each word [W]; None: not in the table.
        read: Which word each time is of, int [N].
        times: Times above 0 [N].
        participants: Who read it, int [N]; None: not in the table.
    """

    words: np.ndarray
    items: np.ndarray
    positions: np.ndarray
    frequencies: np.ndarray | None
    read: np.ndarray
    times: np.ndarray
    participants: np.ndarray | None

    @property
    def texts(self) -> list[list[str]]:
        """The words of each item."""
        starts = 1 + np.flatnonzero(np.diff(self.items))
        return [text.tolist() for text in np.split(self.words, starts)]


class Gain(NamedTuple):
    """What a model explains, or how much more than another.

    Attributes:
        model: Its name; of two models, with "-" between.
        gain: Nats for each time that surprisal adds.
        low_95: Lower end of the interval of 95% of the bootstrap samples of items.
        high_95: Its upper end.
        p: The share of random signs of the items' sums that come as far from 0.
        times: N.
        items: I.
        perplexity: Of the words of the texts; nan of two models, as are slopes.
        slope: Time for a bit of surprisal, of a regression on all times.
        slope_before: The same, for a bit of the word before.
    """

    model: str
    gain: float
    low_95: float
    high_95: float
    p: float
    times: int
    items: int
    perplexity: float = math.nan
    slope: float = math.nan
    slope_before: float = math.nan


def read_times(path: str | Path, names: Mapping[str, str | None] | None = None) -> ReadingTimes:
    """Reads a table with a row for each time, or for each word.

    Args:
        path: A CSV file, as `read_table` takes it.
        names: The names of columns, where they are none of `COLUMNS`.

    Raises:
        DataError: A column is missing, or two rows have other words at one place.
    """
    given = {column: (name,) for column, name in (names or {}).items() if name}
    known = COLUMNS | given
    table = read_table(path, *known["word"])

    def name_of(column: str) -> str:
        return next(filter(table.columns.__contains__, known[column]), known[column][0])

    def has(column: str) -> bool:
        return column in given or name_of(column) in table.columns

    items = np.unique(table.cells(name_of("item")), return_inverse=True)[1]
    positions = table.decimals(name_of("position"))
    places, rows, read = np.unique(
        np.stack([items, positions], 1), axis=0, return_index=True, return_inverse=True
    )
    read = read.ravel()
    words = np.char.strip(table.sentences)
    odd = np.isnan(positions) | (words != words[rows][read])
    if odd.any():
        row = int(odd.argmax())
        expected = f"expected the position of {table.sentences[row]!r:.40} and one word at each"
        raise DataError(f"{table.where(row + 1)}: {expected} position of an item")
    times = table.decimals(name_of("time"))
    positive = times > 0
    participants = frequencies = None
    if has("participant"):
        readers = np.unique(table.cells(name_of("participant")), return_inverse=True)[1]
        participants = readers[positive]
    if has("frequency"):
        frequencies = table.decimals(name_of("frequency"))[rows]
    return ReadingTimes(
        words=words[rows],
        items=items[rows],
        positions=places[:, 1],
        frequencies=frequencies,
        read=read[positive],
        times=times[positive],
        participants=participants,
    )


def humanlike(
    models: Mapping[str, LanguageModel],
    corpus: ReadingTimes,
    mixed: bool = False,
    folds: int = FOLDS,
) -> list[Gain]:
    """What each model explains of reading times, and each two compared.

    All models have the same rows and the same baseline, whose log frequency is of the training text
    of the first one, unless the corpus has a column of it. Rows are left out whose word, or the
    word before, a model cannot score or does not know.

    Args:
        models: Models by their names.
        corpus: The reading times.
        mixed: Whether each participant has a random intercept; else a word's times are averaged.
        folds: Parts of the items, each held out once.

    Raises:
        DataError: There are no participants, too few items or times, or no frequencies.
    """
    texts = corpus.texts
    sentences = [" ".join(text) for text in texts]
    tables = {name: lm.word_surprisal(sentences, regions=texts) for name, lm in models.items()}
    if corpus.frequencies is None:
        name, lm = next(iter(models.items()))
        try:
            counts = training_counts(lm, name)
        except DataError as error:
            remedy = "name a column of log frequencies with --frequency"
            raise DataError(f"{error}: {remedy}") from None
        logs = predictors(lm, tables[name], counts)["log_frequency"]
        corpus = replace(corpus, frequencies=np.array(logs))
    surprisals = {}
    for name, table in tables.items():
        surprisals[name] = np.where(table.oov, np.nan, table.surprisal)
    return gains_of(corpus, surprisals, mixed, folds)


def gains_of(
    corpus: ReadingTimes,
    surprisals: Mapping[str, np.ndarray],
    mixed: bool = False,
    folds: int = FOLDS,
) -> list[Gain]:
    """`humanlike`, given the surprisal of each word.

    Args:
        corpus: The reading times, with frequencies.
        surprisals: By model, in bits [W]; nan: unknown.
        mixed: As in `humanlike`.
        folds: As in `humanlike`.

    Raises:
        DataError: As `humanlike`.
    """
    begins = np.append(True, np.diff(corpus.items) != 0)

    def with_before(of_words: Any) -> np.ndarray:
        values = np.array(of_words, float)
        return np.stack([values, np.where(begins, np.nan, np.roll(values, 1))], 1)

    lengths = [len(word) for word in corpus.words.tolist()]
    baseline = np.column_stack(
        [corpus.positions, with_before(lengths), with_before(corpus.frequencies)]
    )
    added = {name: with_before(of_model) for name, of_model in surprisals.items()}
    rows = _rows_of(corpus, np.hstack([baseline, *added.values()]), mixed, folds)
    without = rows.log_densities(baseline)
    everything = np.full(len(rows.times), True)
    sums = {}  # of each item, by model or by two
    measures = {}  # what a model alone has
    for name, columns in added.items():
        with_model = np.hstack([baseline, columns])
        sums[name] = rows.log_densities(with_model) - without
        slopes = rows.fitted(with_model, everything).coefficients[-2:].tolist()
        measures[name] = (float(2 ** np.nanmean(surprisals[name])), *slopes)
    for name, other in combinations(added, 2):
        sums[f"{name} - {other}"] = sums[name] - sums[other]
    counts = np.bincount(rows.items)
    times = len(rows.times)
    intervals = np.transpose(_sampled(counts, np.stack([*sums.values()], 1))).tolist()
    gains = []
    for (name, of_items), (low, high, p) in zip(sums.items(), intervals, strict=True):
        gain = float(of_items.sum() / times)
        gains.append(Gain(name, gain, low, high, p, times, len(counts), *measures.get(name, ())))
    return gains


def gain_plot(gains: Sequence[Gain], path: Path) -> Path:
    """Draws a point with its interval for each model.

    Args:
        gains: Of single models.
        path: The file.

    Returns:
        The path.

    Raises:
        RunDirError: It cannot be written.
    """
    with figure(5, 3.6) as drawn:
        axes = drawn.subplots()
        for gain in gains:
            ends = [[gain.gain - gain.low_95], [gain.high_95 - gain.gain]]
            axes.errorbar(gain.perplexity, gain.gain, ends, fmt="o", color=BLUE, capsize=3)
            place = (gain.perplexity, gain.gain)
            axes.annotate(label(gain.model), place, (6, 6), textcoords="offset points")
        axes.set(xlabel="perplexity of a word", ylabel="gain in nats for each time")
        axes.margins(0.2)
        log_axis(axes, "x")
        return save(drawn, path)


@dataclass(frozen=True, eq=False)
class _Rows:
    """What is regressed: a time a row, or in a plain model the mean time of a word.

    Attributes:
        words: The word of each row, int [N].
        times: What is explained [N].
        participants: Who read it, int [N].
        count: Participants in all; 0 in a plain model.
        items: The item of each row, from 0 without gaps, int [N].
        folds: The part of the items that is held out with it, int [N].
    """

    words: np.ndarray
    times: np.ndarray
    participants: np.ndarray
    count: int
    items: np.ndarray
    folds: np.ndarray

    def _of(
        self, columns: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns [W, P], times and participants of some rows, as `fit` takes them."""
        return columns[self.words[rows]], self.times[rows], self.participants[rows]

    def fitted(self, columns: np.ndarray, rows: np.ndarray) -> LinearModel:
        """The regression of some rows, bool [N], on columns [W, P]."""
        return fit(*self._of(columns, rows), self.count)

    def log_densities(self, columns: np.ndarray) -> np.ndarray:
        """The summed log-density of each item, by regressions on other folds [I]."""
        densities = np.empty(len(self.times))
        for fold in range(self.folds.max() + 1):
            held_out = self.folds == fold
            model = self.fitted(columns, ~held_out)
            densities[held_out] = model.log_densities(*self._of(columns, held_out))
        return np.bincount(self.items, densities)


def _rows_of(
    corpus: ReadingTimes,
    columns: np.ndarray,
    mixed: bool,
    folds: int,
) -> _Rows:
    """The rows whose words have all predictors.

    Args:
        corpus: The reading times.
        columns: All predictors of all models [W, P].
        mixed: As in `humanlike`.
        folds: As in `humanlike`.

    Raises:
        DataError: There are no participants, or too few items or times.
    """
    known = np.all(np.isfinite(columns), 1)[corpus.read]
    words = corpus.read[known]
    times = corpus.times[known]
    readers = 0
    if not mixed:
        words, owner = np.unique(words, return_inverse=True)
        times = np.bincount(owner, times) / np.bincount(owner)
        participants = np.zeros(len(words), int)
    elif corpus.participants is None:
        raise DataError("a mixed model needs a column of participants: name it")
    else:
        participants = corpus.participants[known]
        readers = np.max(corpus.participants, initial=0) + 1
    items = np.unique(corpus.items[words], return_inverse=True)[1]
    count = len(np.unique(items))
    if count < 2 or len(times) < 4 * columns.shape[1]:
        found = f"{len(times):,} times of {count} items have all predictors"
        raise DataError(f"{found}, too few for a regression: give more items")
    return _Rows(words, times, participants, readers, items, items % min(folds, count))


def _sampled(
    counts: np.ndarray,
    sums: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bootstrap samples of items, and random signs of their sums; the same for all columns.

    Args:
        counts: The rows of each item [I].
        sums: What is sampled, of each item and column [I, C].

    Returns:
        The ends of each column's interval of the mean, and its p [C].
    """
    rng = np.random.default_rng(0)
    items = len(counts)
    means = []
    for _ in range(_SAMPLES // _AT_ONCE):
        drawn = rng.multinomial(items, np.full(items, 1 / items), _AT_ONCE)
        means.append(drawn @ sums / (drawn @ counts)[:, None])
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975), 0)
    far = np.abs(sums.sum(0)) * (1 - 1e-12)
    count = np.zeros(sums.shape[1])
    for _ in range(_SAMPLES // _AT_ONCE):
        signs = rng.choice((-1.0, 1.0), (_AT_ONCE, items))
        count += (np.abs(signs @ sums) >= far).sum(0)
    return low, high, (1 + count) / (1 + _SAMPLES)
