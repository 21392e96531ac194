"""The pages that people read: their links lead somewhere, and what they name is there under that name."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import patchsieve
from patchsieve.pipeline.output.faults import ERRORS_SCHEMA
from patchsieve.pipeline.pruned.index import INDEX_SCHEMA
from patchsieve.pipeline.tables.schema import table_schema
from tests.helpers.checkout import ROOT
from tests.project.test_floors import FLOOR

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
    *(ROOT / room / "tiny" / "README.md" for room in ("pipeline/teacher", "ranker")),
]
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
LINK = re.compile(r"\]\(([^()\s]+)\)")
# Files and folders of the project as texts name them: from the root, in backticks.
FOLDERS = r"(?:pipeline|ranker|jobs|patchsieve|tests|benchmarks|docs|deploy)"
NAMED_PATH = re.compile(rf"`({FOLDERS}/[\w./-]+)`")
NAMED_IN = re.compile(rf"`(\w+)` (?:and `(\w+)` )?in `({FOLDERS}/[\w./-]+\.\w+)`")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(text: str) -> set[str]:
    """Names of a page's headings as a forge makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of one."""
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def missing_names(text: str) -> list[str]:
    """Paths that a text names and that are not there, and names that are not in the file that it gives for them."""
    missing = [path for path in NAMED_PATH.findall(text) if not (ROOT / path).exists()]
    for *names, path in NAMED_IN.findall(text):
        found = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        missing += [f"{name} in {path}" for name in names if not re.search(rf"\b{name}\b", found)]
    return missing


def postcard() -> Iterator[list[str]]:
    """The rooms that CONTRIBUTING.md lists, floor by floor from the top."""
    lines = CONTRIBUTING.read_text(encoding="utf-8").splitlines()
    indented = itertools.dropwhile(lambda line: not line.startswith("    jobs "), lines)
    block = itertools.takewhile(lambda line: not line or line.startswith("    "), indented)
    for is_floor, floor in itertools.groupby(block, bool):
        if is_floor:
            yield [line.split()[0] for line in floor]


@pages
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pages
def test_what_is_named_is_there(page: Path) -> None:
    assert missing_names(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](docs/stores.md) ![b](docs/demo.jpg) [c](https://example.org/x) [d](#score)", []),
        ("[a](docs/stores.md#credentials), [b](docs/stores.md#credential)", ["docs/stores.md#credential"]),
        ("[a](docs/store.md) and [b](#scores)", ["docs/store.md", "#scores"]),
    ],
)
def test_broken_links_are_found(text: str, broken: list[str]) -> None:
    assert broken_links(ROOT / "README.md", text) == broken


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`jobs/cli.py`, `pipeline/storage`, `pruned/shards`, `COMMANDS` in `jobs/cli.py`", []),
        ("`jobs/clip.py` and `COMMANDERS` in `jobs/cli.py`", ["jobs/clip.py", "COMMANDERS in jobs/cli.py"]),
        ("`COMMANDS` and `OTHERS` in `jobs/cli.py`", ["OTHERS in jobs/cli.py"]),
    ],
)
def test_missing_names_are_found(text: str, missing: list[str]) -> None:
    assert missing_names(text) == missing


def columns_told(page: str, before: str) -> list[str]:
    """The names in the first column of the first table after some words, in their order."""
    table = page.partition(before)[2].partition("|---")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def test_the_columns_of_tables_are_told() -> None:
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    schemas = [table_schema(visible=1, patch_bytes=3, store=store) for store in ("patches", "view")]
    assert columns_told(page, "### Tables") == list(dict.fromkeys(n for s in schemas for n in s.names))
    assert columns_told(page, "### Errors") == ERRORS_SCHEMA.names
    pruned = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
    assert sorted(columns_told(pruned, "## The index")) == sorted(INDEX_SCHEMA.names)


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    wanted = {page.relative_to(ROOT).as_posix() for page in PAGES if page.parent.name in {"docs", ".github"}}
    assert wanted - {".github/PULL_REQUEST_TEMPLATE.md"} - linked == set()


def test_the_postcard_shows_every_room_on_its_floor() -> None:
    floors: dict[int, set[str]] = {}
    for room, number in FLOOR.items():
        floors.setdefault(number, set()).add(room)
    assert [set(rooms) for rooms in postcard()] == [floors[number] for number in sorted(floors, reverse=True)]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    assert citation["version"] == patchsieve.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[:2] == ["Unreleased", patchsieve.__version__]


def test_continuous_integration_runs_every_python_that_the_project_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    pythons = job["strategy"]["matrix"]["python"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert pythons == ["3.11", "3.12", "3.13"]
    assert job["steps"][-1]["run"] == "make test PYTHON=python"
