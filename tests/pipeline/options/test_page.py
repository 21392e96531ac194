"""Help pages: every option in one group, types in words, no default that is none, an example that can be read."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import patchsieve
from patchsieve.jobs import cli, schedule
from patchsieve.jobs.arguments import read_config
from patchsieve.jobs.commands import CONFIGS, completion
from patchsieve.jobs.examples import EXAMPLES
from patchsieve.jobs.pages import api_page, notebook, reference_page
from patchsieve.jobs.recipes import recipes_of
from patchsieve.pipeline.options.page import help_page
from patchsieve.pipeline.options.reading import GROUP_OF, TITLES, options_of
from patchsieve.ranker.baselines.baselines import BASELINES
from tests.helpers.checkout import ROOT

commands = pytest.mark.parametrize("command", CONFIGS)


def page(command: str, width: int = 80) -> str:
    lines = help_page(
        command, CONFIGS[command], examples=EXAMPLES[command], recipes=recipes_of(command), width=width
    )
    return "\n".join(lines)


@commands
def test_help_tells_every_option_once_in_words(command: str) -> None:
    text = page(command)
    for option in options_of(CONFIGS[command]):
        assert len(re.findall(rf"^  {re.escape(option.shown)}(?= |$)", text, re.MULTILINE)) == 1
        assert option.text
        assert option.value or option.switch
    assert "default: )" not in text
    assert not re.search(r"\b(STR|INT|FLOAT|None)\b", text.replace("None is", ""))
    assert max(map(len, text.splitlines())) <= max(80, *(len(line) + 2 for line in EXAMPLES[command]))


@commands
def test_a_switch_shows_how_it_is_turned_off_only_where_it_is_on(command: str) -> None:
    shown = {option.name: option.shown for option in options_of(CONFIGS[command]) if option.switch}
    on = {field for field, flags in shown.items() if "--no-" in flags}
    assert all(getattr(CONFIGS[command], field) is (field in on) for field in shown)


@commands
def test_examples_are_command_lines(command: str) -> None:
    assert EXAMPLES[command]
    for example in EXAMPLES[command]:
        name, *words = shlex.split(example)
        assert (name, words[: len(command.split())]) == ("patchsieve", command.split())
        given = words[len(command.split()) :]
        cut = given.index("--") if "--" in given else len(given)
        read_config(command, CONFIGS[command], given[:cut])
        if given[cut + 1 :]:
            once: Any = read_config(command, CONFIGS[command], given[:cut])
            schedule._with_score_options(once, given[cut + 1 :])


def test_groups_and_commands_name_what_there_is() -> None:
    names = {option.name for config in CONFIGS.values() for option in options_of(config)}
    assert set(GROUP_OF) <= names
    assert list(dict.fromkeys(command.split()[0] for command in CONFIGS)) == list(cli.COMMANDS)
    assert {option.group for config in CONFIGS.values() for option in options_of(config)} == set(TITLES)


def test_prune_names_every_baseline() -> None:
    ranker = next(option for option in options_of(CONFIGS["prune"]) if option.name == "ranker")
    assert set(re.findall(r"\w+", ranker.text)) >= set(BASELINES)


def test_pages_that_are_made_are_those_of_now() -> None:
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == reference_page(), "run make docs"
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == api_page(patchsieve), "run make docs"
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8") == notebook(tutorial), (
        "run make docs"
    )


def test_completion_knows_commands_and_options() -> None:
    script = "\n".join(completion())
    assert 'words="pack score train' in script
    assert "--keep-images" in script


def test_version_and_help_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["patchsieve", "--version"])
    cli.main()
    assert re.fullmatch(
        r"patchsieve \S+, Python \S+, torch \S+, timm \S+, ray \S+\n", capsys.readouterr().out
    )
    monkeypatch.setattr(sys, "argv", ["patchsieve", "evalute"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "Did you mean evaluate?" in capsys.readouterr().err


def test_a_reader_that_stops_reading_help_is_no_error(tmp_path: Path) -> None:
    import subprocess

    line = f"{shlex.quote(sys.executable)} -m patchsieve prune --help | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
