"""Leave-one-out pseudo-scores: how far the teacher's reconstruction moves when a visible patch is taken away.

The hot path. Sequences are gathered, never masked: a token that is left out costs nothing, and all removals
of a batch run as one batch through fused attention.

Shape suffixes: N views, K removals of a view, L grid positions, V visible, H = L - V hidden patches, P values
of a patch (p * p * 3), D encoder width.
"""

from __future__ import annotations

import time
from typing import get_args

import torch
from torch import Tensor

from patchsieve.pipeline.compute.batch_size import (
    LARGEST_TENSOR,
    PROBE_RUNS,
    PassSize,
    available_memory,
    choose_batch_size,
    is_out_of_memory,
    largest_good_batch,
)
from patchsieve.pipeline.compute.launch import Launched, Stamp, fetch
from patchsieve.pipeline.compute.precision import float32_products
from patchsieve.pipeline.compute.recorded import Recorded, compiled
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.images.patches import (
    channel_constants,
    hidden_positions,
    normalise,
    take_patches,
    visible_count,
)
from patchsieve.pipeline.row_config import (
    FrozenTokens,
    Metric,
    Precision,
    Removal,
    RowConfig,
    check_frozen,
    count_tokens,
)
from patchsieve.pipeline.scoring import changes
from patchsieve.pipeline.scoring.cost import sequence_bytes, sequence_values
from patchsieve.pipeline.scoring.frozen import FrozenEstimator
from patchsieve.pipeline.scoring.removals import PatchRemovals, SharedTokenRemovals, TokenRemovals
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.pipeline.teacher.ready import prepare_teacher

LARGEST_BATCH = 256
GPU_BATCHES = (1, 8, 32, 64, 128, 256)
PROBE_SECONDS = 1.5


@torch.inference_mode()
def reconstruct(model: MaskedAutoencoder, pixels_NLP: Tensor, visible_NV: Tensor) -> tuple[Tensor, Tensor]:
    """`f(all)`: predictions of the hidden patches and their positions, `[N, H, P]` and int64 `[N, H]`.

    `pixels_NLP`: uint8 patches of the views, of which only the visible ones are read; `visible_NV`: their
    positions. Everything on the model's device; predictions in the teacher's output space
    (`changes.hidden_patches_pixels` turns them into pixels).
    """
    hidden_NH = hidden_positions(visible_NV, model.config.positions)
    visible_NV = visible_NV.long()
    latent = model.encode(normalise(take_patches(pixels_NLP, visible_NV)), visible_NV)
    return model.decode(latent, visible_NV, hidden_NH, hidden_NH.shape[1]).float(), hidden_NH


