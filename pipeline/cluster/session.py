"""Ray, joined or started for the time of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import ray

from patchsieve.pipeline.cluster.private_api import kill_helpers, own_sigterm
from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.runs.stop import StopRequest


@contextlib.contextmanager
def ray_session(stop: StopRequest) -> Iterator[None]:
    """Join the cluster of this machine or of RAY_ADDRESS, or start a local Ray; left again at the end."""
    began_here = not ray.is_initialized()
    if began_here:
        try:
            with stop.at_once(), own_sigterm():
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # a node that does not come up in time is a plain Exception
            raise PatchsieveError(f"cannot reach or start Ray: {error}") from error
        stop.check()
    try:
        yield
    except KeyboardInterrupt:
        if began_here:
            kill_helpers()
        raise
    finally:
        if began_here:
            ray.shutdown()
