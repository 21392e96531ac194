"""What a dry run of train predicts: counted by hand, and steps that are really taken."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq
import pytest
import torch

from patchsieve.pipeline.cluster.dry_run import DryRun
from patchsieve.pipeline.cluster.slots import NodeResources
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.batches.index import index_tables
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.train import estimate as train_estimate
from patchsieve.ranker.train.config import TrainConfig
from patchsieve.ranker.train.estimate import _rate, estimate_training, window_memory
from patchsieve.ranker.train.plan import TrainPlan, make_plan
from tests.helpers.pixel_tables import write_pixel_table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pixel_table(tmp_path_factory.mktemp("tables") / "a.parquet", images=range(40), views=2)


HERE = DryRun(nodes=[NodeResources(cpus=2, gpus=0)])


def plan_of(table: str, **changes: object) -> TrainPlan:
    config = TrainConfig(
        tables=(table,),
        out="unused",
        model="vit_tiny_patch16_224",
        batch_size=16,
        views_per_image=8,
        warmup_views=2,
        measure_every=4,
        held_out=0.2,
    )
    return make_plan(dataclasses.replace(config, **changes))


def test_a_dry_run_counts_what_training_reads_and_takes(table: str) -> None:
    plan = plan_of(table)
    told = estimate_training(plan, HERE)
    metadata = pq.ParquetFile(table).metadata
    columns = ("sample_key", "view", "visible.list.element", "score.list.element", "patches")
    chunks = [metadata.row_group(g).column(c) for g in range(10) for c in range(metadata.num_columns)]
    expected = sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in columns)
    assert told.pass_bytes == expected
    assert told.passes == pytest.approx(16 * 16 / plan.index.train_rows.sum())
    assert told.seconds == pytest.approx(256 / told.rows_per_s)
    assert 0 < told.seconds < 1000
    two = dataclasses.replace(plan, config=dataclasses.replace(plan.config, workers=2))
    twice = estimate_training(two, HERE)
    assert twice.seconds == pytest.approx(128 / twice.rows_per_s)
    lines = "\n".join(told.lines())
    assert all(word in lines for word in ("per pass", "in all", "per worker", " h)"))
    assert "per worker on 1 CPU thread of this machine" in lines


@pytest.mark.parametrize(("room", "accumulate", "workers"), [(1, 1, 1), (5, 1, 4), (100, 1, 16), (9, 4, 4)])
def test_auto_is_as_many_workers_as_share_a_batch_evenly(
    table: str, room: int, accumulate: int, workers: int
) -> None:
    plan = plan_of(table, workers="auto", accumulate=accumulate)
    assert plan.with_workers(room).workers == workers
    assert plan_of(table, workers=2).with_workers(room).workers == 2


def test_a_dry_run_says_how_many_workers_auto_is(table: str) -> None:
    plan = plan_of(table, workers="auto")
    assert "as many workers as there is room for" in "\n".join(plan.lines())
    cluster = DryRun(nodes=[NodeResources(cpus=5, gpus=0)])
    told = estimate_training(plan, cluster)
    assert "workers   4, there is room for 5" in told.lines()
    assert told.seconds == pytest.approx(256 / 4 / told.rows_per_s)


def test_workers_without_room_are_planned_for_here_and_refused_on_a_cluster(table: str) -> None:
    plan = plan_of(table, workers=4)
    assert "workers   4, there is room for 2" in estimate_training(plan, HERE).lines()
    with pytest.raises(UserError, match="--workers 4 of 1 CPU each: the cluster holds 2"):
        estimate_training(plan, dataclasses.replace(HERE, joined=True))


def test_steps_are_probed_with_as_many_rows_as_take_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = [0.0], list[int]()

    def step(rows: int) -> None:
        asked.append(rows)
        clock[0] += 0.02 + 0.01 * rows

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert _rate(step, 4096) == pytest.approx(asked[-1] / (0.02 + 0.01 * asked[-1]))
    assert 1 <= 0.01 * asked[-1] < 8
    asked.clear()
    assert _rate(step, 5) == pytest.approx(5 / 0.07)
    assert set(asked) == {5}


def test_a_probe_leaves_torch_as_it_was(table: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_estimate.step_rate(torch.device("cpu"), plan=plan_of(table), part=4)
    assert torch.equal(before, torch.get_rng_state())


def test_window_memory_bounds_what_windows_hold(table: str) -> None:
    index = index_tables(ScoreTables(table), context="visible")
    for ranks in (1, 2, 3):
        for window in (1, 3000, 20_000, 10**9):
            bound = window_memory(index, ranks=ranks, window_bytes=window)
            for rank in range(ranks):
                batches = TableBatches(
                    index, batch_size=2, seed=0, rank=rank, ranks=ranks, window_bytes=window
                )
                windows = batches._order.windows(0)
                sizes = [sum(int(index.sizes[piece.slice]) for piece in w.pieces) for w in windows]
                held = max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True))
                assert held <= bound
