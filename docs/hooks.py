"""What mkdocs adds to the pages of this folder: files beside it, tables of data, the reference."""

import csv
import inspect
import math
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from mkdocs.structure.files import File

import jaxlm
from jaxlm.base.fields import Spec, setting_text, specs
from jaxlm.config.config import KINDS
from jaxlm.config.protocols import PROTOCOLS
from jaxlm.config.settings import DataConfig, TrainConfig
from jaxlm.interop.export_html import to_html

ROOT = Path(__file__).resolve().parents[1]
SITE_NAMES = {  # files outside docs/ -> their names on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "experiments/walkthrough.ipynb": "walkthrough.ipynb",
    "experiments/english_books.csv": "english_books.csv",
}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[#)])")
TITLES = {
    "model": "Models",
    "optimizer": "Optimisers",
    "schedule": "Schedules",
    "protocol": "Evaluation protocols",
}
TYPES = {tuple: "widths", str: "text", bool: "flag", int: "whole number", float: "number"}
MODULES = ("jaxlm.linen", "jaxlm.nnx", "jaxlm.lm_eval")  # imported by themselves
LARGEST = 2**31 - 1
LIVE_PAGE = "live.html"  # runs the model that comes with jaxlm; the front page begins with it
LIVE = (
    f'<iframe src="{LIVE_PAGE}" title="The model english, to try" allow="clipboard-write" '
    'style="width: 100%; height: 40rem; border: 1px solid #8888"></iframe>'
)


def on_files(files, config):
    """Adds the files beside the folder."""
    for source, name in SITE_NAMES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    page, _ = to_html(jaxlm.load("english"))
    files.append(File.generated(config, LIVE_PAGE, content=page))
    return files


def on_page_markdown(markdown, page, config, files):
    """A page as the site has it: with the site's links, the reference, the laboratory's data."""
    name = page.file.src_uri
    if name == "reference/fields.md":
        return fields_page()
    if name == "reference/api.md":
        return api_page()
    sources = {site_name: source for source, site_name in SITE_NAMES.items()}
    source = sources.get(name, f"docs/{name}")

    def on_site(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        target = SITE_NAMES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(name) or ".")

    markdown = LINK.sub(on_site, markdown)
    if name == "index.md":
        markdown = markdown.replace("\n", f"\n\n{LIVE}\n", 1)
    if name == "lab/README.md":
        markdown += data_tables(Path(page.file.abs_src_path).parent)
    return markdown


def fields_page() -> str:
    """Tables of the fields of every kind, from their declarations."""
    parts = [
        "# Fields",
        "On the command line `--NAME`, from Python `config.replace(name=...)`.",
    ]
    for section, kinds in {**KINDS, "protocol": PROTOCOLS}.items():
        parts.append(f"## {TITLES[section]}")
        shared: set[str] = set()
        if section != "protocol":
            shared = set.intersection(*(set(specs(kind)) for kind in kinds.values()))
            parts += [
                "### Every kind",
                "A kind may have a default of its own.",
                field_table(next(iter(kinds.values())), shared),
            ]
        for name, kind in kinds.items():
            parts += [f"### `--{section} {name}`", first_line(kind)]
            own = set(specs(kind)) - shared
            if own:
                parts.append(field_table(kind, own))
    for section, kind in {"train": TrainConfig, "data": DataConfig}.items():
        parts += [f"## {section.capitalize()}", first_line(kind)]
        parts.append(field_table(kind, set(specs(kind))))
    return "\n\n".join(parts)


def first_line(kind: type) -> str:
    """The summary line of a class's docstring."""
    return (inspect.getdoc(kind) or "").split("\n")[0]


def field_table(kind: type, names: set[str]) -> str:
    """Some fields of a kind as a table: name, type, default, limits and meaning."""
    defaults = {field.name: field.default for field in fields(kind)}
    rows = []
    for name, spec in specs(kind).items():
        if name in names:
            rows.append(field_row(name, spec, setting_text(defaults[name]) or "empty"))
    return table(("field", "type", "default", "limits", "meaning"), rows)


def field_row(name: str, spec: Spec, default: str) -> tuple[str, ...]:
    """The cells of one field."""
    value_type = TYPES[spec.type]
    if spec.optional:
        value_type += " or none"
    limits = ", ".join(spec.choices)
    if not limits and spec.type in (int, float):
        shown = replace(spec, high=math.inf) if spec.high == LARGEST else spec
        limits = shown.range
    meaning = spec.help.replace("<", "&lt;")
    if spec.unit:
        meaning += f" ({spec.unit})"
    return f"`{name}`", value_type, f"`{default}`", limits, meaning


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def api_page() -> str:
    """A directive of mkdocstrings for each public name, by that name; functions first.

    Most methods of `LanguageModel` are functions of other modules.
    """
    functions = [name for name in jaxlm.__all__ if name.islower()]
    classes = [name for name in jaxlm.__all__ if name not in functions]
    parts = ["# Python names", "## Functions"]
    parts += [f"::: jaxlm.{name}" for name in functions]
    parts.append("## Classes")
    parts += [f"::: jaxlm.{name}" for name in classes]
    parts.append("## Methods of LanguageModel")
    for method in filter(inspect.isfunction, vars(jaxlm.LanguageModel).values()):
        if method.__module__ != jaxlm.LanguageModel.__module__:
            parts.append(f"::: {method.__module__}.{method.__name__}")
    parts.append("## Modules")
    parts += [f"::: {module}\n    options: {{show_root_full_path: true}}" for module in MODULES]
    return "\n\n".join(parts)


def data_tables(folder: Path) -> str:
    """Every CSV file of a folder, as a table that opens by a click."""
    parts = ["\n\n## The data"]
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
        indented = "\n".join(f"    {line}" for line in table(head, rows).splitlines())
        parts.append(f'??? note "{path.name}"\n\n{indented}')
    return "\n\n".join(parts) + "\n"
