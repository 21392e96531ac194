"""Machines, processes and a clock that only tests move."""

from __future__ import annotations

from collections.abc import Callable

from patchsieve.pipeline.output.machine import Machine


class World:
    """Machines with one clock; `while_waiting` runs at every sleep."""

    def __init__(self) -> None:
        self.clock = 1000.0
        self.processes: dict[tuple[str, int], str] = {}
        self.while_waiting: Callable[[], object] = lambda: None

    def machine(self, host: str, pid: int, *, clock_error: float = 0.0, start: str = "77") -> Machine:
        self.processes[host, pid] = start
        return Machine(
            host=host,
            space="boot",
            pid=pid,
            process_start=lambda asked: self.processes.get((host, asked)),
            monotonic=lambda: self.clock,
            sleep=self.sleep,
            now=lambda: self.clock + clock_error,
        )

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        self.while_waiting()
