"""How a space is read, counted and drawn from,
and that nothing which is given as one costs more than a sentence.
"""

import json
import math
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.sweeps.plan import Plan, make_plan
from jaxlm.sweeps.space import (
    decoded,
    grid_point,
    grid_size,
    random_point,
    read_space,
    read_space_file,
    to_json,
    with_flags,
)

TINY = jaxlm.preset("small").replace(
    hidden_sizes=(8,), embedding_size=4, batch_size=20, epochs=2, corpus="embedded-tiny"
)
NAMES = [name for _, name, _, _ in TINY.every_field()] + ["model", "optimizer", "schedule"]


def test_how_a_space_is_read():
    read = read_space(
        {
            "learning_rate": "log:0.1:10",
            "hold": "range:2:8:2.5",
            "batch_size": "range:10:20:4",
            "hidden_sizes": [(256, 128), 200, "10x20"],
            "epochs": range(2, 5),
            "keep_output": "uniform:0.5:1",
            "clip_norm": IntDistribution(1, 5, step=2),
            "seed": "uniform:1:9",
            "lowercase": "true,false",
            "init_scale": CategoricalDistribution([1, 0.5]),
            "decay": FloatDistribution(0.5, 1),
        },
        TINY,
    )
    assert read == {
        "learning_rate": FloatDistribution(0.1, 10.0, log=True),
        "hold": CategoricalDistribution((2.0, 4.5, 7.0)),
        "batch_size": CategoricalDistribution((10, 14, 18)),
        "epochs": CategoricalDistribution((2, 3, 4)),
        "hidden_sizes": CategoricalDistribution(("256x128", "200", "10x20")),
        "keep_output": FloatDistribution(0.5, 1.0),
        "clip_norm": CategoricalDistribution((1.0, 3.0, 5.0)),
        "seed": IntDistribution(1, 9),
        "lowercase": CategoricalDistribution((True, False)),
        "init_scale": CategoricalDistribution((1.0, 0.5)),
        "decay": FloatDistribution(0.5, 1.0),
    }
    assert read_space(read, TINY) == read
    assert (
        read_space(json.loads(json.dumps({name: to_json(one) for name, one in read.items()})), TINY)
        == read
    )


def test_a_range_has_its_last_value():
    read = read_space({"learning_rate": "range:0.1:0.3:0.1", "hold": "range:1:2:0.25"}, TINY)
    assert read["learning_rate"].choices == (0.1, 0.2, 0.3)
    assert read["hold"].choices == (1.0, 1.25, 1.5, 1.75, 2.0)


def test_a_tuple_of_values_is_a_list_of_values():
    read = read_space({"learning_rate": (0.5, 1), "hidden_sizes": ((8, 4), (6,))}, TINY)
    assert read["learning_rate"].choices == (0.5, 1.0)
    assert read["hidden_sizes"].choices == ("8x4", "6")


@pytest.mark.parametrize(
    ("widths", "spellings"),
    [
        ("256,128", ("256x128", "256x,128x")),
        ([256, 128], ("256x128", "(256,),(128,)")),
        ((256, 128), ("256x128", "(256,),(128,)")),
        (range(8, 17, 8), ("8x16", "(8,),(16,)")),
        (np.array([256, 128]), ("256x128", "(256,),(128,)")),
    ],
)
def test_widths_that_may_be_layers_or_models_are_refused(widths, spellings):
    with pytest.raises(JaxlmError, match="2 layers") as caught:
        read_space({"hidden_sizes": widths}, TINY)
    assert all(spelling in str(caught.value) for spelling in spellings)


@pytest.mark.parametrize("widths", ["256x,128x", [(256,), (128,)], ["256", "128"]])
def test_models_of_one_layer_each_are_spelt_so(widths):
    read = read_space({"hidden_sizes": widths}, TINY)["hidden_sizes"]
    assert read.choices == ("256", "128")
    assert read_space({"hidden_sizes": to_json(read)}, TINY)["hidden_sizes"] == read


def test_a_last_seed_that_is_too_large_is_refused_at_once():
    config = TINY.replace(seed=2**32 - 3)
    assert make_plan(config, {"hold": [1.0]}, "grid", None, 3, None, {}).seeds == 3
    with pytest.raises(JaxlmError, match="seed must be"):
        make_plan(config, {"hold": [1.0]}, "grid", None, 4, None, {})


@pytest.mark.parametrize(
    ("given", "strategy", "prune"),
    [
        (None, "tpe", "median"),
        (None, "random", "none"),
        (True, "random", "median"),
        (False, "tpe", "none"),
        ("halving", "random", "halving"),
    ],
)
def test_how_trials_are_pruned(given, strategy, prune):
    plan = make_plan(TINY, {"hold": [1.0, 2.0]}, strategy, 2, 1, given, {})
    assert plan.prune == prune and Plan.from_json(plan.to_json()) == plan
    with pytest.raises(JaxlmError, match="prune"):
        make_plan(TINY, {"hold": [1.0]}, "grid", None, 1, "best", {})


