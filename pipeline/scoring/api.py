"""Scoring from Python, in a notebook or a script: no shards, no table, no Ray."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image, pixels_of
from patchsieve.pipeline.images.patches import visible_count
from patchsieve.pipeline.images.views import ViewBox
from patchsieve.pipeline.row_config import (
    DECODER,
    FROZEN_TOKENS,
    Crop,
    Estimator,
    FrozenTokens,
    Masks,
    Metric,
    Precision,
    Removal,
    RowConfig,
)
from patchsieve.pipeline.scoring.aggregate import Aggregate, dense_scores
from patchsieve.pipeline.scoring.batch import batch_of
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.scoring.views import draw_views
from patchsieve.pipeline.shards.reader import MEMBER_LIMIT
from patchsieve.pipeline.storage import absolute_url, read_bytes, redact
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.pipeline.teacher.ready import choose_precision, prepare_teacher


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A loaded teacher: its file (name, digest, configuration), the frozen model, and where it runs."""

    file: TeacherFile
    model: MaskedAutoencoder
    device: torch.device
    precision: Precision

    @functools.cached_property
    def ready(self) -> MaskedAutoencoder:
        """The model as it is evaluated on the device in this precision: made once."""
        return prepare_teacher(self.model, self.precision, self.device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Pseudo-scores of one image. K views, V visible patches in each, a grid of G x G patches.

    `boxes`: crop of each view in pixels of the image; `visible`: int16 `[K, V]` patch indices; `score`: float32
    `[K, V]`, higher = the reconstruction depends more on that patch.
    """

    boxes: tuple[ViewBox, ...]
    visible: NDArray[np.int16]
    score: NDArray[np.float32]
    grid: int

    def heat_map(self, aggregate: Aggregate = "log") -> NDArray[np.float32]:
        """Scores of the whole grid, float32 `[G, G]`, NaN where a patch was never visible (see `dense_scores`).

        Only meaningful for views of one crop (`crop="center"`).
        """
        dense = dense_scores(self.visible, self.score, self.grid**2, aggregate)
        return dense.reshape(self.grid, self.grid)


def load_teacher(
    name: str = "tiny",
    *,
    device: str | None = None,
    precision: Precision | None = None,
    output_space: str | None = None,
) -> Teacher:
    """Load a teacher by name (`tiny`, `mae-base`, ...), path or URL, for `score_images`.

    `device` None: the first GPU, else the processor; `precision` None: a probe of a few seconds decides.
    Raises UserError for what is no teacher with a decoder.
    """
    file = read_teacher(name, output_space=output_space)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = build_teacher(file, device=str(where))
    return Teacher(file, model, where, precision or choose_precision(model, where))


def score_images(
    images: Iterable[Any],
    teacher: Teacher | str | None = None,
    *,
    keys: Sequence[str] | None = None,
    views: int | None = None,
    crop: Crop = "center",
    masks: Masks = "spread",
    mask_ratio: float = 0.9,
    removal: Removal = "decoder",
    metric: Metric = "l1",
    estimator: Estimator = "exact",
    frozen_tokens: FrozenTokens = FROZEN_TOKENS,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[ImageScores]:
    """Pseudo-scores of images: files (paths, URLs or bytes), PIL images, uint8 arrays `[H, W, 3]` or `[H, W]`, or uint8
    tensors `[3, H, W]`. Files and PIL images are decoded as those of shards: upright, 16 bits by their high byte.

    `teacher`: a loaded one, or what `load_teacher` takes.
    `views` None: as many as show every patch of the grid once. `keys` seed the masks, as sample keys do in a
    table; by default they are "0", "1", ... `frozen_tokens` is for the frozen estimator.
    Raises UserError for settings that this teacher cannot do.
    """
    if is_one_image(images):
        raise UserError("score_images takes several images: put a single one into a list")
    if not isinstance(teacher, Teacher):
        teacher = load_teacher(teacher or "tiny")
    shape = teacher.file.config
    visible = max(1, visible_count(shape.positions, mask_ratio))
    rows = RowConfig(
        mask_ratio=mask_ratio,
        first_view=0,
        views=views if views is not None else -(-shape.positions // visible),
        crop=crop,
        masks=masks,
        estimator=estimator,
        frozen_tokens=frozen_tokens if estimator == "frozen" else None,
        removal=removal,
        metric=metric,
        seed=seed,
        size=shape.image_size,
        precision=teacher.precision,
        store="none",
        sample=1.0,
        image_field="memory",
        decoder=DECODER,
    )
    scorer = Scorer.for_rows(teacher.model, rows, device=teacher.device, batch_size=batch_size or rows.views)
    results = []
    for index, image in enumerate(images):
        key = keys[index] if keys is not None else str(index)
        drawn = draw_views(key, as_pixels(image), rows, shape.patch_size)
        score = scorer.score(*batch_of(drawn, rows))
        boxes = tuple(view.box for view in drawn)
        if not bool(score.isfinite().all()):
            raise UserError(f"the scores of image {key} are not finite in {teacher.precision}; take fp32")
        results.append(
            ImageScores(
                boxes=boxes,
                visible=np.stack([view.visible for view in drawn]),
                score=score.numpy(),
                grid=shape.grid,
            )
        )
    return results


def is_one_image(images: Any) -> bool:
    """Whether this is a single image, where several are asked for; a text would be read letter by letter."""
    single = isinstance(images, str | bytes | os.PathLike)
    return single or hasattr(images, "convert") or getattr(images, "ndim", 4) < 4


def as_pixels(image: Any) -> Tensor:
    """An image as uint8 `[3, H, W]`; UserError for what is none."""
    try:
        if isinstance(image, str | os.PathLike):
            return decode_image(read_bytes(absolute_url(image), limit=MEMBER_LIMIT)).contiguous()
        if isinstance(image, bytes):
            return decode_image(image).contiguous()
        if hasattr(image, "convert"):
            return pixels_of(image).contiguous()
    except FileNotFoundError:
        raise UserError(f"no image at {redact(os.fspath(image))}") from None
    except ContentError as error:
        raise UserError(f"an image cannot be read: {error}") from None
    if isinstance(image, Tensor):
        pixels = image
    else:
        array = np.array(image)
        if array.ndim == 2:
            array = np.repeat(array[..., None], 3, axis=2)
        pixels = torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise UserError(
            f"an image of {pixels.dtype} {list(pixels.shape)} is neither a file, a PIL image, a uint8 array [H, W, 3] "
            "nor a uint8 tensor [3, H, W]"
        )
    return pixels.contiguous()
