"""The steps of `gpu_check`: what each runs, and the seconds that it may take at most.

`python -m benchmarks._gpu_steps NAME JSON` runs a benchmark with these options; reading a command line would take tyro.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks._common import write_json

ROOT = Path(__file__).resolve().parents[1]
TEACHER = {"removals": ["decoder"], "savings": False, "memory": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A benchmark and its options, or the tests where there is none; `seconds`: the most that it is given."""

    name: str
    seconds: float
    benchmark: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


STEPS = (
    Step(name="tests", seconds=330),
    Step(name="limit", seconds=60, benchmark="limit"),
    Step(
        name="score_path",
        seconds=170,
        benchmark="score_path",
        options={"teachers": ["mae-base"], "rounds": 2, "photos": 200},
    ),
    Step(name="decode", seconds=60, benchmark="decode", options={"rounds": 5}),
    *(
        Step(
            name=f"teacher-{size}",
            seconds=480,
            benchmark="teacher",
            options={"sizes": [size], "rounds": 3, **TEACHER},
        )
        for size in ("mae-base", "mae-large", "mae-huge")
    ),
)

SMALL_STEPS = (
    Step(name="tests", seconds=330),
    Step(name="limit", seconds=60, benchmark="limit", options={"seconds": 0.01}),
    Step(
        name="score_path",
        seconds=170,
        benchmark="score_path",
        options={
            "teachers": ["tiny"],
            "rounds": 1,
            "photos": 4,
            "seconds": 0.5,
            "threads": 1,
            "batch_size": 1,
        },
    ),
    Step(name="decode", seconds=60, benchmark="decode", options={"rounds": 1, "images": 2}),
    Step(
        name="teacher-tiny",
        seconds=480,
        benchmark="teacher",
        options={"sizes": ["tiny"], "rounds": 1, "seconds": 0.01, "compiled": False, **TEACHER},
    ),
)
"""The same on next to nothing: to try them where there is no GPU."""


def run_step(step: Step, out: Path) -> None:
    """Leave the step's JSON at `out`; raises SubprocessError where it fails or takes too long."""
    if step.benchmark is None:
        run_tests(out, step.seconds)
        return
    options = json.dumps({**step.options, "out": str(out)})
    command = [sys.executable, "-m", "benchmarks._gpu_steps", step.benchmark, options]
    subprocess.run(command, check=True, timeout=step.seconds, cwd=ROOT)


def gpu_tests() -> list[str]:
    """Files that hold tests for GPUs."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [
        file.relative_to(ROOT).as_posix() for file in files if "mark.gpu" in file.read_text(encoding="utf-8")
    ]


def run_tests(out: Path, seconds: float) -> None:
    """The tests for GPUs; files that cannot be loaded, since a library is missing, are told apart from what fails."""
    report = out.with_suffix(".xml")
    # A machine's own plugins may be at odds with these tests, and the checkout may be read-only.
    plugins = ["-p", "no:benchmark", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *plugins, "--continue-on-collection-errors"]
    command += [f"--junitxml={report}", *gpu_tests()]
    report.unlink(missing_ok=True)
    subprocess.run(command, check=False, timeout=seconds, cwd=ROOT)
    write_json({"tests": outcomes(report.read_text(encoding="utf-8"))}, out)
    report.unlink()


def outcomes(report: str) -> dict[str, Any]:
    """What JUnit's XML says: how many tests passed or were skipped, which failed, what was not loaded and why."""
    found: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": [], "not_loaded": {}}
    for case in ElementTree.fromstring(report).iter("testcase"):
        # A file that cannot be imported has no class, and its path for a name.
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        problem = case.find("error") if case.find("error") is not None else case.find("failure")
        if problem is not None and not case.get("classname"):
            found["not_loaded"][name] = missing_module(problem.text or "")
        elif problem is not None:
            found["failed"].append(name)
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1
    return found


def missing_module(trace: str) -> str:
    """The last line of a trace that says what is wrong."""
    lines = [line.removeprefix("E").strip() for line in trace.splitlines() if line.startswith("E ")]
    return lines[-1] if lines else trace.strip()[-200:]


def main() -> None:
    """Run the benchmark that the command line names."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    module = importlib.import_module(f"benchmarks.{name}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    module.main(module.Options(**{**given, "out": Path(options["out"])}))


if __name__ == "__main__":
    main()
