"""A whole training as one worker runs it, without Ray: checkpoints, going on from them, what OUT holds."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.baselines.baselines import BaselineSources, make_baseline
from patchsieve.ranker.baselines.fits import BaselineFits
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.model.initial_weights import initial_ranker
from patchsieve.ranker.train import loop
from patchsieve.ranker.train.loop import Fit, FitState, read_state
from patchsieve.ranker.train.plan import TrainPlan, make_plan
from patchsieve.ranker.train.progress import follow, numbers_of, outcome, point_line, print_point, read_curve
from patchsieve.ranker.train.record import begin, begun, check_resume, write_settings
from patchsieve.ranker.train.steps import print_step, write_step
from patchsieve.ranker.train.workers import Worker
from tests.helpers.partition_tables import write_partition_table
from tests.helpers.pixel_tables import GRID, PATCH, write_pixel_table
from tests.ranker.learning.test_training import config_for

pytestmark = pytest.mark.usefixtures("plotted")

SETTINGS: dict[str, Any] = {"head": "token", "depth": 1, "base_lr": 0.02, "weight_decay": 0.05}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tables")
    return write_pixel_table(folder / "a.parquet", images=range(40), views=2)


def a_plan(table: str, out: Path, **changes: object) -> TrainPlan:
    return make_plan(config_for(table, out, **{**SETTINGS, **changes}))


def through_a_file(state: FitState) -> FitState:
    """The state as a checkpoint gives it back."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "state.pt")
        return read_state(Path(folder) / "state.pt")


def fit(
    plan: TrainPlan,
    state: FitState | None = None,
    *,
    before: Callable[[int], None] | None = None,
    noticed: Callable[[], bool] = lambda: False,
) -> Any:
    """Run to the end, or to what `before` raises; returns the states of all checkpoints by step."""
    if begun(plan.config.out) is None:
        begin(plan, run_id="run-1")
    ranker = initial_ranker(plan.ranker, seed=plan.config.seed)
    found: dict[int, FitState] = {}

    def report(newest: dict[str, Any], content: Callable[[], FitState]) -> None:
        found[worker.training.step] = through_a_file(content())
        if before is not None:
            before(worker.training.step)

    watched: list[int] = []

    @contextlib.contextmanager
    def over_step() -> Iterator[None]:
        watched.append(worker.training.step)
        yield

    worker = Fit(
        plan, ranker, worker=Worker(), state=state, run_id="run-1", noticed=noticed, over_step=over_step
    )
    first = worker.training.step
    worker.run(report)
    assert watched == list(range(first, worker.training.step)), "each step is what a watchdog watches"
    return found


def test_each_step_is_kept_from_the_notice_on_that_a_machine_will_be_taken(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "NOTICE_S", -1.0)
    asked: list[bool] = []

    def noticed() -> bool:
        asked.append(len(asked) in (5, 6))
        return asked[-1]

    plan = a_plan(table, tmp_path / "out", flip=True, accumulate=2, measure_every=2)
    states = fit(plan, noticed=noticed)
    assert len(asked) == 16
    assert list(states) == [4, 6, 7, 8, 12, 16]


def test_notices_are_asked_for_from_time_to_time_only(
    table: str, tmp_path: Path, plotted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "NOTICE_S", 1e9)
    monkeypatch.setattr(loop, "PLOTTED_EVERY_S", -1.0)

    def noticed() -> bool:
        raise AssertionError("it is not time")

    plan = a_plan(table, tmp_path / "out", measure_every=2)
    assert len(fit(plan, noticed=noticed)) == 4
    assert plotted == [1, 2, 3, 4]


