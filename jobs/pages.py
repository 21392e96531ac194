"""Files of docs/ that are made: the references of the commands and of Python, and the tutorial as a notebook."""

from __future__ import annotations

import itertools
import json
import textwrap
from types import ModuleType

from patchsieve.jobs.commands import CONFIGS
from patchsieve.jobs.examples import EXAMPLES
from patchsieve.jobs.recipes import recipes_of
from patchsieve.pipeline.options.api import api_reference
from patchsieve.pipeline.options.page import reference


def reference_page() -> str:
    """`docs/commands.md`, all of it."""
    head = "# Commands\n\nMade from the configurations (`make docs`); `patchsieve COMMAND --help` says the same.\n"
    return f"{head}\n{reference(CONFIGS, examples=EXAMPLES, recipes={name: recipes_of(name) for name in CONFIGS})}"


def api_page(public: ModuleType) -> str:
    """`docs/api.md`, all of it. `public`: patchsieve itself."""
    from patchsieve.pipeline import pruned

    names = {name: getattr(public, name) for name in public.__all__ if not name.startswith("_")}
    names |= {
        f"pipeline.pruned.{name}": getattr(pruned, name) for name in pruned.__all__ if name not in names
    }
    head = (
        "# Python\n\nMade from the docstrings (`make docs`); the [tutorial](tutorial.md) uses most of it.\n"
    )
    return f"{head}\n{api_reference(names)}"


def notebook(page: str) -> str:
    """A page of Markdown as a Jupyter notebook: its indented blocks are cells of code."""
    cells: list[dict[str, object]] = []
    for indented, lines in itertools.groupby(_with_gaps(page), lambda line: line.startswith("    ")):
        text = textwrap.dedent("".join(lines)).strip("\n")
        kind: dict[str, object] = {"cell_type": "markdown"}
        if indented:
            kind = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**kind, "metadata": {}, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _with_gaps(page: str) -> list[str]:
    """The lines of a page, in which an empty one between two indented ones is indented as well."""
    lines = page.splitlines(keepends=True)
    for at in range(len(lines) - 2, 0, -1):
        if lines[at] == "\n" and all(lines[near].startswith("    ") for near in (at - 1, at + 1)):
            lines[at] = "    \n"
    return lines
