"""A new corpus that is an old one under another name: told by the shards, before they are scored, and paid, again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.schedule.history import read_history
from patchsieve.pipeline.schedule.tick import Corpus
from patchsieve.pipeline.threads import map_threads

MOST_LOOKED_AT = 100
"""Outputs without a corpus that are looked at."""


def with_renamed(corpora: Sequence[Corpus], base: str) -> list[Corpus]:
    """The corpora, and of each that has no job yet which one it was, if an output below `base` has lost its corpus.

    Asks the store only where there are new corpora. What cannot be looked at tells nothing.
    """
    new = [
        corpus for corpus in corpora if corpus.todo and not (corpus.history or corpus.done or corpus.problem)
    ]
    if not new:
        return list(corpora)
    outs = {corpus.out for corpus in corpora}
    folders = sorted({storage.split_name(corpus.out)[0] for corpus in new})
    try:
        below = [info for found in map_threads(_folders, folders) for info in found]
        orphans = [
            url for url in below if url not in outs and not any(out.startswith(f"{url}/") for out in outs)
        ][:MOST_LOOKED_AT]
        histories = dict(zip(orphans, map_threads(read_history, orphans), strict=True))
    except PatchsieveError:
        return list(corpora)
    known = {job.contents: url for url, history in histories.items() for job in history}
    prefix = f"{base.rstrip('/')}/"
    return [
        dataclasses.replace(corpus, renamed=known[corpus.contents].removeprefix(prefix))
        if corpus in new and corpus.contents in known
        else corpus
        for corpus in corpora
    ]


def _folders(url: str) -> list[str]:
    return [info.url for info in storage.list_folder(url, folders=True) if info.is_folder]
