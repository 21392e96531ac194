"""How long a run waits while it has no actor at all, and what it says meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from patchsieve.pipeline.cluster.nodes import ClusterView, others_at_work
from patchsieve.pipeline.cluster.room import Room
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.errors import PatchsieveError, UserError

ASK_S = 5.0
"""Seconds between two looks at what the cluster has left."""
JOIN_S = 30.0
"""Seconds for which nodes may still join where none of those that are there could hold an actor."""


class Patience:
    """What a run without any ready actor does: wait, as long as others have the cluster; else for a time.

    `waits_for`: the jobs that it waits for, "" for none.
    """

    def __init__(
        self,
        size: ActorSize,
        start_timeout_s: float,
        view: ClusterView,
        *,
        now: float,
        others: Callable[[], str] = others_at_work,
    ) -> None:
        self._size, self._timeout_s, self._view, self._others = size, start_timeout_s, view, others
        self._since = self._possible_at = self._asked_at = now
        self.waits_for = ""

    def worked(self, now: float) -> None:
        """There is a ready actor."""
        self._since = self._possible_at = now
        self.waits_for = ""

    def late(self, now: float) -> bool:
        """Whether the time is over in which a first actor should have come."""
        return now - self._since > self._timeout_s

    def look(self, now: float, *, placed: bool) -> None:
        """Look at what the cluster has left, from time to time. `placed`: an actor of the run has a place already.

        Raises UserError where no node, there or to come, could hold an actor.
        """
        if now - self._asked_at < ASK_S:
            return
        self._asked_at = now
        room = self._view.room_for(self._size)
        if room is not Room.NEVER or not self._view.nodes:
            self._possible_at = now  # without nodes that take actors nobody knows yet what they will have
        elif now - self._possible_at > JOIN_S:
            raise UserError(f"no actor can come: {self.asked}; {self._way_out}")
        self.waits_for = self._others() if room is Room.TAKEN and not placed else ""
        if self.waits_for:
            self._since = now

    def complain(self) -> PatchsieveError:
        """What a run says that has waited long enough."""
        return PatchsieveError(
            f"no actor became ready in {self._timeout_s:.0f} s; {self.asked}: {self._way_out}, or wait longer with "
            "--start-timeout"
        )

    @property
    def asked(self) -> str:
        """What actors ask for, and what there is."""
        return (
            f"each asks for {self._size.cpus} CPUs and {self._size.gpus:g} GPUs, the nodes have {self._view}"
        )

    @property
    def _way_out(self) -> str:
        return "add nodes or change --gpus-per-actor and --cpus-per-actor"
