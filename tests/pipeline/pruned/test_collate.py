"""Batches for models: NaFlexVit sees of a packed sample what it sees of the image, and nothing of what was dropped."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms.functional import normalize

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import IMAGENET_MEAN, IMAGENET_STD
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.pruned.collate import collate_fixed, collate_naflex, place_by_coordinate
from patchsieve.pipeline.pruned.sample import PrunedSample, gather_patches
from tests.helpers.photos import photo_pixels

GRID = 14
WHOLE = tuple(range(GRID**2))


def labelled(*values: Any) -> list[PrunedSample]:
    return [dataclasses.replace(sample(n, (0, 1)), fields={"cls": value}) for n, value in enumerate(values)]


@pytest.mark.parametrize("collate", [collate_naflex, collate_fixed])
def test_labels_and_other_fields_come_along(collate: Any) -> None:
    found = collate(labelled(3, 1), fields=("cls",))["cls"]
    assert (found.tolist(), found.dtype) == ([3, 1], torch.int64)
    assert collate(labelled(torch.zeros(2), torch.ones(2)), fields=("cls",))["cls"].tolist() == [
        [0, 0],
        [1, 1],
    ]
    assert collate(labelled(b"a", b"b"), fields=("cls",))["cls"] == [b"a", b"b"]
    assert "cls" not in collate(labelled(3, 1))
    with pytest.raises(UserError, match="has no field json; it has cls"):
        collate(labelled(3), fields=("json",))
    with pytest.raises(UserError, match="field patches has the name"):
        collate(labelled(3), fields=("patches",))


@cache
def naflex(**options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The grid of its embeddings is that of the images, as it would be after training on them.
        model: Any = timm.create_model(
            "naflexvit_base_patch16_gap",
            pretrained=False,
            embed_dim=96,
            depth=2,
            num_heads=2,
            num_classes=10,
            pos_embed_grid_size=(GRID, GRID),
            **options,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            if model.embeds.pos_embed is not None:
                model.embeds.pos_embed.normal_()  # strong, so that a patch out of its place shows
    return model.eval()


def image(seed: int, size: int = 224) -> torch.Tensor:
    return torch.from_numpy(photo_pixels(seed, size, size)).permute(2, 0, 1)


def sample(seed: int, positions: tuple[int, ...], *, grid: int = GRID, block: int = 16) -> PrunedSample:
    at = torch.tensor(positions)
    return PrunedSample(
        shard="a.tar",
        key=str(seed),
        patches=gather_patches(image(seed, grid * block), at, block),
        positions=at,
        grid=grid,
        block=block,
        original_size=None,
        crop=None,
        fields={},
    )


def some(seed: int, count: int, below: int = GRID**2) -> tuple[int, ...]:
    drawn = torch.randperm(below, generator=torch.Generator().manual_seed(seed))[:count]
    return tuple(sorted(drawn.tolist()))


@torch.inference_mode()
def logits(batch: Any, model: nn.Module | None = None) -> torch.Tensor:
    return place_by_coordinate(model or naflex())(batch)


def masked(samples: list[PrunedSample]) -> dict[str, torch.Tensor]:
    """The same patches as whole sequences, of which timm masks all that were dropped."""
    whole = collate_naflex([sample(int(one.key), WHOLE) for one in samples])
    valid = torch.zeros_like(whole["patch_valid"])
    for number, one in enumerate(samples):
        valid[number, one.positions] = True
    return {**whole, "patch_valid": valid}


def test_whole_images_give_the_logits_of_the_image() -> None:
    images = torch.stack([image(seed) for seed in range(3)]).div(255)
    expected = logits(normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    found = logits(collate_naflex([sample(seed, WHOLE) for seed in range(3)]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("below", [GRID**2, GRID * (GRID - 3)])
def test_pruned_images_give_the_logits_of_masked_ones(below: int) -> None:
    """Also where no patch of the last rows stayed, from which NaFlexVit would infer a smaller grid."""
    samples = [sample(seed, some(seed, count, below)) for seed, count in enumerate((98, 30, 1, 60))]
    expected = naflex(pos_embed_use_grid_sample=True)
    torch.testing.assert_close(
        logits(collate_naflex(samples)), logits(masked(samples), expected), rtol=1e-4, atol=1e-5
    )


def test_padding_changes_nothing() -> None:
    one, other = sample(0, some(0, 98)), sample(1, some(1, 40))
    alone = logits(collate_naflex([one]))
    for batch in (collate_naflex([one, other]), collate_naflex([one], length=196)):
        torch.testing.assert_close(logits(batch)[:1], alone, rtol=1e-5, atol=1e-5)


def test_without_coordinates_timm_misplaces_pruned_patches() -> None:
    """Why `place_by_coordinate` is there; should timm change, this test says so."""
    samples = [sample(0, some(0, 98))]
    plain = naflex(pos_embed_use_grid_sample=False, fc_norm=True)
    with torch.inference_mode():
        found = plain(collate_naflex(samples))
    assert (found - logits(masked(samples))).abs().max() > 0.1


def test_layout_of_the_batch() -> None:
    batch = collate_naflex([sample(0, (0, 15, 195)), sample(1, (0, 14))])
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "patches": (torch.float32, (2, 3, 768)),
        "patch_coord": (torch.int64, (2, 3, 2)),
        "patch_valid": (torch.bool, (2, 3)),
    }
    assert batch["patch_coord"].tolist() == [[[0, 0], [1, 1], [13, 13]], [[0, 0], [1, 0], [13, 13]]]
    assert batch["patch_valid"].tolist() == [[True] * 3, [True, True, False]]
    assert not batch["patches"][1, 2].any()


def test_a_corner_is_added_only_where_it_is_missing() -> None:
    full_reach, short = sample(0, (13, 182)), sample(1, (0, 181))
    assert collate_naflex([full_reach])["patch_valid"].shape == (1, 2)
    assert collate_naflex([short])["patch_valid"].tolist() == [[True, True, False]]
    assert collate_naflex([short, sample(2, WHOLE)])["patch_valid"].shape == (2, 196)


def test_larger_blocks_become_more_tokens() -> None:
    batch = collate_naflex([sample(3, (5, 40), block=32)])
    pixels = normalize(image(3, 448).div(255), list(IMAGENET_MEAN), list(IMAGENET_STD))
    for patch, (y, x) in zip(batch["patches"][0, :8], batch["patch_coord"][0, :8] * 16, strict=True):
        expected = pixels[:, y : y + 16, x : x + 16].permute(1, 2, 0).flatten()
        torch.testing.assert_close(patch, expected, rtol=1e-5, atol=1e-6)
    assert batch["patch_coord"][0, -1].tolist() == [27, 27]


def test_other_means() -> None:
    batch = collate_fixed([sample(0, (3,))], mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(batch["patches"][0, 0], sample(0, (3,)).patches[0].div(127.5).sub(1))


def test_fixed_counts() -> None:
    samples = [sample(seed, some(seed, 49)) for seed in range(2)]
    batch = collate_fixed(samples)
    assert torch.equal(batch["positions"], torch.stack([one.positions for one in samples]))
    loose = collate_naflex(samples)
    assert torch.equal(batch["patches"], loose["patches"][:, :49])


def test_counts_that_differ() -> None:
    with pytest.raises(UserError, match="have: 1 of 14 x 14, 2 of 14 x 14"):
        collate_fixed([sample(0, (3,)), sample(1, (3, 4))])


def test_sequences_that_are_too_long() -> None:
    with pytest.raises(UserError, match="up to 3 tokens, length 2"):
        collate_naflex([sample(0, (0, 1))], length=2)


def coarse(one: PrunedSample, side: int) -> PrunedSample:
    """With a thumbnail of the whole image."""
    pixels = image(int(one.key), one.size)
    return dataclasses.replace(
        one, background=apply_view(pixels, ViewBox(0, 0, one.size, one.size, hflip=False), side)
    )


def two_scales() -> Any:
    """A model of its own that takes thumbnails, of strong embeddings."""
    return place_by_coordinate(copy.deepcopy(naflex()), two_scales=True)


def test_layout_of_two_scales() -> None:
    samples = [coarse(sample(0, (0, 195)), 32), sample(1, (14, 20))]
    batch = collate_naflex(samples)
    assert batch["patch_coord"].dtype == torch.float32
    # Centres: a coarse patch of a grid of 2 covers 7 fine ones along each side, 0 to 6 and 7 to 13.
    assert batch["patch_coord"][0].tolist() == [
        *([3, 3, 1], [3, 10, 1], [10, 3, 1], [10, 10, 1]),
        *([0, 0, 0], [13, 13, 0]),
    ]
    assert batch["patch_coord"][1].tolist() == [[1, 0, 0], [1, 6, 0], *[[13, 13, 0]] * 4]
    assert batch["patch_valid"].sum(1).tolist() == [6, 2]
    assert torch.equal(batch["patches"][0, 4:], collate_naflex(samples[:1])["patches"][0, 4:])
    assert samples[0].background is not None
    small = normalize(samples[0].background.div(255), list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(batch["patches"][0, 1], small[:, :16, 16:].permute(1, 2, 0).flatten())
    quarter = collate_naflex([coarse(sample(0, (0, 195)), 64)])["patch_coord"][0]
    assert quarter[:5, 1].tolist() == [1.25, 4.75, 8.25, 11.75, 1.25]


def test_coarse_tokens_stand_at_their_centres() -> None:
    """As many coarse tokens as fine ones stand where those do: their logits are those of the whole image."""
    whole = sample(0, WHOLE)
    batch = collate_naflex([coarse(sample(0, (195,)), 224)])
    batch = {name: value[:, :196] for name, value in batch.items()}
    torch.testing.assert_close(
        logits(batch, two_scales()), logits(collate_naflex([whole])), rtol=1e-4, atol=1e-5
    )


def test_the_scale_of_tokens_is_learned() -> None:
    model = two_scales()
    batch, fine = collate_naflex([coarse(sample(0, (0, 195)), 32)]), collate_naflex([sample(0, (0, 195))])
    before, alone = logits(batch, model), logits(fine, model)
    torch.testing.assert_close(alone, logits(fine), rtol=1e-5, atol=1e-6)
    assert "embeds.scale_embed" in model.state_dict()
    model(batch).sum().backward()
    assert model.embeds.scale_embed.grad.abs().max() > 0
    with torch.no_grad():
        model.embeds.scale_embed.normal_()
    assert (logits(batch, model) - before).abs().max() > 0.01
    torch.testing.assert_close(logits(fine, model), alone)
    again = two_scales()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(batch, pickle.loads(pickle.dumps(again))), logits(batch, model))
    assert place_by_coordinate(model).embeds.scale_embed is model.embeds.scale_embed


def test_padding_of_two_scales_changes_nothing() -> None:
    model, one = two_scales(), coarse(sample(0, some(0, 30)), 48)
    alone = logits(collate_naflex([one]), model)
    together = logits(collate_naflex([one, sample(1, some(1, 98))]), model)
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)


def test_models_of_one_scale_refuse_thumbnails() -> None:
    with pytest.raises(UserError, match="the model takes one scale"):
        logits(collate_naflex([coarse(sample(0, (0, 195)), 32)]))
    with pytest.raises(UserError, match="factorised"):
        place_by_coordinate(naflex(pos_embed="factorized"), two_scales=True)


def test_fixed_counts_with_thumbnails() -> None:
    samples = [coarse(sample(seed, some(seed, 49)), 32) for seed in range(2)]
    batch = collate_fixed(samples)
    assert batch["background"].shape == (2, 4, 768)
    assert torch.equal(batch["background"], collate_naflex(samples)["patches"][:, :4])
    with pytest.raises(UserError, match="these have 0 and 2 patches a side"):
        collate_fixed([samples[0], sample(1, some(1, 49))])


def test_models_that_cannot_place_patches() -> None:
    with pytest.raises(UserError, match="Linear is no NaFlexVit"):
        place_by_coordinate(nn.Linear(1, 1))
    with pytest.raises(UserError, match="rotary embeddings, which know whole coordinates only"):
        place_by_coordinate(rotary("axial"), two_scales=True)


KINDS: dict[str, dict[str, Any]] = {
    "axial": {},
    "dinov3": {"rope_rotate_half": True, "rope_grid_indexing": "xy"},
    "mixed": {"rope_grid_indexing": "xy"},
    "mrope": {"rope_mrope_section": (8, 8, 8)},
}


def rotary(kind: str, **options: Any) -> Any:
    """A model with rotary embeddings alone; one of its own, as placing changes it."""
    return copy.deepcopy(naflex(rope_type=kind, pos_embed="none", **KINDS[kind], **options))


@pytest.mark.parametrize("kind", KINDS)
def test_rotations_of_whole_images_are_those_of_the_image(kind: str) -> None:
    images = torch.stack([image(seed) for seed in range(2)]).div(255)
    pixels = normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))
    with torch.inference_mode():
        expected = rotary(kind)(pixels)
    found = logits(collate_naflex([sample(seed, WHOLE) for seed in range(2)]), rotary(kind))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rotations_follow_the_coordinates(kind: str) -> None:
    samples = [sample(seed, some(seed, count, 150)) for seed, count in enumerate((98, 30, 1))]
    # Of whole sequences timm's own rotations are right, and what was dropped is masked.
    with torch.inference_mode():
        expected = rotary(kind)(masked(samples))
    found = logits(collate_naflex(samples), rotary(kind))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Why models are placed: should timm take fewer tokens than the grid has some day, this says so.
    with pytest.raises(RuntimeError, match=r"size|shape"):
        rotary(kind)(collate_naflex(samples))


def test_grids_of_other_sizes_in_one_batch() -> None:
    small, large = sample(0, some(0, 20, 49), grid=7), sample(1, some(1, 60))
    alone = logits(collate_naflex([small]), rotary("axial"))
    together = logits(collate_naflex([small, large]), rotary("axial"))
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)


def test_placed_models_are_pickled_and_refuse_thumbnails() -> None:
    model = place_by_coordinate(rotary("dinov3"))
    again = pickle.loads(pickle.dumps(place_by_coordinate(model)))
    batch = collate_naflex([sample(0, some(0, 40))])
    torch.testing.assert_close(logits(batch, again), logits(batch, model))
    with pytest.raises(UserError, match="takes one scale"):
        logits(collate_naflex([coarse(sample(0, (0, 195)), 32)]), model)
