"""Faults inside score runs: what goes wrong in an actor or in the driver, and the marks that tell a test of it."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from patchsieve.pipeline.cluster.nodes import this_place
from patchsieve.pipeline.compute.gpu_faults import DECLARED_GPUS
from patchsieve.pipeline.score import view_feed
from patchsieve.pipeline.score_on_ray import actor as scoring_actor
from patchsieve.pipeline.score_on_ray.actor import ScoringActor
from patchsieve.pipeline.score_on_ray.policy import Gone, QueuePolicy
from patchsieve.pipeline.teacher.checkpoint import TeacherFile

HOLD_S = 600
DEAD_GPU = """CUDA error: uncorrectable ECC error encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
"""
"""What torch says on several lines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, and where. Marks are files in `folder`: `<what>.<key>`, with a line for every time.

    `kill`, `kill_once`, `block_once`, `hold` name samples by their keys: preparing one kills its actor every
    time or the first time, never ends the first time, or waits until the file `go` or `go.<key>` appears.
    `gpus` are broken ones by their ids, with a way for each actor that comes to one: `score` fails on every batch,
    `load` when the teacher is loaded, `crash` ends the process then, and `missing` cannot be used by torch; nothing is
    held there. `precisions` are what actors would choose, by GPU. `sees.<devices>` marks what CUDA may see.
    `crash_before` is a pattern of a path: just before a finished file gets a name that fits, the driver and the
    process that writes it are killed. `refuse`: why every actor fails while it is made.
    """

    folder: str
    kill: tuple[str, ...] = ()
    kill_once: tuple[str, ...] = ()
    block_once: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    crash_before: str = ""
    refuse: str = ""
    gpus: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    precisions: dict[str, str] = dataclasses.field(default_factory=dict)
    driver: int = 0
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def marks(self, what: str) -> int:
        """How often it has happened."""
        path = Path(self.folder) / what
        return len(path.read_text().splitlines()) if path.exists() else 0

    def go(self, key: str = "") -> None:
        """Let go of the sample of this key, or of all that are held."""
        (Path(self.folder) / (f"go.{key}" if key else "go")).touch()

    def put_in_actors(self, monkeypatch: Any = None) -> None:
        """From now on, actors that this process asks for have the faults."""
        target, name = scoring_actor, "_RemoteScoringActor"
        stand_in = _ActorsWithFaults(self)
        if monkeypatch is None:
            setattr(target, name, stand_in)
        else:
            monkeypatch.setattr(target, name, stand_in)

    def put_in_process(self) -> None:
        """From now on, this process has the faults, and marks `gone.<why>` for every actor it loses."""
        os.environ.update(self.environment)
        tempfile.tempdir = None
        view_feed.prepare_views = self._around_prepare(view_feed.prepare_views)
        # How storage gives a file its name: replacing on commits, linking on exclusive creation.
        for name in ("replace", "link"):
            setattr(os, name, self._around_naming(getattr(os, name)))
        actor_gone = QueuePolicy.actor_gone

        def marked(policy: QueuePolicy, actor: str, why: Gone, *arguments: Any) -> None:
            self.mark(f"gone.{why.name}")
            actor_gone(policy, actor, why, *arguments)

        setattr(QueuePolicy, "actor_gone", marked)  # noqa: B010

    def put_on_gpus(self) -> None:
        """From now on the GPUs of this actor are as they are told to be."""
        from patchsieve.pipeline.score import worker
        from patchsieve.pipeline.scoring.scorer import Scorer

        place = this_place()
        how = ""
        for gpu in self.gpus.keys() & set(place.gpus):
            how = self.gpus[gpu][self.mark(f"on.{gpu}") - 1]
        if how == "score":
            setattr(Scorer, "launch", _dead)  # noqa: B010
        elif how == "load":
            setattr(worker, "build_teacher", _dead)  # noqa: B010
        elif how == "crash":
            setattr(worker, "build_teacher", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
        elif how == "missing":
            os.environ.pop(DECLARED_GPUS)
        if self.precisions:
            chosen = self.precisions[place.gpus[0]]

            def choose(model: Any, device: Any) -> str:
                self.mark(f"chose.{chosen}")
                return chosen

            setattr(worker, "choose_precision", choose)  # noqa: B010

    def mark(self, what: str) -> int:
        """Note that it happened; returns how often by now."""
        with (Path(self.folder) / what).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return self.marks(what)

    def _around_prepare(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(item: Any, *arguments: Any) -> Any:
            key = getattr(item, "key", None)
            if key in self.kill or (key in self.kill_once and not self.marks(f"kill_once.{key}")):
                self.mark(f"kill.{key}" if key in self.kill else f"kill_once.{key}")
                os.kill(os.getpid(), signal.SIGKILL)
            if key in self.block_once and self.mark(f"block_once.{key}") == 1:
                threading.Event().wait()
            if key in self.hold and self.gpus.keys().isdisjoint(this_place().gpus):
                self.mark(f"hold.{key}")
                deadline = time.monotonic() + HOLD_S
                ways = [Path(self.folder, name) for name in ("go", f"go.{key}")]
                while not any(way.exists() for way in ways) and time.monotonic() < deadline:
                    time.sleep(0.02)
            return prepare(item, *arguments)

        return faulty

    def _around_naming(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(source: Any, target: Any, **options: Any) -> Any:
            if self.crash_before and fnmatch.fnmatch(os.fspath(target), self.crash_before):
                for process in (self.driver, os.getpid()):
                    os.kill(process, signal.SIGKILL)
            return change(source, target, **options)

        return faulty


def _dead(*_: Any, **__: Any) -> Any:
    raise torch.AcceleratorError(DEAD_GPU)


class FaultyActor(ScoringActor):
    """The real actor in a process with faults."""

    @ray.method(concurrency_group="control")
    def load(self) -> str:
        self._faults.put_on_gpus()
        device: str = super().load()  # type: ignore[operator]  # a plain method in its own process
        self._faults.mark(f"sees.{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}")
        return device

    def __init__(self, teacher: TeacherFile, faults: Faults) -> None:
        faults.mark("made")
        if faults.refuse:
            raise OSError(faults.refuse)
        faults.put_in_process()
        self._faults = faults
        super().__init__(teacher)


@dataclasses.dataclass(frozen=True)
class _ActorsWithFaults:
    """Stands in for Ray's class of the real actor, with the same options."""

    faults: Faults

    def options(self, **options: Any) -> _Maker:
        remote: Any = ray.remote
        return _Maker(remote(**scoring_actor.ACTOR_OPTIONS)(FaultyActor).options(**options), self.faults)


@dataclasses.dataclass(frozen=True)
class _Maker:
    actors: Any
    faults: Faults

    def remote(self, teacher: Any) -> Any:
        return self.actors.remote(teacher, self.faults)
