"""BabyLM's zero-shot tests (arXiv:2502.10645), scored as its evaluation pipeline of 2025 scores.

A choice is right if the completion that the test wants has the highest log-probability; of equal
ones the first, the wanted one, is taken. As in the pipeline a text begins from the zero state and
its first token, which nothing predicts, has no score.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import combinations, compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

from jaxlm.base.errors import DataError
from jaxlm.scoring.acquisition import Curve, curve_fitness, read_children, read_contexts
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.regression import r_squared
from jaxlm.scoring.sentences import character_ends
from jaxlm.scoring.stimuli import json_lines, read_table
from jaxlm.scoring.word_nats import scores_of_each

_SPLITS = ("regular", "ambiref", "move_contents")  # of entity tracking
_COMPS = {
    "comps_base": "base",
    "comps_wugs": "wugs",
    "comps_wugs_dist-before": "wugs_dist_before",
}
_FREQUENCY = ("Subtlex_log10", "length", "context_length")
_BEFORE = ("prev_length", "prev_pred")
_EYES = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")


class Completion(NamedTuple):
    """A text, of which the last part is scored.

    Attributes:
        text: The whole text.
        length: Characters of its scored end.
    """

    text: str
    length: int


class Choice(NamedTuple):
    """One item of a test.

    Attributes:
        completions: What to choose from; the first is right.
        groups: {kind of group: the item's group}; one kind is UID.
        ratio: How people choose: the share of the first, where that is known.
    """

    completions: list[Completion]
    groups: dict[str, str]
    ratio: float = math.nan


def _whole_texts(*texts: str) -> list[Completion]:
    return [Completion(text, len(text)) for text in texts]


def _after(prefix: str, *ends: str) -> list[Completion]:
    return [Completion(prefix + end, len(end)) for end in ends]


# From a line of a test, and the name of its file, to a choice.


def _blimp(line: dict[str, Any], file: str) -> Choice:
    groups = {"field": "supplement", "UID": file, "linguistics_term": "supplement"}
    if "field" in line:
        groups = {name: line[name] for name in groups}
        groups["field"] = groups["field"].replace("syntax_semantics", "syntax/semantics")
    return Choice(_whole_texts(line["sentence_good"], line["sentence_bad"]), groups)


def _ewok(line: dict[str, Any], file: str) -> Choice:
    groups = {
        "UID": line["Domain"],
        "context_type": line["ContextType"],
        "context_contrast": line["ContextDiff"],
        "target_contrast": line["TargetDiff"],
    }
    ends = (" " + line["Target1"], " " + line["Target2"])
    return Choice(_after(line["Context1"], *ends), groups)


def _entity_tracking(line: dict[str, Any], file: str) -> Choice:
    uid = f"{file}_{line['numops']}_ops"
    return Choice(_after(line["input_prefix"], *line["options"]), {"UID": uid})


def _comps(line: dict[str, Any], file: str) -> Choice:
    end = line["property_phrase"]
    good = _after(line["prefix_acceptable"] + " ", end)
    bad = _after(line["prefix_unacceptable"] + " ", end)
    return Choice(good + bad, {"UID": _COMPS.get(file, "wugs_dist_in_between")})


def _wug(line: dict[str, Any], file: str) -> Choice:
    first, second = line["sentences"].split("\t")
    return Choice(_whole_texts(first, second), {"UID": file}, float(line["ratio"]))


TESTS = {  # {a test, with which the name of its folder begins: what makes a choice of a line}
    "blimp": _blimp,
    "supplement": _blimp,
    "ewok": _ewok,
    "entity_tracking": _entity_tracking,
    "wug_adj": _wug,
    "wug_past": _wug,
    "comps": _comps,
}


class Score(NamedTuple):
    """The result of one test.

    Attributes:
        test: Its name: one of `TESTS`, reading_spr, reading_et or aoa.
        score: Percent of right choices; a correlation with people, in percent of wug's; percent of
            the variance left by the baseline that reading explains; of aoa Pearson's correlation.
        groups: {kind of group: {group: its score}}.
    """

    test: str
    score: float
    groups: Mapping[str, Mapping[str, float]] = {}


@dataclass(frozen=True)
class Completions:
    """Scores completions by a model.

    Attributes:
        lm: The model.
        tokenizer: How texts are split where tokens are words; "none" as a folder of
            `jaxlm export --to hub` does.
    """

    lm: LanguageModel
    tokenizer: str = "none"

    def log_probabilities(self, completions: Iterable[Completion]) -> np.ndarray:
        """The log-probability of each completion, in nats [N]."""
        texts = list(completions)
        ids = []
        lengths = []
        for completion in texts:
            tokens = self.lm.tokens(completion.text, self.tokenizer)
            ids.append(self.lm.vocab.encode(tokens))
            lengths.append(len(tokens) - self._first(completion, tokens))
        return self.end_log_probabilities(ids, lengths)

    def end_log_probabilities(self, texts: Sequence[np.ndarray], ends: Sequence[int]) -> np.ndarray:
        """The log-probability of the last tokens of texts.

        Args:
            texts: Ids [n] of each text.
            ends: How many tokens of each are scored; its first token never is.

        Returns:
            Nats, float64 [N]; 0 where no token is scored.
        """
        score = self.lm.scorer(full=False, boundary="published")
        readable = [len(ids) > 1 for ids in texts]
        scores = iter(scores_of_each(score, list(compress(texts, readable))))
        log_p = np.zeros(len(texts))
        for place in np.flatnonzero(readable).tolist():
            backwards = next(scores).nats[::-1].astype(float)
            log_p[place] = -sum(backwards[: ends[place]].tolist())
        return log_p

    def _first(self, completion: Completion, tokens: Sequence[str]) -> int:
        """The first token that ends behind the first character of the completion."""
        start = len(completion.text) - completion.length
        if start == 0:
            return 0
        if self.lm.vocab.kind == "words":
            # Of a word that is cut the rest is one word too.
            return len(tokens) - len(self.lm.tokens(completion.text[start:], self.tokenizer))
        ends = character_ends(self.lm.vocab, tokens)
        if ends[-1] != len(completion.text):  # Reading has changed the text.
            prefix = self.lm.tokens(completion.text[:start])
            start = character_ends(self.lm.vocab, prefix)[-1]
        return int(np.searchsorted(ends, start, "right"))


def babylm(
    lm: LanguageModel,
    data: str | Path,
    checkpoints: Iterable[tuple[int, LanguageModel]] = (),
    tokenizer: str = "none",
) -> Iterator[Score | str]:
    """Scores a model on the tests whose data lie in a folder.

    Args:
        lm: The model.
        data: The pipeline's folder `full_eval` or `fast_eval`, or the one that holds them.
        checkpoints: (words seen, model) over the training, for the age of acquisition.
        tokenizer: How texts are split where tokens are words: none or ptb.

    Yields:
        Scores, test by test; of each test that is skipped a sentence that says why.

    Raises:
        DataError: The folder has no test, or a file is malformed.
    """
    folder = _folder(Path(data))
    completions = Completions(lm, tokenizer)
    for name in TESTS:
        path = next(folder.glob(f"{name}*"), None)
        if path is None:
            yield f"{name}: there is no folder {folder / name}*"
        else:
            yield _scored(name, _choices(name, path), completions)
    path = folder / "reading" / "reading_data.csv"
    if path.exists():
        yield from _reading(path, completions)
    else:
        yield f"reading: there is no {path}"
    yield _acquisition(folder / "aoa", checkpoints, tokenizer)


def _folder(data: Path) -> Path:
    """The folder that has the folders of tests. Raises DataError."""
    for folder in (data, data / "full_eval", data / "fast_eval"):
        if any(any(folder.glob(f"{name}*")) for name in (*TESTS, "reading", "aoa")):
            return folder
    raise DataError(f"{data} has no folder of {', '.join(TESTS)}: name BabyLM's full_eval")


def _choices(name: str, folder: Path) -> list[Choice]:
    """The choices of all files of a test. Raises DataError."""
    choices = []
    for file in sorted(folder.glob("*.jsonl")):
        for where, line in json_lines(file):
            choice = None
            with suppress(AttributeError, KeyError, TypeError, ValueError):
                choice = TESTS[name](line, file.stem)
            if choice is None or min([end.length for end in choice.completions], default=0) == 0:
                raise DataError(
                    f"{where}: expected an item of {name}, found {json.dumps(line):.120}"
                )
            choices.append(choice)
    if not choices:
        raise DataError(f"{folder} has no file NAME.jsonl: restore {name} from a copy")
    return choices


def _scored(name: str, choices: Sequence[Choice], completions: Completions) -> Score:
    """The score of a test of choices."""
    sizes = [len(choice.completions) for choice in choices]
    every = (completion for choice in choices for completion in choice.completions)
    log_p = np.split(completions.log_probabilities(every), np.cumsum(sizes)[:-1])
    if name.startswith("wug"):
        # In float32, as in the pipeline: a share that rounds to 1 is a tie with others that do.
        ours = [float(softmax(choice_log_p.astype(np.float32))[0]) for choice_log_p in log_p]
        people = [choice.ratio for choice in choices]
        return Score(name, 100 * float(np.corrcoef(rankdata(ours), rankdata(people))[0, 1]))
    outcomes: dict[str, dict[str, list[bool]]] = {}
    for choice, choice_log_p in zip(choices, log_p, strict=True):
        for kind, group in choice.groups.items():
            group_outcomes = outcomes.setdefault(kind, {}).setdefault(str(group), [])
            group_outcomes.append(bool(choice_log_p.argmax() == 0))
    groups = {
        kind: {group: 100 * sum(right) / len(right) for group, right in outcomes_of_kind.items()}
        for kind, outcomes_of_kind in outcomes.items()
    }
    uids = groups["UID"]
    if name == "entity_tracking":
        for split in _SPLITS:
            scores = [score for uid, score in uids.items() if uid.startswith(split)]
            if scores:
                uids[split] = sum(scores) / len(scores)
        uids = {split: uids[split] for split in _SPLITS if split in uids} or uids
    return Score(name, sum(uids.values()) / len(uids), groups)


def _reading(path: Path, completions: Completions) -> Iterator[Score]:
    """The scores of self-paced reading, with the word before, and of eye movements."""
    table = read_table(path, "word")
    columns = {name: table.decimals(name) for name in (*_FREQUENCY, "prev_length", *_EYES)}
    columns["self_paced"] = table.decimals("self_paced_reading_time")
    # A missing text is "None" to the pipeline.
    before = [text or "None" for text in table.cells("item")]
    columns["pred"] = _surprisals(completions, before, table.sentences)
    earlier = table.cells("prev_item")
    surprisals = _surprisals(completions, earlier, table.cells("prev_word"))
    columns["prev_pred"] = np.where([*map(bool, earlier)], surprisals, math.nan)

    def explained(time: str, names: Sequence[str]) -> float:
        present = np.isfinite([columns[name] for name in (time, *names)]).all(0)
        times = columns[time][present]
        if len(np.unique(times)) < 2 ** len(names):  # a baseline has fewer coefficients
            raise DataError(f"{path} has too few rows with {time} for a regression")
        baseline = _with_products([columns[name][present] for name in names])
        without = r_squared(baseline, times)
        full = r_squared(np.column_stack([baseline, columns["pred"][present]]), times)
        return 100 * (full - without) / (1 - without)

    yield Score("reading_spr", explained("self_paced", (*_FREQUENCY, *_BEFORE)))
    eyes = {name: explained(name, _FREQUENCY) for name in _EYES}
    yield Score("reading_et", sum(eyes.values()) / len(eyes), {"measure": eyes})


def _with_products(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The columns [N], and the product of each two of them [N, P]."""
    scaled = [(column - column.mean()) / (column.std() or 1.0) for column in columns]
    return np.column_stack([*scaled, *(a * b for a, b in combinations(scaled, 2))])


def _surprisals(
    completions: Completions,
    contexts: Sequence[str],
    words: Sequence[str],
) -> np.ndarray:
    """The surprisal of words after contexts, in nats [N], as the pipeline computes it.

    A word is cut into pieces without its context. Each piece is scored after the context and the
    text of the pieces before it, which is cut into pieces anew.
    """
    lm = completions.lm
    tokens = partial(lm.tokens, tokenizer=completions.tokenizer)
    ids = []
    owners = []
    for row, (context, word) in enumerate(zip(contexts, words, strict=True)):
        for piece in tokens(word):
            ids.append(lm.vocab.encode([*tokens(context), piece]))
            owners.append(row)
            context += "".join(lm.vocab.tokens.pieces([piece]))
    nats = -completions.end_log_probabilities(ids, [1] * len(ids))
    return np.bincount(np.array(owners, int), nats, len(contexts))


def _acquisition(
    folder: Path,
    checkpoints: Iterable[tuple[int, LanguageModel]],
    tokenizer: str,
) -> Score | str:
    """How well the age at which words are learnt agrees with children's."""
    contexts = folder / "cdi_childes.json"
    children = folder / "cdi_human.csv"
    for path in (contexts, children):
        if not path.exists():
            return f"aoa: there is no {path}"
    ages = read_children(children)
    heard = [(word, f"{text.strip()} {word}") for word, text in read_contexts(contexts)]
    curves: dict[str, Curve] = {}
    sizes = set()
    for words, lm in checkpoints:
        sizes.add(words)
        log_p = Completions(lm, tokenizer).log_probabilities(
            Completion(text, len(word)) for word, text in heard
        )
        for (word, _), nats in zip(heard, log_p.tolist(), strict=True):
            curves.setdefault(word, []).append((words, -nats))
    if len(sizes) < 3:
        return "aoa: it needs at least 3 checkpoints of --keep-checkpoints, as 1M,2M,3M"
    return Score("aoa", curve_fitness(curves, ages))
