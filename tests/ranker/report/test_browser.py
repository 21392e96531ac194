"""The page of `patchsieve report` in a real browser: nothing runs but its script, and the slider does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchsieve.jobs import report as job
from patchsieve.ranker.gallery.gather import gather, open_ranker
from patchsieve.ranker.gallery.sources import find_sources
from patchsieve.ranker.report.config import ReportConfig
from tests.helpers.browser import chromium
from tests.helpers.galleries import PHOTOS, Left

# Alpha of every patch on the canvas of a card: 0 where the photo shows through.
_ALPHAS = """number => {
    const canvas = document.querySelector(`#image-${number} canvas`), context = canvas.getContext("2d");
    return [...context.getImageData(0, 0, canvas.width, canvas.height).data].filter((_, at) => at % 4 == 3);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def url(left: Left, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    job.run(ReportConfig(paths=(left.table, left.ranker, left.pruned), out=str(out), limit_images=100))
    return Path(out).as_uri()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    said: list[str] = []
    asked: list[str] = []
    opened = browser.new_page()
    opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(url)
    yield opened
    assert said == []
    assert [found for found in asked if not found.startswith(("data:", "file:"))] == []
    opened.close()


def kept(page: Any, number: int) -> list[bool]:
    return [alpha == 0 for alpha in page.evaluate(_ALPHAS, number)]


def move(page: Any, ratio: int) -> None:
    page.locator("#keep").fill(str(ratio))


def test_a_hostile_key_does_not_run(page: Any) -> None:
    assert page.title().startswith("patchsieve report")
    assert "<img src=x" in page.locator("#image-0 .key").text_content()
    assert page.locator("#image-0 .key img").count() == 0


def test_the_slider_keeps_what_prune_would(page: Any, left: Left) -> None:
    images = gather(find_sources([left.table]), count=100, ranker=open_ranker(left.ranker), photos=None)
    for ratio in (75, 50, 25):
        move(page, ratio)
        for number, image in enumerate(images):
            assert kept(page, number) == image.kept(ratio / 100).tolist()
            assert (
                page.locator(f"#image-{number} .stays").text_content()
                == f"{int(36 * ratio / 100)} of 36 patches stay"
            )


def test_the_teacher_decides_where_it_is_asked(page: Any, left: Left) -> None:
    images = gather(find_sources([left.table]), count=100, ranker=None, photos=None)
    page.check("input[name=by][value=teacher]")
    assert [kept(page, number) for number in range(PHOTOS)] == [image.kept(0.5).tolist() for image in images]


def test_keys_alone_move_the_slider_and_open_an_image(page: Any) -> None:
    page.locator("#keep").focus()
    page.keyboard.press("End")
    assert all(kept(page, 0))
    page.keyboard.press("Home")
    assert sum(kept(page, 0)) == 1
    page.locator("#image-1 .stage").focus()
    page.keyboard.press("Enter")
    assert page.locator("#large-key").text_content() == page.locator("#image-1 .key").text_content()
    page.keyboard.press("ArrowRight")
    assert page.locator("#large-key").text_content() == page.locator("#image-2 .key").text_content()
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()


def test_order_and_search(page: Any) -> None:
    page.select_option("#order", "agreement:down")
    numbers = page.evaluate(
        "[...document.querySelectorAll('.card')].map(card => Number(card.dataset.number))"
    )
    data = page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).images.map(i => i.sort.agreement)"
    )
    known = [data[number] for number in numbers if data[number] is not None]
    assert known == sorted(known, reverse=True)
    assert [data[number] for number in numbers[: len(known)]] == known
    page.fill("#find", "photo-3")
    assert page.locator(".card:visible").count() == 2
    assert page.locator("#found").text_content() == "2 images"


def test_heat_maps_cover_what_stays(page: Any) -> None:
    move(page, 100)
    for show in ("teacher", "ranker"):
        page.check(f"input[name=show][value={show}]")
        assert not any(kept(page, 0))
        assert len(set(page.evaluate(_ALPHAS, 0))) == 1
    page.check("input[name=show][value=both]")
    assert all(kept(page, 0))  # both keep all


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark_and_fit_a_telephone(browser: Any, url: str, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 360, "height": 700})
    page.goto(url)
    ink, paper = (
        np.array(
            page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
        )
        for name in ("color", "backgroundColor")
    )
    assert abs(int(ink.sum()) - int(paper.sum())) > 500
    assert (paper.sum() > ink.sum()) == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
