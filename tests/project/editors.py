"""Imports as editors resolve them, by basedpyright; `python -m tests.project.editors` looks at the whole checkout.

All import statements go into one file, which is looked at in a quarter of the time that the files themselves take.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from tests.helpers.checkout import ROOT
from tests.project.files import python_files, sources, tree_of

# Of what basedpyright can find, what keeps a user from following a name; the rest is mypy's business.
RULES = {"reportMissingImports": "error", "reportAttributeAccessIssue": "error"}


def diagnostics(folder: Path, *, finds: Path, rules: Collection[str] = tuple(RULES)) -> list[tuple[int, str]]:
    """Line and message of what an editor would underline in the Python files of a folder; `finds` is on its path."""
    settings = {
        "extraPaths": [str(finds)],
        "typeCheckingMode": "off",
        **{rule: RULES[rule] for rule in rules},
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    program = (sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable)
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(one["range"]["start"]["line"] + 1, one["message"].splitlines()[0]) for one in found]


def import_statements(file: str) -> list[str]:
    """Every import of a file, each on one line."""
    nodes = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.unparse(node) for node in nodes]


def unresolved_imports() -> list[str]:
    """What an editor does not find of all that the checkout imports, with a file that imports it."""
    lines: dict[str, str] = {}
    for file in (*sources(), *python_files("tests", "benchmarks")):
        lines |= {text: file for text in import_statements(file) if "__future__" not in text}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "imports.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = diagnostics(Path(folder), finds=ROOT, rules=["reportMissingImports"])
    files = list(lines.values())
    return [f"{files[line - 1]}: {message}" for line, message in found]


if __name__ == "__main__":
    unresolved = unresolved_imports()
    print("\n".join(unresolved) or "every import is found")
    raise SystemExit(1 if unresolved else 0)
