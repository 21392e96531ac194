"""The ranker's forward passes: against timm's own, and by what must not and what must change a score."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify, take_patches
from patchsieve.pipeline.teacher.architecture import sincos_positions
from patchsieve.ranker.model.ranker import Ranker, RankerConfig
from tests.helpers.rankers import TINY_VIT, random_patches, small_config, small_ranker

HEADS = ["cls", "token"]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def drawn_positions(count: int, visible: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(16, generator=generator)[:visible] for _ in range(count)])


def scores_by_timm(ranker: Ranker, images_N3SS: Tensor) -> Tensor:
    """Whole-image scores by timm's model as it is, its position embeddings set to the fixed ones."""
    config = ranker.config
    model = timm.create_model(
        config.model, num_classes=0, img_size=config.image_size, patch_size=config.patch_size
    )
    assert isinstance(model, VisionTransformer)
    model.eval().blocks = model.blocks[: config.depth]
    table = sincos_positions(model.embed_dim, config.grid)[None]
    state = {**ranker.backbone.state_dict(), "pos_embed": table[:, 1:] if model.no_embed_class else table}
    model.load_state_dict(state)
    tokens = model.forward_features(images_N3SS)
    if config.head == "cls":
        return ranker.head(tokens[:, 0])
    return ranker.head(tokens[:, model.num_prefix_tokens :])[..., 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "cls"},
        {"head": "token"},
        {"head": "token", "patch_size": 8, "image_size": 40, "depth": 1},
        # Four register tokens, layer scale and no position for the class token.
        {"head": "token", "model": "vit_small_patch14_reg4_dinov2"},
    ],
)
@torch.no_grad()
def test_a_whole_image_as_timm_sees_it(changes: dict[str, Any]) -> None:
    ranker = small_ranker(**changes)
    side = ranker.config.image_size
    pixels = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(1))
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = scores_by_timm(ranker, (pixels / 255 - mean) / deviation)
    found = ranker.forward_image(patchify(pixels.to(torch.uint8), ranker.config.patch_size))
    assert found.shape == (2, ranker.config.positions)
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_all_patches_are_the_whole_image(head: str) -> None:
    ranker = small_ranker(head=head)
    patches = random_patches(3, ranker)
    whole = ranker.forward_image(patches)
    every = torch.arange(16).expand(3, -1)
    assert torch.equal(ranker.forward_visible(patches, every), whole)
    assert torch.equal(ranker(patches), whole)
    shuffled = drawn_positions(3, 16)
    found = ranker(take_patches(patches, shuffled), shuffled.to(torch.int16))
    torch.testing.assert_close(found, whole.gather(1, shuffled), **TOLERANCE)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_the_order_of_patches_does_not_matter(head: str) -> None:
    ranker = small_ranker(head=head)
    patches, positions = random_patches(2, ranker)[:, :5], drawn_positions(2, 5)
    order = torch.tensor([3, 0, 4, 2, 1])
    scores = ranker.forward_visible(patches, positions)
    permuted = ranker.forward_visible(patches[:, order], positions[:, order])
    assert scores.std(dim=1).min() > 0.01
    torch.testing.assert_close(permuted, scores[:, order], **TOLERANCE)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_places_and_pixels_matter_and_batch_mates_do_not(head: str) -> None:
    ranker = small_ranker(head=head)
    patches, positions = random_patches(2, ranker)[:, :5], drawn_positions(2, 5)
    scores = ranker.forward_visible(patches, positions)
    torch.testing.assert_close(ranker(patches[1:], positions[1:]), scores[1:], **TOLERANCE)
    moved = positions.clone()
    moved[0, 0] = next(i for i in range(16) if i not in positions[0])
    assert (ranker(patches, moved)[0, 1:] - scores[0, 1:]).abs().max() > 1e-3
    assert (ranker(patches.flip(2), positions) - scores).abs().max() > 1e-3


