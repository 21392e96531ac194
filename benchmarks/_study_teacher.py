"""A teacher that predicts patches normalised one by one: the bundled one, trained further on that target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from patchsieve.pipeline.pretrain.config import PretrainConfig
from patchsieve.pipeline.pretrain.job import KEPT_MARGIN, load_photos
from patchsieve.pipeline.pretrain.training import Pretraining
from patchsieve.pipeline.teacher.build import build_teacher, save_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher

STEPS = 200
MOST_SHARDS = 8


def normalised_teacher(out: Path, shards: Sequence[str], held_out: Sequence[str], *, half: bool) -> str:
    """Train it in `out`, unless it lies there, and return its folder."""
    if not (out / "teacher.safetensors").exists():
        config = PretrainConfig(
            shards=tuple(shards[:MOST_SHARDS]),
            out=str(out),
            test=tuple(held_out),
            target="normalised",
            steps=STEPS,
            warmup_steps=20,
            lr=2e-3,
            adam_lr=1e-3,
        )
        side = round(config.image_size * KEPT_MARGIN)
        photos, seen_not = load_photos(config.shards, side), load_photos(config.test, side)
        out.mkdir(parents=True, exist_ok=True)
        run = Pretraining(config, photos, seen_not, out, device=torch.device("cpu"))
        run.model.load_state_dict(build_teacher(read_teacher("tiny")).state_dict())
        run.half = half
        run.run(every=50, report=lambda step, loss, error: print(step, f"{loss:.3f} {error:.3f}", flush=True))
        save_teacher(run.model.eval(), str(out), half=True, name="tiny-normalised")
    return str(out)
