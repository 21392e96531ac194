"""Whether actors that do not come will ever: nothing could hold them, something is coming, or others have it all.

Pure, over what nodes have in all and have left, what an autoscaler may bring, and whose actors are at work.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from patchsieve.pipeline.cluster.slots import ActorSize, NodeResources, count_slots

SHOWN = 3
"""Jobs that are named."""
_LONGEST_COMMAND = 60


class Room(Enum):
    """What an actor that was asked for waits for."""

    FREE = "a node has room for it: it is being started"
    COMING = "the autoscaler may bring a node for it"
    TAKEN = "others have what it asks for"
    NEVER = "neither a node nor the autoscaler could hold it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """A kind of node that an autoscaler starts: what each has, and how many there may be, None for any number."""

    node: NodeResources
    most: int | None


def room_for(
    size: ActorSize,
    *,
    nodes: Sequence[NodeResources],
    free: Mapping[str, NodeResources],
    groups: Sequence[NodeGroup],
) -> Room:
    """What one more actor of this size waits for.

    `nodes`: those that may take actors, with all they have; `free`: what is left of them, by node id.
    """
    there = [node for node in nodes if count_slots([node], size)]
    if any(count_slots([free[node.node_id]], size) for node in there if node.node_id in free):
        return Room.FREE
    kinds = [group for group in groups if group.most != 0 and count_slots([group.node], size)]
    if not there and not kinds:
        return Room.NEVER
    most = None if any(group.most is None for group in kinds) else sum(group.most or 0 for group in kinds)
    return Room.COMING if kinds and (most is None or most > len(there)) else Room.TAKEN


def holders(jobs_of_actors: Iterable[str], commands: Mapping[str, str]) -> str:
    """Who is at work, for people: the jobs of living actors, most of them first; "" for nobody.

    `jobs_of_actors`: a job id for each actor; `commands`: what each job runs.
    """
    counted = Counter(jobs_of_actors).most_common()
    told = [
        f"job {job} ({commands.get(job, '')[:_LONGEST_COMMAND] or 'unknown'}): {count} actors"
        for job, count in counted[:SHOWN]
    ]
    return ", ".join(told) + (", ..." if counted[SHOWN:] else "")
