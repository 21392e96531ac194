"""A run that owns its output folder: from its start to its end, whichever way it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.runs.end import RunEnd
from patchsieve.pipeline.runs.keeper import RecordKeeper
from patchsieve.pipeline.runs.log import log_event
from patchsieve.pipeline.runs.progress import Display
from patchsieve.pipeline.runs.stop import StopRequest, stop_on_signals
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.storage import kept_settings, remove_dead_scratch

_log = logging.getLogger(__name__)

Summary_co = TypeVar("Summary_co", covariant=True)
_End = TypeVar("_End", bound=RunEnd)


class Run(Protocol[Summary_co]):
    """What a job brings: its work, and its summary however far that came."""

    def execute(self, display: Display, stop: StopRequest) -> Summary_co:
        """Take the folder and do the work."""
        ...

    def finish(self, state: str, stopped_code: int | None) -> Summary_co:
        """Sum up and write that down; `stopped_code`: exit code of a run that was cut short."""
        ...


class RunRecord:
    """What a run writes down of itself, while the folder is its own: what it was asked, and how it ended."""

    def __init__(self, output: OutputFolder, config: Any, shards: Sequence[Shard]) -> None:
        """`config`: dataclass of the job's settings, the field `shards` among them."""
        self._output, self._shards = output, shards
        self._asked = {name: value for name, value in kept_settings(config).items() if name != "shards"}
        self._owned = False
        self._keeper: RecordKeeper | None = None

    def acquire(self) -> None:
        """Become the owner of the folder: see `OutputFolder.acquire`."""
        self._output.acquire()
        self._owned = True

    def begin(self, changed: Collection[str] = ()) -> None:
        """Write down that the run goes on; `changed`: shard ids whose records are outdated."""
        self._write({"state": "running"}, changed)
        self._keeper = RecordKeeper(self._output, self._shards, self._is_ours)
        log_event("run begun", {"out": self._output.url, "shards": len(self._shards)})

    def end(self, summary: _End, changed: Collection[str]) -> _End:
        """Tell the summary; tidy up and write it down unless the folder is not this run's, or not any more.

        Returns it with what is not there after all: somebody may have removed the folder meanwhile.
        """
        if self._keeper is not None:
            self._keeper.close(wait=summary.exit_code < 128)
        if summary.exit_code < 128 and self._is_ours():
            # A schedule looks at the output every night, and a footer is a request each. Not of a run that was
            # stopped: it has no time.
            try:
                summary = _without_gone(summary, self._output.keep_records(self._shards))
            except PatchsieveError as error:
                _log.warning("later runs have to read all footers of %s again: %s", self._output.url, error)
        log_event("run ended", dataclasses.asdict(summary))
        if self._is_ours():
            self._output.remove_temporaries()
            remove_dead_scratch()
            self._write(dataclasses.asdict(summary), changed)
        return summary

    def _is_ours(self) -> bool:
        return self._owned and not self._output.lost_to

    def _write(self, content: Mapping[str, Any], changed: Collection[str]) -> None:
        self._output.write_run({**content, "asked": self._asked}, shards=self._shards, changed=changed)


def _without_gone(summary: _End, without_record: Sequence[Shard]) -> _End:
    told = {*summary.failed, *summary.missing}
    gone = [shard.name for shard in without_record if shard.name not in told]
    if not gone:
        return summary
    _log.warning("%d records are gone that were there: run again", len(gone))
    return dataclasses.replace(
        summary,
        state=summary.state if summary.exit_code else "incomplete",
        done=summary.done - len(gone),
        missing=[*summary.missing, *gone],
        exit_code=summary.exit_code or 1,
    )


def run_to_end(run: Run[Summary_co], output: OutputFolder, display: Display) -> Summary_co:
    """Execute a run; stopped by a signal or ended by an error, it is summed up and gives its folder back.

    Raises PatchsieveError where the folder was taken over, of which `output` tells by `stop_this_run`.
    """

    def stopped(number: signal.Signals) -> Summary_co:
        return run.finish(f"stopped by {number.name}", 128 + number)

    def tidy_up(number: signal.Signals) -> None:
        stopped(number)
        output.release()

    def executed(stop: StopRequest) -> Summary_co:
        try:
            return run.execute(display, stop)
        except KeyboardInterrupt:
            number = stop.accept()
            if not output.lost_to:
                return stopped(number)
        raise PatchsieveError(f"{output.url} was taken over by {output.lost_to}: this run stops")

    with stop_on_signals(tidy_up) as stop:
        try:
            return executed(stop)
        except PatchsieveError as error:
            with contextlib.suppress(PatchsieveError):
                run.finish(f"ended: {error}", 1)
            raise
        finally:
            output.release()