@torch.no_grad()
def test_the_class_token_scores_every_place_and_the_given_ones_are_read() -> None:
    ranker = small_ranker(head="cls")
    patches, positions = random_patches(2, ranker)[:, :5], drawn_positions(2, 5)
    every = []
    ranker.head.register_forward_hook(lambda module, given, scores: every.append(scores))
    scores = ranker.forward_visible(patches, positions)
    assert every[0].shape == (2, 16)
    assert scores.tolist() == [
        [row[i] for i in places]
        for row, places in zip(*map(Tensor.tolist, (every[0], positions)), strict=True)
    ]


@torch.no_grad()
def test_uint8_pixels_are_normalised_and_floats_are_taken_as_they_are() -> None:
    ranker = small_ranker()
    patches = random_patches(2, ranker)
    pixels = patches.double().reshape(2, 16, 256, 3) / 255
    channels = (
        (pixels[..., 0] - 0.485) / 0.229,
        (pixels[..., 1] - 0.456) / 0.224,
        (pixels[..., 2] - 0.406) / 0.225,
    )
    normalised = torch.stack(channels, dim=-1).reshape(2, 16, 768).float()
    torch.testing.assert_close(ranker(normalised), ranker(patches), **TOLERANCE)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns(head: str) -> None:
    ranker = small_ranker(head=head).train()
    # Distributed training waits for the gradient of every parameter.
    (ranker(random_patches(2, ranker)[:, :5], drawn_positions(2, 5)) ** 2).sum().backward()
    assert [
        name for name, p in ranker.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []
    assert not any("pos" in name for name in ranker.state_dict()), "positions are fixed, and computed"


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_half_precision_inside_full_precision_out(head: str) -> None:
    ranker = small_ranker(head=head)
    patches = random_patches(2, ranker)
    full = ranker(patches)
    with torch.autocast("cpu", torch.bfloat16):
        half = ranker(patches)
    assert half.dtype == torch.float32
    assert not torch.equal(half, half.bfloat16().float()), "rounding scores would make ties"
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.1)


def test_depth_and_default_sizes() -> None:
    assert RankerConfig().positions == 196
    assert (small_config().grid, small_config().positions, small_config().patch_values) == (4, 16, 768)
    assert len(small_ranker().backbone.blocks) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit_none"}, "timm has no model 'vit_none'; vit_tiny_patch16_224, "),
        ({"model": f"{TINY_VIT}.none"}, r"no model .*Invalid pretrained tag"),
        ({"model": "hf-hub:someone/model"}, "timm has no model"),
        ({"model": 5}, "model is 5"),
        ({"model": "resnet10t"}, r"resnet10t is no plain vision transformer with a class token \(.*img_size"),
        ({"model": "swin_tiny_patch4_window7_224"}, "timm builds a SwinTransformer"),
        ({"model": "deit_tiny_distilled_patch16_224"}, "timm builds a VisionTransformerDistilled"),
        ({"model": "test_vit2"}, "no class token"),
        ({"model": "vit_tiny_r_s16_p8_224"}, "embedded by HybridEmbed"),
        ({"depth": 7}, "has 6 blocks, fewer than the depth 7"),
        ({"depth": 0}, "depth is 0"),
        ({"patch_size": 16.0}, r"patch_size is 16\.0"),
        ({"image_size": 65}, "not a multiple of patch size"),
        ({"head": "mean"}, "head 'mean' is none of cls, token"),
    ],
)
def test_what_makes_no_ranker(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Ranker(small_config(**changes))
    assert "\n" not in str(raised.value)


def test_shapes_that_do_not_belong_together() -> None:
    ranker = small_ranker()
    patches = random_patches(2, ranker)
    with pytest.raises(ValueError, match=r"\[2, 16, 768\] at positions \[2, 5\]"):
        ranker(patches, drawn_positions(2, 5))
    with pytest.raises(ValueError, match="16 px patches needs"):
        ranker(patches[:, :5, :192], drawn_positions(2, 5))
    with pytest.raises(ValueError, match=r"sees images of \[N, 16, 768\]"):
        ranker(patches[:, :9])
