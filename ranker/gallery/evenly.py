"""Some of what many shards hold, as evenly as that allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_Shard = TypeVar("_Shard")
_Found = TypeVar("_Found")


def evenly(
    shards: Sequence[_Shard],
    count: int,
    take: Callable[[_Shard, int], list[_Found]],
    *,
    size: Callable[[_Shard], float],
) -> list[_Found]:
    """`count` findings in the order of the shards, fewer where they hold fewer: `take` gives at most so many of one.

    Smaller ones are asked first, so that the others can give what those lack. Of more than `count` shards every so
    many-th is asked.
    """
    chosen = [shards[len(shards) * at // count] for at in range(count)] if len(shards) > count else shards
    found: dict[int, list[_Found]] = {}
    left = count
    for asked, at in enumerate(sorted(range(len(chosen)), key=lambda at: size(chosen[at]))):
        found[at] = take(chosen[at], -(-left // (len(chosen) - asked)))
        left -= len(found[at])
    return [one for _, ones in sorted(found.items()) for one in ones]
