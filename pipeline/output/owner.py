"""Who may write to an output folder: `owner.json`, its heartbeat, and taking over from a run that died.

The file is created exclusively and rewritten at every heartbeat, so its bytes change as long as its run
lives. A run that meets somebody else's file decides by what it sees itself: the process is gone from this
machine, or the bytes stayed the same for `STALE_S` of its own clock. Clocks of other machines are never
compared.

Taking over is a race that one must win. The file may be removed only by the holder of a *claim*, a file that
is created exclusively and named by the hash of the very bytes found stale; the holder looks again after it
has the claim, and removes the file only if it still has those bytes. Bytes that have changed never come back
(they hold a run id and a count), so a claim that comes late finds other bytes and does nothing. After the
removal everybody, newcomers too, meets at the exclusive creation again. A claimant that was killed leaves its
claim; it is found stale and removed by the same rules. What is left is a run that was suspended for a minute
and wakes between two calls of a claimant: the next heartbeats settle who owns the folder, and the other run
is told that it does not.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.pipeline.output.machine import Machine

OWNER_FILE = "owner.json"
_CLAIM_SUFFIX = ".claim"
HEARTBEAT_S = 10.0
STALE_S = 60.0
_POLL_S = 1.0
_JOIN_S = 1.0
_FILE_BYTES = 1024
# No clock shows such a time, nor can it be reckoned with.
_LATEST_S = 1e12
# Of an owner file that others remove just before it is read; beyond, it is none that can be read.
_MOST_MISSED = 100

_log = logging.getLogger(__name__)


class _Sight(enum.Enum):
    """What became of a file that was watched."""

    CHANGED = enum.auto()
    VANISHED = enum.auto()
    STALE = enum.auto()


class Owner:
    """Ownership of one output folder by one run.

    `lost` is set when the folder turns out to belong to another run; `lost_to` then names that, and `on_lost` is
    called, on the thread of the heartbeat, unless it is released already. While `quiet` is held, no heartbeat is being
    written.
    """

    def __init__(
        self,
        folder: str,
        run_id: str,
        *,
        machine: Machine | None = None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.run_id = folder, run_id
        self.url = storage.join(folder, OWNER_FILE)
        self.lost = threading.Event()
        self.lost_to = ""
        self.quiet = threading.Lock()
        self._machine = machine or Machine()
        self._on_lost = on_lost
        self._beats = 0
        self._started = self._machine.now()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, heartbeat: bool = True) -> None:
        """Become the owner, waiting for at most about a minute; then keep the heartbeat on a daemon thread.

        Raises UserError where a live run owns the folder.
        """
        missed = 0
        while not create_once(self.url, self._content(), run_id=self.run_id):
            found = _read(self.url)
            if found is None:
                missed += 1
                if missed > _MOST_MISSED:
                    raise UserError(
                        f"{self.url} can be neither read nor created: it is a link to nowhere; remove it"
                    )
                continue
            owner = parse_owner(found)
            if owner.get("run_id") == self.run_id:
                break  # the store created it, but its answer was lost and the call was made again
            sight = self._watch(self.url, found)
            if sight is _Sight.CHANGED:
                raise UserError(self._refusal(parse_owner(_read(self.url) or found)))
            if sight is _Sight.STALE:
                _log.warning("%s: taking over from %s, which is gone", self.folder, _name(owner))
                self._remove_stale(self.url, found)
        for entry in storage.list_folder(self.folder, suffix=_CLAIM_SUFFIX):
            # About an owner file that is no more: only a killed run can have left it.
            storage.remove(entry.url)
        if heartbeat:
            self._thread = threading.Thread(target=self._keep_beating, name="owner heartbeat", daemon=True)
            self._thread.start()

    def wait_for_none(self) -> None:
        """Return when nobody owns the folder, without becoming its owner; that of a dead run is removed.

        Raises UserError where a live run owns it.
        """
        while (found := _read(self.url)) is not None:
            sight = self._watch(self.url, found)
            if sight is _Sight.CHANGED:
                raise UserError(self._refusal(parse_owner(_read(self.url) or found)))
            if sight is _Sight.STALE:
                self._remove_stale(self.url, found)

    def beat(self) -> bool:
        """One heartbeat; False, and `lost` set, where another run owns the folder by now."""
        with self.quiet:
            return self._beat()

    def _beat(self) -> bool:
        found = _read(self.url)
        self._beats += 1
        # A file that is missing was removed by hand, or by a run that took us for dead and has not created
        # its own.
        if found is None and create_once(self.url, self._content(), run_id=self.run_id):
            return True
        owner = parse_owner(found if found is not None else _read(self.url) or b"")
        if owner.get("run_id") != self.run_id:
            self.lost_to = _name(owner)
            self.lost.set()
            _log.warning("%s was taken over by %s", self.folder, self.lost_to)
            if not self._stop.is_set():
                self._on_lost()
            return False
        storage.commit_bytes(self._content(), self.url, run_id=self.run_id)
        return True

    def release(self) -> None:
        """Stop the heartbeat and remove the file if it is still ours; safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            # A beat may hang in a slow store; the run ends all the same.
            self._thread.join(_JOIN_S)
            self._thread = None
        try:
            found = _read(self.url)
            if found is not None and parse_owner(found).get("run_id") == self.run_id:
                storage.remove(self.url)
        except PatchsieveError as error:
            # Left behind, the file is found stale by the next run; how this one ended must not be lost over it.
            _log.warning("%s stays behind: %s", self.url, error)

    def _keep_beating(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if not self.beat():
                    return
            except PatchsieveError as error:
                # A store that is away for a while takes the folder from nobody: look again at the next beat.
                _log.warning("%s: heartbeat failed: %s", self.folder, error)

    def _content(self) -> bytes:
        machine = self._machine
        content = {
            "run_id": self.run_id,
            "host": machine.host,
            "space": machine.space,
            "pid": machine.pid,
            "process_start": machine.process_start(machine.pid),
            "started": round(self._started, 3),
            "heartbeat": round(machine.now(), 3),
            "beats": self._beats,
        }
        # One length for all: a reader that asked for the length before a heartbeat still gets whole bytes.
        return json.dumps(content, indent=1).ljust(_FILE_BYTES - 1).encode() + b"\n"

    def _watch(self, url: str, content: bytes) -> _Sight:
        """Look at a file of another run until it changes, vanishes, or can be called stale."""
        owner = parse_owner(content)
        deadline = self._machine.monotonic() + STALE_S
        said = False
        while True:
            if self._process_is_gone(owner):
                return _Sight.STALE
            found = _read(url)
            if found != content:
                return _Sight.VANISHED if found is None else _Sight.CHANGED
            if self._machine.monotonic() >= deadline:
                return _Sight.STALE
            if not said:
                _log.warning(
                    "%s belongs to %s; watching for %g s whether it lives", url, _name(owner), STALE_S
                )
                said = True
            self._machine.sleep(_POLL_S)

    def _process_is_gone(self, owner: dict[str, Any]) -> bool:
        machine = self._machine
        if owner.get("host") != machine.host or owner.get("space", machine.space) != machine.space:
            return False
        pid = owner.get("pid")
        if not isinstance(pid, int) or pid <= 0:
            return False
        start = machine.process_start(pid)
        recorded = owner.get("process_start")
        return start is None or bool(start and recorded and start != recorded)

    def _remove_stale(self, url: str, content: bytes) -> None:
        """Remove a file that still has the bytes found stale, unless another run is just doing so."""
        claim = storage.join(self.folder, f"owner.{hashlib.sha256(content).hexdigest()[:32]}{_CLAIM_SUFFIX}")
        created = create_once(claim, self._content(), run_id=self.run_id)
        other = None if created else _read(claim)
        if created or (other is not None and parse_owner(other).get("run_id") == self.run_id):
            if _read(url) == content:
                storage.remove(url)
            storage.remove(claim)
        elif other is not None and self._watch(claim, other) is _Sight.STALE:
            self._remove_stale(claim, other)

    def _refusal(self, owner: dict[str, Any]) -> str:
        heartbeat = heartbeat_of(owner)
        age = ""
        if heartbeat is not None:
            age = f", last heartbeat {max(0.0, self._machine.now() - heartbeat):.0f} s ago"
        return (
            f"{self.folder} is in use by {_name(owner)}{age}: wait until it ends, stop it, "
            "or write to another folder"
        )


def owner_of(folder: str) -> dict[str, Any] | None:
    """What `owner.json` of a folder says: None where there is none, nothing where it cannot be read."""
    content = _read(storage.join(folder, OWNER_FILE))
    return None if content is None else parse_owner(content)


def heartbeat_of(owner: Mapping[str, Any]) -> float | None:
    """When an owner last said that it lives, in seconds since 1970 by its clock; None where it tells no such time."""
    told = owner.get("heartbeat")
    return told if isinstance(told, int | float) and abs(told) < _LATEST_S else None


def create_once(url: str, data: bytes, *, run_id: str) -> bool:
    """Create a file with all of its bytes or not at all; False where there is one already.

    Where the store cannot create exclusively, that is said once, and two runs starting at one moment may both
    believe that they did.
    """
    # Asked first, since a store that ignores the condition would overwrite.
    if storage.exists(url):
        return False
    try:
        return storage.create_exclusive(url, data)
    except NotImplementedError as error:
        _say_not_exclusive(str(error))
    storage.commit_bytes(data, url, run_id=run_id)
    return True


@functools.cache
def _say_not_exclusive(reason: str) -> None:
    _log.warning(
        "%s: nothing but care keeps two runs from starting at one moment on one output folder", reason
    )


def _read(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None


def parse_owner(content: bytes) -> dict[str, Any]:
    """The JSON object of an owner file; empty for anything else, which then can only be watched."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _name(owner: dict[str, Any]) -> str:
    if "run_id" not in owner:
        return "a run that left no readable name"
    return f"run {owner['run_id']} on {owner.get('host')} (process {owner.get('pid')})"