def test_from_every_checkpoint_on_the_steps_are_the_same(table: str, tmp_path: Path) -> None:
    whole = a_plan(table, tmp_path / "whole", flip=True, accumulate=2, measure_every=2)
    states = fit(whole)
    assert list(states) == [4, 8, 12, 16]
    expected = load_ranker(str(tmp_path / "whole" / "last"))
    for step in (4, 12):
        out = tmp_path / f"from-{step}"
        plan = a_plan(table, out, flip=True, accumulate=2, measure_every=2)
        later = fit(plan, states[step])
        assert min(later) == step + 4
        assert load_ranker(str(out / "last")).digest == expected.digest
        ours, theirs = (read_curve(str(folder)) for folder in (out, tmp_path / "whole"))
        for points in (ours, theirs):
            for point in points:
                del point["seconds"], point["waited"]
        assert ours == theirs


@pytest.mark.gpu
def test_a_gpu_is_fed_from_pinned_memory_and_goes_on_from_main_memory(table: str, tmp_path: Path) -> None:
    plan, device = a_plan(table, tmp_path / "out", views_per_image=4, measure_every=2), torch.device("cuda")

    def a_fit(state: FitState | None) -> Fit:
        ranker = initial_ranker(plan.ranker).to(device)
        return Fit(plan, ranker, worker=Worker(device=device), state=state, run_id="run-1")

    found: list[FitState] = []
    a_fit(None).run(lambda _newest, content: found.append(through_a_file(content())))
    assert {values.device.type for values in found[0]["ranker"].values()} == {"cpu"}
    later = a_fit(found[0])
    averages = later.training._optimiser.state.values()
    assert {one["step"].device.type for one in averages} == {"cpu"}
    assert {one["exp_avg"].device.type for one in averages} == {"cuda"}
    with later._batches.stream() as stream:
        assert next(stream).patches.is_pinned()


def test_checkpoints_by_the_clock_hold_what_was_not_measured_yet(table: str, tmp_path: Path) -> None:
    plan = a_plan(table, tmp_path / "often", views_per_image=4, measure_every=4, checkpoint_minutes=1e-9)
    states = fit(plan)
    assert list(states) == list(range(1, 9))
    assert states[5]["progress"]["curve"] == []
    other = a_plan(table, tmp_path / "resumed", views_per_image=4, measure_every=4)
    # Amid the first pass, which the baselines are fitted to.
    fit(other, states[2])
    one, two = (read_curve(str(tmp_path / name))[0] for name in ("often", "resumed"))
    assert (one["loss"], one["agreement"]) == (two["loss"], two["agreement"])
    fits = [load_ranker(str(tmp_path / name)).extra["baselines"] for name in ("often", "resumed")]
    assert fits[0]["position"]["rows"] == 3 * 16
    assert fits[0] == fits[1]


def test_out_holds_the_best_ranker_and_the_last(table: str, tmp_path: Path, plotted: list[int]) -> None:
    out = tmp_path / "out"
    # So high a rate that agreement comes and goes.
    fit(a_plan(table, out, views_per_image=16, measure_every=2, base_lr=0.3))
    curve = read_curve(str(out))
    assert plotted == [len(curve)], "at the end"
    best, last = load_ranker(str(out)), load_ranker(str(out / "last"))
    top = max(curve, key=lambda point: float(point["agreement"]))
    assert (best.extra["step"], best.extra["agreement"]) == (int(top["step"]), float(top["agreement"]))
    assert (last.extra["step"], last.extra["agreement"]) == (32, float(curve[-1]["agreement"]))
    assert (best.digest == last.digest) == (top["step"] == "32")
    lines = outcome(str(out), shown="out")
    assert lines[0].startswith("complete: 32 steps; agreement is Spearman's correlation")
    assert f"{float(top['agreement']):.3f} at step {top['step']}: out" in lines[1]


