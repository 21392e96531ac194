"""The code that pages show."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

_SHELL = re.compile(r"(patchsieve|python|pip|make|hf|ray|git|\.venv|usage:|sbatch|kubectl|OMP_|RAY_)\b")


def indented_blocks(page: Path) -> list[str]:
    """The indented blocks of a page, one that has a blank line inside as a whole, without their indentation."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?:^    .*\n(?:\n+(?=    ))?)+", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def python_blocks(page: Path) -> list[str]:
    """Those of them that are no commands for a shell."""
    return [block for block in indented_blocks(page) if not _SHELL.match(block)]
