"""Commands that pages show are ones that patchsieve takes, flag by flag."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest

from patchsieve.jobs.arguments import read_config
from patchsieve.jobs.cli import COMMANDS
from patchsieve.pipeline.errors import UserError
from tests.helpers.checkout import ROOT
from tests.project.test_docs import PAGES

# `schedule` divides its command line itself.
READ_BY_ONE = sorted(set(COMMANDS) - {"schedule"})


def commands(text: str) -> list[list[str]]:
    """The words of every indented command of patchsieve; those with `...` or `[optional]` parts are sketches."""
    joined = re.sub(r" *\\\n *", " ", text)
    lines = re.findall(rf"^ {{4,}}patchsieve ((?:{'|'.join(READ_BY_ONE)}) .*)$", joined, re.MULTILINE)
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if not any(re.search(r"\.\.\.|^\[|\]$", word) for word in words)]


SHOWN = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}-{number}-{words[0]}")
    for page in PAGES
    for number, words in enumerate(commands(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_is_taken(words: list[str]) -> None:
    job, *arguments = words
    _, config_type, _ = importlib.import_module(f"patchsieve.jobs.{job}").main.args
    read_config(job, config_type, arguments)


def test_every_stage_to_reproduce_is_there() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    stages = [(words[0], "coco" in words[1]) for words in commands(page)]
    assert set(stages) == {
        *((job, False) for job in ("score", "train", "evaluate", "prune", "prove")),
        *((job, True) for job in ("score", "train", "evaluate", "prune")),
    }


def test_commands_are_found_and_misspelt_ones_are_not_taken() -> None:
    text = "Run `patchsieve score`:\n\n    patchsieve score 'a b.tar' \\\n        --out c   # again\n"
    text += "    patchsieve score SHARDS [--views 4]\n    patchsieve schedule once\n\npatchsieve score x\n"
    assert commands(text) == [["score", "a b.tar", "--out", "c"]]
    with pytest.raises(UserError, match="no option --jsn"):
        test_a_command_is_taken(["status", "x", "--jsn"])
