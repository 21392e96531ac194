"""The page of `patchsieve report`, read as text: what it holds, and that nothing in it is what others wrote."""

from __future__ import annotations

import html.parser
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchsieve.jobs import report as job
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.ranker.gallery.from_tables import dense
from patchsieve.ranker.gallery.sources import find_sources
from patchsieve.ranker.report.config import ReportConfig
from patchsieve.ranker.report.data import pictures
from patchsieve.ranker.report.outcomes import outcome_charts
from patchsieve.ranker.report.summary import summaries
from tests.helpers.galleries import HOSTILE, PHOTOS, Left
from tests.helpers.photos import photo_pixels

VOID = {"meta", "link", "input", "img", "br"}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, text, and whether every element that opens is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def text(left: Left, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    config = ReportConfig(paths=(left.table, left.ranker, left.pruned), out=str(out), limit_images=100)
    assert job.run(config) == 0
    return out.read_text(encoding="utf-8")


def attributes(page: Page, tag: str) -> list[dict[str, str]]:
    return [found for name, found in page.elements if name == tag]


def test_it_is_whole_and_loads_nothing(text: str) -> None:
    page = Page(text)
    assert page.open == []
    loaded = [
        found.get(name)
        for _, found in page.elements
        for name in ("src", "href", "xlink:href")
        if name in found
    ]
    assert {re.split("[:0-9a-zA-Z-]", link or "")[0] or (link or "")[:5] for link in loaded} <= {"data:", "#"}
    assert not re.search(r"url\((?!#)", text)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)


def test_the_policy_runs_one_script_alone(text: str) -> None:
    page = Page(text)
    (policy,) = [found["content"] for found in attributes(page, "meta") if "http-equiv" in found]
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    assert [found.get("type") for found in attributes(page, "script")] == ["application/json", None]
    assert not [found for _, found in page.elements if any(name.startswith("on") for name in found)]


def test_a_hostile_key_is_text_and_its_control_characters_are_shown(text: str) -> None:
    page = Page(text)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e") in page.text
    assert len(attributes(page, "img")) == 2 * PHOTOS


def test_every_name_that_the_page_refers_to_is_there_once(text: str) -> None:
    ids = [found["id"] for _, found in Page(text).elements if "id" in found]
    assert len(ids) == len(set(ids))
    named = re.findall(r'(?:aria-labelledby|aria-describedby|for|xlink:href|href)="#?([^" :]+)"', text)
    named += re.findall(r"url\(#([^)]+)\)", text)
    assert set(named) - set(ids) <= {"data"}


def test_the_data_are_scores_and_places_of_every_image(text: str) -> None:
    found: dict[str, Any] = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert len(found["images"]) == 2 * PHOTOS
    assert {image["grid"] for image in found["images"]} == {6}
    assert [set(image) & {"teacher", "ranker"} for image in found["images"]] == [
        {"teacher", "ranker"}
    ] * PHOTOS + [{"ranker"}] * PHOTOS


def test_charts_say_in_words_and_numbers_what_they_draw(text: str) -> None:
    for title in ("What a keep ratio holds", "Agreement of ranker and teacher", "What the pruned set keeps"):
        assert title in text
    assert "allows at most" in text  # every patch has two scores
    page = Page(text)
    assert len(attributes(page, "table")) == len(attributes(page, "figure")) == 4


def test_pictures_become_smaller_where_many_would_fill_the_page() -> None:
    photos = [photo_pixels(seed, 224, 224) for seed in range(3)]
    large, small = pictures(photos), pictures(photos, limit=6000)
    assert sum(map(len, small)) < sum(map(len, large)) / 3
    assert len(small) == 3


def test_paths_that_cannot_be_shown_together(left: Left, tmp_path: Path) -> None:
    for paths, words in (
        ((left.ranker, "tiny"), "2 rankers"),
        ((left.shards,), "name a ranker"),
        ((), "no path"),
    ):
        with pytest.raises(UserError, match=words):
            job.run(ReportConfig(paths=paths, out=str(tmp_path / "r.html")))
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_no_numbers_are_unknown() -> None:
    found = dense(np.array([[0, 1]]), np.array([[np.inf, 1.0]], np.float32), 4)
    assert np.isnan(found).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("evaluation.json", {"agreement": []}),
        (
            "evaluation.json",
            {"agreement": {"ranker": {"spearman": {"low": "1", "value": None}}}, "ceiling": {}},
        ),
        ("prove.json", {"arms": 7}),
        ("prove.json", {"arms": [{"accuracy": {"x": 1}}] * 20_001}),
        ("prove.json", {"arms": [], "verdicts": [{"text": "\x1b"}]}),
    ],
)
def test_what_others_wrote_is_drawn_or_named(tmp_path: Path, file: str, data: dict[str, Any]) -> None:
    (tmp_path / file).write_text(json.dumps(data))
    sources = find_sources([str(tmp_path)])
    for reads in (outcome_charts, partial(summaries, root=None)):
        with pytest.raises(DamagedFileError, match=f"{file} is damaged"):
            reads(sources)
