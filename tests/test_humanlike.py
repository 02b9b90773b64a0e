"""Reading times: what surprisal explains, held to statsmodels; effects that are there or not."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from language_models import small_lm

import jaxlm
from jaxlm.base.errors import DataError
from jaxlm.cli import main
from jaxlm.scoring.humanlike import ReadingTimes, gains_of, humanlike, read_times
from jaxlm.scoring.regression import fit

NAMES = {  # the columns of each corpus: item, position, word, time, participant
    "natural-stories": ("item", "zone", "word", "RT", "WorkerId"),
    "provo": ("Text_ID", "Word_Number", "Word", "IA_FIRST_RUN_DWELL_TIME", "Participant_ID"),
    "dundee": ("TEXT", "WNUM", "WORD", "FDUR", "SUBJ"),
    "ucl": ("sent_nr", "word_pos", "word", "RT", "subj_nr"),
}


def simulated(seed, slope=0.0, slope_before=0.0, items=12, words=25, readers=6):
    """(corpus, surprisal of each word): times of readers with intercepts, and perhaps an effect."""
    rng = np.random.default_rng(seed)
    W = items * words
    texts = rng.choice(["a", "dog", "house", "farmers", "understand"], W)
    positions = np.tile(np.arange(1.0, words + 1), items)
    surprisal = rng.gamma(4, 2, W)
    frequency = 10 - 0.5 * surprisal + rng.normal(0, 1, W)
    lengths = np.char.str_len(texts)
    before = np.where(positions == 1, 0, np.roll(surprisal, 1))
    mean = 250 + 5 * lengths - 4 * frequency + 0.3 * positions
    mean = mean + slope * surprisal + slope_before * before
    read = np.tile(np.arange(W), readers)
    who = np.repeat(np.arange(readers), W)
    times = (mean + rng.normal(0, 10, W))[read] + rng.normal(0, 25, readers)[who]
    times = times + rng.normal(0, 40, len(read))
    owners = np.repeat(np.arange(items), words)
    return ReadingTimes(texts, owners, positions, frequency, read, times, who), surprisal


def design(corpus, surprisal):
    """The columns without and with surprisal, of each word; nan before an item."""
    first = corpus.positions == 1
    lengths = np.char.str_len(corpus.words).astype(float)
    columns = [corpus.positions]
    for values in (lengths, corpus.frequencies, surprisal):
        columns += [values, np.where(first, np.nan, np.roll(values, 1))]
    return np.stack(columns, 1)


def test_gains_are_those_of_statsmodels_regressions():
    sm = pytest.importorskip("statsmodels.api")
    corpus, surprisal = simulated(0, slope=2.0)
    (gain,) = gains_of(corpus, {"lm": surprisal})
    x = design(corpus, surprisal)
    W = len(x)
    y = np.bincount(corpus.read, corpus.times) / np.bincount(corpus.read)
    kept = np.isfinite(x).all(1)
    total = 0.0
    for fold in range(10):
        held = kept & (corpus.items % 10 == fold)
        rest = kept & (corpus.items % 10 != fold)
        for sign, columns in ((1, x), (-1, x[:, :5])):
            model = sm.OLS(y[rest], sm.add_constant(columns[rest])).fit()
            variance = model.ssr / rest.sum()
            errors = y[held] - model.predict(sm.add_constant(columns[held]))
            density = -0.5 * (np.log(2 * np.pi * variance) + errors**2 / variance)
            total += sign * density.sum()
    assert gain.gain == pytest.approx(total / kept.sum(), abs=1e-8)
    whole = sm.OLS(y[kept], sm.add_constant(x[kept])).fit()
    assert (gain.slope, gain.slope_before) == pytest.approx(whole.params[-2:], abs=1e-8)
    assert gain.times == kept.sum() == W - 12 and gain.items == 12


def test_a_mixed_model_is_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    corpus, surprisal = simulated(1, slope=2.0)
    x = design(corpus, surprisal)
    kept = np.all(np.isfinite(x), 1)[corpus.read]
    rows = x[corpus.read][kept]
    y = corpus.times[kept]
    who = np.array(corpus.participants)[kept]
    ours = fit(rows, y, who, 6)
    model = sm.MixedLM(y, sm.add_constant(rows), who)
    theirs = model.fit(reml=False, method=["bfgs"], gtol=1e-8)
    assert ours.log_likelihood == pytest.approx(theirs.llf, abs=1e-8)
    np.testing.assert_allclose(ours.coefficients, theirs.fe_params, rtol=1e-5)
    assert ours.variance == pytest.approx(theirs.scale, rel=1e-5)
    effects = [theirs.random_effects[reader].iloc[0] for reader in range(6)]
    np.testing.assert_allclose(ours.intercepts, effects, rtol=1e-4)
    # A participant who was not fitted has a wider density.
    seen = np.concatenate([ours.intercepts, [np.nan]])
    model = replace(ours, intercepts=seen)
    densities = model.log_densities(rows[:2], y[:2], np.array([0, 6]))
    total = ours.variance * (1 + ours.ratio)
    error = y[1] - np.append(1, rows[1]) @ ours.coefficients
    expected = -0.5 * (math.log(2 * math.pi * total) + error**2 / total)
    assert densities[1] == pytest.approx(expected)


def test_no_effect_is_found_where_there_is_none():
    """By neither the interval nor the test of two models, in 100 corpora."""
    found = []
    shares = []
    for seed in range(100):
        corpus, surprisal = simulated(seed, items=10, words=15, readers=1)
        other = np.random.default_rng(1000 + seed).permutation(surprisal)
        gain, _, pair = gains_of(corpus, {"lm": surprisal, "other": other})
        found.append(gain.low_95 > 0)
        shares.append(pair.p)
    assert sum(found) <= 5 and sum(share < 0.05 for share in shares) <= 10
    assert 35 <= sum(share < 0.5 for share in shares) <= 65


@pytest.mark.parametrize("mixed", [False, True])
def test_an_effect_is_found_with_its_sign_and_size(mixed):
    corpus, surprisal = simulated(3, slope=4.0, slope_before=2.0, items=20)
    noise = surprisal + np.random.default_rng(9).normal(0, 6, len(surprisal))
    gain, worse, pair = gains_of(corpus, {"lm": surprisal, "noisy": noise}, mixed)
    assert gain.low_95 > 0 and gain.slope == pytest.approx(4, abs=1.5)
    assert gain.slope_before == pytest.approx(2, abs=1.5)
    assert gain.gain > worse.gain and pair.model == "lm - noisy"
    assert pair.low_95 > 0 and pair.p < 0.05
    assert pair.gain == pytest.approx(gain.gain - worse.gain)
    assert gain.times == len(corpus.times) - 20 * 6 if mixed else 20 * 24
    negative, *_ = gains_of(replace(corpus, times=600 - corpus.times), {"lm": surprisal}, mixed)
    assert negative.slope == pytest.approx(-gain.slope)


def write_table(path, names, rows, delimiter="\t"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([names, *rows])
    return path


def rows_of(texts, readers=("s1", "s2", "s3")):
    rng = np.random.default_rng(0)
    rows = []
    for reader in readers:
        for item, text in enumerate(texts, 1):
            for position, word in enumerate(text.split(), 1):
                rows.append([item, position, word, round(rng.normal(300, 40), 1), reader])
    return rows


TEXTS = ["the dogs run a dog runs", "a dog run the dogs of a dog", "the dog runs of the dogs"] * 4


@pytest.mark.parametrize("corpus", NAMES)
def test_the_columns_of_each_corpus_are_known(tmp_path, corpus):
    rows = rows_of(TEXTS)
    rows[3][3] = "NA"
    rows[4][3] = 0
    path = write_table(tmp_path / "times.tsv", NAMES[corpus], rows)
    times = read_times(path)
    assert sorted(map(" ".join, times.texts)) == sorted(TEXTS)
    assert len(times.times) == len(rows) - 2 and len(np.unique(np.array(times.participants))) == 3
    read = times.words[times.read].tolist()
    assert read == [row[2] for row in rows if row[3] not in ("NA", 0)]
    assert times.frequencies is None


def test_models_of_other_words_have_the_same_rows(tmp_path):
    path = write_table(tmp_path / "times.tsv", [*NAMES["ucl"], "log_frequency"], [])
    rows = [[*row, len(row[2]) * 1.5] for row in rows_of(TEXTS)]
    path = write_table(path, [*NAMES["ucl"], "log_frequency"], rows, ",")
    corpus = read_times(path)
    lm = small_lm()
    table = lm.word_surprisal([" ".join(text) for text in corpus.texts])
    same, twin, pair = humanlike({"a": lm, "b": lm}, corpus)
    assert same.gain == twin.gain and pair.p == 1 and pair.gain == 0
    assert same.perplexity == pytest.approx(2 ** table.surprisal.mean(), rel=1e-6)


MISTAKES = [
    (("item", "zone", "word", "RTS", "WorkerId"), "no column 'RT'"),
    (("item", "zone", "words", "RT", "WorkerId"), "no column 'word'"),
    (("item", "WorkerId", "word", "RT", "zone"), "expected a number in column 'zone'"),
    (("WorkerId", "zone", "word", "RT", "item"), "one word at each"),
]


@pytest.mark.parametrize(("names", "said"), MISTAKES)
def test_a_mistake_is_one_sentence(tmp_path, names, said):
    path = write_table(tmp_path / "times.tsv", names, rows_of(TEXTS))
    with pytest.raises(DataError, match=said) as error:
        read_times(path)
    assert "\n" not in str(error.value)


def test_an_infinite_time_is_refused(tmp_path):
    rows = rows_of(TEXTS)
    rows[3][3] = "1e999"
    path = write_table(tmp_path / "times.tsv", NAMES["ucl"], rows)
    with pytest.raises(DataError, match=r"line 5: expected a number in column 'RT', found '1e999'"):
        read_times(path)


def test_too_few_items_and_no_participants_are_refused():
    corpus, surprisal = simulated(0, items=1)
    with pytest.raises(DataError, match="1 items"):
        gains_of(corpus, {"lm": surprisal})
    none = np.zeros(0, int)
    without_times = replace(corpus, times=np.zeros(0), read=none, participants=none)
    with pytest.raises(DataError, match="0 items"):
        gains_of(without_times, {"lm": surprisal}, mixed=True)
    corpus = replace(simulated(0)[0], participants=None)
    with pytest.raises(DataError, match="participants"):
        gains_of(corpus, {"lm": simulated(0)[1]}, mixed=True)


def test_the_command_line(tiny_run, tmp_path, capsys):
    run = str(tiny_run[0].run_dir)
    words = [word for word in jaxlm.load(run).vocab.words if word.isalpha()][:40]
    texts = [" ".join(words[at : at + 10]) for at in range(0, 30, 3)]
    path = write_table(tmp_path / "times.tsv", NAMES["natural-stories"], rows_of(texts))
    plot = tmp_path / "plot.svg"
    assert main(["humanlike", run, "--times", str(path), "--plot", str(plot)]) == 0
    out, _ = capsys.readouterr()
    header, row = [line.split("\t") for line in out.splitlines() if "\t" in line]
    assert header[:2] == ["model", "gain"] and row[0] == run and "svg" in plot.read_text()[:200]
    assert main(["humanlike", run, "--times", str(path), "--mixed", "--participant", "none"]) == 1
    assert "no column 'none'" in capsys.readouterr().err
    assert main(["humanlike", run, f"{run}/.", "--times", str(path)]) == 1
    assert "a run is named twice" in capsys.readouterr().err
