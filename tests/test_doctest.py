"""The examples in docstrings give what they say."""

import doctest
import importlib
import shutil

import pytest
from test_layers import MODULES

WITH_EXAMPLES = [module for module, path in MODULES.items() if ">>> " in path.read_text()]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_a_module(module, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "runs/tiny" in MODULES[module].read_text():
        shutil.copytree(request.getfixturevalue("tiny_run")[0].run_dir, "runs/tiny")
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0 and found.failed == 0


def test_the_functions_that_others_call_first_have_examples():
    assert {
        "jaxlm.config.config",
        "jaxlm.data.windows",
        "jaxlm.data.vocab",
        "jaxlm.ops.lstm",
        "jaxlm.ops.softmax",
        "jaxlm.base.units",
        "jaxlm.scoring.surprisal",
    } <= {*WITH_EXAMPLES}
