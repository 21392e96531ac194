"""Scoring on a real GPU: compiled and recorded batches score what the processor scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from patchsieve.pipeline.compute.layers import GeluLinear
from patchsieve.pipeline.row_config import Metric, Removal
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from tests.pipeline.scoring.cases import RATIO, SMALL, make_teacher, make_views
from tests.pipeline.scoring.reference import kendall_tau

# Compilers warn of their own libraries.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
FROZEN = 8


def arguments(count: int, visible: int, tokens: int | None) -> tuple[Any, ...]:
    _, pixels, places = make_views(SMALL, count, visible)
    starts = torch.rand(count, visible, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return pixels, places, starts if tokens else None


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("removal", "metric", "tokens"),
    [
        ("decoder", "l1", None),
        ("decoder", "l2", FROZEN),
        ("encoder", "l1", None),
        ("decoder", "ssim", None),
        ("encoder", "psnr", None),
    ],
)
def test_scores_are_those_of_the_processor(
    removal: Removal, metric: Metric, tokens: int | None, compile: bool
) -> None:
    asked: Any = {"mask_ratio": RATIO, "removal": removal, "metric": metric, "frozen_tokens": tokens}
    model = make_teacher()
    on_processor = Scorer(model, batch_size=4, **asked)
    values = arguments(10, on_processor.visible, tokens)
    on_gpu = Scorer(model, batch_size=4, device="cuda", compile=compile, **asked)
    found = on_gpu.score(*values)
    torch.testing.assert_close(found, on_processor.score(*values), rtol=2e-3, atol=2e-6)
    assert torch.equal(found, on_gpu.score(*values)), "another time, other scores"


def test_a_batch_is_compiled_once() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, batch_size=4, device="cuda", compile=True)
    compiled = counters["stats"]["unique_graphs"]
    values = arguments(18, scorer.visible, None)
    first = scorer.score(*values)
    assert torch.equal(first, scorer.score(*values))
    assert compiled == counters["stats"]["unique_graphs"] == 1, "a compilation for every batch"
    assert not counters["graph_break"]


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 400 * 2**20) / whole)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("compile", [False, True])
def test_a_batch_that_does_not_fit_is_scored_in_parts(compile: bool) -> None:
    model = build_teacher(read_teacher("tiny"))
    _, pixels, visible = make_views(model.config, 64, 19)
    expected = Scorer(model, batch_size=4).score(pixels[:8], visible[:8])
    scorer = Scorer(model, batch_size=64, device="cuda", compile=compile)
    found = scorer.score(pixels, visible)
    assert scorer._pass.now < 64 * 19
    torch.testing.assert_close(found[:8], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("compile", [False, True])
def test_half_precision_keeps_the_ranks(compile: bool) -> None:
    model = build_teacher(read_teacher("tiny"))
    _, pixels, visible = make_views(model.config, 24, 19)
    full = Scorer(model, batch_size=4).score(pixels, visible)
    half = Scorer(model, precision="fp16", batch_size=24, device="cuda", compile=compile).score(
        pixels, visible
    )
    taus = [kendall_tau(x, y) for x, y in zip(full.tolist(), half.tolist(), strict=True)]
    assert np.mean(taus) >= 0.99, taus
    assert torch.backends.cuda.matmul.fp32_precision == "none", "a setting was left behind"


def test_gelu_is_applied_by_the_linear_layer() -> None:
    layer = torch.nn.Linear(64, 96).cuda().half()
    x = torch.randn(5, 7, 64, device="cuda", dtype=torch.float16)
    expected = torch.nn.functional.gelu(layer(x))
    torch.testing.assert_close(GeluLinear(layer)(x), expected, rtol=0, atol=2e-3)
