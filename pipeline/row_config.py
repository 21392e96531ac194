"""Settings that decide the rows of a score table; imports no library, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from patchsieve.pipeline.checks import at_least_one
from patchsieve.pipeline.errors import UserError

IMAGE_FIELDS = "jpg;jpeg;png;webp;gif;bmp;tif;tiff"
"""Fields of a sample that may hold its image, in order of preference."""

DECODER = "torchvision-pillow-2"
"""Name of what `images/decode.py` makes of files; part of a row's identity, raised when decoded pixels change."""

Crop = Literal["random", "center"]
Masks = Literal["uniform", "spread"]
Estimator = Literal["exact", "frozen"]
FrozenTokens = int | Literal["all"]
Removal = Literal["decoder", "encoder"]
Metric = Literal["l1", "l2", "ssim", "psnr"]
Precision = Literal["fp32", "bf16", "fp16"]
Store = Literal["patches", "view", "none"]

VIEW_LIMIT = 2**15
"""Views are numbered by int16."""

FROZEN_TOKENS = 30
"""Hidden tokens that the frozen estimator computes anew, where nothing else is asked for."""

_CHOICES = {
    "crop": Crop,
    "masks": Masks,
    "estimator": Estimator,
    "removal": Removal,
    "metric": Metric,
    "precision": Precision,
    "store": Store,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowConfig:
    """Everything but the teacher that can change a row of the score table, with no `auto` left in it.

    `views` counts the views from `first_view` on; `size` is the side of a view in pixels; `sample` is the
    share of the samples that is scored; `image_field` lists fields in order of preference, lower case,
    separated by semicolons; `decoder` names the decoder whose pixels the rows hold (`DECODER`);
    `frozen_tokens` is for the frozen estimator alone, None for another.
    """

    mask_ratio: float
    first_view: int
    views: int
    crop: Crop
    masks: Masks
    estimator: Estimator
    removal: Removal
    metric: Metric
    seed: int
    size: int
    precision: Precision
    store: Store
    sample: float
    image_field: str
    decoder: str
    frozen_tokens: FrozenTokens | None = None

    def __post_init__(self) -> None:
        # One spelling for one meaning: these values are hashed into the identity of the rows.
        for name in ("mask_ratio", "sample"):
            object.__setattr__(self, name, float(getattr(self, name)))
        fields = [part.strip().lower().lstrip(".") for part in self.image_field.split(";")]
        object.__setattr__(self, "image_field", ";".join(part for part in fields if part))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                options = ", ".join(get_args(choices))
                raise UserError(f"{name} is {getattr(self, name)!r}, must be one of {options}")
        # Written so that NaN fails too.
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"mask ratio is {self.mask_ratio}, must lie between 0 and 1")
        if not 0 < self.sample <= 1:
            raise UserError(f"sample is {self.sample}, must be a share above 0 and at most 1")
        if self.first_view < 0 or self.views < 1 or self.first_view + self.views > VIEW_LIMIT:
            last = self.first_view + self.views
            raise UserError(
                f"views {self.first_view}:{last} is not a range of at least one view below {VIEW_LIMIT}"
            )
        at_least_one("size in pixels", self.size)
        if not self.image_field:
            raise UserError(f"image field is empty, must name fields such as {IMAGE_FIELDS}")
        if not self.decoder:
            raise UserError("decoder is empty, must name the image decoder")
        if (self.estimator == "frozen") != (self.frozen_tokens is not None):
            raise UserError(f"frozen tokens are {self.frozen_tokens} with estimator {self.estimator}")
        if self.frozen_tokens is not None:
            check_frozen(self.frozen_tokens, self.removal, self.metric)


def check_frozen(tokens: FrozenTokens, removal: Removal, metric: Metric) -> None:
    """UserError where the frozen estimator cannot do what is asked, whatever the teacher."""
    if tokens != "all" and (type(tokens) is not int or tokens < 1):
        raise UserError(f"frozen tokens are {tokens!r}, must be a number from 1 on, or all")
    if removal != "decoder" or metric not in ("l1", "l2"):
        raise UserError(
            f"estimator frozen takes removal decoder and metric l1 or l2, not removal {removal} and metric {metric}:"
            " take estimator exact for these"
        )


def count_tokens(tokens: FrozenTokens, hidden: int) -> int:
    """K, the hidden tokens to compute anew of each view; UserError where there are fewer."""
    count = hidden if tokens == "all" else tokens
    if count > hidden:
        raise UserError(
            f"{count} frozen tokens, but a view of this teacher hides {hidden} patches: take fewer, or all"
        )
    return count
