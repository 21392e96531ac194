"""Fitting a ranker, without Ray: schedule, weight decay, steps, temperature, plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.batches.stream import TableBatches
from patchsieve.ranker.learning.temperature import fit_temperature
from patchsieve.ranker.learning.training import (
    DivergedError,
    Recipe,
    Training,
    cosine_factor,
    layer_of,
    parameter_groups,
)
from patchsieve.ranker.learning.validation import Validation
from patchsieve.ranker.model.ranker import Ranker, RankerConfig
from patchsieve.ranker.train.config import TrainConfig
from patchsieve.ranker.train.plan import make_plan
from tests.helpers.pixel_tables import GRID, PATCH, SIDE, write_pixel_table
from tests.helpers.rankers import SMALLEST_VIT

RECIPE = Recipe(
    loss="list_mle",
    target=None,
    base_lr=0.02,
    weight_decay=0.05,
    beta2=0.95,
    warmup_steps=4,
    steps=40,
    batch_size=16,
    accumulate=1,
    clip=0.0,
)
SMALL = RankerConfig(model=SMALLEST_VIT, image_size=SIDE, patch_size=PATCH, depth=2, head="token")
CPU = torch.device("cpu")


def config_for(table: str, out: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        tables=(table,),
        out=str(out),
        model=SMALLEST_VIT,
        batch_size=16,
        views_per_image=8,
        warmup_views=2,
        measure_every=4,
        held_out=0.2,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tables")
    return write_pixel_table(folder / "a.parquet", images=range(40), views=2)


def test_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    factors = [cosine_factor(step, warmup_steps=4, steps=40) for step in range(40)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[22] == pytest.approx(0.5)
    assert factors[39] < 0.01


def test_only_matrices_decay() -> None:
    model = Ranker(SMALL)
    matrices, plain = parameter_groups(model, 0.05)
    assert (matrices["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") for p in matrices["params"])
    assert {"backbone.cls_token", "head.bias"} <= {names[id(p)] for p in plain["params"]}
    assert len(matrices["params"]) + len(plain["params"]) == len(names)


def test_layers_far_from_the_head_learn_slower() -> None:
    model = Ranker(SMALL)
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(scale_of) == len(names)
    layers = {
        "backbone.cls_token": 0,
        "backbone.blocks.0.mlp.fc1.bias": 1,
        "backbone.blocks.1.norm1.weight": 2,
    }
    for name, layer in {**layers, "backbone.norm.weight": 3, "head.weight": 3}.items():
        assert layer_of(name, 2) == layer_of(f"module.{name}", 2) == layer
        assert scale_of[id(names[name])] == 0.5 ** (3 - layer)
    training = Training(
        model, dataclasses.replace(RECIPE, layer_decay=0.5), device=CPU, half=None, full=False
    )
    before = {name: values.detach().clone() for name, values in names.items()}
    training.train_step([a_batch()])
    moved = {name: float((values.detach() - before[name]).abs().max()) for name, values in names.items()}
    # AdamW's first step is its learning rate wherever there is a gradient.
    assert moved["backbone.blocks.0.mlp.fc1.bias"] == pytest.approx(
        moved["backbone.norm.weight"] / 4, rel=1e-2
    )


def a_batch(**changes: object) -> Batch:
    generator = torch.Generator().manual_seed(3)
    shape = (8, 5, PATCH * PATCH * 3)
    batch = Batch(
        epoch=0,
        step=0,
        patches=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        positions=torch.arange(5).expand(8, -1),
        scores=torch.rand(8, 5, generator=generator),
        sample_keys=("a",) * 8,
        views=(0,) * 8,
    )
    return dataclasses.replace(batch, **changes)


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    recipe = dataclasses.replace(RECIPE, loss="mse")
    training = Training(Ranker(SMALL), recipe, device=CPU, half=None, full=False)
    before = [p.detach().clone() for p in training.model.parameters()]
    with pytest.raises(DivergedError, match=r"the loss is nan at step 1; try a lower --base-lr"):
        training.train_step([a_batch(scores=torch.full((8, 5), torch.nan))])
    assert all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))


def test_a_random_loss_draws_by_seed_worker_and_step() -> None:
    recipe = dataclasses.replace(RECIPE, loss="list_mle_sub", base_lr=1e-9, warmup_steps=0)
    wide = a_batch(
        patches=a_batch().patches.repeat(1, 3, 1)[:, :14],
        positions=torch.arange(14).expand(8, -1),
        scores=torch.rand(8, 14, generator=torch.Generator().manual_seed(1)),
    )

    def losses(seed: int, rank: int) -> list[float]:
        torch.manual_seed(0)
        ranker = Ranker(SMALL)
        training = Training(ranker, recipe, device=CPU, half=None, full=False, seed=seed, rank=rank)
        return [round(training.train_step([wide]), 4) for _ in range(2)]

    first = losses(0, 0)
    assert first == losses(0, 0)
    assert len({*first, *losses(0, 1), *losses(1, 0)}) == 6


def test_a_ranker_learns_an_order_that_there_is(table: str, tmp_path: Path) -> None:
    # The scores of these tables grow with the place on the grid.
    torch.manual_seed(0)
    plan = make_plan(config_for(table, tmp_path))
    training = Training(Ranker(SMALL), RECIPE, device=CPU, half=None, full=False)
    batches = TableBatches(plan.index, batch_size=16, seed=0)
    with batches.stream() as stream:
        losses = [training.train_step([next(stream)]) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    measured = Validation(plan.validation, plan.index).measure(training)
    assert len(measured.scores) == int(plan.index.held_out_rows.sum())
    assert measured.agreement is not None
    assert measured.agreement > 0.8


def test_accumulated_parts_give_the_step_of_the_whole_batch(table: str, tmp_path: Path) -> None:
    index = make_plan(config_for(table, tmp_path)).index
    with TableBatches(index, batch_size=16, seed=0).stream() as stream:
        whole = next(stream)
    halves = [
        dataclasses.replace(
            whole,
            patches=whole.patches[part],
            positions=whole.positions[part],
            scores=whole.scores[part],
            sample_keys=whole.sample_keys[part],
            views=whole.views[part],
        )
        for part in (slice(0, 8), slice(8, 16))
    ]
    models = []
    for parts in ([whole], halves):
        torch.manual_seed(1)
        recipe = dataclasses.replace(RECIPE, accumulate=len(parts), loss="mse")
        training = Training(Ranker(SMALL), recipe, device=CPU, half=None, full=False)
        training.train_step(parts)
        models.append(training.model)
    one, two = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    # AdamW's first step is the sign of the gradient: where that is nearly 0, rounding may turn it.
    assert float(((one - two).abs() < 1e-4).float().mean()) > 0.99


def test_resumed_steps_equal_uninterrupted_ones(table: str, tmp_path: Path) -> None:
    index = make_plan(config_for(table, tmp_path)).index
    batches = TableBatches(index, batch_size=16, seed=0)

    def fit(steps: int, first: tuple[Ranker, dict[str, object]] | None) -> tuple[Ranker, dict[str, object]]:
        torch.manual_seed(2)
        ranker = Ranker(SMALL)
        training = Training(ranker, RECIPE, device=CPU, half=None, full=False)
        if first is not None:
            ranker.load_state_dict(first[0].state_dict())
            training.load_state(first[1])
        epoch, step = divmod(training.step, batches.batches_per_epoch)
        with batches.stream(epoch=epoch, step=step) as stream:
            while training.step < steps:
                training.train_step([next(stream)])
        return ranker, training.state()

    whole, _ = fit(7, None)
    resumed, _ = fit(7, fit(3, None))
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("wanted", [0.05, 1.0, 20.0])
def test_temperature_is_found_again(wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 19, generator=generator, dtype=torch.float64) * wanted
    shares = (scores / wanted).softmax(1)
    assert fit_temperature([(scores, shares * 0.01)]) == pytest.approx(wanted, rel=1e-3)


def test_plan_counts_epochs_in_views_per_image(table: str, tmp_path: Path) -> None:
    plan = make_plan(config_for(table, tmp_path))
    assert plan.images == 32
    assert plan.recipe.steps == 16
    assert plan.recipe.warmup_steps == 4
    assert plan.measure_steps == 8
    assert plan.ranker.positions == GRID**2


def test_requests_that_cannot_work_are_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="divide by 3 workers"):
        config_for(table, tmp_path, workers=3)
    with pytest.raises(UserError, match="--held-out is 1"):
        config_for(table, tmp_path, held_out=1.0)
    with pytest.raises(UserError, match="no table given"):
        config_for(table, tmp_path, tables=())
    with pytest.raises(UserError, match="--held-out 1e-06 takes none"):
        make_plan(config_for(table, tmp_path, held_out=1e-6))
