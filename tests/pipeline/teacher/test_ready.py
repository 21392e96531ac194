"""Teachers made ready to run: what precision and library may change, and what not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from patchsieve.pipeline.compute.layers import NarrowingNorm, OneDnnLinear, has_half, has_onednn
from patchsieve.pipeline.compute.precision import fastest_precision, pick_precision
from patchsieve.pipeline.row_config import Precision
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.pipeline.teacher.ready import choose_precision, prepare_teacher

CPU = torch.device("cpu")
CONFIG = TeacherConfig(
    image_size=32,
    patch_size=8,
    width=32,
    depth=2,
    heads=2,
    decoder_width=24,
    decoder_depth=2,
    decoder_heads=3,
)


def run(model: MaskedAutoencoder) -> torch.Tensor:
    patches = torch.randn(3, 4, CONFIG.patch_values, generator=torch.Generator().manual_seed(0))
    order = torch.arange(16).expand(3, -1)
    with torch.inference_mode():
        latent = model.encode(patches, order[:, :4])
        return model.decode(latent, order[:, :4], order[:, 4:], 12)


@pytest.mark.skipif(not has_onednn(CPU), reason="PyTorch without oneDNN, or not an x86 processor")
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(not has_half(CPU), reason="a processor from before AVX-512"),
        ),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_computes_the_same_linear_layer(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40, bias=bias, dtype=dtype).requires_grad_(False)
    contiguous = torch.randn(5, 11, 24, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        for x in (contiguous, contiguous[:, :7], contiguous.transpose(0, 1), contiguous[:0]):
            torch.testing.assert_close(OneDnnLinear(linear)(x), linear(x), rtol=tolerance, atol=tolerance)


def test_a_prepared_teacher_computes_the_same() -> None:
    model = MaskedAutoencoder(CONFIG).eval()
    torch.testing.assert_close(run(prepare_teacher(model, "fp32", CPU)), run(model), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(prepare_teacher(model, "bf16", CPU)), run(model), rtol=0.05, atol=0.05)


def test_weights_are_shared_until_they_change_type() -> None:
    model = MaskedAutoencoder(CONFIG)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in prepare_teacher(model, "fp32", CPU).parameters()} <= weights
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_is_for_the_blocks_only() -> None:
    ready = prepare_teacher(MaskedAutoencoder(CONFIG), "bf16", CPU)
    for name, value in ready.state_dict().items():
        inner = "blocks." in name and (".attn." in name or ".mlp." in name)
        # A removal's effect is smallest in the decoder's first block.
        inner = inner and "decoder_blocks.0." not in name
        assert value.dtype == (torch.bfloat16 if inner else torch.float32), name
    for name, module in ready.named_modules():
        if isinstance(module, OneDnnLinear):
            inner = "blocks." in name and "decoder_blocks.0." not in name
            assert module.packed.dtype == (torch.bfloat16 if inner else torch.float32), name
    norms = [module for name, module in ready.named_modules() if name.endswith(("norm1", "norm2"))]
    assert [isinstance(norm, NarrowingNorm) for norm in norms] == [True] * 4 + [False] * 2 + [True] * 2
    assert run(ready).dtype == torch.float32


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"fp32": 1.0}, "fp32"),
        ({"fp32": 1.0, "bf16": 3.0}, "fp32"),
        ({"fp32": 1.0, "bf16": 0.95}, "fp32"),
        ({"fp32": 1.0, "bf16": 0.5}, "bf16"),
        ({"fp32": 1.0, "bf16": 0.50, "fp16": 0.51}, "fp16"),
        ({"fp32": 1.0, "bf16": 0.50, "fp16": 0.70}, "bf16"),
        ({"fp32": 1.0, "fp16": 0.3}, "fp16"),
    ],
)
def test_half_precision_must_pay(seconds: dict[Precision, float], expected: str) -> None:
    assert pick_precision(seconds) == expected


def test_precision_is_chosen_by_a_probe() -> None:
    assert choose_precision(MaskedAutoencoder(CONFIG), CPU) in {"fp32", "bf16"}


def test_processors_without_half_precision_are_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on an AMD EPYC 7003: packing bf16 weights raises there, so that no run began."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    asked: list[Precision] = []

    def probe(precision: Precision) -> Callable[[], torch.Tensor]:
        asked.append(precision)
        return lambda: torch.zeros(1)

    assert fastest_precision(probe, CPU) == "fp32"
    assert asked == ["fp32"]
    # An output that another node began in bf16 goes on there all the same, in PyTorch's own way.
    model = MaskedAutoencoder(CONFIG).eval()
    ready = prepare_teacher(model, "bf16", CPU)
    kinds = {type(block.attn.qkv) for block in (*ready.blocks, *ready.decoder_blocks[1:])}
    assert kinds == {torch.nn.Linear}
    torch.testing.assert_close(run(ready), run(model), rtol=0.1, atol=0.1)


@pytest.mark.gpu
def test_gpus_compute_the_same_scores() -> None:
    from patchsieve.pipeline.scoring.scorer import Scorer

    model = MaskedAutoencoder(CONFIG)
    pixels = torch.randint(0, 256, (5, 16, CONFIG.patch_values), dtype=torch.uint8)
    visible = torch.arange(4).expand(5, -1)
    expected = Scorer(model, mask_ratio=0.75, batch_size=2).score(pixels, visible)
    on_gpu = Scorer(model, mask_ratio=0.75, batch_size=2, device="cuda").score(pixels, visible)
    torch.testing.assert_close(on_gpu, expected, rtol=1e-4, atol=0)
    assert choose_precision(model, torch.device("cuda")) in {"fp32", "bf16", "fp16"}
    assert Scorer(model, mask_ratio=0.75, device="cuda", precision="fp16").batch_size >= 1
