"""Scoring on a pretended GPU: scores of a processor, and no more traffic than there has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchsieve.pipeline.compute.batch_size import LARGEST_TENSOR
from patchsieve.pipeline.compute.layers import GeluLinear
from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.images.patches import channel_constants
from patchsieve.pipeline.row_config import Precision, Removal
from patchsieve.pipeline.scoring import scorer as scorer_module
from patchsieve.pipeline.scoring.api import load_teacher, score_images
from patchsieve.pipeline.scoring.removals import TokenRemovals
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.pipeline.teacher.ready import choose_precision
from tests.helpers.photos import photo_pixels
from tests.helpers.pretended_gpu.device import Device
from tests.helpers.pretended_gpu.ledger import Crossings
from tests.helpers.pretended_gpu.pretend import pretend_cuda
from tests.helpers.score_runs import save_small_teacher
from tests.pipeline.scoring.cases import RATIO, SMALL, make_teacher, make_views

WAYS: dict[str, dict[str, Any]] = {
    "decoder l1": {},
    "decoder l2": {"metric": "l2"},
    "decoder ssim": {"metric": "ssim"},
    "decoder psnr": {"metric": "psnr"},
    "encoder l1": {"removal": "encoder"},
    "encoder ssim": {"removal": "encoder", "metric": "ssim"},
    "frozen 8": {"frozen_tokens": 8},
    "frozen 8 l2": {"frozen_tokens": 8, "metric": "l2"},
    "frozen all": {"frozen_tokens": "all"},
}
AS_WIDE_AS_HUGE = TeacherConfig(
    patch_size=14, width=1280, depth=1, heads=16, decoder_depth=1, output_space="pixels"
)


def arguments(count: int, visible: int, asked: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    _, pixels, places = make_views(SMALL, count, visible)
    starts = torch.rand(count, visible, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return pixels, places, starts if "frozen_tokens" in asked else None


def crossings_of(views: int, asked: dict[str, Any]) -> Crossings:
    """Pixels of visible patches and two lists of positions go up, or whole views and more; scores come down."""
    more = "frozen_tokens" in asked or asked.get("metric") in ("ssim", "psnr")
    return Crossings(uploads=(4 if more else 3) * views, downloads=1, waits=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_those_of_a_processor(gpu: Device, way: str, precision: Precision) -> None:
    asked = {"mask_ratio": RATIO, "batch_size": 2, **WAYS[way]}
    on_processor = Scorer(make_teacher(), **asked)
    values = arguments(2, on_processor.visible, asked)
    expected = on_processor.score(*values)
    scorer = Scorer(make_teacher(), device="cuda", precision=precision, **asked)
    channel_constants(torch.device("cuda", 0))  # go up once
    gpu.forget()
    found = scorer.score(*values)
    assert gpu.ledger.crossings() == crossings_of(1, asked), gpu.ledger.culprits("upload", "wait")
    assert gpu.ledger.ways("upload").keys() == gpu.ledger.ways("download").keys() == {"async"}
    assert type(found) is Tensor
    # A frozen token is drawn by its proxy: half precision may draw others.
    tolerance = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.3}[precision]
    if way.startswith("frozen 8") and precision != "fp32":
        assert found.isfinite().all()
    else:
        scale = expected.abs().amax()
        torch.testing.assert_close(found / scale, expected / scale, rtol=tolerance, atol=tolerance / 10)


def test_every_batch_of_a_call_goes_up_and_all_scores_come_down_at_once(gpu: Device) -> None:
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, device="cuda", batch_size=2)
    values = arguments(5, scorer.visible, {})
    channel_constants(torch.device("cuda", 0))
    gpu.forget()
    scorer.score(*values)
    assert gpu.ledger.crossings() == crossings_of(3, {})
    assert gpu.ledger.bytes("upload") == 3 * 2 * (7 * SMALL.patch_values + 8 * SMALL.positions)
    assert gpu.ledger.bytes("download") == 4 * 5 * 7


def test_scores_are_not_there_before_they_are_waited_for(gpu: Device) -> None:
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, device="cuda", batch_size=4)
    launched = scorer.launch(*arguments(4, scorer.visible, {}))
    assert launched.scores.isnan().all()
    assert launched.result().isfinite().all()


def test_nothing_stays_on_the_device(gpu: Device) -> None:
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, device="cuda", batch_size=4)
    values = arguments(8, scorer.visible, {})
    scorer.score(*values)
    before = gpu.memory.live
    scorer.score(*values)
    assert gpu.memory.live == before > 0


def test_gpus_share_no_first_block_and_have_gelu_in_the_product(gpu: Device) -> None:
    values = arguments(2, 7, {})
    kernels = {}
    for precision in ("fp32", "fp16"):
        scorer = Scorer(make_teacher(), mask_ratio=RATIO, device="cuda", batch_size=2, precision=precision)
        assert type(scorer._removals) is TokenRemovals
        gpu.forget()
        scorer.score(*values)
        kernels[precision] = [record.op for record in gpu.ledger.of("kernel")]
    # Encoder, anchor and removals: two blocks of each.
    assert kernels["fp32"].count("aten::gelu") == kernels["fp16"].count("aten::_addmm_activation") == 6
    assert "aten::gelu" not in kernels["fp16"]
    assert torch.backends.cuda.matmul.fp32_precision == "none", "a setting was left behind"


def test_gelu_in_the_product_is_gelu(gpu: Device) -> None:
    layer, x = nn.Linear(24, 40), torch.randn(5, 7, 24)
    expected = nn.functional.gelu(layer(x))
    fused = GeluLinear(layer.to("cuda", torch.float16))
    with torch.inference_mode():
        torch.testing.assert_close(fused(x.to("cuda").half()).cpu().float(), expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize("removal", ["decoder", "encoder"])
def test_memory_that_runs_out_costs_no_scores(removal: Removal) -> None:
    asked: Any = {"mask_ratio": RATIO, "batch_size": 4, "removal": removal, "device": "cuda"}
    with pretend_cuda() as gpu:
        scorer = Scorer(make_teacher(), **asked)
        values = arguments(4, scorer.visible, {})
        gpu.forget()
        weights = gpu.memory.live
        expected = scorer.score(*values)
        needed = gpu.memory.peak - weights
    with pretend_cuda() as gpu:
        scorer = Scorer(make_teacher(), **asked)
        gpu.memory.limit = gpu.memory.live + needed // 3
        found = scorer.score(*values)
        assert gpu.memory.peak <= gpu.memory.limit
        assert gpu.memory.emptied > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_memory_that_holds_not_even_one_removal_is_said(gpu: Device) -> None:
    scorer = Scorer(make_teacher(), mask_ratio=RATIO, device="cuda", batch_size=4)
    gpu.memory.limit = gpu.memory.live + 1000
    with pytest.raises(InfrastructureError, match="out of memory on cuda: not even one removal"):
        scorer.score(*arguments(4, scorer.visible, {}))


def test_batch_sizes_of_gpus_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "GPU_BATCHES", (6, 9))
    with pretend_cuda(values=False):
        scorer = Scorer(make_teacher(), mask_ratio=RATIO, device="cuda", precision="fp16")
        assert scorer.batch_size in {6, 9}


@pytest.mark.parametrize(("capability", "halves"), [((7, 0), {"fp16"}), ((8, 0), {"bf16", "fp16"})])
def test_cards_from_before_ampere_are_not_asked_for_bf16(
    capability: tuple[int, int], halves: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchsieve.pipeline.teacher import ready

    asked: list[str] = []
    prepare_teacher = ready.prepare_teacher

    def prepare_and_tell(model: Any, precision: Precision, device: torch.device) -> MaskedAutoencoder:
        asked.append(precision)
        return prepare_teacher(model, precision, device)

    monkeypatch.setattr(ready, "prepare_teacher", prepare_and_tell)
    monkeypatch.setattr("patchsieve.pipeline.compute.precision._PROBE_ROUNDS", 1)
    with pretend_cuda(capability=capability, values=False):
        chosen = choose_precision(make_teacher(), torch.device("cuda"))
    assert chosen in set(asked) == {"fp32", *halves}


@pytest.mark.parametrize("removal", ["decoder", "encoder"])
def test_no_tensor_has_more_values_than_kernels_count(removal: Removal) -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder(AS_WIDE_AS_HUGE)
    with pretend_cuda(values=False) as gpu:
        model.eval().requires_grad_(False)
        scorer = Scorer(model, device="cuda", precision="fp16", batch_size=256, removal=removal)
        pixels = torch.zeros(256, model.config.positions, model.config.patch_values, dtype=torch.uint8)
        gpu.forget()
        scorer.score(pixels, torch.arange(scorer.visible).expand(256, -1))
        assert (
            LARGEST_TENSOR / 4 < max(record.largest for record in gpu.ledger.of("kernel")) <= LARGEST_TENSOR
        )
        assert gpu.ledger.crossings().waits == 1


@pytest.mark.parametrize("removal", ["decoder", "encoder"])
def test_recorded_batches_score_alike(gpu: Device, removal: Removal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is left as it is: compiling takes a real GPU."""
    monkeypatch.setattr(scorer_module, "compiled", lambda function, *constants: function)
    asked: Any = {"mask_ratio": RATIO, "batch_size": 4, "removal": removal, "device": "cuda"}
    values = arguments(9, 7, {})
    expected = Scorer(make_teacher(), **asked).score(*values)
    scorer = Scorer(make_teacher(), compile=True, **asked)
    gpu.forget()
    found = scorer.score(*values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert gpu.ledger.crossings() == crossings_of(3, {}), gpu.ledger.culprits("upload", "wait")
    assert [record.op for record in gpu.ledger.of("kernel")].count("graph") == 3
    assert gpu.ledger.ways("upload").keys() == {"async"}


def test_recorded_batches_give_way_where_memory_runs_out(
    gpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "compiled", lambda function, *constants: function)
    asked: Any = {"mask_ratio": RATIO, "batch_size": 4, "device": "cuda"}
    values = arguments(8, 7, {})
    expected = Scorer(make_teacher(), **asked).score(*values)
    scorer = Scorer(make_teacher(), compile=True, **asked)
    assert len(scorer._recorded) == 1
    # Another program has taken what was left.
    gpu.memory.limit = gpu.memory.live
    torch.testing.assert_close(scorer.score(*values), expected, rtol=1e-5, atol=1e-7)
    assert 4 not in scorer._recorded


def test_images_are_scored_from_python(gpu: Device, tmp_path: Path) -> None:
    path = save_small_teacher(tmp_path)
    photos = [photo_pixels(seed, 60, 70) for seed in range(2)]
    found = {
        device: score_images(photos, load_teacher(path, device=device, precision="fp32"))
        for device in (None, "cpu")
    }
    assert load_teacher(path, precision="fp16").device.type == "cuda"
    for ours, theirs in zip(found[None], found["cpu"], strict=True):
        np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-3)
