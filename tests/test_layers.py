"""The architecture, read from the imports: they point down the list only, and data/ never loads JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlm

PACKAGE = Path(jaxlm.__path__[0])
LAYERS = [  # a module may import those in earlier lines, and those in its own
    "errors", "config", "processes", "parallel", "data", "ops", "models", "loss", "optim", "step", "feed", "evaluate",
    "manifest", "checkpoint", "metrics", "rundir", "plots", "signals", "train", "reproduce",
    "language_model", "space", "trials", "members", "study", "worker", "sweep", "linen", "cli",
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"jaxlm.{alias.name}" for alias in node.names} if node.module == "jaxlm" else {node.module or ""}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = "jaxlm." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in imported(path):
        if name.startswith("jaxlm"):
            assert layer(name) <= layer(own), f"{own} imports {name}, which lies above it"
    if own.startswith(("jaxlm.data", "jaxlm.config.config", "jaxlm.errors")):
        assert not {name for name in imported(path) if name.split(".")[0] in ("jax", "flax", "optax")}
    if own.startswith("jaxlm.ops"):
        assert not {name for name in imported(path) if name.startswith("jaxlm")
                    and not name.startswith(("jaxlm.ops", "jaxlm.distributed.mesh"))}


def test_help_loads_no_jax():
    code = "import sys, jaxlm.cli, jaxlm.data.corpora; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_public_names_load_and_functions_are_not_hidden_by_their_modules():
    code = """
import jaxlm, types
from jaxlm.runs.loop import new_state
from jaxlm.report.units import perplexity
assert callable(jaxlm.train) and callable(jaxlm.evaluate), jaxlm.train
for name in jaxlm.__all__:
    assert not isinstance(getattr(jaxlm, name), types.ModuleType), name
try:
    jaxlm.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
