"""Pages of docs/ that are made: the reference of the commands, and that of what is called from Python."""

from __future__ import annotations

from types import ModuleType

from patchsieve.jobs.arguments import recipes_of
from patchsieve.jobs.commands import CONFIGS
from patchsieve.jobs.examples import EXAMPLES
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
