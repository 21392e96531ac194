"""A command line or two for each command, as its help and the reference show them; tests read them all."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "pack": (
        "patchsieve pack flowers/train --out shards/train",
        "patchsieve pack flowers/test --out shards/test --classes shards/train",
    ),
    "score": (
        "patchsieve score 'photos/train-{000..127}.tar' --out tables --teacher mae-base --dry-run",
        "patchsieve score 'photos/*.tar' --out tables --teacher tiny --crop center --views 22",
    ),
    "train": (
        "patchsieve train tables --out ranker",
        "patchsieve train tables --out ranker --model vit_base_patch16_224 --weights teacher --resume",
    ),
    "evaluate": (
        "patchsieve evaluate 'photos/test-*.tar' --ranker ranker --teacher mae-base --out evaluation",
    ),
    "prove": (
        "patchsieve prove 'train-*.tar' --test 'test-*.tar' --ranker ranker --teacher mae-base --out proof",
    ),
    "prune": (
        "patchsieve prune 'photos/*.tar' --ranker ranker --out pruned --dry-run --sweep 0.25,0.5 --sheet sheet.png",
        "patchsieve prune 'photos/*.tar' --ranker baseline:edge --out pruned --keep 0.5",
    ),
    "report": ("patchsieve report tables ranker pruned proof 'photos/*.tar' --out report.html",),
    "sheet": (
        "patchsieve sheet tables photo-0042 --images 'photos/*.tar' --ranker ranker",
        "patchsieve sheet pruned --top 8 --out most.png",
    ),
    "schedule once": (
        "patchsieve schedule once --source 's3://bucket/*/' --out s3://tables -- --teacher mae-base",
    ),
    "schedule run": (
        "patchsieve schedule run --cron '0 3 * * *' --source 's3://bucket/*/' --out s3://tables -- --teacher mae-base",
    ),
    "schedule list": ("patchsieve schedule list --source 's3://bucket/*/' --out s3://tables",),
    "status": ("patchsieve status tables --json",),
    "verify": ("patchsieve verify tables --sample 0.01",),
    "pretrain": ("patchsieve pretrain 'photos/*.tar' --test other.tar --out teacher",),
    "demo": ("patchsieve demo --images holiday --out demo-out",),
}
