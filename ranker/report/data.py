"""What the page's script works on: pictures as JPEG, scores as bytes, and numbers to sort by.

Shape suffixes: N images, L patches of an image.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from patchsieve.pipeline.pictures.sheet import Pixels, colours, stretch
from patchsieve.ranker.gallery.pictured import Pictured, ranks
from patchsieve.ranker.gallery.sheet import resized
from patchsieve.ranker.learning.agreement import Scores

PICTURE_BYTES = 9 * 2**20
"""Of all pictures together; the page holds them as base64, a third larger."""

UNKNOWN_COLOUR, UNKNOWN_RANK = 255, 65_535
_SIDES = (224, 160, 112, 80)
_QUALITY = 82


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One image of the gallery, as the page's template shows it; `data` goes to the script."""

    key: str
    origin: str
    shard: str
    facts: str
    picture: str
    data: dict[str, Any]


def cards(images: Sequence[Pictured], *, keep: float) -> list[Card]:
    """The images as cards; `keep`: the ratio at which they are called disputed or borderline."""
    return [
        Card(
            key=one.key,
            origin=f"{one.origin} {one.path}",
            shard=one.shard,
            facts=_facts(one, keep),
            picture=picture,
            data=_data(one, keep),
        )
        for one, picture in zip(images, pictures([one.pixels for one in images]), strict=True)
    ]


def pictures(pixels: Sequence[Pixels], *, limit: int = PICTURE_BYTES) -> list[str]:
    """Data URLs of JPEGs, as large as fit into `limit` bytes together."""
    for side in _SIDES:
        files = []
        for one in pixels:
            files.append(_jpeg(resized(one, min(side, len(one)))))
            if sum(map(len, files)) * len(pixels) > limit * len(files) and side != _SIDES[-1]:
                break  # too large already by their mean
        else:
            return [f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in files]
    return []


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _facts(one: Pictured, keep: float) -> str:
    facts = [one.detail]
    if math.isfinite(agreement := one.agreement()):
        facts.append(f"agreement {agreement:.2f}")
        facts.append(f"{one.overlap(keep):.0%} of the kept patches in common")
    if one.mean_score is not None:
        facts.append(f"mean score {one.mean_score:.3g}")
    return "; ".join(facts)


def _data(one: Pictured, keep: float) -> dict[str, Any]:
    """`heat`: colour of each patch, 0 to 254; `rank`: its place, both by who scored, base64 of bytes and of uint16."""
    found: dict[str, Any] = {
        "grid": one.grid,
        "counted": one.counted,
        "sort": {
            "agreement": _number(one.agreement()),
            "overlap": _number(one.overlap(keep)),
            "margin": _number(one.margin(keep)),
            "score": _number(one.mean_score),
        },
    }
    for name in ("teacher", "ranker"):
        scores_L: Scores | None = getattr(one, name)
        if scores_L is not None:
            found[name] = {"heat": _heat(scores_L), "rank": _ranks(scores_L)}
    return found


def _heat(scores_L: Scores) -> str:
    levels = np.nan_to_num(stretch(scores_L), nan=0) * (UNKNOWN_COLOUR - 1)
    return _text(np.where(np.isnan(scores_L), UNKNOWN_COLOUR, np.rint(levels)).astype(np.uint8).tobytes())


def _ranks(scores_L: Scores) -> str:
    placed = np.where(np.isnan(scores_L), UNKNOWN_RANK, np.minimum(ranks(scores_L), UNKNOWN_RANK - 1))
    return _text(placed.astype("<u2").tobytes())


def heat_colours() -> str:
    """The colours of the levels 0 to 254, as base64 of RGB."""
    return _text(colours(np.linspace(0, 1, UNKNOWN_COLOUR)).tobytes())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)
