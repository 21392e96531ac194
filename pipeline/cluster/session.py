"""Ray, joined or started for the time of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator

import ray

from patchsieve.pipeline.cluster.private_api import kill_helpers, own_sigterm, quiet_driver
from patchsieve.pipeline.cluster.surroundings import check_shadows, explained
from patchsieve.pipeline.errors import PatchsieveError, first_line
from patchsieve.pipeline.runs.stop import StopRequest
from patchsieve.pipeline.runs.waiting import doing

CONNECT_S = 20.0
"""Seconds in which the head of a cluster takes a connection: Ray itself would try for more than ten minutes."""

_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([^/\[\]]+?)\]?:(\d{1,5})")


def check_address(address: str) -> None:
    """Raise PatchsieveError where nothing answers at an address as RAY_ADDRESS has it; `auto` and the like pass."""
    found = _HOST_AND_PORT.fullmatch(address.strip())
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise PatchsieveError(
            f"RAY_ADDRESS is {address}, and no cluster answers there ({first_line(error)}): start it, or unset the "
            "variable to work on this machine"
        ) from None


@contextlib.contextmanager
def ray_session(stop: StopRequest, *, quiet: bool = False) -> Iterator[None]:
    """Join the cluster of this machine or of RAY_ADDRESS, or start a local Ray; left again at the end.

    `quiet`: see `quiet_driver`.
    """
    began_here = not ray.is_initialized()
    if began_here:
        check_shadows()
        check_address(os.environ.get("RAY_ADDRESS", ""))
        try:
            silence = quiet_driver() if quiet else contextlib.nullcontext()
            with doing("starting Ray"), stop.at_once(), own_sigterm(), silence:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # a node that does not come up in time is a plain Exception
            raise PatchsieveError(explained(error)) from error
        stop.check()
    try:
        yield
    except KeyboardInterrupt:
        if began_here:
            kill_helpers()
        raise
    finally:
        if began_here:
            with doing("stopping Ray"):
                ray.shutdown()
