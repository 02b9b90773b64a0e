"""The architecture, read from the imports:
they point down the list only, without a circle between files.
"""

import ast
import compileall
import re
import shutil
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxlm

PACKAGE = Path(jaxlm.__path__[0])
LAYERS = [
    "base",
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
    "ngrams",
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
# What these import, and what that imports, loads no JAX.
NO_JAX = (
    "base.errors",
    "base.packaged",
    "base.terminal",
    "base.hashed_json",
    "base.units",
    "base.files",
    "base.fields",
    "config.settings",
    "data",
)
# A table of modules that are imported by name: the verbs of the command line, of its own room.
BY_NAME = {"jaxlm.cli.verbs": "jaxlm.cli."}


def room(module: str) -> str:
    return module.split(".")[1]


@cache
def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its head or within a function."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module or "" for name in names}
    return found


def imported_by_name(path: Path) -> set[str]:
    """What a file gives to `import_module` or `__import__`:
    the text, or the first text of an f-string.
    """
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            texts = [part for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            if function in ("import_module", "__import__") and texts:
                names.add(str(texts[0].value))
    return names


def with_parents(names: set[str]) -> set[str]:
    """The modules of the package among some names,
    and the packages that Python imports before them.
    """
    parents = {".".join(name.split(".")[:size]) for name in names for size in range(2, 5)}
    return {name for name in names | parents if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_of_the_package_is_imported_by_name(module):
    """As such an import is seen by no reader and by no test of the imports."""
    own = BY_NAME.get(module)
    names = imported_by_name(MODULES[module])
    assert not {name for name in names if name.startswith("jaxlm") and name != own}


def test_an_import_by_name_is_seen(tmp_path):
    path = tmp_path / "late.py"
    path.write_text(
        "import importlib\n"
        "importlib.import_module('jaxlm.training')\n"
        "def f(name): return __import__(f'jaxlm.{name}'), importlib.import_module(name)\n"
    )
    assert imported_by_name(path) == {"jaxlm.training", "jaxlm."}


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.removeprefix("jaxlm.").startswith(NO_JAX)]
)
def test_what_reads_text_loads_no_jax(module):
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        names = imported(MODULES[name])
        assert not {
            name for name in names if name.split(".")[0] in ("jax", "jaxtyping", "flax", "optax")
        }, f"{module} imports JAX by {name}"
        waiting |= with_parents(names) - reached


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    names = imported(MODULES[module])
    for name in names:
        if name.startswith("jaxlm."):
            assert LAYERS.index(room(name)) <= LAYERS.index(room(module)), (
                f"{module} imports {name}, a higher room"
            )
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
    public = jaxlm.__all__  # pyright: ignore[reportAttributeAccessIssue] (the stub has none)
    functions = {name for name in public if name.islower()}
    assert not modules & functions


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_indent_their_entries_by_four(module):
    heads = r"^( *)(?:Args|Returns|Raises|Attributes|Yields):\n"
    assert not re.search(heads + r"\1  \S", MODULES[module].read_text(), re.MULTILINE)


def test_type_checkers_read_the_names_that_are_imported_on_first_use():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    stub = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "a stub hands on what is imported `as` itself"
                stub[alias.name] = node.module
    assert stub == jaxlm._MODULES  # pyright: ignore[reportAttributeAccessIssue]


def test_the_package_is_imported_without_its_sources(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jaxlm", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(tmp_path / "jaxlm", quiet=1, legacy=True)
    for source in (tmp_path / "jaxlm").rglob("*.py"):
        source.unlink()
    code = "import jaxlm; assert jaxlm.__file__.endswith('.pyc'); print(jaxlm.TrainConfig().epochs)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("15\n", 0), done.stderr


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
