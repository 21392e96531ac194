"""Scores of all patches of whole images, by a ranker or by a baseline: what prune ranks with.

Shape suffixes: N images, L patches of an image, P values of a patch (p * p * 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher
from patchsieve.ranker.baselines.baselines import (
    FROM_TEACHER,
    Baseline,
    BaselineSources,
    check_baseline,
    make_baseline,
)
from patchsieve.ranker.baselines.fits import FITS
from patchsieve.ranker.model.checkpoint import LoadedRanker, load_ranker
from patchsieve.ranker.model.fast import choose_ranker_batch, choose_ranker_precision, prepare_ranker
from patchsieve.ranker.model.names import BASELINE_PREFIX
from patchsieve.ranker.model.ranker import Ranker

_GRID, _PATCH_SIZE = 14, 16
_BASELINE_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchSource:
    """What gives scores, picklable. `fixed`: what of it can change a score but for the precision, as JSON can hold it.

    `temperature`: of the softmax over an image's scores, None where nothing tells it; `precision`: of a ranker's
    blocks, None until it is chosen and for baselines, which have float32 alone.
    """

    name: str
    grid: int
    patch_size: int
    temperature: float | None
    fixed: dict[str, Any]
    ranker: LoadedRanker | None = None
    precision: Precision | None = None
    baseline: str = ""
    seed: int = 0
    fits: dict[str, Any] = dataclasses.field(default_factory=dict)
    teacher: TeacherFile | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Everything that can change a score, by name."""
        if self.ranker is None:
            return self.fixed
        assert self.precision is not None, "the precision has not been chosen"
        return {**self.fixed, "precision": self.precision}

    @property
    def needs_precision(self) -> bool:
        """Whether it still has to be chosen."""
        return self.ranker is not None and self.precision is None

    @property
    def image_size(self) -> int:
        """Side in pixels of the crop that it sees."""
        return self.grid * self.patch_size


def needs_teacher(name: str) -> bool:
    """Whether `--ranker` names a baseline that a teacher makes."""
    return name in {f"{BASELINE_PREFIX}{baseline}" for baseline in FROM_TEACHER}


def open_patch_source(name: str, *, fits: str | None, teacher: str | None, seed: int) -> PatchSource:
    """What `--ranker` names: a folder or URL, `tiny`, or `baseline:NAME`.

    `fits`: folder of a ranker with stored fits; `teacher`: name of one; both only for the baselines that need them.
    Raises UserError where there is no such ranker or baseline, where it lacks what it needs, and for what it would not
    read.
    """
    if name.startswith(BASELINE_PREFIX):
        return _open_baseline(name.removeprefix(BASELINE_PREFIX), fits, teacher, seed)
    if fits is not None or teacher is not None:
        raise UserError(f"--from and --teacher are for baselines, and --ranker is {name}: leave them out")
    ranker = load_ranker(name, device="cpu")
    config = ranker.config
    return PatchSource(
        name=ranker.name,
        grid=config.grid,
        patch_size=config.patch_size,
        temperature=ranker.temperature,
        fixed={"ranker": ranker.digest},
        ranker=ranker,
    )


def _open_baseline(name: str, fits: str | None, teacher: str | None, seed: int) -> PatchSource:
    check_baseline(name)
    if teacher is not None and name not in FROM_TEACHER:
        raise UserError(f"--teacher does nothing with baseline:{name}: leave it out")
    if fits is not None and name not in ("position", "ridge"):
        raise UserError(f"--from does nothing with baseline:{name}: leave it out")
    grid, patch_size = _GRID, _PATCH_SIZE
    fields: dict[str, Any] = {"ranker": f"{BASELINE_PREFIX}{name}"}
    stored: dict[str, Any] = {}
    file = None
    if fits is not None:
        giver = load_ranker(fits, device="cpu")
        grid, patch_size = giver.config.grid, giver.config.patch_size
        stored = {key: fit for key, fit in (giver.extra.get(FITS) or {}).items() if key == name}
        fields["fit"] = digest_of(stored)
    if teacher is not None:
        file = read_teacher(teacher)
        grid, patch_size = file.config.grid, file.config.patch_size
        fields["baseline_teacher"] = file.digest
    if name == "random":
        fields["baseline_seed"] = seed
    source = PatchSource(
        name=f"{BASELINE_PREFIX}{name}",
        grid=grid,
        patch_size=patch_size,
        temperature=None,
        fixed={**fields, "grid": grid, "patch_size": patch_size},
        baseline=name,
        seed=seed,
        fits=stored,
        teacher=file,
    )
    _build_baseline(source, torch.device("cpu"))
    return source


def _build_baseline(source: PatchSource, device: torch.device) -> Baseline:
    teacher = None if source.teacher is None else build_teacher(source.teacher, device=str(device))
    return make_baseline(
        source.baseline,
        BaselineSources(
            grid=source.grid,
            patch_size=source.patch_size,
            seed=source.seed,
            fits=source.fits,
            teacher=teacher,
        ),
    )


def choose_source_precision(source: PatchSource, device: torch.device) -> Precision:
    """The fastest safe precision of a source's ranker on this device, by a short probe."""
    assert source.ranker is not None, "baselines have float32 alone"
    return choose_ranker_precision(source.ranker.model, device)


class PatchScorer:
    """Scores images on one device, in batches that are padded to one size: scores then do not depend on others."""

    def __init__(
        self, source: PatchSource, *, device: torch.device, batch_size: int | Literal["auto"]
    ) -> None:
        """`batch_size` auto: the fastest, by a short probe. Raises UserError for a precision that the device lacks."""
        self.source, self._device = source, device
        self._model: Ranker | None = None
        self._baseline: Baseline | None = None
        if source.ranker is None:
            self._baseline = _build_baseline(source, device)
            self.batch_size = _BASELINE_BATCH if batch_size == "auto" else batch_size
        else:
            assert source.precision is not None, "the precision has not been chosen"
            self._model = prepare_ranker(source.ranker.model, source.precision, device)
            self.batch_size = choose_ranker_batch(self._model) if batch_size == "auto" else batch_size

    @torch.inference_mode()
    def score(self, patches: Sequence[Tensor], keys: Sequence[str]) -> NDArray[np.float32]:
        """Scores float32 `[N, L]` of 1 to `batch_size` images: uint8 `[L, P]` each, and their sample keys."""
        if self._model is None:
            assert self._baseline is not None
            return np.stack([self._baseline(one, key) for one, key in zip(patches, keys, strict=True)])
        batch_NLP = torch.stack([*patches, *[patches[-1]] * (self.batch_size - len(patches))])
        scores_NL: Tensor = self._model.forward_image(batch_NLP.to(self._device))
        return scores_NL[: len(patches)].cpu().numpy()
