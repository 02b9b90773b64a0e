"""Small data in the form of BabyLM's evaluation pipeline, and models to score on them."""

import csv
import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
from language_models import lm_of

from jaxlm.data.tokens import Characters
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.models.stack import init_params
from jaxlm.scoring.language_model import LanguageModel

WORDS = "the a dog dogs cat bank book farmer lends reads runs run sees house big red small old"
MILESTONES = {1_000_000 * step: 400 * 0.4**step for step in range(1, 7)}  # words: size of logits
MEASURES = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound", "self_paced_reading_time")
BRAIN = ("ELAN", "LAN", "N400", "P600", "EPNP", "PNP")  # read by the pipeline, not by jaxlm


@cache
def model(kind: str) -> LanguageModel:
    """A model that was never trained, of words or characters."""
    letters = sorted({*WORDS, ".", "z"})
    vocab = {
        "words": Vocab((EOS, UNK, *WORDS.split())),
        "characters": Vocab(("\n", UNK, *letters), Characters()),
    }[kind]
    lm = lm_of(vocab, layers=2)
    # The parameters of which the recorded scores are.
    return replace(lm, params=jax.jit(init_params)(lm.config.model, jax.random.key(0)))


def at_milestone(kind: str, words: int) -> LanguageModel:
    """The model as if it had seen so many words: ever less sure, so that surprisals fall."""
    lm = model(kind)
    head = lm.params["softmax"]
    softmax = {**head, "kernel": head["kernel"] * MILESTONES[words]}
    return replace(lm, params={**lm.params, "softmax": softmax})


def write_data(folder: Path) -> Path:
    """Writes every test, and returns `full_eval`."""
    rng = random.Random(0)
    words = [*WORDS.split(), "zzz"]

    def text(count: int) -> str:
        return " ".join(rng.choice(words) for _ in range(count))

    def write(name: str, rows: list[dict]) -> None:
        path = folder / "full_eval" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def pair(good: str, bad: str, **more: str) -> dict:
        return {"sentence_good": good, "sentence_bad": bad, **more}

    for uid, field in (("agreement", "syntax"), ("npi", "syntax_semantics"), ("island", "syntax")):
        names = {"UID": uid, "field": field, "linguistics_term": uid[:3]}
        rows = [pair(text(rng.randint(2, 9)), text(rng.randint(2, 9)), **names) for _ in range(17)]
        write(f"blimp_filtered/{uid}", [*rows, pair("the qqq runs", "the www runs", **names)])
    for uid in ("hypernym", "turn_taking"):
        rows = [pair(f"{text(4)}{' ' * (row % 2)}\n{text(3)}", text(8)) for row in range(11)]
        write(f"supplement_filtered/{uid}", rows)
    for domain in ("social", "spatial"):
        rows = []
        for row in range(13):
            context = {"Context1": text(5), "Context2": text(5), "Domain": domain}
            kinds = {"ContextType": "direct", "ContextDiff": "swap", "TargetDiff": str(row % 2)}
            rows.append({**context, **kinds, "Target1": text(3), "Target2": text(3)})
        write(f"ewok_filtered/{domain}", rows)
    for split in ("regular", "ambiref", "move_contents"):
        rows = []
        for row in range(15):
            options = [f" {text(2)}." for _ in range(5)]
            rows.append({"input_prefix": text(8), "options": options, "numops": row % 3})
        write(f"entity_tracking/{split}", rows)
    for name in ("base", "wugs", "wugs_dist-before", "wugs_dist-in-between"):
        rows = []
        for _ in range(9):
            prefixes = {"prefix_acceptable": text(2), "prefix_unacceptable": text(3)}
            rows.append({**prefixes, "property_phrase": f"{text(3)}."})
        write(f"comps/comps_{name}", rows)
    for name in ("wug_adj_nominalization", "wug_past_tense"):
        rows = [{"sentences": f"{text(4)}\t{text(4)}", "ratio": rng.random()} for _ in range(20)]
        write(f"{name}/{name}", rows)
    _write_reading(folder / "full_eval" / "reading" / "reading_data.csv", rng, text)
    _write_ages(folder / "full_eval" / "aoa", rng, text, words)
    return folder / "full_eval"


def _write_reading(path: Path, rng: random.Random, text) -> None:
    rows = []
    for _ in range(30):
        words = text(6).split()
        for place, word in enumerate(words):
            row = {"word": word, "item": " ".join(words[:place]), "length": len(word)}
            row |= {"context_length": place, "Subtlex_log10": round(rng.uniform(1, 5), 3)}
            row |= {"prev_word": "", "prev_item": "", "prev_length": ""}
            if place > 1:
                before = words[place - 1]
                row |= {"prev_word": before, "prev_item": " ".join(words[: place - 1])}
                row["prev_length"] = len(before)
            for measure in (*MEASURES, *BRAIN):
                time = round(rng.gauss(300, 50) + 9 * place, 2)
                row[measure] = "" if rng.random() < 0.05 else time
            rows.append(row)
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def _write_ages(folder: Path, rng: random.Random, text, words: list[str]) -> None:
    folder.mkdir()
    heard = {word: [{"context": text(count)} for count in (2, 3, 4)] for word in words}
    (folder / "cdi_childes.json").write_text(json.dumps(heard))
    lines = [",".join(["word", *map(str, range(16, 31))])]
    for word in words:
        middle = rng.uniform(18, 28)
        shares = [1 / (1 + 2.0 ** (middle - month)) for month in range(16, 31)]
        lines.append(",".join([word, *(f"{share:.3f}" for share in shares)]))
    (folder / "cdi_human.csv").write_text("\n".join(lines))
