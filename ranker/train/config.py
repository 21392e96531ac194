"""Configuration of `patchsieve train`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from patchsieve.pipeline.checks import at_least_one, flag
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.runs.log import LogFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fit a ranker to the pseudo-scores of one or more tables."""

    tables: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TABLES")]
    """Score tables: output folders of `patchsieve score` or single .parquet files, on any fsspec URL."""
    out: str
    """Folder of the ranker, its checkpoints and its curve. Add --resume to go on in it."""
    model: str = "vit_small_patch16_224"
    """A vision transformer that timm knows by this name."""
    depth: int | None = None
    """Only the first blocks of the model; default: all."""
    weights: str = "random"
    """Where the ranker starts: random, timm (what timm publishes for the model), teacher (the encoder of the teacher
    that scored the tables: same width and heads), or a local .safetensors or .pth."""
    teacher: str | None = None
    """For --weights teacher, where the tables' teacher is found; default: by the name in the tables."""
    head: Literal["cls", "token"] = "token"
    """Scores from each patch's own token, or from the class token (the paper's, which needs far longer training)."""
    loss: Literal["list_mle", "list_mle_sub", "list_net", "rank_net", "mse", "focused"] = "rank_net"
    """Learning-to-rank loss; list_mle is the paper's."""
    target: Literal["auto", "raw", "standardised", "log"] = "auto"
    """What the loss compares with; auto is raw for ListMLE, standardised for the others."""
    context: Literal["visible", "full"] = "visible"
    """Train on the visible patches alone, or on whole views (tables of `--store view`, or --images)."""
    images: tuple[str, ...] = ()
    """The shards that were scored, as patchsieve score takes them: views that a table does not hold are made again from
    their images. Needed for tables of --store none, and for --context full without stored views."""
    root: str | None = None
    """The folder that --root named when the tables were scored: shards are then known by their path below it."""
    unsorted: bool = False
    """The shards were scored with --unsorted: each is read whole for every 64 MB of its images."""
    flip: bool = False
    """Mirror half of the stored rows, others in every pass."""
    views_per_image: float = 48.0
    """Length of the training in views per image; 48 are 12 passes over a table of 4 views."""
    warmup_views: float = 4.0
    """Views per image over which the learning rate rises."""
    batch_size: int = 256
    """Rows per step, of all workers together."""
    accumulate: int = 1
    """Parts that a worker splits its share of a batch into, to save memory."""
    base_lr: float = 1e-3
    """Learning rate per 256 rows of a batch."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices."""
    beta2: float = 0.95
    """AdamW's second decay rate."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before it; 1 is one rate for all."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 clips nothing."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of matrix products; auto is fp16 on a GPU, as published, and fp32 on processors."""
    decode_pixels: int = 200_000_000
    """Pixels of images that a worker decodes at one moment; about 15 bytes each. One image may have more."""
    held_out: float = 0.05
    """Share of the images, chosen by key, that is measured and never trained on."""
    measure_every: float = 4.0
    """Views per image between measurements; each writes a checkpoint, and the ranker if it is the best so far."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints; what a killed worker costs at most."""
    max_restarts: int = 3
    """How often workers may fail before the run does; preempted nodes do not count."""
    stall_timeout: float = 900.0
    """Seconds that a step may take before its worker ends itself, which counts as a restart."""
    workers: int | Literal["auto"] = 1
    """Training processes: one per GPU, or on processors. auto: as many as share a batch evenly and have room on the
    cluster, what its autoscaler may bring included."""
    gpus_per_worker: float = 1.0
    """GPUs of each worker where the cluster has some, or its autoscaler may add them; 0 trains on processors."""
    seed: int = 0
    """Seed of weights and of the order of rows."""
    resume: bool = False
    """Go on from the last checkpoint in OUT, with the same settings; --views-per-image may be longer."""
    log_format: LogFormat = "text"
    """Lines for people, or every event as a line of JSON."""
    dry_run: bool = False
    """Print rows, passes and steps, what is read, and hours by a short measurement; writes nothing."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "workers", "depth", "decode_pixels"):
            at_least_one(flag(name), getattr(self, name))
        for name in ("views_per_image", "measure_every", "base_lr", "checkpoint_minutes", "stall_timeout"):
            if not getattr(self, name) > 0:
                raise UserError(f"{flag(name)} is {getattr(self, name)}, must be above 0")
        workers = 1 if self.workers == "auto" else self.workers
        if self.batch_size % (workers * self.accumulate):
            raise UserError(
                f"--batch-size {self.batch_size} does not divide by {workers} workers x {self.accumulate} parts"
            )
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer-decay is {self.layer_decay}, must be above 0 and at most 1")
        for name in ("warmup_views", "weight_decay", "clip", "max_restarts"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{flag(name)} is {getattr(self, name)}, must not be below 0")
        if not 0 <= self.gpus_per_worker <= 1:
            raise UserError(f"--gpus-per-worker is {self.gpus_per_worker}, must be from 0 to 1")
        if not 0 <= self.beta2 < 1:
            raise UserError(f"--beta2 is {self.beta2}, must be at least 0 and below 1")
        if self.teacher is not None and self.weights != "teacher":
            raise UserError(f"--teacher does nothing with --weights {self.weights}: leave it out")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held-out is {self.held_out}, must be a share between 0 and 1")
        if self.root is not None and not self.images:
            raise UserError("--root does nothing without --images: leave it out")
        if self.unsorted and not self.images:
            raise UserError("--unsorted does nothing without --images: leave it out")
        if not self.tables:
            raise UserError("no table given: name an output folder of patchsieve score")
