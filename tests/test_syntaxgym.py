"""SyntaxGym: formulas by their grammar, regions summed, and suites that are malformed."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_models import log_probs, small_lm

from jaxlm.base.errors import DataError
from jaxlm.cli import main
from jaxlm.scoring.syntaxgym import holds

VALUES = {("a", 1): 1.0, ("a", 2): 2.5, ("a", 0): 3.5, ("b-c_1", 1): 4.0}
SUITE = {
    "meta": {"name": "agreement", "metric": "sum"},
    "predictions": [
        {"type": "formula", "formula": "(2;%mismatch%) > (2;%match%)"},
        {"type": "formula", "formula": "(*;%match%) = (1;%match%) + (2;%match%) + (3;%match%)"},
    ],
    "region_meta": {"1": "subject", "2": "verb", "3": "end"},
    "items": [
        {
            "item_number": 7,
            "conditions": [
                {
                    "condition_name": "match",
                    "regions": [
                        {"region_number": 1, "content": "The dog"},
                        {"region_number": 2, "content": "runs"},
                        {"region_number": 3, "content": ""},
                    ],
                },
                {
                    "condition_name": "mismatch",
                    "regions": [
                        {"region_number": "1", "content": "The dog"},
                        {"region_number": 2, "content": "zebra"},
                        {"region_number": 3, "content": "."},
                    ],
                },
            ],
        }
    ],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1;%a%) < (2;%a%)", True),
        ("(2;%a%) < (1;%a%)", False),
        ("(1;%b-c_1%) > (2;%a%) + (1;%a%)", True),
        ("(2;%a%) - (1;%a%) = 1.5", True),
        ("(2;%a%) = 2.5005", True),
        ("(2;%a%) = 2.502", False),
        ("4 - 1 - 2 = 1", True),
        ("4 - (1 - 2) = 5", True),
        ("2 + 3 * 2 = 8", True),
        ("[2 + 3] * 2 = 10", True),
        ("-(1;%a%) < 0", True),
        ("2 - 5 = -2 * 2 + 1", True),
        ("(*;%a%) = 3.5", True),
        ("1 < 2 & 2 < 1", False),
        ("1 < 2 | 2 < 1 & 2 < 1", True),
        ("(1 < 2 | 2 < 1) & 2 < 1", False),
        ("((1;%a%)) < ((2;%a%))", True),
        ("1e3 > .5", True),
        ("((2;%a%) > (1;%a%)) & ((1;%b-c_1%) > (2;%a%))", True),
    ],
)
def test_a_formula_means_what_arithmetic_says(text, expected):
    assert holds(text, VALUES) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(1;%a%) <", "column 10"),
        ("(1;%a%) (2;%a%)", "column 9: expected an operator"),
        ("1 < 2 < 3", "column 7"),
        ("1 & 2", "column 3: expected a comparison"),
        ("1 + 2", "is a number: expected a comparison"),
        ("(1 < 2", "column 7: expected '\\)'"),
        ("(1 < 2]", "column 7: expected '\\)'"),
        ("", "column 1"),
        ("__import__('os')", "column 1: expected a number"),
        ("1 < x", "column 5"),
        ("(1 < 2) + 1 > 0", "column 9"),
        ("1 < 2 & 3", "column 9: expected a comparison"),
        ("(" * 100 + "1", "at most 50 parentheses"),
        ("-" * 5000 + "1 < 2", "parentheses|column"),
        ("(a;%a%) < 1", "column 2"),
        ("1 < 2)", "column 6"),
        ("1 < 2 * -3", "column 9: expected a number"),
        ("1 < (3;%a%)", "column 5: expected a region that the item has"),
    ],
)
def test_a_malformed_formula_is_refused_at_its_column(text, message):
    with pytest.raises(DataError, match=message):
        holds(text, VALUES)


@given(
    st.recursive(
        st.integers(0, 9).map(str),
        lambda inner: (
            st.tuples(inner, st.sampled_from("+-*"), inner).map(
                lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
            )
            | st.tuples(inner, st.sampled_from(["+ 2", "- 3", "* 2"]))
            .map(" ".join)
            .map("({})".format)
        ),
        max_leaves=8,
    )
)
def test_arithmetic_agrees_with_pythons(text):
    assert holds(f"{text} = {eval(text)}".replace("= -", "= 0 -"), {})


@given(st.text("()[];%ab12 <>=+-*&|.", max_size=20))
def test_no_text_ends_in_anything_but_a_formula_or_a_sentence(text):
    try:
        assert isinstance(holds(text, VALUES), bool | np.bool_)
    except DataError as error:
        assert str(error).startswith("the formula") and "expected " in str(error)
        assert str(error).isprintable()


def written(tmp_path, suite):
    path = tmp_path / "suite.json"
    path.write_text(suite if isinstance(suite, str) else json.dumps(suite))
    return path


def test_region_0_is_no_name_for_all_regions():
    assert holds("(*;%a%) = 3.5", VALUES)
    for number in ("0", "00"):
        with pytest.raises(DataError, match="expected a region that the item has"):
            holds(f"({number};%a%) = 3.5", VALUES)


def test_regions_are_summed_and_predictions_judged(tmp_path):
    lm = small_lm()
    found = lm.syntaxgym(written(tmp_path, SUITE))
    (item,) = found.items
    for condition, words in (
        ("match", ["the", "dog", "runs"]),
        ("mismatch", ["the", "dog", "<unk>"]),
    ):
        bits = -log_probs(lm, words)[np.arange(3), lm.vocab.encode(words)] / np.log(2)
        np.testing.assert_allclose(
            [item.surprisals[condition, region] for region in (1, 2, 3)],
            [bits[:2].sum(), bits[2], 0],
            atol=1e-4,
        )
    assert item.number == 7 and item.oov == 1
    holds = item.surprisals["mismatch", 2] > item.surprisals["match", 2]
    assert item.predictions == [holds, True]
    assert found.by_prediction == [float(holds), 1.0] and found.accuracy == float(holds)
    with pytest.raises(DataError, match="item 7, condition 'mismatch': the word 'zebra'"):
        lm.syntaxgym(written(tmp_path, SUITE), oov="error")


def test_the_table_of_the_command_line(tiny_run, tmp_path, capsys):
    text = json.dumps(SUITE).replace("The dog", "the bank")
    assert main(["syntaxgym", str(tiny_run[0].run_dir), str(written(tmp_path, text))]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["suite", "item", "prediction", "correct", "oov"]
    assert [row[1] for row in rows[1:]] == ["7", "all", "7", "all", "all"]
    assert float(rows[5][3]) == float(rows[2][3]) and rows[5][2] == "every prediction"


def test_a_mistake_in_the_last_suite_is_told_before_the_first_is_scored(
    tiny_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("jaxlm.scoring.syntaxgym.sentence_nats", None)
    suites = [str(written(tmp_path, SUITE)), str(tmp_path / "none.json")]
    assert main(["syntaxgym", str(tiny_run[0].run_dir), *suites]) == 1
    assert "there is no file" in capsys.readouterr().err


def changed(**changes):
    return SUITE | changes


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            '{"meta": {},\n "items": [,]}',
            "is not JSON to be read: Expecting value: line 2 column 12",
        ),
        ("[]", "expected a JSON object"),
        ("", "is empty"),
        (changed(meta=3), "'meta'"),
        (changed(meta={"metric": "mean"}), "with the metric 'sum', found {'metric': 'mean'}"),
        (changed(predictions=[]), "'predictions'"),
        (changed(predictions=[{"formula": "1 <"}]), "prediction 1, item 7, column 4"),
        (changed(predictions=["x"]), "prediction 1: expected an object, found str"),
        (changed(predictions=[{}]), "prediction 1: expected an object with a formula"),
        (
            changed(predictions=[{"formula": "1 < (9;%match%)"}]),
            "item 7, column 5: expected a region that the item has",
        ),
        (changed(predictions=[{"formula": "(1;%other%) > 1"}]), "found '(1;%other%) > 1'"),
        (changed(predictions=[{"formula": "(*;%other%) > 1"}]), "found '(*;%other%) > 1'"),
        (changed(items=[3]), "item 1: expected an object"),
        (changed(items=[{"conditions": [{}]}]), "condition_name"),
        (
            changed(
                items=[
                    {"conditions": [{"condition_name": "match", "regions": [{"region_number": 0}]}]}
                ]
            ),
            "region_number",
        ),
        (
            changed(
                items=[
                    {
                        "conditions": [
                            {
                                "condition_name": "match",
                                "regions": [{"region_number": 1, "content": "..."}],
                            }
                        ]
                    }
                ],
                predictions=[{"formula": "1 < 2"}],
            ),
            "has no words",
        ),
    ],
)
def test_malformed_suites_are_refused_with_their_place(tmp_path, suite, message):
    with pytest.raises(DataError) as raised:
        small_lm().syntaxgym(written(tmp_path, suite))
    assert message in str(raised.value) and str(tmp_path) in str(raised.value)
