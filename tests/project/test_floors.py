"""Imports go down: a room imports from floors below its own; within a room, files form no circle."""

from __future__ import annotations

import ast
import graphlib

import pytest

from tests.helpers.checkout import ROOT
from tests.project.files import imported_files, libraries, python_files, room_of, tree_of

# The postcard, from the ground up. Rooms of one floor know nothing of each other.
FLOORS = """
    pipeline/errors pipeline/randomness pipeline/identity pipeline/units pipeline/threads pipeline/shown
    pipeline/checks
    pipeline/row_config pipeline/part pipeline/storage
    pipeline/shards pipeline/images pipeline/compute
    pipeline/output pipeline/teacher
    pipeline/runs pipeline/options pipeline/tables pipeline/scoring pipeline/pruned pipeline/pretrain pipeline/pack
    pipeline/cluster pipeline/pictures
    pipeline/score pipeline/schedule
    pipeline/score_on_ray
    ranker/model ranker/batches
    ranker/learning
    ranker/baselines
    ranker/select ranker/train
    ranker/evaluate
    ranker/prune ranker/prove ranker/verify ranker/gallery
    ranker/prune_on_ray ranker/prove_on_ray ranker/report
    ranker/demo
    jobs
"""
FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
RAY_ROOMS = {"pipeline/cluster", "pipeline/score_on_ray", "ranker/prune_on_ray", "ranker/prove_on_ray"}
RAY_FILES = {"ranker/train/run.py"}


def files() -> list[str]:
    """Every file that has a place on a floor: not the packages that the rooms lie in."""
    found = python_files("pipeline", "ranker", "jobs")
    return [file for file in found if file not in {"pipeline/__init__.py", "ranker/__init__.py"}]


def imported_upwards(file: str, tree: ast.Module) -> set[str]:
    """What a file imports from its own floor or above, its own room aside."""
    own = room_of(file)
    used = {target for target in imported_files(tree) if target != "patchsieve/__init__.py"}
    return {target for target in used if room_of(target) != own and FLOOR[room_of(target)] >= FLOOR[own]}


def test_every_room_is_on_the_postcard_and_there() -> None:
    assert {room_of(file) for file in files()} == set(FLOOR)


def test_tests_lie_in_the_rooms_of_what_they_test() -> None:
    rooms = {
        file.parent.relative_to(ROOT / "tests").as_posix() for file in (ROOT / "tests").rglob("test_*.py")
    }
    assert rooms - {"project", "faults"} <= set(FLOOR)


@pytest.mark.parametrize("file", files())
def test_imports_go_down(file: str) -> None:
    assert imported_upwards(file, tree_of(file)) == set()


def test_no_circles() -> None:
    # A prepared order: raises CycleError, which names the files, where there is a circle.
    list(graphlib.TopologicalSorter({file: imported_files(tree_of(file)) for file in files()}).static_order())


def test_ray_is_known_in_few_rooms() -> None:
    knows = {file for file in files() if "ray" in libraries(tree_of(file))}
    assert {file for file in knows if room_of(file) not in RAY_ROOMS} == RAY_FILES


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipeline/row_config.py", "import patchsieve.ranker.demo"),
        ("pipeline/row_config.py", "from patchsieve.jobs import cli"),
        ("pipeline/row_config.py", "def f():\n    from patchsieve.pipeline.shards.specs import Shard"),
        ("pipeline/row_config.py", "from patchsieve.pipeline import storage"),
        (
            "pipeline/row_config.py",
            "if TYPE_CHECKING:\n    from patchsieve.pipeline.shards.specs import Shard",
        ),
        ("pipeline/row_config.py", "import_module('patchsieve.pipeline.storage')"),
        ("ranker/select/budget.py", "from patchsieve.ranker.train import plan"),
    ],
)
def test_imports_upwards_are_found(file: str, source: str) -> None:
    assert len(imported_upwards(file, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipeline/row_config.py", "from patchsieve.pipeline.errors import UserError"),
        ("pipeline/row_config.py", "from patchsieve.pipeline import errors"),
        ("pipeline/row_config.py", "from patchsieve import __version__"),
        ("pipeline/storage/writing.py", "from patchsieve.pipeline.storage.urls import join"),
        ("ranker/demo.py", "import json, numpy"),
    ],
)
def test_imports_downwards_pass(file: str, source: str) -> None:
    assert imported_upwards(file, ast.parse(source)) == set()
