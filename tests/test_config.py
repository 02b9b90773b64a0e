"""config.py: presets are the recipes, JSON comes back as it went, and every wrong field is named."""

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.config.config import (
    PRESETS,
    SECTIONS,
    Config,
    Hyper,
    differences,
    every_field,
    hyper_from_json,
    hyper_to_json,
    preset,
)
from jaxlm.errors import JaxlmError

RECIPES = {  # the table of the published recipes: init, lr, clip, T, hidden, E, hold, epochs, keep, decay, B
    "small": (0.1, 1.0, 5, 20, (256, 128), 200, 4, 15, 1.0, 0.5, 60),
    "zaremba-small": (0.1, 1.0, 5, 20, (200, 200), 200, 4, 13, 1.0, 0.5, 20),
    "zaremba-medium": (0.05, 1.0, 5, 35, (650, 650), 650, 6, 39, 0.5, 0.8, 20),
    "zaremba-large": (0.04, 1.0, 10, 35, (1500, 1500), 1500, 14, 55, 0.35, 1 / 1.15, 20),
    "test": (0.1, 1.0, 1, 2, (2,), 2, 1, 1, 1.0, 0.5, 20),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_recipes(name):
    c = preset(name)
    assert (c.hyper.init_scale, c.hyper.learning_rate, c.hyper.clip_norm, c.train.bptt_length, c.model.hidden_sizes,
            c.model.embedding_size, c.hyper.hold, c.train.epochs, c.hyper.keep_output, c.hyper.decay,
            c.train.batch_size) == RECIPES[name]
    assert c.hyper.keep_embedding == c.hyper.keep_output
    assert c.model.dropout == (c.hyper.keep_output < 1)
    assert c.model.vocab_size == 10_000
    assert Config.from_json(c.to_json()) == c


numbers = st.floats(0.01, 1.0)


@given(hidden=st.lists(st.integers(1, 99), min_size=1, max_size=4), rate=st.floats(1e-9, 1e9), keep=numbers,
       epochs=st.integers(0, 10**6), corpus=st.text(st.characters(codec="utf-8")), lowercase=st.booleans())
def test_json_comes_back_as_it_went(hidden, rate, keep, epochs, corpus, lowercase):
    config = preset("small").replace(hidden_sizes=hidden, learning_rate=rate, keep_output=keep, epochs=epochs,
                                     corpus=corpus, lowercase=lowercase)
    assert Config.from_json(config.to_json()) == config
    assert hyper_from_json(hyper_to_json(config.hyper)) == config.hyper


def test_every_field_has_help_and_lives_in_one_section():
    names = [item.name for _, item in every_field()]
    assert len(names) == len(set(names)) == sum(len(fields(kind)) for kind in SECTIONS.values())
    assert all(item.metadata["help"] for _, item in every_field())


@pytest.mark.parametrize(("changes", "message"), [
    (dict(hidden_sizes=()), "hidden_sizes needs at least one"),
    (dict(hidden_sizes=(0,)), "hidden_sizes must be at least 1; it is 0"),
    (dict(hidden_sizes=(1.5,)), "hidden_sizes takes a whole number"),
    (dict(keep_output=0), "keep_output must be above 0 and at most 1; it is 0"),
    (dict(keep_embedding=1.1), "keep_embedding must be above 0 and at most 1"),
    (dict(keep_output="x"), "keep_output takes a number"),
    (dict(keep_output=0.5, dropout=False), "keep probabilities below 1 need dropout=True"),
    (dict(learning_rate=-1), "learning_rate must be above 0; it is -1"),
    (dict(learning_rate=math.nan), "learning_rate must be above 0; it is nan"),
    (dict(learning_rate=math.inf), "learning_rate must be above 0; it is inf"),
    (dict(forget_bias=math.nan), "forget_bias must be finite"),
    (dict(decay=0), "decay must be above 0 and at most 1"),
    (dict(clip_norm=0), "clip_norm must be above 0"),
    (dict(batch_size=0), "batch_size must be at least 1"),
    (dict(bptt_length=0), "bptt_length must be at least 1"),
    (dict(epochs=1.5), "epochs takes a whole number"),
    (dict(epochs=True), "epochs takes a whole number"),
    (dict(seed=-1), "seed must be at least 0"),
    (dict(vocab_size=1), "vocab_size must be at least 2"),
    (dict(lowercase=1), "lowercase takes true or false"),
    (dict(learning_rte=1), "unknown field 'learning_rte'; did you mean 'learning_rate'"),
    (dict(zzz=1), "unknown field 'zzz'; known are"),
])
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(JaxlmError, match=message.replace("(", r"\(")):
        preset("small").replace(**changes)


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected JSON"), ("[1]", "expected a JSON object, found list"), ("[" * 100_000, "expected JSON"),
    ('{"model": 3}', "model should be a JSON object"), ('{"modle": {}}', "modle"), ('{"preset": 3}', "preset"),
    ('{"hyper": {"lr": 1}}', "unknown field hyper.lr"), ('{"hyper": {"decay": NaN}}', "decay must be"),
    ('{"model": {"hidden_sizes": null}}', "hidden_sizes takes a whole number"),
    ('{"train": {"epochs": "9"}}', "epochs takes a whole number"),
])
def test_wrong_json_is_explained(text, message):
    with pytest.raises(JaxlmError, match=message):
        Config.from_json(text)


def test_wrong_hyper_json_is_explained():
    with pytest.raises(JaxlmError, match="decay must be above 0"):
        hyper_from_json(json.dumps({"decay": -1}))


def test_unknown_presets_are_refused_with_the_nearest():
    with pytest.raises(JaxlmError, match="unknown preset 'smal'; did you mean 'small'"):
        preset("smal")


def test_replace_turns_dropout_on_and_changes_nothing_else():
    before = preset("small")
    after = before.replace(keep_output=0.5)
    assert differences(before, after) == ["model.dropout: False -> True", "hyper.keep_output: 1.0 -> 0.5"]
    assert before.replace(hyper=Hyper(decay=0.25)).hyper.decay == 0.25
