"""A crew of workers on Ray. All that one of them did is in the records, so a lost one costs the trial it was at."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from patchsieve.pipeline.cluster.nodes import autoscaler_resources, cluster_nodes, this_place
from patchsieve.pipeline.cluster.session import ray_session
from patchsieve.pipeline.cluster.slots import check_workers, worker_size
from patchsieve.pipeline.compute.device import keep_freed_memory
from patchsieve.pipeline.compute.gpu_faults import assigned_device
from patchsieve.pipeline.errors import PatchsieveError, UserError, first_line
from patchsieve.pipeline.runs.stop import StopRequest, stop_on_signals
from patchsieve.pipeline.shown import show_warnings
from patchsieve.ranker.prove.measure import Fitted, Tested
from patchsieve.ranker.prove.worker import FitOrder, Job, ProveWorker, TestSet

CHECK_S = 0.5
_RESTARTS = 3


class RemoteWorker:
    """A `ProveWorker` on the device that Ray gave it."""

    def __init__(self, jobs: Sequence[Any]) -> None:
        """`jobs`: a reference to its `Job`, in a list, since a worker that is restarted fetches it again."""
        keep_freed_memory()
        show_warnings()
        job: Job = ray.get(jobs[0])
        self._worker = ProveWorker(job, assigned_device(this_place().gpus))
        self._tests: tuple[Any, TestSet] | None = None

    def fit(self, order: FitOrder) -> tuple[Fitted, float]:
        """See `ProveWorker`."""
        return self._worker.fit(order)

    def test(self, fitted: Fitted, tests: Sequence[Any]) -> tuple[Tested, float]:
        """See `ProveWorker`; `tests`: a reference to the images, in a list, since Ray would fetch them every time."""
        if self._tests is None or self._tests[0] != tests[0]:
            self._tests = (tests[0], ray.get(tests[0]))
        return self._worker.test(fitted, self._tests[1])


class RayCrew:
    """See `Crew`; each worker has one trial at a time."""

    def __init__(self, workers: Sequence[Any], job: Job, stop: StopRequest) -> None:
        """`workers`: handles of `RemoteWorker` actors."""
        self._workers, self._records, self._folder, self._stop = workers, job.records(), job.folder, stop

    def fit(self, orders: Sequence[FitOrder]) -> Iterator[tuple[Fitted, float]]:
        """See `Crew`; UserError where workers write to another place than this process reads."""
        for fitted, seconds in self._work("fit", [(order,) for order in orders]):
            if self._records.fitted(fitted.trial) is None:
                raise UserError(
                    f"a worker wrote to another {self._folder} than this process sees; use storage that all nodes see"
                )
            yield fitted, seconds

    def test(self, fitted: Sequence[Fitted], test: TestSet) -> Iterator[tuple[Tested, float]]:
        """See `Crew`."""
        tests = [ray.put(test)]
        return self._work("test", [(one, tests) for one in fitted])

    def _work(self, method: str, waiting: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        left, idle = deque(waiting), list(self._workers)
        running: dict[Any, Any] = {}
        while left or running:
            while left and idle:
                worker = idle.pop()
                running[getattr(worker, method).remote(*left.popleft())] = worker
            done, _ = ray.wait(list(running), timeout=CHECK_S)
            self._stop.check()
            for reference in done:
                idle.append(running.pop(reference))
                yield answer(reference)


def answer(reference: Any) -> Any:
    """What a task gave; the errors of this package as they were raised there, others as PatchsieveError."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PatchsieveError):
            raise error.cause from error
        raise PatchsieveError(
            f"a worker failed: {type(error.cause).__name__}: {first_line(error.cause)}"
        ) from error
    except ray.exceptions.RayError as error:
        raise PatchsieveError(
            f"a worker was lost {_RESTARTS + 1} times: {first_line(error)}; run again to go on"
        ) from error


@contextlib.contextmanager
def on_ray(job: Job, *, workers: int, gpus_per_worker: float) -> Iterator[RayCrew]:
    """So many workers on the cluster, or on this machine, for the time of a measurement.

    Raises UserError where they do not fit.
    """
    with stop_on_signals(lambda _signal: None) as stop, ray_session(stop):
        size, room = worker_size(
            cluster_nodes(), gpus_per_worker=gpus_per_worker, autoscaler=autoscaler_resources()
        )
        check_workers(workers, size, room)
        remote: Any = ray.remote(RemoteWorker).options(
            num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
        )
        jobs = [ray.put(job)]
        handles = [remote.remote(jobs) for _ in range(workers)]
        try:
            yield RayCrew(handles, job, stop)
        finally:
            for handle in handles:
                ray.kill(handle)
