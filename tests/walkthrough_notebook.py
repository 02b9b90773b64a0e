"""The walkthrough as a notebook: from experiments/walkthrough.py, run,
and written with its outputs.

`python tests/walkthrough_notebook.py` writes experiments/walkthrough.ipynb anew. It runs on the
generated corpus, since outputs on Penn Treebank would hold that corpus's text; where only prose has
changed, the outputs are kept.
"""

import os
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SOURCE = EXPERIMENTS / "walkthrough.py"
NOTEBOOK = EXPERIMENTS / "walkthrough.ipynb"


def read_source(text: str) -> Any:
    """The notebook, without outputs, of a source in jupytext's percent format."""
    notebook = jupytext.reads(text, "py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}  # ids are random by default
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def run(notebook: Any, corpus: str, folder: Path) -> Any:
    """The notebook with the outputs of all its cells, run in a folder.

    Raises:
        CellExecutionError: a cell failed.
    """
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env={**os.environ, "JAXLM_WALKTHROUGH": corpus})


def cell_texts(notebook: Any) -> list[tuple[str, str]]:
    """(kind, source) of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def code_cells(notebook: Any) -> list[Any]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_outputs_of(notebook: Any, written: Any) -> bool:
    """Takes over the outputs of a notebook with the same code; False where its code is another."""
    ours = code_cells(notebook)
    theirs = code_cells(written)
    if [cell.source for cell in ours] != [cell.source for cell in theirs]:
        return False
    for mine, other in zip(ours, theirs, strict=True):
        mine.outputs = other.outputs
        mine.execution_count = other.execution_count
    return True


def main() -> None:
    notebook = read_source(SOURCE.read_text(encoding="utf-8"))
    if not (
        NOTEBOOK.is_file() and with_outputs_of(notebook, nbformat.read(NOTEBOOK, as_version=4))
    ):
        notebook = run(notebook, "embedded", EXPERIMENTS)
        notebook.metadata["language_info"] = {
            "name": "python"
        }  # not the version that happened to run it
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
