"""What the suite forks instead of starting is what would have been started (tests/helpers/quick_start)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from execnet.gateway_io import popen_bootstrapline

from tests.helpers.checkout import python_path
from tests.helpers.forks import above, below
from tests.helpers.quick_start.sitecustomize import PROGRAMS, TEST_PROCESS
from tests.helpers.quick_start.start_zygote import ZYGOTE
from tests.helpers.score_processes import wait_until

# Not every program is handed over; this one asks as those would that are.
ASKS = "import sys\nfrom hand_over import hand_over\nsys.orig_argv = sys.argv\nhand_over(sys.argv.pop())\nsys.exit(99)"
TELLS = """
import json, os, resource, sys
umask = os.umask(0)
told = {
    "arguments": sys.argv[1:], "name": __name__, "path": sys.path[0], "folder": os.getcwd(), "umask": umask,
    "priority": os.getpriority(os.PRIO_PROCESS, 0), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "leads": os.getsid(0) == os.getpid(), "variables": {k: v for k, v in os.environ.items() if k.startswith("OUR_")},
    "read": sys.stdin.read(), "torch": "torch" in sys.modules, "ray": "ray" in sys.modules,
    "passed": os.read(int(os.environ["OUR_FILE"]), 10).decode(),
}
print(json.dumps(told))
print("to standard error", file=sys.stderr)
sys.exit(7)
"""
DRAWS = """
import ray, ray._raylet
print(ray._raylet.Config.metrics_report_interval_ms())
print(ray.TaskID.for_fake_task(ray.JobID.from_int(1)).hex(), ray.actor.ActorClassID.from_random().hex())
"""

pytestmark = pytest.mark.skipif(
    not os.environ.get("PATCHSIEVE_ZYGOTE"), reason="every process starts by itself"
)


def command(file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", ASKS, str(file), *arguments, os.environ["PATCHSIEVE_ZYGOTE"]]


def surroundings(**variables: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": python_path(), **variables}


def test_a_fork_has_all_that_the_process_had(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TELLS)
    reading, writing = os.pipe()
    os.write(writing, b"passed on")
    os.close(writing)
    with os.fdopen(reading):
        done = subprocess.run(
            [
                "bash",
                "-c",
                'ulimit -n 700; umask 027; exec nice -n 3 "$@"',
                "bash",
                *command(program, "a b", "c"),
            ],
            input="from outside",
            cwd=tmp_path,
            env=surroundings(OUR_FILE=str(reading)),
            pass_fds=[reading],
            start_new_session=True,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (7, "to standard error\n")
    assert json.loads(done.stdout) == {
        "arguments": ["a b", "c"],
        "name": "__main__",
        "path": str(tmp_path),
        "folder": str(tmp_path),
        "umask": 0o027,
        "priority": os.getpriority(os.PRIO_PROCESS, 0) + 3,
        "files": [700, 700],
        "leads": True,
        "variables": {"OUR_FILE": str(reading)},
        "read": "from outside",
        "torch": True,
        "ray": True,
        "passed": "passed on",
    }


def test_an_environment_that_libraries_read_as_they_load_starts_by_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("")
    done = subprocess.run(command(program), env=surroundings(PYTHONHASHSEED="1"), check=False)
    assert done.returncode == 99


def test_ray_in_a_fork_is_one_that_it_has_loaded_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(DRAWS)
    told = [
        subprocess.run(
            command(program),
            env=surroundings(RAY_metrics_report_interval_ms="1234"),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    # Its library has read the fork's environment, its generators have not been drawn from before.
    assert [interval for interval, *_ in told] == ["1234", "1234"]
    assert len({*told[0][1:], *told[1][1:]}) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_two_end_together(tmp_path: Path, number: signal.Signals) -> None:
    program, mark = tmp_path / "program.py", tmp_path / "mark"
    program.write_text("import pathlib, sys\npathlib.Path(sys.argv[1]).touch()\nsys.stdin.read()")
    with subprocess.Popen(command(program, str(mark)), env=surroundings(), stdin=subprocess.PIPE) as asked:
        wait_until(mark.exists, "the fork runs")
        (fork,) = below(asked.pid)
        assert asked.pid in {process.pid for process in above(fork.pid)}
        asked.send_signal(number)
        assert asked.wait(60) == -number
    wait_until(lambda: not fork.is_running(), "the fork has ended")


@pytest.mark.parametrize(("code", "is_fork"), [(TEST_PROCESS, True), (f"{TEST_PROCESS};", False)])
def test_processes_of_the_suite_are_forks(code: str, is_fork: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        input=repr("import os; print(os.getppid())") + "\n",
        env=surroundings(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) != os.getpid()) == is_fork
    assert popen_bootstrapline == TEST_PROCESS


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_and_helpers_of_ray_are_forks() -> None:
    import ray

    @ray.remote
    def parent_of() -> int:
        return os.getppid()

    parent = ray.get(parent_of.remote())
    assert str(ZYGOTE) in Path(f"/proc/{parent}/cmdline").read_text().split("\0")
    asked = [process.info for process in psutil.process_iter(["name", "cmdline"])]
    # One that ends just now has no command line.
    words = {word for info in asked if info["name"].startswith("for ") for word in info["cmdline"] or ()}
    helpers = [path for path in PROGRAMS if "workers" not in path]
    assert helpers == [path for path in helpers if any(word.endswith(path) for word in words)]