def test_numpy_s_numbers_are_numbers():
    read = read_space(
        {
            "learning_rate": [np.float32(0.5), np.float64(1)],
            "batch_size": [np.int64(20)],
            "lowercase": [np.bool_(True)],
            "hidden_sizes": [np.array([8, 4]), (np.int64(6), 2)],
            "hold": np.array([1.0, 2.0]),
        },
        TINY,
    )
    assert read == {
        "learning_rate": CategoricalDistribution((0.5, 1.0)),
        "batch_size": CategoricalDistribution((20,)),
        "lowercase": CategoricalDistribution((True,)),
        "hidden_sizes": CategoricalDistribution(("8x4", "6x2")),
        "hold": CategoricalDistribution((1.0, 2.0)),
    }
    json.dumps({name: to_json(one) for name, one in read.items()})


def test_the_points_of_a_grid():
    read = read_space({"hold": "range:2:8:2.5", "hidden_sizes": "256x128,200,10x20"}, TINY)
    points = [grid_point(read, number) for number in range(grid_size(read))]
    assert [(point["hidden_sizes"], point["hold"]) for point in points] == [
        (sizes, hold) for sizes in ("256x128", "200", "10x20") for hold in (2.0, 4.5, 7.0)
    ]
    assert [grid_point(dict(reversed(read.items())), number) for number in range(9)] == points


@given(st.data())
def test_drawn_points_lie_in_the_space_and_depend_on_seed_and_number_alone(data):
    low = data.draw(st.floats(1e-3, 10))
    high = low + data.draw(st.floats(0, 10))
    steps = data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 99))
    number = data.draw(st.integers(0, 99999))
    space = {
        "a": FloatDistribution(low, high),
        "b": FloatDistribution(low, high, log=True),
        "c": IntDistribution(3, 3 + 7 * steps),
        "d": IntDistribution(2, 2 + steps, log=True),
        "e": CategoricalDistribution(("x", None, True)),
    }
    point = random_point(space, seed, number)
    assert low <= point["a"] <= high and low <= point["b"] <= high
    assert point["c"] in range(3, 4 + 7 * steps) and point["d"] in range(2, 3 + steps)
    assert point["e"] in ("x", None, True)
    assert random_point(dict(reversed(space.items())), seed, number) == point


def test_every_value_of_a_range_is_drawn():
    space = {
        "a": IntDistribution(1, 5),
        "b": CategoricalDistribution((1.0, 2.0)),
        "c": IntDistribution(1, 8, log=True),
    }
    drawn = [random_point(space, 0, number) for number in range(300)]
    assert {point["a"] for point in drawn} == {1, 2, 3, 4, 5} and {
        point["b"] for point in drawn
    } == {1.0, 2.0}
    assert {point["c"] for point in drawn} == set(range(1, 9))
    assert len({tuple(point.values()) for point in drawn}) > 50


def test_a_value_may_need_another_field_of_the_space():
    """A projection leads to a tied embedding: alone it is refused."""
    with pytest.raises(JaxlmError, match="projection needs tied"):
        read_space({"projection": [True]}, TINY)
    assert read_space({"projection": [True], "tied": [True]}, TINY)
    with pytest.raises(JaxlmError, match="beta1 is a field of the optimizer"):
        read_space({"beta1": [0.8]}, TINY)
    assert read_space({"beta1": [0.8], "optimizer": "sgd,adamw"}, TINY)
    assert read_space(
        {"tied": [True], "embedding_size": [8], "hidden_sizes": ["4", "8"]},
        TINY.replace(embedding_size=4, hidden_sizes=(4,)),
    )
    assert read_space({"dropout_ramp": [0.3, 0.6], "keep_output": [None, 0.5]}, TINY)
    assert read_space({"nesterov": [True], "momentum": "uniform:0.8:0.9"}, TINY)


@pytest.mark.parametrize(
    ("flags", "space"),
    [
        ({"forget_bias": 1.0}, {"model": "mogrifier,gru"}),
        ({"momentum": 0.9}, {"optimizer": "muon,adamw"}),
        ({"forget_bias": 1.0}, {"model": "gru,mingru"}),
    ],
)
def test_a_flag_that_some_kinds_would_lose_is_refused(flags, space):
    with pytest.raises(JaxlmError, match="would not reach each"):
        with_flags(space, flags, TINY.replace(**flags))


