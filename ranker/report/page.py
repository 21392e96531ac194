"""The page: a template filled in, with its style, its script and its data in one file.

Everything that others wrote goes through the template's escaping, and control characters are made visible first. The
page's policy runs the one script that is known by its hash, and loads nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from patchsieve import __version__
from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.shown import one_line
from patchsieve.pipeline.units import byte_size, counted
from patchsieve.ranker.evaluate.plot import require_plots
from patchsieve.ranker.gallery.gather import gather, open_ranker
from patchsieve.ranker.gallery.photos import Photos
from patchsieve.ranker.gallery.pictured import Pictured
from patchsieve.ranker.gallery.sources import Source, find_sources
from patchsieve.ranker.report.charts import gallery_charts
from patchsieve.ranker.report.config import ReportConfig
from patchsieve.ranker.report.data import Card, cards, heat_colours
from patchsieve.ranker.report.outcomes import outcome_charts
from patchsieve.ranker.report.summary import summaries
from patchsieve.ranker.report.vectors import Chart

_OUTSTANDING = 6
"""Images of each kind that the page puts first."""

_KINDS = {
    "best": ("Best", "ranker and teacher agree most", "agreement", True),
    "worst": ("Worst", "ranker and teacher agree least", "agreement", False),
    "disputed": ("Most disputed", "they would keep the fewest patches in common", "overlap", False),
    "borderline": ("Borderline", "scores just above and below the cut lie closest", "margin", False),
    "richest": ("Highest scores", "the reconstruction depends most on their patches", "score", True),
    "poorest": ("Lowest scores", "the reconstruction depends least on their patches", "score", False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Images that stand out, by their number in the gallery."""

    title: str
    why: str
    members: Sequence[int]


def write_page(config: ReportConfig, *, run_id: str) -> list[str]:
    """Write the page to `--out`; returns what to tell. Raises UserError for a path that cannot be shown."""
    require_plots("a report")
    sources = find_sources(config.paths)
    images = _images(sources, config)
    html = render(sources, images, config, run_id=run_id).encode()
    storage.commit_bytes(html, storage.absolute_url(config.out), run_id=run_id)
    partly = any(one.origin != "shards" and not one.shown.all() for one in images)
    given = any(source.kind == "shards" for source in sources)
    return [
        *(
            ["photos     of some only patches are known: give the shards too to see them whole"]
            * (partly and not given)
        ),
        f"gallery    {counted(len(images), 'image')}",
        f"written    {storage.redact(config.out)}, {byte_size(len(html))}: open it in a browser",
    ]


def _images(sources: Sequence[Source], config: ReportConfig) -> list[Pictured]:
    rankers = [source for source in sources if source.kind == "ranker"]
    if len(rankers) > 1:
        raise UserError(
            f"{len(rankers)} rankers are given: a page shows the maps of one, write a page for each"
        )
    ranker = open_ranker(rankers[0].path) if rankers else None
    specs = [source.path for source in sources if source.kind == "shards"]
    photos = Photos(specs, root=config.root, unsorted=config.unsorted) if specs else None
    return gather(sources, count=config.limit_images, ranker=ranker, photos=photos)


def render(
    sources: Sequence[Source], images: Sequence[Pictured], config: ReportConfig, *, run_id: str
) -> str:
    """The page as text."""
    shown = cards(images, keep=config.keep)
    script = _part("page.js")
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_part("page.html")).render(
        title=", ".join(source.shown for source in sources),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{sha256}'",
        style=Markup(_part("page.css")),
        script=Markup(script),
        summaries=summaries(sources, root=config.root),
        cards=shown,
        groups=groups(shown),
        charts=[_drawn(chart) for chart in (*outcome_charts(sources), *gallery_charts(images))],
        data=_json({"heat": heat_colours(), "images": [card.data for card in shown]}),
        keep=round(100 * config.keep),
        kinds={name: any(name in card.data for card in shown) for name in ("teacher", "ranker")},
        sorts=_sorts(shown),
        version=__version__,
        run_id=run_id,
    )


def groups(shown: Sequence[Card]) -> list[Group]:
    """The images that stand out, of every kind that their scores tell."""
    found = []
    for title, why, name, highest in _KINDS.values():
        known = [n for n, card in enumerate(shown) if card.data["sort"][name] is not None]
        # A number that is the same everywhere tells nothing.
        if len({shown[n].data["sort"][name] for n in known}) > 1:
            known.sort(key=lambda n, name=name: shown[n].data["sort"][name], reverse=highest)  # type: ignore[misc]
            found.append(Group(title=title, why=why, members=known[:_OUTSTANDING]))
    return found


def _sorts(shown: Sequence[Card]) -> list[tuple[str, str]]:
    """Orders that the gallery can be put in: what the script reads, and what the reader sees."""
    found = []
    for title, _, name, highest in _KINDS.values():
        if any(card.data["sort"][name] is not None for card in shown):
            found.append((f"{name}:{'down' if highest else 'up'}", title))
    return found


def _drawn(chart: Chart) -> dict[str, Any]:
    return {**dataclasses.asdict(chart), "svg": Markup(chart.svg)}  # matplotlib escapes its texts


def _visible(value: Any) -> Any:
    """Control characters of texts made visible; markup of ours as it is."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _json(data: Any) -> Markup:
    """JSON that can stand in a script element: numbers, and texts of our own making alone."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _part(name: str) -> str:
    return (importlib.resources.files("patchsieve.ranker.report") / name).read_text(encoding="utf-8")
