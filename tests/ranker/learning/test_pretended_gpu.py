"""Training steps on a pretended GPU: every loss, under autocast and with scaled gradients, and nothing read back."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.learning.losses import LossName
from patchsieve.ranker.learning.training import Recipe, Training
from tests.helpers.pretended_gpu.device import Device
from tests.helpers.pretended_gpu.tensor import OnDevice
from tests.helpers.rankers import small_ranker

CUDA = torch.device("cuda")
NUMBER = "aten::_local_scalar_dense"
"""A tensor's value as a number of Python's."""
RECIPE = Recipe(
    loss="rank_net",
    target=None,
    base_lr=0.01,
    weight_decay=0.05,
    beta2=0.95,
    warmup_steps=2,
    steps=20,
    batch_size=8,
    accumulate=1,
    clip=1.0,
)
HALVES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def a_training(device: torch.device, half: torch.dtype | None = None, **changes: Any) -> Training:
    ranker = small_ranker(head="token", depth=1).to(device)
    recipe = dataclasses.replace(RECIPE, **changes)
    return Training(ranker.train().requires_grad_(True), recipe, device=device, half=half, full=False)


def a_batch(seed: int = 0) -> Batch:
    made = torch.Generator().manual_seed(seed)
    return Batch(
        epoch=0,
        step=0,
        patches=torch.randint(0, 256, (8, 12, 768), dtype=torch.uint8, generator=made),
        positions=torch.rand(8, 16, generator=made).argsort(1)[:, :12].sort(1).values,
        scores=torch.rand(8, 12, generator=made),
        sample_keys=tuple(map(str, range(8))),
        views=(0,) * 8,
    )


@pytest.mark.parametrize("loss", get_args(LossName))
def test_steps_are_those_of_a_processor(gpu: Device, loss: str) -> None:
    found, expected = a_training(CUDA, loss=loss), a_training(torch.device("cpu"), loss=loss)
    for step in range(2):
        ours, theirs = (training.train_step([a_batch(step)]) for training in (found, expected))
        assert ours == pytest.approx(theirs, rel=1e-3)
    batch = a_batch()
    scores = [training.predict(batch.patches, batch.positions) for training in (found, expected)]
    assert type(scores[0]) is Tensor
    torch.testing.assert_close(*scores, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("loss", "half"), [*((loss, "fp16") for loss in get_args(LossName)), ("rank_net", "bf16")]
)
def test_half_precision_learns(gpu: Device, loss: str, half: str) -> None:
    training = a_training(CUDA, HALVES[half], loss=loss)
    first, *_, last = [training.train_step([a_batch()]) for _ in range(3)]
    assert last < first
    assert all(parameter.dtype == torch.float32 for parameter in training.ranker.parameters())


def test_gradients_that_overflow_cost_a_step_and_no_weights(gpu: Device) -> None:
    training = a_training(CUDA, torch.float16)
    training.train_step([a_batch()])
    before = {name: value.cpu().clone() for name, value in training.ranker.state_dict().items()}
    scale = training.state()["scaler"]["scale"]
    training._scaler.update(2.0**60)
    training.train_step([a_batch()])
    after = training.ranker.state_dict()
    assert all(torch.equal(after[name].cpu(), value) for name, value in before.items())
    assert 0 < scale < training.state()["scaler"]["scale"] < 2.0**60


def read_back(gpu: Device, training: Training) -> list[str]:
    """What a step waits for, given batches as they come to a training on a GPU."""
    training.train_step([a_batch().pin_memory()])
    gpu.forget()
    training.train_step([a_batch().pin_memory()])
    assert gpu.ledger.ways("upload").keys() == {"async"}, gpu.ledger.culprits("upload")
    assert not gpu.ledger.of("download", "implicit upload"), gpu.ledger.culprits(
        "download", "implicit upload"
    )
    return [record.op for record in gpu.ledger.of("wait")]


@pytest.mark.parametrize("half", ["fp32", "bf16"])
def test_a_step_reads_nothing_back_but_its_loss(gpu: Device, half: str) -> None:
    assert read_back(gpu, a_training(CUDA, HALVES[half])) == [NUMBER], gpu.ledger.culprits("wait")


def test_scaled_gradients_are_asked_once_whether_they_are_finite(gpu: Device) -> None:
    assert read_back(gpu, a_training(CUDA, torch.float16)) == [NUMBER] * 2, gpu.ledger.culprits("wait")


def test_a_resumed_step_reads_back_no_more_than_another(gpu: Device) -> None:
    training = a_training(CUDA)
    training.train_step([a_batch()])
    file = io.BytesIO()
    torch.save(training.state(), file)
    file.seek(0)
    again = a_training(CUDA)
    again.ranker.load_state_dict(training.ranker.state_dict())
    again.load_state(torch.load(file, map_location="cpu", weights_only=True))
    assert read_back(gpu, again) == [NUMBER], gpu.ledger.culprits("wait")
    assert all(isinstance(state["exp_avg"], OnDevice) for state in again._optimiser.state.values())
