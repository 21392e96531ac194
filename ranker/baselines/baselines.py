"""Simple ways to score the patches of an image, to measure a ranker against: one registry by name.

A baseline is a function of the patches of an image, uint8 `[L, P]` (see `center_patches`), and of its sample key, to
scores `[L]`, float32, higher = kept first, ties by index. Like a ranker's, they compare patches of one image only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchsieve.pipeline.checks import meant
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.baselines.density_peaks import density_peaks
from patchsieve.ranker.baselines.features import (
    centre_distance,
    edge_strength,
    even_order,
    gradient_energy,
    pixel_features,
    pixel_variance,
)
from patchsieve.ranker.baselines.fits import fitted_values
from patchsieve.ranker.baselines.leverage import feature_leverage
from patchsieve.ranker.learning.agreement import Scores

Baseline = Callable[[Tensor, str], Scores]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BaselineSources:
    """What baselines are made of.

    `grid`: patches along a side; `patch_size` in pixels; `seed`: of `random`; `fits`: what `fit_baselines` gave, as
    stored with a ranker under `FITS`, for `position` and `ridge`; `teacher`: for those `FROM_TEACHER`.
    """

    grid: int
    patch_size: int
    seed: int = 0
    fits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teacher: MaskedAutoencoder | None = None


def check_baseline(name: str) -> None:
    """Raise UserError where there is no such baseline."""
    if name not in BASELINES:
        raise UserError(f"there is no baseline {name!r}, only {', '.join(BASELINES)}{meant(name, BASELINES)}")


def make_baseline(name: str, sources: BaselineSources) -> Baseline:
    """The baseline of this name.

    Raises UserError for an unknown name, a fit or teacher that is missing, or one of another grid. The baseline raises
    ValueError for patches of another number, size or type.
    """
    check_baseline(name)
    score = BASELINES[name](sources)
    expected = (sources.grid**2, sources.patch_size**2 * 3)

    def checked(patches: Tensor, sample_key: str) -> Scores:
        if patches.dtype != torch.uint8 or tuple(patches.shape) != expected:
            raise ValueError(
                f"baseline {name} takes uint8 patches {list(expected)}, not {patches.dtype} {list(patches.shape)}"
            )
        return np.asarray(score(patches, sample_key), dtype=np.float32)

    return checked


_Scoring = Callable[[Tensor, str], NDArray[Any]]


def _random(sources: BaselineSources) -> _Scoring:
    return lambda patches, key: KeyedRandom(sources.seed, key, "baseline").uniform(len(patches))


def _grid(sources: BaselineSources) -> _Scoring:
    order = even_order(sources.grid)
    scores = np.empty(len(order))
    scores[order] = np.arange(len(order), 0, -1)
    return lambda _patches, _key: scores


def _variance(_sources: BaselineSources) -> _Scoring:
    return lambda patches, _key: pixel_variance(patches).cpu().numpy()


def _gradient(_sources: BaselineSources) -> _Scoring:
    return lambda patches, _key: gradient_energy(patches).cpu().numpy()


def _edge(sources: BaselineSources) -> _Scoring:
    return lambda patches, _key: edge_strength(patches.cpu(), sources.grid).numpy()


def _centre(sources: BaselineSources) -> _Scoring:
    scores = -centre_distance(sources.grid)
    return lambda _patches, _key: scores


def _position(sources: BaselineSources) -> _Scoring:
    scores, _ = _fit_of("position", sources)
    return lambda _patches, _key: scores


def _ridge(sources: BaselineSources) -> _Scoring:
    position, weights = _fit_of("ridge", sources)
    return lambda patches, _key: position + (pixel_features(patches).cpu() @ weights).numpy()


def _attention(sources: BaselineSources) -> _Scoring:
    teacher = _teacher_of("attention", sources)
    return lambda patches, _key: class_attention(teacher, patches[None])[0].cpu().numpy()


def _leverage(sources: BaselineSources) -> _Scoring:
    teacher = _teacher_of("leverage", sources)
    return lambda patches, _key: feature_leverage(teacher, patches[None])[0].numpy()


def _teacher_of(name: str, sources: BaselineSources) -> MaskedAutoencoder:
    teacher = sources.teacher
    if teacher is None:
        raise UserError(f"baseline {name} needs a teacher: name one with --teacher")
    if (teacher.config.grid, teacher.config.patch_size) != (sources.grid, sources.patch_size):
        raise UserError(
            f"baseline {name}: the teacher sees {teacher.config.grid} x {teacher.config.grid} patches of "
            f"{teacher.config.patch_size} px, these images have {sources.grid} x {sources.grid} of "
            f"{sources.patch_size} px"
        )
    return teacher


def _cluster(_sources: BaselineSources) -> _Scoring:
    return lambda patches, _key: density_peaks(patches).score


def _fit_of(name: str, sources: BaselineSources) -> tuple[NDArray[np.float64], Tensor]:
    if name not in sources.fits:
        raise UserError(
            f"baseline {name} needs its fit: name the folder of a ranker that holds it with --from"
        )
    return fitted_values(sources.fits[name], grid=sources.grid, patch_size=sources.patch_size)


@torch.inference_mode()
def class_attention(teacher: MaskedAutoencoder, patches_NLP: Tensor) -> Tensor:
    """Attention that the class token pays to every patch in the encoder's last block, float32 `[N, L]`.

    Mean over heads of the softmax over class token and patches; all patches (uint8 `[N, L, P]`) are visible.
    """
    attention: Any = teacher.blocks[-1].attn
    seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    count, positions, _ = patches_NLP.shape
    device = teacher.cls_token.device
    try:
        teacher.encode(
            normalise(patches_NLP.to(device)), torch.arange(positions, device=device).expand(count, -1)
        )
    finally:
        handle.remove()
    tokens = seen[0]
    cut = attention.qkv(tokens).reshape(count, positions + 1, 3, attention.num_heads, -1)
    query_NHE, key_NTHE = cut[:, 0, 0], cut[:, :, 1]
    logits_NHT = torch.einsum("nhe,nthe->nht", query_NHE, key_NTHE).float() * attention.scale
    weights_NHT: Tensor = logits_NHT.softmax(-1)
    return weights_NHT.mean(1)[:, 1:]


BASELINES: dict[str, Callable[[BaselineSources], _Scoring]] = {
    "random": _random,
    "grid": _grid,
    "variance": _variance,
    "gradient": _gradient,
    "edge": _edge,
    "centre": _centre,
    "position": _position,
    "ridge": _ridge,
    "attention": _attention,
    "cluster": _cluster,
    "leverage": _leverage,
}

FROM_TEACHER = ("attention", "leverage")
"""Those that a teacher makes."""
