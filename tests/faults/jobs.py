"""The jobs that `make faults` kills: how they are started, how far they are, and what they must have left."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import ClassVar

from patchsieve.jobs import prune, score, train
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.prune.config import PruneConfig
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.pixel_tables import write_pixel_table
from tests.helpers.prune_runs import contents, prune_config, prune_here, save_small_ranker
from tests.helpers.score_processes import leftovers
from tests.helpers.score_runs import errors_of, rows_of, save_small_teacher, score_config, score_here

SHARDS, PHOTOS, VIEWS = 10, 12, 6
TRAINING = """
    --model vit_tiny_patch16_224 --depth 1 --head token --batch-size 16 --warmup-views 2 --held-out 0.2
    --base-lr 0.01 --views-per-image 48 --measure-every 8 --workers 2 --checkpoint-minutes 0.01
"""


@dataclasses.dataclass(frozen=True)
class Job(abc.ABC):
    """A job over the inputs below `world`; `prepare` makes them, and `world/expected/<name>`, once."""

    world: Path
    name: ClassVar[str]

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make the inputs; nothing of Ray."""

    @abc.abstractmethod
    def run(self, out: Path) -> None:
        """The command, in this process; ends it by SystemExit. Goes on where `out` holds a run."""

    @abc.abstractmethod
    def commits(self, out: Path) -> int:
        """Records or checkpoints that are there."""

    @abc.abstractmethod
    def differences(self, out: Path, expected: Path) -> list[str]:
        """What is not as an undisturbed run left it."""

    @property
    def most(self) -> int:
        """Commits of a whole run, about."""
        return SHARDS


def _shards(world: Path) -> list[Path]:
    folder = world / "shards"
    if not folder.exists():
        for number in range(SHARDS):
            samples = [*photo_samples(PHOTOS, number, 240, 320), (f"bad-{number}", {"jpg": b"no picture"})]
            write_shard(folder / f"part-{number}.tar", samples)
    return sorted(folder.glob("*.tar"))


def _arguments(folder: Path, name: str, config: object) -> list[str]:
    file = folder / f"{name}.yaml"
    file.write_bytes(config_to_yaml(config))
    return ["--config", str(file)]


class ScoreJob(Job):
    """Two actors score ten shards, in each of which a sample is bad."""

    name = "score"

    def _config(self, out: Path) -> ScoreConfig:
        teacher = str(self.world / "small-pixels-0.safetensors")
        return score_config(_shards(self.world), out, teacher, views=str(VIEWS), max_actors=2, max_bad=0.5)

    def prepare(self) -> None:
        save_small_teacher(self.world)
        score_here(self._config(self.world / "expected" / self.name))

    def run(self, out: Path) -> None:
        score.main(_arguments(out.parent, self.name, self._config(out)))

    def commits(self, out: Path) -> int:
        return len(list((out / "scores").glob("*.parquet")))

    def differences(self, out: Path, expected: Path) -> list[str]:
        found = [f"left behind: {name}" for name in leftovers(out)]
        if rows_of(out) != rows_of(expected):
            found.append("its rows")
        if errors_of(out) != errors_of(expected):
            found.append("its errors")
        return found


class PruneJob(Job):
    """One actor prunes the same shards."""

    name = "prune"

    def _config(self, out: Path) -> PruneConfig:
        return prune_config(_shards(self.world), out, str(self.world / "ranker-0"))

    def prepare(self) -> None:
        save_small_ranker(self.world)
        prune_here(self._config(self.world / "expected" / self.name))

    def run(self, out: Path) -> None:
        prune.main(_arguments(out.parent, self.name, self._config(out)))

    def commits(self, out: Path) -> int:
        return len(list((out / "index").glob("*.parquet")))

    def differences(self, out: Path, expected: Path) -> list[str]:
        found = [f"left behind: {name}" for name in leftovers(out)]
        return [*found, "its tars or indexes"] if contents(out) != contents(expected) else found


class TrainJob(Job):
    """Two workers train a ranker, with a checkpoint every second or so."""

    name = "train"

    def prepare(self) -> None:
        write_pixel_table(self.world / "pixels.parquet", images=range(40), views=2)

    def run(self, out: Path) -> None:
        resume = ["--resume"] if (out / "training.json").exists() else []
        table = str(self.world / "pixels.parquet")
        train.main([table, "--out", str(out), *TRAINING.split(), *resume])

    def commits(self, out: Path) -> int:
        # Ray keeps three of them.
        return len(list((out / "ray").glob("checkpoint_*/state.pt")))

    def differences(self, out: Path, expected: Path) -> list[str]:
        pairs = [(out / name, expected / name) for name in ("", "last")]
        found = [
            f"the ranker {one.name}"
            for one, other in pairs
            if load_ranker(str(one)).digest != load_ranker(str(other)).digest
        ]
        return found + [f"left behind: {name}" for name in ("owner.json",) if (out / name).exists()]

    @property
    def most(self) -> int:
        return 2