def test_a_ranker_says_what_it_was_trained_on(table: str, tmp_path: Path) -> None:
    # Three steps are a whole pass.
    plan = a_plan(table, tmp_path / "out", views_per_image=2, batch_size=20)
    write_settings(plan.config, run_id="run-1")
    fit(plan)
    ranker = load_ranker(str(tmp_path / "out"))
    assert ranker.tables == plan.identities
    assert ranker.extra["run_id"] == "run-1"
    assert ranker.extra["validation"] == "visible patches"
    assert ranker.extra["held_out"] == plan.validation.rows
    assert ranker.extra["rows"]["removal"] == "decoder"
    assert ranker.extra["rows"]["views"] == "0:2"
    assert ranker.extra["training"]["loss"] == "rank_net"
    fits = ranker.extra["baselines"]
    assert fits["position"]["rows"] == plan.index.train_rows.sum()
    expected = BaselineFits(grid=GRID, patch_size=PATCH)
    with TableBatches(plan.index, batch_size=20, seed=0).stream(epochs=1) as stream:
        for batch in stream:
            expected.add(batch)
    assert fits == expected.result()
    make_baseline("ridge", BaselineSources(grid=GRID, patch_size=PATCH, fits=fits))
    assert "views_per_image: 2" in (tmp_path / "out" / "train.yaml").read_text()


def test_whole_images_are_measured_and_said_so(tmp_path: Path) -> None:
    table = write_partition_table(tmp_path / "a.parquet", images=range(24))
    plan = a_plan(table, tmp_path / "out", views_per_image=4, measure_every=4)
    assert "on whole images" in "\n".join(plan.lines())
    fit(plan)
    (point,) = csv.DictReader(io.StringIO((tmp_path / "out" / "curve.csv").read_text()))
    assert point["validation"] == "whole images"
    assert "on whole images" in point_line(point)
    assert load_ranker(str(tmp_path / "out")).extra["validation"] == "whole images"


def test_going_on_needs_the_same_settings_and_tables(table: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(a_plan(table, out), run_id="run-1")

    def refused(message: str, given: str = table, **changes: object) -> None:
        with pytest.raises(UserError, match=message):
            check_resume(a_plan(given, out, **{"resume": True, **changes}), begun(str(out)))

    check_resume(
        a_plan(table, out, resume=True, views_per_image=100, workers=2, measure_every=1), begun(str(out))
    )
    refused("add --resume", resume=False)
    refused(r"base_lr: 0.02 -> 0.1; loss: rank_net -> mse\. Ask for the same", base_lr=0.1, loss="mse")
    refused(r"held_out: 0.2 -> 0.3", held_out=0.3)
    other = write_pixel_table(tmp_path / "b.parquet", images=range(41), views=2)
    refused("begun with other tables", other)
    same_rows = write_pixel_table(
        tmp_path / "c" / "a.parquet", images=range(40), views=2, settings={"removal": "encoder"}
    )
    refused("begun with other tables", same_rows)
    with pytest.raises(UserError, match="another run began a training there"):
        begin(a_plan(table, out), run_id="run-2")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds the config\.json of something else"):
        begun(str(tmp_path))
    (tmp_path / "training.json").write_text(json.dumps({"format": "patchsieve training"}))
    with pytest.raises(UserError, match=r"training\.json is damaged"):
        begun(str(tmp_path))


def test_measurements_are_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "step,views_per_image,loss,agreement,validation,waited\n"
    (tmp_path / "curve.csv").write_text(f"{header}5,1,2.0,0.5,visible patches,0.01\n")
    with follow(str(tmp_path), print_point, print_step):
        write_step(str(tmp_path), step=8, steps=20, loss=1.75, step_s=10.0, run_id="run")
        (tmp_path / "curve.csv").write_text(
            f"{header}5,1,2.0,0.5,visible patches,0.01\n10,2,1.5,,visible patches,0.02\n"
        )
    assert numbers_of({"step": "10", "loss": "1.5", "agreement": "", "validation": "visible patches"}) == {
        "step": 10,
        "loss": 1.5,
        "agreement": None,
        "validation": "visible patches",
    }
    shown = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "step 10  views per image 2  loss 1.5000  agreement nan on visible patches  waited for data 2.0%",
        "step 8 of 20  loss 1.7500  about 2 min 00 s left",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"]
