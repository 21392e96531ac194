"""A run that owns its output folder: from its start to its end, whichever way it ends."""

from __future__ import annotations

import contextlib
import signal
from typing import Protocol, TypeVar

from patchrank.pipeline.errors import PatchrankError
from patchrank.pipeline.output import OutputFolder
from patchrank.pipeline.progress import Display
from patchrank.pipeline.stop_signals import StopRequest, stop_on_signals

Summary_co = TypeVar("Summary_co", covariant=True)


class Run(Protocol[Summary_co]):
    """What a job brings: its work, and its summary however far that came."""

    def execute(self, display: Display, stop: StopRequest) -> Summary_co:
        """Take the folder and do the work."""
        ...

    def finish(self, state: str, stopped_code: int | None) -> Summary_co:
        """Sum up and write that down; `stopped_code`: exit code of a run that was cut short."""
        ...


def run_to_end(run: Run[Summary_co], output: OutputFolder, display: Display) -> Summary_co:
    """Execute a run; stopped by a signal or ended by an error, it is summed up and gives its folder back."""

    def stopped(number: signal.Signals) -> Summary_co:
        return run.finish(f"stopped by {number.name}", 128 + number)

    def tidy_up(number: signal.Signals) -> None:
        stopped(number)
        output.release()

    with stop_on_signals(tidy_up) as stop:
        try:
            return run.execute(display, stop)
        except KeyboardInterrupt:
            return stopped(stop.accept())
        except PatchrankError as error:
            with contextlib.suppress(PatchrankError):
                run.finish(f"ended: {error}", 1)
            raise
        finally:
            output.release()
