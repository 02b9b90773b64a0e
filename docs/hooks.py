"""What mkdocs adds to the pages of this folder: files beside it, tables of the data, and the generated reference."""

import csv
import inspect
import math
import posixpath
import re
from dataclasses import fields, replace
from pathlib import Path

from mkdocs.structure.files import File

import jaxlm
from jaxlm.config.config import FIXED, KINDS
from jaxlm.config.protocols import PROTOCOLS
from jaxlm.fields import Spec, setting_text, specs

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {  # files outside docs/ -> their names on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "experiments/walkthrough.ipynb": "walkthrough.ipynb",
}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[#)])")
TITLES = {
    "model": "Models",
    "optimizer": "Optimisers",
    "schedule": "Schedules",
    "protocol": "Evaluation protocols",
}


def on_files(files, config):
    """Adds the files beside the folder."""
    for source, name in BESIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of a page as the site has them; the reference; the tables of the laboratory's data."""
    name = page.file.src_uri
    if name == "reference/fields.md":
        return (
            "# Fields\n\nOn the command line `--NAME`, from Python `config.replace(name=...)`.\n\n"
            + fields_page()
        )
    if name == "reference/api.md":
        return "# Python names\n\n" + api_page()
    beside = {site: source for source, site in BESIDE.items()}
    source = beside.get(name, f"docs/{name}")

    def on_site(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        target = BESIDE.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(name) or ".")

    return LINK.sub(on_site, markdown) + (data(page) if name == "lab/README.md" else "")


def fields_page() -> str:
    """A table of the fields of every kind, from their declarations."""
    parts = []
    for section, kinds in {**KINDS, "protocol": PROTOCOLS}.items():
        parts.append(f"## {TITLES[section]}")
        shared = (
            set.intersection(*(set(specs(kind)) for kind in kinds.values()))
            if section != "protocol"
            else set()
        )
        if shared:
            parts += [
                "### Every kind\n\nA kind may have a default of its own.",
                table(next(iter(kinds.values())), shared),
            ]
        for name, kind in kinds.items():
            own = set(specs(kind)) - shared
            parts.append(f"### `--{section} {name}`\n\n{first_line(kind)}")
            if own:
                parts.append(table(kind, own))
    for section, kind in FIXED.items():
        parts += [f"## {section.capitalize()}\n\n{first_line(kind)}", table(kind, set(specs(kind)))]
    return "\n\n".join(parts)


def first_line(kind: type) -> str:
    return inspect.getdoc(kind).splitlines()[0]


def table(kind: type, names: set[str]) -> str:
    """The fields of a kind: name, type, default, limits, meaning."""
    defaults = {item.name: item.default for item in fields(kind)}
    lines = ["| field | type | default | limits | meaning |", "|---|---|---|---|---|"]
    for name, spec in specs(kind).items():
        if name in names:
            words = ", ".join(spec.choices) or (limits(spec) if spec.type in (int, float) else "")
            kinds = {
                tuple: "widths",
                str: "text",
                bool: "flag",
                int: "whole number",
                float: "number",
            }[spec.type]
            kinds += " or none" * spec.optional
            help = spec.help.replace("<", "&lt;") + (f" ({spec.unit})" if spec.unit else "")
            cells = (
                f"`{name}`",
                kinds,
                f"`{setting_text(defaults[name]) or 'empty'}`",
                words,
                help,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def limits(spec: Spec) -> str:
    """The limits of a number, but the largest whole number of 32 bits."""
    shown = replace(spec, high=math.inf) if spec.high == 2**31 - 1 else spec
    return shown.range


MODULES = ("jaxlm.linen", "jaxlm.nnx", "jaxlm.lm_eval")  # imported by themselves


def api_page() -> str:
    """A directive of mkdocstrings for each public name, functions first; the name is its anchor."""
    functions = [name for name in jaxlm.__all__ if name.islower()]
    classes = [name for name in jaxlm.__all__ if not name.islower()]
    parts = ["## Functions", *map(directive, functions), "## Classes", *map(directive, classes)]
    parts.append("## Modules")
    for module in MODULES:
        parts.append(f"::: {module}\n    options: {{show_root_full_path: true}}")
    return "\n\n".join(parts)


def directive(name: str) -> str:
    """The directive of a name of `jaxlm`."""
    if name == "LanguageModel":
        return f"::: jaxlm.{name}\n    options: {{inherited_members: true}}"
    return f"::: jaxlm.{name}"


def data(page) -> str:
    """Every CSV file beside a page, as a table."""
    parts = []
    for path in sorted(Path(page.file.abs_src_path).parent.glob("*.csv")):
        head, *rows = csv.reader(path.open(newline=""))
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        parts.append(
            f'\n\n??? note "{path.name}"\n\n'
            + "\n".join(f"    {line}" for line in table.splitlines())
        )
    return "\n\n## The data" + "".join(parts) + "\n"
