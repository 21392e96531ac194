"""What a GPU is asked: calls that end in time and are gone on with, and what is told of the results."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks._gpu_report import report
from benchmarks._gpu_steps import SMALL_STEPS, STEPS, Step, gpu_tests, outcomes
from benchmarks.gpu_check import CALL_SECONDS, chosen, run_steps
from tests.helpers.checkout import ROOT

THREE = [Step(name=name, seconds=100) for name in ("a", "b", "c")]
MACHINE = {"gpu": "A card", "cores": 16, "processor": "Xeon", "torch": "2.15"}


@dataclasses.dataclass
class Machine:
    """Every step takes 90 seconds; one breaks down."""

    broken: str = ""
    time: float = 0.0

    def run(self, step: Step, out: Path) -> None:
        self.time += 90
        if step.name == self.broken:
            raise subprocess.TimeoutExpired(step.name, step.seconds)
        out.write_text("{}")


def test_calls_end_in_time_and_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    machine = Machine()

    def call() -> tuple[list[str], list[str]]:
        return run_steps(THREE, tmp_path, 200, run=machine.run, clock=lambda: machine.time)

    assert call() == ([], ["c"])
    assert call() == ([], [])
    assert machine.time == 3 * 90


def test_a_step_that_breaks_down_does_not_keep_the_others(tmp_path: Path) -> None:
    machine = Machine(broken="a")
    found = run_steps(THREE, tmp_path, 1000, run=machine.run, clock=lambda: machine.time)
    assert found == (["a"], [])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.json", "c.json"]


def test_steps_have_names() -> None:
    assert [step.name for step in chosen(STEPS, "limit,tests")] == ["tests", "limit"]
    assert chosen(STEPS, "") == list(STEPS)
    with pytest.raises(SystemExit, match="no step speed: there are tests, limit"):
        chosen(STEPS, "speed")


@pytest.mark.parametrize("step", [*STEPS, *SMALL_STEPS], ids=lambda step: step.name)
def test_every_step_fits_into_a_call_and_is_a_benchmark_with_these_options(step: Step) -> None:
    assert step.seconds <= CALL_SECONDS < 600
    if step.benchmark is not None:
        options = importlib.import_module(f"benchmarks.{step.benchmark}").Options
        assert set(step.options) <= {field.name for field in dataclasses.fields(options)}


def test_neither_ray_nor_tyro_has_to_be_there() -> None:
    modules = {f"benchmarks.{step.benchmark}" for step in STEPS if step.benchmark}
    command = [sys.executable, "-m", "tests.project.bare_machine", "benchmarks.gpu_check", *sorted(modules)]
    subprocess.run(command, check=True, cwd=ROOT)


def test_tests_for_gpus_are_found() -> None:
    assert {"tests/pipeline/scoring/test_gpu.py", "tests/pipeline/score/test_gpu.py"} <= set(gpu_tests())


def test_what_cannot_be_loaded_is_no_failure() -> None:
    xml = """<testsuites><testsuite>
        <testcase classname="tests.a" name="test_one" time="1"/>
        <testcase classname="tests.a" name="test_two"><skipped message="needs a GPU"/></testcase>
        <testcase classname="tests.a" name="test_three"><failure>E  assert 1 == 2</failure></testcase>
        <testcase classname="" name="tests.b"><error>import tyro
E   ModuleNotFoundError: No module named 'tyro'</error></testcase></testsuite></testsuites>"""
    assert outcomes(xml) == {
        "passed": 1,
        "skipped": 1,
        "failed": ["tests.a::test_three"],
        "not_loaded": {"tests.b": "ModuleNotFoundError: No module named 'tyro'"},
    }


def test_the_report_is_what_a_page_would_say() -> None:
    way = "patchsieve, fp16, compiled"
    teacher: dict[str, Any] = {
        "base": "published way, fp32",
        "batch_size": {way: 128},
        "views_per_second": {way: 1532.4},
        "share_of_rate": {way: 0.478},
        "times_base": {way: 8.44},
    }
    results = {
        "limit": {
            "machine": MACHINE,
            "limit": {"gflop_per_second": {"fp16": 695_000.0}, "gigabytes_per_second": 3010.0},
        },
        "teacher-mae-base": {"machine": MACHINE, "teacher": {"mae-base, decoder": teacher}},
    }
    lines = report(results)
    assert lines[0] == "Measured on A card with 16 cores (Xeon), torch 2.15."
    assert "| matrix products, fp16 | 695.0 TFLOP/s |" in lines
    assert f"| {way} | 128 | 1,532.4 | 48% | 8.44 |" in lines
    assert report({}) == []
