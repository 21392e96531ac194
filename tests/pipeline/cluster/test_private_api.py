"""What Ray keeps private and we use: an upgrade that takes something away fails here by its name."""

from __future__ import annotations

import ast
import functools
import sys

import pytest

import patchsieve.pipeline.cluster.private_api  # noqa: F401 -- loads Ray
from tests.helpers.checkout import ROOT

SOURCE = (ROOT / "pipeline" / "cluster" / "private_api.py").read_text(encoding="utf-8")
ROOTS = {"ray": sys.modules["ray"], "raylet": sys.modules["ray._raylet"]}


def dotted(node: ast.AST) -> str:
    """`ray._private.state` for its syntax; empty for what is not a name with attributes."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def private_names() -> set[str]:
    """Every name below Ray that the file reads, as long as it gets."""
    names = {dotted(node) for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Attribute)}
    found = {name for name in names if name.partition(".")[0] in ROOTS and name.count(".")}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_the_names_are_found() -> None:
    assert {"ray._private.state.state.get_draining_nodes", "ray._private.worker.connect"} <= private_names()
    assert len(private_names()) > 10


@pytest.mark.parametrize("name", sorted(private_names()))
def test_ray_still_has(name: str) -> None:
    root, *rest = name.split(".")
    functools.reduce(getattr, rest, ROOTS[root])