def test_a_flag_is_meant_for_all_kinds_of_the_space():
    """Also where a kind has a value of its own, another default, or another meaning."""
    flags = {"learning_rate": 0.5, "final": 0.01, "forget_bias": 1.0}
    config = TINY.replace(schedule="cosine", tied=True, embedding_size=8, **flags)
    space = {"optimizer": "sgd,adamw", "schedule": ["cosine", "linear"], "model": "lstm,mogrifier"}
    found = with_flags(space, {**flags, "tied": True}, config)
    assert found == {**space, **{name: [value] for name, value in flags.items()}}
    assert with_flags(read_space(found, config), flags, config) == read_space(
        found, config
    )  # as resumed


def test_a_mechanism_may_be_absent():
    read = read_space(
        {"clip_norm": "none,5", "keep_output": [None, 0.5], "average_decay": ["none", 0.9]}, TINY
    )
    assert read == {
        "clip_norm": CategoricalDistribution((None, 5.0)),
        "keep_output": CategoricalDistribution((None, 0.5)),
        "average_decay": CategoricalDistribution((None, 0.9)),
    }
    with pytest.raises(JaxlmError, match="learning_rate takes a number"):
        read_space({"learning_rate": "none,1"}, TINY)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("hidden_sizes", "²", "hidden_sizes"),
        ("hidden_sizes", "9" * 5000, "hidden_sizes"),
        ("hidden_sizes", [int("9" * 400)], "hidden_sizes"),
        ("batch_size", "9" * 400, "batch_size"),
        ("batch_size", "9" * 5000, "batch_size"),
        ("batch_size", [10**5000], "batch_size"),
        ("learning_rate", [10**5000], "learning_rate"),
        ("learning_rate", "9" * 400, "learning_rate"),
        ("learning_rate", (1, 10**5000, 1), "learning_rate"),
        ("learning_rate", "uniform:1:" + "9" * 400, "learning_rate"),
        ("learning_rate", "range:1e-300:1e299:1e-10", "10,000 values"),
        ("learning_rate", "range:0.1:1:5e-324", "10,000 values"),
        ("batch_size", range(1, 10**30), "10,000"),
        ("batch_size", list(range(1, 20_000)), "10,000"),
        ("learning_rate", [[1.0]], "learning_rate"),
        ("learning_rate", [{}], "learning_rate"),
        ("learning_rate", {"low": 1, "high": 2}, "a list of values"),
        ("batch_size", IntDistribution(1, 10**400), "batch_size"),
        ("batch_size", FloatDistribution(1, 2.5), "whole"),
        ("learning_rate", None, "list"),
        ("learning_rate", [math.nan], "learning_rate"),
        ("learning_rate", [math.nan, math.nan], "learning_rate"),
    ],
)
def test_what_is_no_space_is_one_sentence(name, value, field):
    with pytest.raises(JaxlmError, match=field) as caught:
        read_space({name: value}, TINY)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("batch_size", "range:1:1000000000:1"),
        ("learning_rate", "range:1:1000:0.0001"),
        ("clip_norm", "uniform:1:2"),
    ],
)
def test_a_grid_is_counted_before_it_is_built(name, space):
    with pytest.raises(JaxlmError, match=r"points|10,000 values|a grid needs values"):
        grid_size(read_space({name: space}, TINY))


