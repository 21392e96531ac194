"""Configurations that come with patchsieve, which `--config NAME` takes."""

from __future__ import annotations

import importlib.resources
import os

from patchsieve.pipeline.checks import meant
from patchsieve.pipeline.errors import UserError

_PACKAGES = {"train": "patchsieve.ranker"}
"""Those that ship configurations for a job, as `recipes/NAME.yaml`."""


def recipes_of(job: str) -> list[str]:
    """Names of the configurations for a job."""
    if job not in _PACKAGES:
        return []
    found = (importlib.resources.files(_PACKAGES[job]) / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml"))


def config_file(job: str, given: str) -> str:
    """The file that `--config` means: a recipe by its name, else what is given, a path or URL.

    Raises UserError for a name that neither a recipe nor a file has.
    """
    shipped = recipes_of(job)
    if given in shipped:
        return str(importlib.resources.files(_PACKAGES[job]) / "recipes" / f"{given}.yaml")
    if shipped and given.isidentifier() and not os.path.exists(given):
        known = f"{', '.join(shipped)}{meant(given, shipped)}"
        raise UserError(f"--config {given}: there is no such file, and no such recipe; shipped are {known}")
    return given
