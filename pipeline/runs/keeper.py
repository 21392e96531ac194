"""What the records of a run say, kept while it goes on: else every look at it reads every footer, a request each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.shards.specs import Shard

KEEP_S = 300.0
"""Seconds from one time to the next: what `status` then reads by itself are the footers of that time."""
_JOIN_S = 0.5

_log = logging.getLogger(__name__)


class _RunEnds(Exception):  # noqa: N818 -- no error
    pass


class RecordKeeper:
    """Keeps the records of an output on a thread of its own, until `close`; only while the folder `is_ours`."""

    def __init__(self, output: OutputFolder, shards: Sequence[Shard], is_ours: Callable[[], bool]) -> None:
        self._output, self._shards, self._is_ours = output, shards, is_ours
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="record keeper", daemon=True)
        self._thread.start()

    def close(self, *, wait: bool) -> None:
        """Stop the thread, which reads no other footer then; `wait`: until it has ended, however slow the store is."""
        self._over.set()
        self._thread.join(None if wait else _JOIN_S)

    def _work(self) -> None:
        while not self._over.wait(KEEP_S):
            try:
                if self._is_ours():
                    self._output.keep_records(self._shards, self._check)
            except PatchsieveError as error:
                _log.warning("the records of %s are not kept yet: %s", self._output.url, error)
            except _RunEnds:
                return

    def _check(self) -> None:
        if self._over.is_set():
            raise _RunEnds