@settings(max_examples=300)
@given(
    st.sampled_from(NAMES),
    st.one_of(
        st.text(),
        st.text("0123456789.,:xe-+ ²٣_", max_size=60),
        st.tuples(
            st.sampled_from(["range", "uniform", "log"]),
            st.lists(
                st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=5)),
                max_size=4,
            ),
        ).map(lambda both: ":".join([both[0], *both[1]])),
    ),
)
def test_any_text_is_a_space_or_one_sentence(name, text):
    try:
        read = read_space({name: text}, TINY)
        size = grid_size(read)
    except JaxlmError as error:
        assert len(str(error)) < 600
    else:
        for number in {0, size // 2, size - 1}:
            TINY.replace(**{name: decoded(grid_point(read, number))[name]})


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["low", "high", "step", "log", "x"]), inner, max_size=4
                )
            ),
        ),
        max_size=3,
    )
)
def test_any_values_are_a_space_or_one_sentence(space):
    try:
        read = read_space(space, TINY)
    except JaxlmError:
        return
    assert (
        read_space(json.loads(json.dumps({name: to_json(one) for name, one in read.items()})), TINY)
        == read
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "as TOML or JSON|nested"),
        ('{"learning_rate": ' + "[" * 100_000, "nested"),
        ("learning_rate = " + "[" * 100_000, "as TOML or JSON|nested"),
        ("learning_rate = " + "9" * 5000, "digits"),
        ('{"learning_rate": [1], "learning_rate": [2]}', "twice"),
        ("x" * (2 << 20), "1,048,576 bytes"),
        ('{"learning_rate": ' + "9" * 5000 + "}", "digits"),
        ("\x00", "TOML"),
    ],
)
def test_a_file_that_is_no_space_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "space"
    path.write_text(text)
    with pytest.raises(JaxlmError, match=message) as caught:
        read_space_file(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_of_a_windows_editor_is_a_space(tmp_path):
    (tmp_path / "space").write_text("learning_rate = [1, 2]", "utf-8-sig")
    assert read_space_file(tmp_path / "space") == {"learning_rate": [1, 2]}


@pytest.mark.parametrize("text", ["learning_rate = 07:32:00", "learning_rate = [1979-05-27]"])
def test_a_time_is_no_value(tmp_path, text):
    (tmp_path / "space").write_text(text)
    with pytest.raises(JaxlmError, match="learning_rate"):
        read_space(read_space_file(tmp_path / "space"), TINY)


def test_what_is_no_file_of_text_is_one_sentence(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    for name in ("bytes", "fifo", "sparse", "missing", "."):
        with pytest.raises(JaxlmError, match="cannot be read"):
            read_space_file(tmp_path / name)


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_file_is_a_space_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("space") / "file"
    path.write_bytes(data)
    try:
        read_space(read_space_file(path), TINY)
    except JaxlmError as error:
        assert len(str(error)) < 500


def test_a_corpus_has_the_same_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = read_space({"corpus": ["ptb", "ptb-char", "novel.txt"]}, jaxlm.preset("small"))["corpus"]
    choices = ("ptb", "ptb-char", str(tmp_path / "novel.txt"))
    assert isinstance(read, CategoricalDistribution) and read.choices == choices
    files = {"tokens": ["subwords"], "tokenizer_file": ["a.model", "b.model"]}
    read = read_space(files, jaxlm.preset("small"))["tokenizer_file"]
    assert read.choices == (str(tmp_path / "a.model"), str(tmp_path / "b.model"))


def test_a_plan_survives_json():
    plan = make_plan(
        TINY,
        {"learning_rate": "log:0.1:10", "hidden_sizes": "8,4x4"},
        "tpe",
        5,
        2,
        True,
        {"name": "x"},
    )
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and not plan.differences(again)


def test_each_member_of_a_trial_has_a_seed_of_its_own():
    plan = make_plan(TINY.replace(seed=3), {"learning_rate": [0.5]}, "grid", None, 3, None, {})
    assert plan.seeds_of({"learning_rate": 0.5}) == [3, 4, 5]
    assert [plan.config_of({"learning_rate": 0.5}, seed).train.seed for seed in (3, 4, 5)] == [
        3,
        4,
        5,
    ]
    assert make_plan(TINY, {"seed": [8, 9]}, "grid", None, 1, None, {}).seeds_of({"seed": 9}) == [9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 10**8}, "trials must be at least 1 and at most 100,000; it is 100000000"),
        ({"trials": 10**5000}, "trials must be"),
        ({"seeds": 10**9}, "seeds must be at least 1 and at most 100,000"),
        ({"trials": -(10**5000)}, "trials must be"),
        ({"trials": "3"}, "trials takes a whole number or none"),
        ({"trials": True}, "trials takes a whole number or none"),
    ],
)
def test_counts_have_bounds(options, message):
    counts = {"trials": 2, "seeds": 1, **options}
    with pytest.raises(JaxlmError, match=message):
        make_plan(
            TINY,
            {"learning_rate": "log:0.1:1"},
            "random",
            counts["trials"],
            counts["seeds"],
            None,
            {},
        )


def test_a_plan_that_was_changed_anywhere_is_a_plan_or_one_sentence():
    """As a stranger's, which is sealed: every part is checked."""
    text = json.dumps(
        make_plan(
            TINY,
            {"learning_rate": "log:0.1:10", "hidden_sizes": "8,4x4"},
            "random",
            5,
            2,
            True,
            {"name": "x"},
        ).to_json()
    )
    chosen = random.Random(0)
    for _ in range(300):
        place = chosen.randrange(len(text))
        try:
            tree = json.loads(
                text[:place] + chosen.choice('0123456789"{}[],:xnullte-.') + text[place + 1 :]
            )
        except ValueError:
            continue
        try:
            Plan.from_json(tree)
        except JaxlmError as error:
            assert "\n" not in str(error)


def test_a_kind_is_found_behind_a_long_list_of_another_field():
    assert read_space(
        {"optimizer": "sgd,adamw", "batch_size": range(2, 300, 2), "beta1": [0.8]}, TINY
    )


@pytest.mark.parametrize(
    ("config", "space"), [("small", {"learning_rate": [1]}), (TINY, ["learning_rate"])]
)
def test_what_is_no_config_or_space_is_one_sentence(config, space):
    with pytest.raises(JaxlmError, match="takes a Config"):
        make_plan(config, space, "grid", None, 1, None, {})
