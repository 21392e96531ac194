"""Which settings of score and train make the better ranker: one thing changed at a time, at equal steps.

    python -m benchmarks.study TRAIN_SHARDS... --held-out SHARDS... --work DIR [--arms PATTERN]

Scores what it needs with `patchsieve score` (tiny teacher), trains every arm from the tables alone and measures
Spearman's correlation with dense teacher scores of photos that no arm saw. Tables, references and arms that DIR holds
are not made again, so that a study can be stopped and goes on. Writes DIR/study.json and DIR/study.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import machine
from benchmarks._held_out import held_out_images
from benchmarks._study_arms import IMAGE_SHARE, REFERENCES, TABLES, Arm, arms
from benchmarks._study_report import draw, print_study
from benchmarks._study_teacher import normalised_teacher
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.ranker.batches.index import index_tables
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.evaluate.dense import DenseTeacher
from patchsieve.ranker.evaluate.dense_table import read_dense
from patchsieve.ranker.learning.agreement import spearman
from patchsieve.ranker.learning.training import Recipe, Training
from patchsieve.ranker.model.initial_weights import initial_ranker
from patchsieve.ranker.model.ranker import Ranker, RankerConfig

SEED = 0


def score(folder: Path, shards: Sequence[str], options: str, asked: argparse.Namespace) -> None:
    """A table by `patchsieve score`, unless the folder holds it already."""
    if (folder / "complete").exists():
        return
    chosen = shlex.split(options.replace("NORMALISED", shlex.quote(asked.normalised or "")))
    if "--teacher" not in chosen:
        chosen += ["--teacher", "tiny"]
    chosen += ["--store", "view", "--precision", asked.precision]
    print(f"{time.strftime('%X')} scoring {folder.name}: {' '.join(chosen)}", flush=True)
    command = [sys.executable, "-m", "patchsieve.jobs.score", *shards, "--out", str(folder), *chosen]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder / "complete").touch()


def fit(arm: Arm, folders: Sequence[str], half: torch.dtype | None) -> tuple[Ranker, list[float]]:
    """The ranker of an arm and its loss at every step."""
    index = index_tables(ScoreTables(list(folders)), context=arm.context, held_out_share=0.0, seed=SEED)
    config = RankerConfig(model="vit_tiny_patch16_224", head=arm.head, depth=arm.depth)
    teacher = read_teacher("tiny")
    ranker = initial_ranker(config, arm.weights, teacher=teacher, seed=SEED)
    recipe = Recipe(
        loss=arm.loss,
        target=None,
        base_lr=arm.lr * 256 / arm.batch,
        weight_decay=0.05,
        beta2=0.95,
        warmup_steps=arm.steps // 10,
        steps=arm.steps,
        batch_size=arm.batch,
        accumulate=1,
        clip=1.0,
    )
    training = Training(ranker, recipe, device=torch.device("cpu"), half=half, full=arm.context == "full")
    batches = TableBatches(index, batch_size=arm.batch, seed=SEED, flip=True)
    losses = []
    with batches.stream() as stream:
        while training.step < recipe.steps:
            losses.append(training.train_step([next(stream)]))
    return ranker.eval(), losses


@torch.inference_mode()
def whole_image_scores(ranker: Ranker, patches_ILP: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores of all patches, float32 `[I, L]`."""
    return torch.cat([ranker(part) for part in patches_ILP.split(25)]).numpy()


def run_arm(
    arm: Arm, work: Path, references: dict[str, DenseTeacher], half: torch.dtype | None
) -> dict[str, Any]:
    """Train, measure, and what to keep of it."""
    started = time.perf_counter()
    ranker, losses = fit(arm, [str(work / "tables" / name) for name in arm.tables], half)
    seconds = time.perf_counter() - started
    agreement = {}
    for name in arm.references:
        dense = references[name]
        found = spearman(whole_image_scores(ranker, dense.patches), dense.dense)
        agreement[name] = [round(float(value), 4) for value in found]
    return {
        **dataclasses.asdict(arm),
        "seconds": round(seconds, 1),
        "samples_per_s": round(arm.steps * arm.batch / seconds, 1),
        "last_loss": float(np.mean(losses[-10:])),
        "agreement": agreement,
    }


def main() -> None:
    """Run the arms that are not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arms", default="", help="regular expression that names of arms must hold")
    parser.set_defaults(normalised=None)
    parser.add_argument("--precision", default="auto", help="of scoring, as `patchsieve score` takes it")
    parser.add_argument("--fp32", action="store_true", help="train in float32 instead of bfloat16")
    options = parser.parse_args()
    chosen = [arm for arm in arms() if re.search(options.arms, arm.name)]
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if any(arm.own == "normalised" for arm in chosen):
        folder = work / "teacher-normalised"
        options.normalised = normalised_teacher(
            folder, options.shards, options.held_out, half=not options.fp32
        )
    kept = work / "study.json"
    results: dict[str, Any] = (
        json.loads(kept.read_text()) if kept.exists() else {"arms": {}, "references": {}}
    )
    results["machine"] = machine()
    photos = held_out_images(options.held_out, RankerConfig())
    references: dict[str, DenseTeacher] = {}
    for arm in chosen:
        for name in arm.references:
            if name not in references:
                folder = work / "references" / name
                score(folder, options.held_out, f"--crop center {REFERENCES[name]}", options)
                digest = ScoreTables(str(folder)).teacher["digest"]
                references[name] = read_dense(str(folder), photos, digest=digest, aggregate="log")
                results["references"][name] = {
                    "photos": len(photos),
                    "partitions": references[name].how.partitions,
                    "rho": round(references[name].rho, 4),
                }
        for name in arm.tables:
            share = f"--sample {IMAGE_SHARE} {TABLES[name]}"
            score(work / "tables" / name, options.shards, share, options)
        if arm.name not in results["arms"]:
            half = None if options.fp32 else torch.bfloat16
            results["arms"][arm.name] = run_arm(arm, work, references, half)
            kept.write_text(json.dumps(results, indent=1) + "\n")
            mean = np.mean(results["arms"][arm.name]["agreement"]["spread"])
            print(
                f"{time.strftime('%X')} {arm.name}: {mean:.3f}, {results['arms'][arm.name]['seconds']:.0f} s",
                flush=True,
            )
    print_study(results)
    draw(results, work / "study.png")


if __name__ == "__main__":
    main()
