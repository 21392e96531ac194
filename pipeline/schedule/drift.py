"""Whether a ranker still orders a corpus as its teacher does.

What `patchsieve evaluate` found of it is held against what it found of the corpus that the ranker was trained on. The
agreement counts as a share of its ceiling, sqrt(rho): images whose scores repeat less are not taken for drift.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.shards.specs import Shard

DRIFT_FOLDER = "drift"
"""Folder of a corpus's output with the evaluation of the ranker on a share of it."""
DRIFT_PREFIX = "drift-of-"
"""What the ids of the jobs begin with that measure it, and those of no other job."""
EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfCeiling:
    """Agreement over sqrt(rho), and its 95 % interval from `low` to `high`, over so many `images`."""

    value: float
    low: float
    high: float
    images: int

    def __post_init__(self) -> None:
        # What is no number is below nothing, and would never be drift.
        if not -math.inf < self.low <= self.value <= self.high < math.inf:
            raise ValueError(f"{self.value} from {self.low} to {self.high} is no interval")

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.images} images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation says of the ranker of this `digest`."""

    digest: str
    of_ceiling: OfCeiling


def read_evaluation(folder: str) -> Evaluated | None:
    """The evaluation in a folder, None where there is none.

    Raises DamagedFileError for a file that is none or has no number, InfrastructureError.
    """
    url = storage.join(folder, EVALUATION)
    try:
        with storage.parsing(url):
            found = storage.read_object(url)
            of_ceiling = typed(OfCeiling, found["agreement"]["ranker"]["of_ceiling"])
            return Evaluated(digest=str(found["ranker"]["digest"]), of_ceiling=of_ceiling)
    except FileNotFoundError:
        return None


def has_fallen(new: OfCeiling, reference: OfCeiling) -> bool:
    """Whether the agreement is lower, by more than the interval of the difference of two independent samples."""
    margin = math.hypot(new.high - new.value, reference.value - reference.low)
    return reference.value - new.value > margin


def drift_line(new: Evaluated, reference: Evaluated) -> str:
    """What a tick says of a corpus; a warning begins with DRIFT."""
    if new.digest != reference.digest:
        return f"its drift was measured with another ranker: remove its folder {DRIFT_FOLDER} to have it measured again"
    compared = f"{new.of_ceiling} of what its teacher allows, on its training corpus {reference.of_ceiling}"
    fallen = has_fallen(new.of_ceiling, reference.of_ceiling)
    return f"{'DRIFT' if fallen else 'no drift'}: the ranker reaches {compared}"


def share_of(shards: Sequence[Shard], share: float) -> tuple[Shard, ...]:
    """A share of the shards, at least one, by a hash of their ids: the same ones whenever it is asked."""
    ordered = sorted(shards, key=lambda shard: digest_of({"drift": shard.id}))
    return tuple(ordered[: max(1, round(share * len(shards)))])


def drift_command(
    listed: str, out: str, *, ranker: str, teacher: str, unsorted: bool, uploaded: bool
) -> list[str]:
    """The words of the job that measures; `unsorted`: the shards are scored so; `uploaded`: it runs in an uploaded
    checkout, not the installed package.
    """
    program = ["python", "-m", "patchsieve"] if uploaded else ["patchsieve"]
    options = ["--ranker", ranker, "--teacher", teacher, "--out", out, "--no-reconstruct", "--no-plot"]
    return [*program, "evaluate", f"@{listed}", *options, *(["--unsorted"] if unsorted else [])]
