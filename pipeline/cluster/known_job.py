"""A submitted job as a cluster knows it, and how it ended: pure, from what Ray tells."""

from __future__ import annotations

import dataclasses

_LONGEST_WHY = 400
# Of the last lines of a job, the ones that say most: what ended it, or what its summary begins with.
_TELLING = ("patchsieve ", "incomplete:")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How a job ended: `succeeded`, `failed`, `stopped`, or `lost`, where its cluster knows it no more.

    `exit_code` None where it is not known; `why`: a line; `ended`: seconds since 1970.
    """

    state: str
    exit_code: int | None = None
    why: str = ""
    ended: float | None = None

    @property
    def text(self) -> str:
        """For people."""
        code = "" if self.exit_code in (None, 0) else f" with exit code {self.exit_code}"
        return f"{self.state}{code}" + (f": {self.why}" if self.why else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownJob:
    """A job of a schedule. `out`: the output folder that it writes; `end` None while it goes on."""

    id: str
    out: str
    end: JobEnd | None = None


def why_of(message: str) -> str:
    """The line of Ray's message about a failed job that tells most: it ends with the job's last lines."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for beginning in _TELLING:
        found = [line for line in lines if line.startswith(beginning)]
        if found:
            return found[-1][:_LONGEST_WHY]
    return lines[-1][:_LONGEST_WHY] if lines else ""
