"""The reference of what is called from Python, as Markdown, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_WIDEST = 100


def api_reference(names: Mapping[str, Any]) -> str:
    """A section for each function or class; of a class, its public methods too."""
    return "\n".join(part for name, item in names.items() for part in _section(name, item))


def _section(name: str, item: Any) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{_code(name, item)}\n\n{_text(item)}\n"
    if not inspect.isclass(item):
        return
    if item.__init__.__doc__:
        yield f"{_text(item.__init__)}\n"
    for method, function in vars(item).items():
        if not method.startswith("_") and inspect.isfunction(function):
            yield f"### {name}.{method}\n\n{_code(method, function)}\n\n{_text(function)}\n"


def _signature(name: str, item: Callable[..., Any]) -> str:
    found = inspect.signature(item)
    shown = [value for key, value in found.parameters.items() if key != "self"]
    given = found.replace(parameters=shown)
    line = f"{name}{given}"
    # Annotations are texts already; inspect quotes them. Defaults that are functions have no name of their own.
    line = re.sub(r"(: |-> )'([^']*)'", r"\1\2", line)
    line = re.sub(r"<function (\w+) at \w+>", r"\1", line)
    if len(line) <= _WIDEST:
        return line
    head, _, tail = line.partition("(")
    inner, _, returned = tail.rpartition(")")
    parts = re.split(r", (?=\*{0,2}\w+(?:: |=)|\*,)", inner)
    return f"{head}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returned}"


def _code(name: str, item: Callable[..., Any]) -> str:
    return textwrap.indent(_signature(name, item), "    ")


def _text(item: Any) -> str:
    return inspect.getdoc(item) or ""
