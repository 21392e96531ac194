"""A measurement shared out on Ray: the figures, the folder and the refusals of one process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from patchsieve.pipeline.errors import PatchsieveError, UserError
from patchsieve.ranker.prove.report import Proof, to_json
from patchsieve.ranker.prove_on_ray.crew import answer, on_ray
from tests.helpers.proofs import measured, proof_folder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

OPTIONS: dict[str, Any] = {
    "protocol": "finetune",
    "steps": 2,
    "batch_size": 8,
    "seeds": 2,
    "selector": "topk",
    "controls": "grid,jpeg",
}


def figures(proof: Proof) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(to_json(proof, run_id="run"))
    del found["choice"]["opened"]
    return found


def test_two_workers_find_what_one_process_does_and_go_on_where_it_ended(tmp_path: Path) -> None:
    folder = proof_folder(tmp_path, train=12, test=6, in_marked=True)
    crew = partial(on_ray, workers=2, gpus_per_worker=0)
    lines: list[str] = []
    shared = measured(folder, lines.append, hire=crew, out=str(tmp_path / "ray"), **OPTIONS)
    steps = [line.split(" ")[0] for line in lines]
    assert [steps.count(step) for step in ("fitted", "tested")] == [8, 8]
    assert figures(shared) == figures(measured(folder, out=str(tmp_path / "alone"), **OPTIONS))
    names = {path.name for path in (tmp_path / "ray" / "fits").iterdir()}
    assert names == {path.name for path in (tmp_path / "alone" / "fits").iterdir()}
    # What one of them lost, another does; and one process goes on in the folder of many.
    (tmp_path / "ray" / "arms" / "grid-0.25-seed1.json").unlink()
    again: list[str] = []
    resumed = measured(folder, again.append, out=str(tmp_path / "ray"), **OPTIONS)
    assert figures(resumed) == figures(shared)
    assert [line.split(" 0.25")[0] for line in again if "ed     " in line] == ["tested     grid at"]
    with pytest.raises(UserError, match=r"--workers 9 of 1 CPU each: the cluster holds 4"):
        measured(
            folder, hire=partial(on_ray, workers=9, gpus_per_worker=0), out=str(tmp_path / "many"), **OPTIONS
        )


def _fail(error: Exception) -> None:
    raise error


def test_errors_of_workers_are_those_of_one_process() -> None:
    fail: Any = ray.remote(_fail).options(max_retries=0)
    with pytest.raises(UserError, match=r"^try a lower --lr$"):
        answer(fail.remote(UserError("try a lower --lr")))
    with pytest.raises(PatchsieveError, match=r"^a worker failed: ValueError: odd$"):
        answer(fail.remote(ValueError("odd\nindeed")))
