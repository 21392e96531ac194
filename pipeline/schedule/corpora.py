"""What there is to schedule: corpora found by patterns, each with the state of its shards and of its output."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.pipeline.output.done import State
from patchsieve.pipeline.output.folder import FAILED_FOLDER, OutputFolder
from patchsieve.pipeline.output.owner import HEARTBEAT_S, OWNER_FILE, STALE_S, heartbeat_of, parse_owner
from patchsieve.pipeline.output.settings import CONFIG_FILE, stored_config
from patchsieve.pipeline.schedule.history import SCHEDULE_FOLDER, read_history
from patchsieve.pipeline.schedule.tick import Corpus
from patchsieve.pipeline.shards.specs import Shard, is_shard_name, listed_shards
from patchsieve.pipeline.storage import ObjectInfo
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.pipeline.threads import map_threads
from patchsieve.pipeline.units import duration

COMPLETE_FILE = "_SUCCESS"
# Longer than the time between two heartbeats, so that a file that stays the same tells something.
OWNER_LOOK_S = 1.5 * HEARTBEAT_S


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusPlace:
    """Where a corpus lies and where its output goes; `problem`: why it cannot be scheduled, "" where it can."""

    name: str
    url: str
    out: str
    problem: str = ""


def find_corpora(sources: Sequence[str], out: str) -> list[CorpusPlace]:
    """The folders that the patterns match, by name; without a pattern, the folder itself.

    A corpus is named by its path below the folder in which the pattern begins. What keeps one corpus from being
    scheduled is its `problem` alone: a name that cannot be opened, an output that is another's or lies in it, a folder
    on the way that cannot be listed. Raises UserError for a source that nobody could list.
    """
    base = out if not storage.is_local(out) else storage.absolute_url(out)
    places = [place for source in sources for place in _places(source, base)]
    places.sort(key=lambda place: place.name)
    by_name: dict[str, list[CorpusPlace]] = defaultdict(list)
    for place in places:
        if not place.problem:
            by_name[place.name].append(place)
    return [
        place if place.problem else dataclasses.replace(place, problem=_conflict(place, by_name))
        for place in places
    ]


def _conflict(place: CorpusPlace, by_name: Mapping[str, Sequence[CorpusPlace]]) -> str:
    """What is wrong with the output of a corpus beside those of the others, "" for nothing."""
    same = by_name[place.name]
    if len(same) > 1:
        return f"two corpora are named so: {same[0].url} and {same[1].url}; give one another --out"
    parts = place.name.split("/")
    inside = next((above for n in range(1, len(parts)) if (above := "/".join(parts[:n])) in by_name), None)
    return f"its output would lie in that of {inside}; give one another --out" if inside else ""


def _places(source: str, base: str) -> list[CorpusPlace]:
    pattern = storage.absolute_url(source.rstrip("/"))
    if storage.without_secrets(pattern) != pattern:
        raise UserError(
            f"--source {storage.redact(source)}: give credentials by environment or profile, not in the URL"
        )
    places: list[CorpusPlace] = []

    def unlisted(url: str, error: PatchsieveError) -> None:
        places.append(CorpusPlace(name=storage.redact(url), url=url, out="", problem=str(error)))

    if not storage.has_pattern(pattern):
        fixed = storage.split_name(pattern)[0]
        found = [ObjectInfo(pattern, None, "", is_folder=True)]
    else:
        fixed = storage.split_name(pattern[: storage.pattern_start(pattern) + 1])[0]
        found = [info for info in storage.glob(pattern, unlisted=unlisted) if info.is_folder]
        if not found and not places:
            nothing = f"nothing matches --source {storage.redact(source)}"
            places.append(CorpusPlace(name=storage.redact(source), url=pattern, out="", problem=nothing))
    for info in found:
        name, url = info.url.rstrip("/")[len(fixed) :].strip("/"), info.url.rstrip("/")
        place = CorpusPlace(name=name, url=url, out=storage.join(base, name))
        places.append(dataclasses.replace(place, problem=_unusable(place)))
    return places


def _unusable(place: CorpusPlace) -> str:
    """Why neither corpus nor output can be opened under such a name, "" where they can."""
    try:
        place.out.encode()
        storage.refuse_unsafe(place.url)
        storage.refuse_unsafe(place.out)
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    except UserError as error:
        return f"{error}: rename it"
    return ""


@dataclasses.dataclass(frozen=True)
class _Output:
    """Names that lie in an output folder, and the bytes of its owner file, None where there is none."""

    names: frozenset[str] = frozenset()
    owner: bytes | None = None


def survey(
    places: Sequence[CorpusPlace],
    *,
    root: str | None,
    min_age_s: float | None,
    busy: Collection[str] = (),
    watch: bool = True,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Corpus]:
    """The state of every corpus, in the order given. A corpus that cannot be looked at has a `problem`.

    Where outputs have owners, all of them are looked at again after 15 s of `sleep`: one that beats is alive. Not
    those of `busy`, outputs that are known to have a job. Without `watch` the time of the last heartbeat decides, by
    the clocks of two machines.
    """
    seen = map_threads(lambda place: _output(place) if watch and place.out not in busy else None, places)
    owners = [None if output is None else output.owner for output in seen]
    if any(owner is not None for owner in owners):
        sleep(OWNER_LOOK_S)
        # Looked at again, so that what a run finished meanwhile is not submitted.
        seen = [None] * len(seen)
    return map_threads(
        lambda found: _look(*found, root, min_age_s, watch, now()),
        list(zip(places, owners, seen, strict=True)),
    )


def _output(place: CorpusPlace) -> _Output | None:
    """Errors count as nothing, since what is asked next meets them again."""
    try:
        return None if place.problem else _open_output(place.out)
    except PatchsieveError:
        return None


def _open_output(out: str) -> _Output:
    listed = storage.list_folder(out, folders=True)
    names = frozenset(storage.split_name(info.url.rstrip("/"))[1] for info in listed)
    owner = None
    if OWNER_FILE in names:
        with contextlib.suppress(FileNotFoundError):
            owner = storage.read_bytes(storage.join(out, OWNER_FILE))
    return _Output(names, owner)


def _look(
    place: CorpusPlace,
    earlier: bytes | None,
    output: _Output | None,
    root: str | None,
    min_age_s: float | None,
    watch: bool,
    now: float,
) -> Corpus:
    corpus = Corpus(name=place.name, url=place.url, out=place.out, problem=place.problem)
    if corpus.problem:
        return corpus
    try:
        listed = storage.list_folder(place.url)
        files = [info for info in listed if is_shard_name(storage.split_name(info.url)[1])]
        shards = listed_shards(files, root=root)
        output = output or _open_output(place.out)
        done, failed = _outcomes(place.out, output.names, shards)
        history = read_history(place.out) if SCHEDULE_FOLDER in output.names else ()
    except PatchsieveError as error:
        return dataclasses.replace(corpus, problem=str(error))
    age = heartbeat_age(output.owner, now)
    # One that changed or came while it was watched is alive; without a time it counts as alive.
    alive = output.owner != earlier if watch else age is None or age <= STALE_S
    times = [info.modified for info in listed if info.modified is not None]
    return dataclasses.replace(
        corpus,
        done=len(done),
        failed=tuple(shard for shard in shards if shard.id in failed),
        todo=tuple(shard for shard in shards if shard.id not in done and shard.id not in failed),
        incomplete=_incomplete(listed, files, min_age_s, now),
        owned=output.owner is not None and alive,
        dead=output.owner is not None and not alive,
        heartbeat_age=age,
        age=now - max(times) if times else None,
        history=history,
    )


def heartbeat_age(owner: bytes | None, now: float) -> float | None:
    """Seconds since the last heartbeat that an owner file tells, by its own clock; None where it tells none."""
    told = None if owner is None else heartbeat_of(parse_owner(owner))
    return None if told is None else now - told


def _outcomes(out: str, names: Collection[str], shards: Sequence[Shard]) -> tuple[set[str], set[str]]:
    """Ids of the shards that are done, and of those that failed as they are now; `names`: what lies in the output."""
    config = stored_config(out) if CONFIG_FILE in names else None
    if config is None:
        return set(), set()
    output = OutputFolder(out, SCORES, run_id="schedule")
    checks = output.check(shards, config["identity"])
    done = {key for key, check in checks.items() if check.state is State.DONE}
    given_up = output.failed() if FAILED_FOLDER in names else {}
    failed = {
        shard.id
        for shard in shards
        if shard.id in given_up
        and (given_up[shard.id].size, given_up[shard.id].tag) == (shard.size, shard.tag)
    }
    return done, failed - done


def _incomplete(
    listed: Sequence[ObjectInfo], files: Sequence[ObjectInfo], min_age_s: float | None, now: float
) -> str:
    if any(storage.split_name(info.url)[1] == COMPLETE_FILE for info in listed):
        return ""
    if min_age_s is None:
        return f"no {COMPLETE_FILE}"
    times = [info.modified for info in files if info.modified is not None]
    if len(times) < len(files):
        return f"no {COMPLETE_FILE}, and the store does not tell how old its shards are"
    youngest = now - max(times, default=now)
    if youngest < min_age_s:
        return f"no {COMPLETE_FILE}, and the newest shard is {duration(max(0.0, youngest))} old"
    return ""


def shard_list(shards: Sequence[Shard]) -> bytes:
    """The shards as a list that `patchsieve score @LIST` reads.

    Raises UserError for a name that would stand for other shards in such a list.
    """
    for shard in shards:
        spelt = shard.url == shard.url.strip() and "\n" not in shard.url
        special = not storage.is_local(shard.url) and (storage.has_pattern(shard.url) or "{" in shard.url)
        if special or not spelt:
            raise UserError(
                f"{shard.name!r} has characters of a pattern in its name; rename it to have it scheduled"
            )
    return "".join(f"{shard.url}\n" for shard in shards).encode()
