"""Configuration of `patchsieve pretrain`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a small masked autoencoder as a teacher, in one process, with all photos in memory."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Shards of training photos: paths, globs, brace ranges, directories or @list.txt, on any fsspec URL."""
    out: str
    """Local folder for the checkpoint, the learning curve and the finished teacher."""
    test: tuple[str, ...]
    """Shards of photos that are measured and never trained on."""
    unsorted: bool = False
    """Collect the members of a sample wherever they lie in its shard, in up to 1 GiB of memory; by default they must
    lie side by side."""
    resume: bool = False
    """Go on from the checkpoint in OUT; --steps may differ from before while the learning rate is still level."""
    image_size: int = 224
    """Side of the training crops in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 192
    """Channels of the encoder."""
    depth: int = 8
    """Blocks of the encoder."""
    heads: int = 3
    """Attention heads of the encoder."""
    decoder_width: int = 128
    """Channels of the decoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 4
    """Attention heads of the decoder."""
    target: Literal["pixels", "normalised"] = "pixels"
    """Predict ImageNet-normalised pixels, or pixels normalised within each patch."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    steps: int = 10_000
    """Optimiser steps in all."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 4e-3
    """Muon's learning rate, for the matrices of the transformer blocks."""
    adam_lr: float = 2e-3
    """AdamW's learning rate, for embeddings, norms, biases and the prediction."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices."""
    warmup_steps: int = 100
    """Steps in which the learning rates rise."""
    decay_share: float = 0.5
    """Last share of the steps, in which the learning rates fall linearly to 0."""
    decoded_share: float = 0.43
    """Share of the hidden patches that is decoded until the last 15 % of the steps."""
    min_scale: float = 0.35
    """Smallest share of a photo's area that a training crop covers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of matrix products; auto is decided by a short probe."""
    seed: int = 0
    """Seed of weights, batches, crops and masks."""
    report_every: int = 100
    """Steps between measurements, which also write the checkpoint."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps", "report_every"):
            at_least_one(flag(name), getattr(self, name))
        for name in ("mask_ratio", "decay_share", "decoded_share", "min_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{flag(name)} is {getattr(self, name)}, must be in (0, 1]")
        if not self.shards or not self.test:
            raise UserError("pretraining needs shards to train on and --test shards to measure on")
