"""What a machine with a GPU is asked in its first hour: tests, limits, the path from files to tables, the teacher.

    make gpu-check                                  or: python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --steps tests,limit

A call takes less than ten minutes: it begins no step that might not end by then. Every step is a process of its own and
leaves a JSON when it ends; a step whose JSON is there is not run again, so calls are repeated until nothing is left.
Neither Ray nor webdataset nor tyro has to be installed: tests that need one are named as not loaded (tyro takes three
small wheels: tyro, docstring-parser, typeguard). What is printed at the end belongs
into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks._gpu_report import report
from benchmarks._gpu_steps import SMALL_STEPS, STEPS, Step, run_step

CALL_SECONDS = 570.0


def chosen(steps: Sequence[Step], names: str) -> list[Step]:
    """The steps of these names, separated by commas; all of them for none."""
    wanted = [name for name in names.split(",") if name]
    known = [step.name for step in steps]
    if unknown := sorted(set(wanted) - set(known)):
        sys.exit(f"no step {', '.join(unknown)}: there are {', '.join(known)}")
    return [step for step in steps if not wanted or step.name in wanted]


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    seconds: float,
    *,
    run: Callable[[Step, Path], None] = run_step,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[str], list[str]]:
    """Run what is not done yet and surely ends within so many seconds; names of steps failed, and of those left."""
    began, failed, left = clock(), [], []
    for step in steps:
        out = folder / f"{step.name}.json"
        if out.exists():
            print(f"== {step.name}: done, see {out} (remove it to run the step again)", flush=True)
        elif clock() - began + step.seconds > seconds:
            left.append(step.name)
        else:
            print(f"== {step.name}: at most {step.seconds:.0f} s", flush=True)
            try:
                run(step, out)
            except (subprocess.SubprocessError, OSError) as error:
                print(f"{step.name} failed: {error}", flush=True)
                failed.append(step.name)
    return failed, left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print what was found and what is left; returns the exit code, 1 where a step or a test failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", default="", help="names, separated by commas; all by default")
    parser.add_argument("--out", type=Path, default=Path("bench-out/gpu"), help="folder of the JSON files")
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="time of this call")
    parser.add_argument(
        "--small", action="store_true", help="next to nothing of each: to try it without a GPU"
    )
    asked = parser.parse_args(arguments)
    folder = asked.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    steps = SMALL_STEPS if asked.small else STEPS
    failed, left = run_steps(chosen(steps, asked.steps), folder, asked.seconds)
    files = {step.name: folder / f"{step.name}.json" for step in steps}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    print("\n".join(["", "== for docs/performance.md", "", *report(results), ""]))
    if left:
        print(f"left for further calls: {', '.join(left)}")
    return 1 if failed or (results.get("tests") or {"tests": {"failed": []}})["tests"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
