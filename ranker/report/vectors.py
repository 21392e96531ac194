"""Charts as SVG that stands in a page: drawn by matplotlib, in the page's own colours and letters."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

INK, PALE, ACCENT, SECOND, WARNING = "#010203", "#010204", "#010205", "#010206", "#010207"
"""Stand for the page's colours, which a light and a dark page have different ones of."""

_PAGE_COLOURS = {
    INK: "currentColor",
    PALE: "var(--pale)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    WARNING: "var(--warning)",
}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "patchsieve",
    "text.parse_math": False,  # a name may hold dollars
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.alpha": 0.35,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the page: a title, what it says in words, the SVG, and its numbers as a table with a head."""

    title: str
    text: str
    svg: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def draw_vectors(draw: Callable[[Any], None], *, panels: int = 1, name: str) -> str:
    """The SVG of what `draw` puts on its panels (an array of matplotlib's axes, `[panels]`).

    `name` sets the ids of this chart apart from those of others on the page. Colours above follow the page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.6 * panels, 3.6), layout="constrained")
        draw(figure.subplots(1, panels, squeeze=False)[0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    # Sized by the page, which also says what a screen reader is told.
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg viewBox="\1" preserveAspectRatio="xMinYMin" aria-hidden="true">',
        svg,
        count=1,
    )
    for colour, place in _PAGE_COLOURS.items():
        svg = svg.replace(colour, place)
    return svg
