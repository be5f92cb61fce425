"""Notebooks: run in a process of their own; ``python -m tests.notebooks`` renews what the cells show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples"

_RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
for cell in notebook.cells:
    cell.metadata.pop("execution", None)
notebook.metadata.language_info = {"name": "python"}
nbformat.write(notebook, sys.argv[2])
"""


def execute(path: Path, output: Path) -> None:
    """Run the cells of a notebook and write it with what they print; a cell that fails is a CalledProcessError."""
    subprocess.run([sys.executable, "-c", _RUN, str(path), str(output)], check=True, timeout=300, cwd=path.parent)


def outputs(notebook: dict[str, Any]) -> list[str]:
    """The texts that the cells of a notebook show, without the times that they took."""
    import re

    shown = [
        "".join(text)
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        for text in (output.get("text"), *output.get("data", {}).values())
        if text
    ]
    return [re.sub(r"\d+\.\d\d s", "0.00 s", text) for text in shown]


if __name__ == "__main__":
    for each in FOLDER.glob("*.ipynb"):
        execute(each, each)
