"""The architecture, read from the imports:
they point down the list only, without a circle between files.
"""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxlm

PACKAGE = Path(jaxlm.__path__[0])
LAYERS = [
    "errors",
    "terminal",
    "hashed_json",
    "units",
    "files",
    "late",
    "fields",
    "distributed",
    "ops",
    "models",
    "linen",
    "nnx",
    "optimizers",
    "schedules",
    "published",
    "config",
    "data",
    "report",
    "training",
    "scoring",
    "runs",
    "lm_eval",
    "sweeps",
    "interop",
    "cli",
    "__main__",
]  # a room imports those before
MODULES = {
    "jaxlm."
    + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
NO_JAX = (
    "errors",
    "terminal",
    "hashed_json",
    "units",
    "files",
    "fields",
    "config",
    "data",
    "report",
)


def room(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its head or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module or "" for name in names}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    names = imported(MODULES[module])
    for name in names:
        if name.startswith("jaxlm."):
            assert LAYERS.index(room(name)) <= LAYERS.index(room(module)), (
                f"{module} imports {name}, a higher room"
            )
    if room(module) in NO_JAX:
        assert not {
            name
            for name in names
            if name == "jaxlm.late" or name.split(".")[0] in ("jax", "flax", "optax")
        }
    if room(module) == "ops":
        assert {room(name) for name in names if name.startswith("jaxlm.")} <= {"ops", "distributed"}


def test_no_files_import_each_other_in_a_circle():
    graph = {
        module: {name for name in imported(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_module_has_the_name_of_a_public_function():
    modules = {name for module in MODULES for name in module.split(".")[1:]}
    functions = {name for name in jaxlm.__all__ if name.islower()}
    assert not modules & functions


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_indent_their_entries_by_four(module):
    heads = r"^( *)(?:Args|Returns|Raises|Attributes|Yields):\n"
    assert not re.search(heads + r"\1  \S", MODULES[module].read_text(), re.MULTILINE)


def test_public_names_load_and_unknown_ones_are_refused():
    code = """
import jaxlm, types
from jaxlm.runs.trainer import new_state
from jaxlm.scoring.stream import stream_nats
assert dir(jaxlm) == sorted(jaxlm.__all__), dir(jaxlm)
assert callable(jaxlm.train) and callable(jaxlm.evaluate), jaxlm.train
for name in jaxlm.__all__:
    assert not isinstance(getattr(jaxlm, name), types.ModuleType), name
try:
    jaxlm.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
