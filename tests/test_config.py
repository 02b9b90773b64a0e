"""config/: presets are the recipes, kinds bring their fields, JSON comes back as it went,
wrong fields are named.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import checked, checked_value, either, specs
from jaxlm.config.config import (
    KINDS,
    PRESETS,
    Config,
    all_kinds,
    carried_over,
    changed_kinds,
    conflicts,
    differences,
    preset,
    spec_of_field,
)
from jaxlm.config.protocols import PROTOCOLS
from jaxlm.models.lstm import LSTM
from jaxlm.report.page import published
from jaxlm.schedules import Piecewise

MODEL_NAMES = either([*KINDS["model"]])
RECIPES = {  # the published recipes: init, lr, clip, T, hidden, E, hold, epochs, keep, decay, B
    "small": (0.1, 1.0, 5, 20, (256, 128), 200, 4, 15, None, 0.5, 60),
    "zaremba-small": (0.1, 1.0, 5, 20, (200, 200), 200, 4, 13, None, 0.5, 20),
    "zaremba-medium": (0.05, 1.0, 5, 35, (650, 650), 650, 6, 39, 0.5, 0.8, 20),
    "zaremba-large": (0.04, 1.0, 10, 35, (1500, 1500), 1500, 14, 55, 0.35, 1 / 1.15, 20),
    "test": (0.1, 1.0, 1, 2, (2,), 2, 1, 1, None, 0.5, 20),
}


@pytest.mark.parametrize("name", RECIPES)
def test_presets_are_the_recipes(name):
    c = preset(name)
    schedule = preset(name).schedule
    assert isinstance(schedule, Piecewise)
    assert (
        c.model.init_scale,
        c.optimizer.learning_rate,
        c.optimizer.clip_norm,
        c.train.bptt_length,
        c.model.hidden_sizes,
        c.model.embedding_size,
        schedule.hold,
        c.train.epochs,
        c.model.keep_output,
        schedule.decay,
        c.train.batch_size,
    ) == RECIPES[name]
    assert c.kinds == {"model": "lstm", "optimizer": "sgd", "schedule": "piecewise"}
    assert c.model.keep_embedding == c.model.keep_output
    assert c.model.vocab_size == 10_000


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_kept_as_json_and_has_its_own_name(name):
    c = preset(name)
    assert c.preset == name and Config.from_json(c.to_json()) == c


def test_the_preset_of_awd_lstm_mos_is_the_published_one():
    c = preset("awd-lstm-mos")
    assert (c.model.embedding_size, c.model.hidden_sizes, c.model.tied, c.model.experts) == (
        280,
        (960, 960, 620),
        True,
        15,
    )
    rates = (
        "keep_words",
        "keep_embedding",
        "keep_output",
        "keep_last_output",
        "keep_latent",
        "keep_recurrent_weights",
    )
    assert [round(1 - getattr(c.model, name), 9) for name in rates] == [
        0.1,
        0.4,
        0.225,
        0.4,
        0.29,
        0.5,
    ]
    assert (
        c.optimizer.learning_rate,
        c.train.batch_size,
        c.train.bptt_length,
        c.train.longest,
    ) == (20, 12, 70, 110)


def test_the_preset_of_awd_lstm_is_the_published_one():
    c = preset("awd-lstm")
    assert (c.model.embedding_size, c.model.hidden_sizes, c.model.tied) == (
        400,
        (1150, 1150, 400),
        True,
    )
    rates = (
        "keep_words",
        "keep_embedding",
        "keep_output",
        "keep_last_output",
        "keep_recurrent_weights",
    )
    assert [round(1 - getattr(c.model, name), 9) for name in rates] == [0.1, 0.4, 0.25, 0.4, 0.5]
    assert (c.optimizer.learning_rate, c.optimizer.clip_norm, c.optimizer.cost) == (
        30,
        0.25,
        "mean",
    )


kinds = st.fixed_dictionaries(
    {slot: st.sampled_from(sorted(KINDS[slot])) for slot in KINDS}
).filter(
    lambda kinds: (
        (kinds["optimizer"], kinds["schedule"])
        not in (("asgd", "plateau"), ("awd-lstm", "plateau"))  # both act on one
        and (
            kinds["model"] == "lstm" or kinds["optimizer"] != "awd-lstm"
        )  # whose two biases are an LSTM's
    )
)


@given(
    kinds=kinds,
    hidden=st.lists(
        st.integers(2, 50).map(lambda half: 2 * half), min_size=1, max_size=4
    ),  # for two heads
    rate=st.floats(1e-9, 1e9),
    keep=st.none() | st.floats(0.01, 1.0),
    epochs=st.integers(0, 10**6),
    lowercase=st.booleans(),
    corpus=st.text(st.characters(codec="utf-8")),
)
def test_json_comes_back_as_it_went(kinds, hidden, rate, keep, epochs, corpus, lowercase):
    config = preset("small").replace(
        **kinds,
        hidden_sizes=hidden,
        learning_rate=rate,
        keep_output=keep,
        epochs=epochs,
        corpus=corpus,
        lowercase=lowercase,
    )
    assert Config.from_json(config.to_json()) == config
    assert config.kinds == kinds


def test_every_field_has_help_and_means_the_same_in_every_kind_that_has_it():
    types: dict[str, set] = {}
    for _, _, kind in all_kinds():
        for name, spec in specs(kind).items():
            assert spec.help
            types.setdefault(name, set()).add((spec.type, spec.optional))
    assert not set(types) & set(KINDS)
    # Muon always has a momentum, Adam and Muon a weight decay, and averaged SGD an average; others
    # may have none.
    either, either_count = ({(kind, True), (kind, False)} for kind in (float, int))
    assert {name: found for name, found in types.items() if len(found) > 1} == {
        "momentum": either,
        "weight_decay": either,
        "nonmonotone": either_count,
    }


def test_a_plain_name_belongs_to_one_section_only():
    homes: dict[str, set] = {}
    for section, _, kind in all_kinds():
        for name in specs(kind):
            homes.setdefault(name, set()).add(section)
    assert all(len(found) == 1 for found in homes.values())
    assert [spec_of_field(name).type for name in ("learning_rate", "hidden_sizes", "model")] == [
        float,
        tuple,
        str,
    ]
    assert spec_of_field("optimizer").choices == (
        "sgd",
        "asgd",
        "adamw",
        "muon",
        "awd-lstm",
        "lamb-adam",
    )


def test_no_kind_is_taken_for_another_with_the_same_fields():
    """As `jax.jit` compares them: GRU and MinGRU, or the schedules linear and cosine,
    differ by their class alone.
    """
    kinds = [
        *(kind for _, _, kind in all_kinds() if kind.kind_name),
        *PROTOCOLS.values(),
    ]
    trees = [jax.tree.structure(kind()) for kind in kinds]
    assert [[one == other for other in trees] for one in trees] == np.eye(
        len(kinds), dtype=bool
    ).tolist()
    for kind in kinds:
        leaves, tree = jax.tree.flatten(kind())
        assert jax.tree.unflatten(tree, leaves) == kind()


def test_another_kind_takes_over_what_means_the_same_and_no_rates():
    config = preset("zaremba-medium").replace(model="gru", optimizer="adamw", learning_rate=0.01)
    assert (config.kinds["model"], config.model.keep_output, config.model.hidden_sizes) == (
        "gru",
        0.5,
        (650, 650),
    )
    assert (config.optimizer.learning_rate, config.optimizer.clip_norm) == (0.01, 1.0)
    for name, kind in (
        ("awd-lstm", "adamw"),
        ("mogrifier", "muon"),
        ("mogrifier", "sgd"),
        ("awd-lstm", "sgd"),
    ):
        given = preset(name)
        plain = KINDS["optimizer"][kind]()
        found = given.replace(optimizer=kind).optimizer
        assert (found.learning_rate, found.clip_norm) == (plain.learning_rate, plain.clip_norm)
        same = ("cost", "activation_penalty", "temporal_penalty", "l2_penalty")
        assert [getattr(found, name) for name in same] == [
            getattr(given.optimizer, name) for name in same
        ]
        assert type(found).__module__.startswith("jaxlm.optimizers.")  # and no published quirk
    lstms = [
        preset("mogrifier").replace(model="lstm", **given).model
        for given in (dict(forget_bias=0.5), {})
    ]
    # Mogrifier's forget bias is where training begins, an LSTM's is added at each step.
    assert [model.forget_bias for model in lstms if isinstance(model, LSTM)] == [0.5, 0]


@pytest.mark.parametrize("old", [*KINDS["optimizer"].values(), *KINDS["model"].values()])
def test_a_field_is_taken_over_only_where_it_means_the_same(old):
    slot = "optimizer" if old in KINDS["optimizer"].values() else "model"
    section = old()  # with values that no check allows together
    vars(section).update({name: 0.5 for name, spec in specs(old).items() if spec.type is float})
    for kind in KINDS[slot].values():
        taken, left = carried_over(section, kind)
        assert not {"learning_rate", "clip_norm"} & {*taken}
        assert all(specs(kind)[name].help == specs(old)[name].help for name in taken)
        assert {*taken, *left} >= {
            name for name, spec in specs(old).items() if spec.type is float
        } - {"init_scale"}


def test_what_another_kind_takes_over_is_said():
    assert changed_kinds(preset("awd-lstm"), dict(optimizer="adamw", cost="sum")) == [
        "the optimizer adamw takes over from asgd: activation_penalty 2, temporal_penalty 1; "
        "it has its own defaults in place of learning_rate 30, clip_norm 0.25, weight_decay 1.2e-06"
    ]
    assert changed_kinds(preset("zaremba-medium"), dict(model="gru", keep_output=0.8)) == [
        "the model gru takes over from lstm: embedding_size 650, "
        "hidden_sizes 650,650, init_scale 0.05, keep_embedding 0.5"
    ]
    assert changed_kinds(preset("small"), dict(optimizer="adamw", model="lstm")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_sizes=()), "hidden_sizes needs at least one"),
        (dict(hidden_sizes=(0,)), "hidden_sizes must be at least 1 .*; it is 0"),
        (dict(hidden_sizes=(1.5,)), "hidden_sizes takes a whole number"),
        (dict(hidden_sizes=10**5000), "hidden_sizes must be at least 1 .*thousands of digits"),
        (dict(keep_output=0), "keep_output must be above 0 and at most 1; it is 0"),
        (dict(keep_embedding=1.1), "keep_embedding must be above 0 and at most 1"),
        (dict(keep_output="x"), "keep_output takes a number or none"),
        (dict(learning_rate=-1), "learning_rate must be above 0; it is -1"),
        (
            dict(average_decay=1 - 1e-8),
            "average_decay must be .* below 1; it is 0.99999999, 1 in float32",
        ),
        (dict(keep_output=1e-40), "keep_output must be above 0 .*; it is 1e-40, 0 in float32"),
        (dict(clip_norm=1e39), "clip_norm must be above 0; it is 1e.39, inf in float32"),
        (dict(learning_rate=None), "learning_rate takes a number; it is None"),
        (dict(learning_rate=math.nan), "learning_rate must be above 0; it is nan"),
        (dict(learning_rate=math.inf), "learning_rate must be above 0; it is inf"),
        (dict(learning_rate=10**400), "learning_rate must be above 0"),
        (dict(forget_bias=math.nan), "forget_bias must be finite"),
        (dict(decay=0), "decay must be above 0 and at most 1"),
        (dict(clip_norm=0), "clip_norm must be above 0"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(bptt_length=0), "bptt_length must be at least 1"),
        (dict(windows_per_call=10**9), "windows_per_call must be .*at most"),
        (dict(epochs=1.5), "epochs takes a whole number"),
        (dict(epochs=True), "epochs takes a whole number"),
        (dict(seed=-1), "seed must be at least 0"),
        (dict(seed=2**32), "seed must be .* at most 4,294,967,295"),
        (dict(length_seed=2**32), "length_seed must be .* at most 4,294,967,295"),
        (dict(vocab_size=1), "vocab_size must be at least 2"),
        (dict(lowercase=1), "lowercase takes true or false"),
        (dict(tied=True), "hidden_sizes is 128, embedding_size is 200; set projection"),
        (
            dict(model="mogrifier", rounds=101),
            "rounds must be at least 0 and at most 100; it is 101",
        ),
        (dict(model="hawk", heads=3), "hidden_sizes is 256,128, which 3 heads do not divide"),
        (
            dict(model="slstm", heads=10_000, hidden_sizes=(20_000,)),
            "heads must be at least 1 and at most 1,000",
        ),
        *(
            (dict(model=kind, heads=128), "over one unit .* is 128")
            for kind in ("slstm", "mlstm", "gated-deltanet")
        ),
        (dict(model="mogrifier", layer_norm=True, hidden_sizes=(1,)), "a norm over one unit"),
        (dict(projection=True), "projection needs tied or block, and tied is no"),
        (
            dict(tied=True, projection=True, experts=3),
            "projection and experts exclude each other, .* experts is 3",
        ),
        (dict(tied=True, experts=3, latent_size=9), "latent_size is 9, embedding_size is 200"),
        (dict(latent_size=9), "latent_size needs experts, and experts is 0"),
        (dict(mixture_epsilon=1e-8), "mixture_epsilon needs experts, and experts is 0"),
        (dict(nesterov=True), "nesterov needs momentum, and momentum is none"),
        (dict(compute_dtype="float16"), "compute_dtype must be float32, bfloat16 or auto"),
        (dict(learning_rte=1), "unknown field 'learning_rte'; did you mean 'learning_rate'"),
        (dict(zzz=1), "unknown field 'zzz'; known are"),
        (dict(model="grv"), f"model must be {MODEL_NAMES}; it is 'grv'"),
        (
            dict(model="gru", forget_bias=1.0),
            "forget_bias is a field of the model lstm, mogrifier, rlstm or lamb-mogrifier, "
            "and the model is gru, "
            "whose fields are vocab_size, .*compute_dtype",
        ),
        (
            dict(beta1=0.5),
            "beta1 is a field of the optimizer adamw, muon or lamb-adam, and the optimizer is sgd",
        ),
        (dict(train="x"), "train takes a section"),
        (dict(train=None), "train takes a section"),
        (dict(model=None), f"model must be {MODEL_NAMES}; it is None"),
        (
            dict(optimizer=3),
            "optimizer must be sgd, asgd, adamw, muon, awd-lstm or lamb-adam; it is 3",
        ),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(JaxlmError, match=message):
        preset("small").replace(**changes)


def _json(**changes: object) -> str:
    return json.dumps(json.loads(Config().to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "expected JSON"),
        ('{"format": 3}', "expected a config of format 2"),
        ("{}", "expected a config of format 2"),
        ('{"format": 2, "model": 3}', "model should be a JSON object"),
        ('{"format": 2, "modle": {}}', "model.kind"),
        (_json(model={"kind": "transformer"}), f"model.kind must be {MODEL_NAMES}"),
        (_json(preset=3), "preset"),
        (_json(modle={}), "modle"),
        (_json(optimizer={"kind": "sgd", "lr": 1}), "unknown field optimizer.lr"),
        (_json(schedule={"kind": "piecewise", "decay": math.nan}), "decay must be"),
        (_json(model={"kind": "lstm", "hidden_sizes": None}), "hidden_sizes takes a whole number"),
        (_json(train={"epochs": "9"}), "epochs takes a whole number"),
        (_json(train={"epoch": 9}), "unknown field train.epoch"),
        (None, "expected JSON"),
    ],
)
def test_wrong_json_is_explained(text, message):
    with pytest.raises(JaxlmError, match=message):
        Config.from_json(text)


def test_unknown_presets_are_refused_with_the_nearest():
    with pytest.raises(JaxlmError, match="unknown preset 'smal'; did you mean 'small'"):
        preset("smal")


def test_numpy_and_jax_numbers_become_plain_ones():
    config = preset("small").replace(
        learning_rate=np.float32(0.5),
        clip_norm=jax.numpy.float32(2),
        epochs=np.int64(3),
        lowercase=np.bool_(True),
        hidden_sizes=np.array([3, 4]).tolist(),
    )
    assert type(config.optimizer.learning_rate) is float and type(config.train.epochs) is int
    with pytest.raises(JaxlmError, match="clip_norm must be above 0; it is -2"):
        config.replace(clip_norm=jax.numpy.float32(-2))
    assert Config.from_json(config.to_json()) == config


def test_differences_name_kinds_and_fields():
    before = preset("small")
    assert differences(before, before.replace(keep_output=0.5)) == [
        "model.keep_output: None -> 0.5"
    ]
    assert "optimizer.kind: 'sgd' -> 'adamw'" in differences(
        before, before.replace(optimizer="adamw")
    )


def test_more_epochs_conflict_only_with_a_schedule_that_counts_them():
    config = preset("small")
    assert not conflicts(config, config.replace(epochs=20, corpus="elsewhere", keep_last=1))
    cosine = config.replace(schedule="cosine")
    assert conflicts(cosine, cosine.replace(epochs=20)) == ["train.epochs: 15 -> 20"]
    assert conflicts(config, config.replace(seed=1)) == ["train.seed: 0 -> 1"]


@pytest.mark.parametrize(
    "schedule",
    [
        "1M",
        "words=",
        "words=1M:2M",
        "words=2M:1M:1M",
        "words=0",
        "words=1:2:0",
        "words=1T",
        "words=1,,2",
        "words=-1",
        "x",
    ],
)
def test_a_schedule_of_words_that_is_none_is_refused(schedule):
    with pytest.raises(
        JaxlmError, match=r"keep_checkpoints must be words=FIRST:LAST:EVERY,.*; it is '"
    ):
        Config().replace(keep_checkpoints=schedule)


def test_a_schedule_of_too_many_words_is_refused():
    with pytest.raises(JaxlmError, match="more than 10,000 checkpoints"):
        Config().replace(keep_checkpoints="words=" + ",".join(["1:5000:1"] * 3))
    with pytest.raises(JaxlmError, match="more than 10,000 checkpoints"):
        Config().replace(keep_checkpoints="words=1:100G:1")


def test_a_config_takes_kinds_by_name_and_refuses_what_is_no_section():
    assert Config(model="gru") == Config().replace(model="gru")  # pyright: ignore
    with pytest.raises(JaxlmError, match="train takes a section"):
        Config(train=None)  # pyright: ignore


def test_a_recipe_is_a_pytree_before_anything_else_is_imported():
    code = "import jax, jaxlm; assert len(jax.tree.leaves(jaxlm.preset('small').recipe)) > 1"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_changed_recipe_bears_what_is_changed_and_no_published_number():
    published_of: Any = SimpleNamespace(corpus={"name": "ptb"})
    small = preset("zaremba-small")
    # Seeds, the corpus, what is saved and the precision are of a run, not of its recipe.
    same = small.replace(seed=3, corpus="x", keep_last=9, vocab_size=500, compute_dtype="bfloat16")
    for config, changes, title in (
        (small, {}, "zaremba-small"),
        (same, {}, "zaremba-small"),
        (Config(), {}, "custom"),
        (
            small.replace(hidden_sizes=(10,)),
            {"hidden_sizes": (10,)},
            "zaremba-small, changed: hidden_sizes 10",
        ),
        (
            small.replace(optimizer="adamw", clip_norm=2, epochs=3),
            {"optimizer": "adamw", "clip_norm": 2.0, "epochs": 3},
            "zaremba-small, changed: optimizer adamw, clip_norm 2, epochs 3",
        ),
    ):
        assert (config.preset_changes, config.title) == (changes, title)
        assert Config.from_json(config.to_json()).title == title
        published_of.config = config
        known = config.preset == "zaremba-small" and not changes
        assert published([published_of]) == [("published (zaremba-small)", 115.5)] * known
    for name in PRESETS:
        assert preset(name).title == name


def test_a_change_leaves_other_sections_as_they_are():
    config = preset("zaremba-small")
    changed = config.replace(hidden_sizes=(10, 10), keep_output=0.5, learning_rate=2.0)
    for slot in ("schedule", "train", "data"):
        assert getattr(changed, slot) is getattr(config, slot)


@pytest.mark.parametrize(
    ("slot", "section", "name"),
    [
        ("model", jaxlm.LSTM(init_scale=-1.0), "init_scale"),
        ("optimizer", jaxlm.SGD(learning_rate=-1.0), "learning_rate"),
        ("train", jaxlm.TrainConfig(epochs=-1), "epochs"),
        ("preset", -1, "preset"),
    ],
)
def test_a_config_checks_each_section(slot, section, name):
    with pytest.raises(JaxlmError, match=f"{name} "):
        Config(**{slot: section})


def test_a_step_refuses_a_whole_config_by_a_sentence():
    with pytest.raises(JaxlmError, match=r"a step takes a recipe, .* give it config.recipe"):
        jaxlm.train_windows(preset("test"), None, None, None, 1, bptt_length=1)  # pyright: ignore


DECLARED = {
    f"{kind.__name__}-{name}": (kind, name, spec)
    for kind in [*(kind for _, _, kind in all_kinds()), *PROTOCOLS.values()]
    for name, spec in specs(kind).items()
}


def allowed_value(spec):
    """A value that a field takes, and that is not its default."""
    if spec.type is bool:
        return True
    if spec.type is int:
        return max(int(spec.low), 4)
    if spec.choices:
        return spec.choices[-1]
    return max(0.5, spec.above + 0.5)


def test_a_number_may_be_at_its_limits_and_not_beyond():
    for _, name, spec in DECLARED.values():
        if spec.type not in (int, float):
            continue
        limits = {field: getattr(spec, field) for field in ("low", "high", "above", "below")}
        for value in (spec.low, spec.high):
            if math.isfinite(value):
                number = checked_value(name, spec.type(value), spec.type, **limits)
                assert number == value and type(number) is spec.type
        beyond = (spec.above, spec.below, 2 * spec.high + 1, spec.low - max(1, abs(spec.low)))
        for value in beyond:
            if math.isfinite(value):
                with pytest.raises(JaxlmError, match=f"{name} must be"):
                    checked_value(name, spec.type(value), spec.type, **limits)


@pytest.mark.parametrize(
    ("kind", "name", "spec"),
    [case for case in DECLARED.values() if case[2].needs or case[2].excludes],
    ids=[name for name, case in DECLARED.items() if case[2].needs or case[2].excludes],
)
def test_what_a_field_needs_and_excludes_is_held(kind, name, spec):
    every = specs(kind)
    given = {name: allowed_value(spec)}
    if spec.needs:
        with pytest.raises(JaxlmError, match=f"{name} needs"):
            checked(kind(**given))
    if name == "projection":
        given["tied"] = True
    if name == "dropout_start":
        given["keep_output"] = 0.5  # dropout that grows
    if "hidden_sizes" in every:
        given["hidden_sizes"] = (200,)  # as the embedding, for blocks
    for other in spec.needs:
        if other == "projection":
            continue  # needs a field of its own
        needed = {other: allowed_value(every[other])}
        needed |= {further: allowed_value(every[further]) for further in every[other].needs}
        section = checked(kind(**given | needed))
        assert getattr(section, name) == given[name]
    for other in spec.excludes:
        both = given | {other: allowed_value(every[other])}
        with pytest.raises(JaxlmError, match=f"{name} and {other} exclude each other"):
            checked(kind(**both))


def test_a_traced_section_keeps_its_arrays_and_a_config_makes_them_plain():
    model = jax.tree.map(jax.numpy.float32, preset("zaremba-small").model)
    changed = replace(model, compute_dtype="bfloat16")
    assert changed.init_scale is model.init_scale
    assert type(Config(model=changed).model.init_scale) is float
