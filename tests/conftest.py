"""Settings of the whole test session, and the Ray cluster that tests share."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.checkout import QUICK_START, python_path
from tests.helpers.quick_start import no_compiler
from tests.helpers.quick_start.start_zygote import start_zygote

if TYPE_CHECKING:
    from tests.helpers.pretended_gpu.device import Device
    from tests.helpers.servers import S3Store

no_compiler.install()

# Before anything imports ray, and inherited by every process that a test starts. The temporary folder is
# short because the paths of Ray's sockets are limited to 107 bytes; pytest's own would break that.
RAY_TEMPORARY = Path(f"/tmp/r{os.getpid()}")
os.environ.update(
    {
        # Processes of tests start twice as fast.
        "PYTHONPATH": python_path(*filter(None, [os.environ.get("PYTHONPATH")])),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        # Lines about waiting come by the clock.
        "PATCHSIEVE_QUIET": "1",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        # Nobody looks at what Ray measures of its processes every other second.
        "REPORTER_UPDATE_INTERVAL_MS": "60000",
        # Agents learn of their raylet's end by a pipe: as forks they are no children of it.
        "RAY_enable_pipe_based_agent_to_parent_health_check": "1",
        "RAY_TMPDIR": str(RAY_TEMPORARY),
        # Hub names resolve to a local cache or fail; no test reaches for the network.
        "HF_HUB_OFFLINE": "1",
        # Tests declare GPUs that need not exist; their actors then work on the processor.
        "PATCHSIEVE_DECLARED_GPUS": "cpu",
    }
)

# Processes of the suite share the cores, and models this small lose by a second thread. Scores are bit-equal only at
# one thread count.
TORCH_THREADS = 1

# Processes that get the path of this one, not its environment.
sys.path.append(str(QUICK_START))

SLOWEST_FILES = 10
_known_sessions: set[Path] = set()


def pytest_configure(config: pytest.Config) -> None:
    """Of this process those of the suite are forked, and Ray's workers, for all of them."""
    if "PATCHSIEVE_ZYGOTE" in os.environ or not hasattr(os, "pidfd_open"):
        return
    RAY_TEMPORARY.mkdir()
    os.environ["PATCHSIEVE_ZYGOTE"] = address = str(RAY_TEMPORARY / "zygote")
    zygote = start_zygote(address)
    config.add_cleanup(zygote.wait)
    config.add_cleanup(zygote.kill)


def pytest_unconfigure() -> None:
    """Remove what Ray left, this session's and that of the processes it started."""
    gc.unfreeze()  # libraries say at the end what was not freed
    shutil.rmtree(RAY_TEMPORARY, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which files the time went to: a suite grows by files."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.partition("::")[0]] += report.duration
    whole = sum(seconds.values())
    terminalreporter.section(f"slowest files of {len(seconds)}, {whole:.0f}s in all")
    for file, taken in sorted(seconds.items(), key=itemgetter(1), reverse=True)[:SLOWEST_FILES]:
        terminalreporter.line(f"{taken:.2f}s {taken / whole:4.0%} {file}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none of them is left over at the end; before them those that fork.

    Tests marked `gpu` are skipped where torch finds no accelerator.
    """
    forking, slow = (
        {item.path for item in items if item.get_closest_marker(name)} for name in ("forks", "slow")
    )
    items.sort(key=lambda item: (item.path not in forking, item.path not in slow))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test begins with one thread count; costs nothing where no collected test imports torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(TORCH_THREADS)


@pytest.fixture(autouse=True)
def starts_no_ray_unless_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that starts a Ray, in a process of its own even, is marked `ray`: `make check` is without."""
    yield
    sessions = {*RAY_TEMPORARY.glob("ray/session_*"), *RAY_TEMPORARY.glob("*/ray/session_*")}
    started = sessions - _known_sessions
    _known_sessions.update(sessions)
    if not request.node.get_closest_marker("ray"):
        assert not started, "starts Ray: mark it ray"


@pytest.fixture
def gpu() -> Iterator[Device]:
    """A pretended one, for as long as the test runs (tests/helpers/pretended_gpu)."""
    from tests.helpers.pretended_gpu.pretend import pretend_cuda

    with pretend_cuda() as device:
        yield device


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """An S3 server of the test's own, to which `s3://` leads in this process; its clients wait as long as others."""
    from tests.helpers.servers import s3_for_this_process

    with s3_for_this_process(monkeypatch) as store:
        yield store


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray with 4 CPUs and 2 declared GPUs for all tests that ask for it.

    Tests that kill nodes, submit jobs or need other resources start a Ray of their own in a subprocess.
    """
    import ray

    ray.init(
        address="local",  # never a cluster that happens to run here
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()