class Scorer:
    """A teacher on a device, ready to score batches of views.

    Memory is bounded by the removals that run in one pass. When it runs out, that number is halved and the
    pass run again, down to one removal of one view; later more are tried again.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        *,
        mask_ratio: float = 0.9,
        removal: Removal = "decoder",
        metric: Metric = "l1",
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        frozen_tokens: FrozenTokens | None = None,
        compile: bool = False,
    ) -> None:
        """`batch_size`: views; None measures a few sizes for some seconds and takes the fastest that fits.
        `frozen_tokens`: K of the frozen estimator (see `frozen.py`); None for exact scores. `compile`: on a GPU, take
        half a minute at first to compile and record a batch (see `recorded.py`), 1.4 times as fast from then on.

        The model itself stays as it is. Raises UserError for a mask ratio, metric or precision that this
        teacher or device cannot do.
        """
        self._config = model.config
        self._removal, self._metric = removal, metric
        self._device = torch.device(device)
        self.visible = visible_count(model.config.positions, mask_ratio)
        self._check(mask_ratio, batch_size)
        self._model = prepare_teacher(model, precision, self._device)
        self._frozen: FrozenEstimator | None = None
        if frozen_tokens is not None:
            check_frozen(frozen_tokens, removal, metric)
            count = count_tokens(frozen_tokens, model.config.positions - self.visible)
            self._frozen = FrozenEstimator(self._model, self.visible, count, metric)
        without: type[TokenRemovals | SharedTokenRemovals | PatchRemovals] = PatchRemovals
        if removal == "decoder":
            without = TokenRemovals if self._device.type == "cuda" else SharedTokenRemovals
        self._removals = without(self._model, self.visible)
        self._precision = precision
        self._record = compile and self._device.type == "cuda"
        self._recorded: dict[int, Recorded] = {}
        self._batch_size = batch_size or 1
        self._pass = PassSize(self._largest_pass())
        if batch_size is None:
            self._batch_size = self._measured_batch_size()
        self._pass = PassSize(min(self._pass.now, self._batch_size * self.visible))
        if self._record:
            self._compile()

    @classmethod
    def for_rows(
        cls,
        model: MaskedAutoencoder,
        rows: RowConfig,
        *,
        device: torch.device,
        batch_size: int | None,
        compile: bool = False,
    ) -> Scorer:
        """The scorer of a table's rows."""
        return cls(
            model,
            mask_ratio=rows.mask_ratio,
            removal=rows.removal,
            metric=rows.metric,
            precision=rows.precision,
            device=device,
            batch_size=batch_size,
            frozen_tokens=rows.frozen_tokens,
            compile=compile,
        )

    @property
    def batch_size(self) -> int:
        """Views per batch: scores are bit-equal on one device at one batch size and thread count."""
        return self._batch_size

    @property
    def device(self) -> torch.device:
        """Where the teacher runs."""
        return self._device

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self._config.patch_size

    @property
    def patch_values(self) -> int:
        """Values of a patch, P."""
        return self._config.patch_values

    def _check(self, mask_ratio: float, batch_size: int | None) -> None:
        config = self._config
        if not 2 <= self.visible < config.positions:
            raise UserError(
                f"mask ratio {mask_ratio} leaves {self.visible} of {config.positions} patches visible;"
                " at least 2 must be visible and 1 hidden"
            )
        for value, choices in ((self._removal, Removal), (self._metric, Metric)):
            if value not in get_args(choices):
                raise UserError(f"{value!r} is none of {', '.join(get_args(choices))}")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch size {batch_size} must be at least 1")
        if changes.compares_whole_images(self._metric) and config.output_space == "unknown":
            raise UserError(
                f"metric {self._metric} compares pixels, but this teacher's file does not tell its output"
                " space: give it (pixels or normalised), or use metric l1 or l2"
            )
        if self._metric == "ssim" and config.image_size < changes.SSIM_WINDOW:
            raise UserError(
                f"metric ssim needs images of {changes.SSIM_WINDOW} px or more, not {config.image_size}"
            )

    def _compile(self) -> None:
        try:
            self.score(*self._sample(self._batch_size))
        except (UserError, InfrastructureError):
            raise
        except Exception as error:  # whatever the compilers on the way raise
            reason = str(error).strip().splitlines()
            raise UserError(
                f"the teacher cannot be compiled for {self._device} ({type(error).__name__}:"
                f" {reason[0] if reason else ''}); a C compiler and Python's headers have to be there,"
                " or add --no-compile"
            ) from error

    def _largest_pass(self) -> int:
        if self._device.type != "cpu":
            return min(LARGEST_BATCH * self.visible, max(1, LARGEST_TENSOR // sequence_values(self._config)))
        return max(1, available_memory() // sequence_bytes(self._config, self.visible))

    def _measured_batch_size(self) -> int:
        largest = max(1, min(LARGEST_BATCH, self._pass.now // self.visible))
        try:
            if self._device.type == "cuda":
                sizes = [size for size in GPU_BATCHES if size <= largest]
                return largest_good_batch(self._seconds_per_view, sizes)
            return choose_batch_size(self._seconds_per_view, largest=largest, budget=PROBE_SECONDS)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Not even one view in one pass: `score` will find how much of it fits.
            return 1

    def _sample(self, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Made-up arguments of `launch`."""
        shape = (count, self._config.positions, self._config.patch_values)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        visible = torch.arange(self.visible).expand(count, -1)
        return pixels, visible, visible.double() / self.visible if self._frozen is not None else None

    @torch.inference_mode()
    def _seconds_per_view(self, count: int) -> float:
        pixels, visible, starts = self._sample(count)
        hidden = hidden_positions(visible, self._config.positions)
        seconds = float("inf")
        for _ in range(PROBE_RUNS):
            started = time.perf_counter()
            self._score_pass(pixels, visible, hidden, torch.arange(count), starts, record=False).cpu()
            seconds = min(seconds, time.perf_counter() - started)
        return seconds / count

    def score(self, pixels_NLP: Tensor, visible_NV: Tensor, starts_NV: Tensor | None = None) -> Tensor:
        """Pseudo-score of each visible patch of each view, float32 `[N, V]` in main memory; see `launch`."""
        return self.launch(pixels_NLP, visible_NV, starts_NV).result()

    @torch.inference_mode()
    def launch(self, pixels_NLP: Tensor, visible_NV: Tensor, starts_NV: Tensor | None = None) -> Launched:
        """Have the scores of some views computed: on a GPU they are under way when this returns, else done.

        `pixels_NLP`: uint8 patches of the views, or, where the metric does not compare whole images, of the visible
        ones alone, `[N, V, P]`; `visible_NV`: positions of the visible ones, any integer type and any order;
        `starts_NV`: the frozen estimator's random numbers (`frozen.draw_starts`), float64, which exact scores do not
        take. A last batch that is not full is filled up with repeats of its last view, so that a view's scores do not
        depend on how many views there are, bit for bit.

        A score that leaves the range of the arithmetic is inf or NaN. Raises ValueError for arguments that do not
        fit the teacher, InfrastructureError when not even one removal of one view fits into memory.
        """
        count, positions = len(pixels_NLP), self._config.positions
        counts = {positions} if changes.compares_whole_images(self._metric) else {positions, self.visible}
        if (
            pixels_NLP.dtype != torch.uint8
            or pixels_NLP.ndim != 3
            or pixels_NLP.shape[1] not in counts
            or pixels_NLP.shape[2] != self.patch_values
        ):
            raise ValueError(
                f"pixels {pixels_NLP.dtype} {list(pixels_NLP.shape)} are not"
                f" uint8 [N, {' or '.join(map(str, sorted(counts, reverse=True)))}, {self.patch_values}]"
            )
        if visible_NV.shape != (count, self.visible):
            raise ValueError(f"visible {list(visible_NV.shape)} is not [{count}, {self.visible}]")
        if (starts_NV is None) != (self._frozen is None):
            raise ValueError("the frozen estimator takes random numbers, and exact scores none")
        began = Stamp(self._device)
        visible_NV = visible_NV.long()
        hidden_NH = hidden_positions(visible_NV, positions)
        rows = torch.arange(count + -count % self._batch_size).clamp_(max=count - 1)
        self._pass.grow()
        scores: list[Tensor] = []
        start = 0
        while start < len(rows):
            # A pass ends where a batch does, so that batches are cut alike whatever comes before them.
            stop = min(
                start + max(1, self._pass.now // self.visible),
                start - start % self._batch_size + self._batch_size,
            )
            try:
                scores.append(
                    self._score_pass(
                        pixels_NLP, visible_NV, hidden_NH, rows[start:stop], starts_NV, record=self._record
                    )
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._back_off(error)
            else:
                start = stop
        found = fetch(torch.cat(scores)[:count]) if scores else torch.empty(0, self.visible)
        return Launched(found, began, Stamp(self._device))

    def _back_off(self, error: BaseException) -> None:
        if self._pass.now == 1:
            raise InfrastructureError(
                f"out of memory on {self._device}: not even one removal of one view fits ({error})"
            ) from error
        self._pass.halve()
        # The frames of the failed pass hold its tensors, and a recorded pass those of all its kernels.
        error.__traceback__ = None
        self._recorded.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _score_pass(
        self,
        pixels_NLP: Tensor,
        visible_NV: Tensor,
        hidden_NH: Tensor,
        rows: Tensor,
        starts_NV: Tensor | None,
        *,
        record: bool,
    ) -> Tensor:
        """Scores `[N, V]` of the views in `rows`, on the device; several only if all their removals fit."""
        visible_NV = visible_NV[rows]
        whole = pixels_NLP.shape[1] != self.visible
        seen_NVP = pixels_NLP[rows[:, None], visible_NV] if whole else pixels_NLP[rows]
        values = [seen_NVP, visible_NV, hidden_NH[rows]]
        if starts_NV is not None:
            values.append(starts_NV[rows])
        elif changes.compares_whole_images(self._metric):
            values.append(pixels_NLP[rows])
        with float32_products(self._precision):
            if not (record and self._pass.now >= len(rows) * self.visible):
                return self._scores(*map(self._upload, values))
            if len(rows) not in self._recorded:
                # Compiled from normalised pixels on: what comes before is next to nothing.
                self._recorded[len(rows)] = Recorded(
                    compiled(self._scores, channel_constants), values, self._device
                )
            # Copied, since the next pass overwrites it.
            return self._recorded[len(rows)](*map(self._pin, values)).clone()

    def _scores(
        self, seen_NVP: Tensor, visible_NV: Tensor, hidden_NH: Tensor, more: Tensor | None = None
    ) -> Tensor:
        """Scores `[N, V]` of views: uint8 pixels of their visible patches, positions, all of it on the device.

        `more`: the frozen estimator's random numbers `[N, V]`, or the uint8 pixels of the whole views `[N, L, P]` for
        the metrics that compare those.
        """
        patches_NVP = normalise(seen_NVP)
        latent = self._model.encode(patches_NVP, visible_NV)
        if self._frozen is not None:
            assert more is not None
            return self._frozen.scores(latent, visible_NV, hidden_NH, more, self._pass.now)
        anchor_NHP = self._model.decode(latent, visible_NV, hidden_NH, hidden_NH.shape[1]).float()
        without = self._removals.of(latent, patches_NVP, visible_NV, hidden_NH)
        scores: list[Tensor] = []
        step = self.visible if len(visible_NV) > 1 else min(self.visible, self._pass.now)
        for removed in torch.split(torch.arange(self.visible, device=self._device), step):
            scores.append(self._change(without(removed), anchor_NHP, more, hidden_NH))
        return torch.cat(scores, dim=1)

    def _pin(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _upload(self, tensor: Tensor) -> Tensor:
        return self._pin(tensor).to(self._device, non_blocking=True)

    def _change(
        self, without_NKHP: Tensor, anchor_NHP: Tensor, whole_NLP: Tensor | None, hidden_NH: Tensor
    ) -> Tensor:
        """The metric between each `f(all \\ r)` and `f(all)`, `[N, K]`; overwrites the former."""
        if whole_NLP is None:
            change = without_NKHP.sub_(anchor_NHP[:, None])
            return changes.absolute_change(change) if self._metric == "l1" else changes.squared_change(change)
        removals = without_NKHP.shape[1]
        anchors = changes.whole_images(anchor_NHP, whole_NLP, hidden_NH, self._config)
        images = changes.whole_images(
            without_NKHP.flatten(0, 1),
            whole_NLP.repeat_interleave(removals, 0),
            hidden_NH.repeat_interleave(removals, 0),
            self._config,
        )
        images = images.reshape(-1, removals, *images.shape[1:])
        measure = changes.ssim_change if self._metric == "ssim" else changes.psnr_change
        return measure(images, anchors[:, None])
