"""The project's own files as the layout tests see them: which there are, what each imports, what that loads."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import PurePosixPath

from tests.helpers.checkout import ROOT
from tests.project import layout

PACKAGES = ("pipeline", "ranker", "jobs")


@cache
def python_files(*folders: str) -> list[str]:
    """The Python files below the folders, relative to the root; links are not followed."""
    return sorted(p.relative_to(ROOT).as_posix() for folder in folders for p in (ROOT / folder).rglob("*.py"))


def sources() -> list[str]:
    """The files that are installed."""
    return python_files("patchsieve", *PACKAGES)


@cache
def text_of(file: str) -> str:
    """The file's content."""
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def tree_of(file: str) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(text_of(file), file)


def files_with(pattern: str) -> list[str]:
    """The project's files whose text matches: the others need not be parsed to look for what is written so."""
    files = python_files("patchsieve", *PACKAGES, "tests", "benchmarks")
    return [file for file in files if re.search(pattern, text_of(file))]


def room_of(file: str) -> str:
    """The room that a file lies in: `pipeline/storage`; a file beside the rooms is one of its own, jobs are one."""
    parts = file.removesuffix(".py").split("/")
    return parts[0] if parts[0] in {"jobs", "patchsieve"} else "/".join(parts[:2])


@cache
def file_of(module: str) -> str | None:
    """The file that `patchsieve.pipeline.x` names, relative to the root; None if there is none."""
    path = module.removeprefix("patchsieve").strip(".").replace(".", "/") or "patchsieve"
    candidates = (f"{path}.py", f"{path}/__init__.py")
    return next((candidate for candidate in candidates if (ROOT / candidate).is_file()), None)


def imported_file(used: layout.Import) -> str | None:
    """The file of ours that an import means: the module, not the package that it is imported from."""
    if used.module.split(".")[0] != "patchsieve":
        return None
    return (file_of(f"{used.module}.{used.name}") if used.name else None) or file_of(used.module)


def imported_files(tree: ast.Module, *, at_import: bool = False) -> set[str]:
    """The files of ours that a file imports."""
    used = [i for i in layout.imports(tree) if i.at_import or not at_import]
    return {target for i in used if (target := imported_file(i))}


def libraries(tree: ast.Module, *, at_import: bool = False) -> set[str]:
    """Top-level names of imported libraries that are neither ours nor Python's."""
    names = {i.module.split(".")[0] for i in layout.imports(tree) if i.at_import or not at_import}
    return names - set(sys.stdlib_module_names) - {"patchsieve", ""}


def loaded_at_import(file: str) -> set[str]:
    """Libraries that importing the file loads, through files of ours and through the packages they lie in, too."""
    seen: set[str] = set()
    ahead, loaded = [file], set()
    while ahead:
        current = ahead.pop()
        if current not in seen:
            seen.add(current)
            loaded |= libraries(tree_of(current), at_import=True)
            around = {f"{folder}/__init__.py" for folder in PurePosixPath(current).parents}
            ahead += imported_files(tree_of(current), at_import=True)
            ahead += [package for package in around if (ROOT / package).is_file()]
    return loaded
