"""Lets processes of tests import timm and torchvision without PyTorch's compiler, which they load on the side.

That takes half of what the start of a process takes, and the tests start hundreds. What asks for the compiler later
gets the real one.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

PACKAGES = ("timm", "torchvision")
COMPILER = "torch._dynamo"


def _disable(
    function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """What timm decorates with: keeps a function out of what is compiled."""
    return (lambda decorated: decorated) if function is None else function


@contextmanager
def _no_compiler() -> Iterator[None]:
    """In its place lies what the two use of it while they are imported."""
    import torch

    compiler, utils = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    compiler.__path__ = []
    compiler.disable = _disable  # type: ignore[attr-defined]
    compiler.utils = utils  # type: ignore[attr-defined]
    utils.is_compile_supported = lambda device: False  # type: ignore[attr-defined]
    modules = {module.__name__: module for module in (compiler, utils)}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        vars(torch).pop("_dynamo", None)


class _Loader(importlib.abc.Loader):
    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if COMPILER in sys.modules:
            self._real.exec_module(module)
            return
        with _no_compiler():
            self._real.exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """From here on in this process."""
    if not any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
