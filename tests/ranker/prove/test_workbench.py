"""Numbers of arms that are found on train images, and what encoders make of views."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise
from patchsieve.pipeline.pruned.codec import ImageCodec
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.baselines.baselines import BaselineSources
from patchsieve.ranker.prove.arms import FULL, Arm, selector_arm, selector_names
from patchsieve.ranker.prove.encoders import TeacherEncoder, TimmEncoder, load_backbone
from patchsieve.ranker.prove.photos import LabelField, LabelledPhotos, read_photos
from patchsieve.ranker.prove.views import Canvas
from patchsieve.ranker.prove.workbench import Workbench
from patchsieve.ranker.select.patch_scorer import PatchScorer, open_patch_source
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.proofs import GRID, PATCH, proof_folder
from tests.helpers.teachers import SMALL, random_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelledPhotos:
    folder = tmp_path_factory.mktemp("photos")
    path = write_shard(folder / "a.tar", photo_samples(40, height=60, width=70))
    return read_photos(
        expand_shards([str(path)]),
        "train",
        LabelField("cls", {}),
        grid=GRID,
        patch_size=PATCH,
        image_field="jpg",
        limit=None,
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = proof_folder(tmp_path_factory.mktemp("bench"), train=1, test=1, in_marked=True)
    source = open_patch_source(str(folder / "ranker"), fits=None, teacher=None, seed=0)
    scorer = PatchScorer(dataclasses.replace(source, precision="fp32"), device=CPU, batch_size=8)
    return Workbench(
        Canvas(GRID, PATCH, ImageCodec("jpeg", 90)), scorer, BaselineSources(grid=GRID, patch_size=PATCH)
    )


@pytest.mark.parametrize("name", selector_names(2 * PATCH))
def test_every_selector_comes_to_the_ratio(bench: Workbench, photos: LabelledPhotos, name: str) -> None:
    """The tokens of its thumbnail among them."""
    arm = selector_arm(name, 0.25)
    views = bench.views(arm, photos, bench.numbers(arm, photos), range(len(photos)))
    tokens = [len(view.patches) for view in views]
    assert np.mean(tokens) == pytest.approx(9, abs=0.5)
    assert (len(set(tokens)) == 1) == (arm.way not in ("nucleus", "budget"))


def test_a_jpeg_comes_nearest_to_its_bytes(bench: Workbench, photos: LabelledPhotos) -> None:
    arm = Arm("jpeg", "control", 0.25, "bytes")

    def mean(quality: float) -> float:
        views = bench.views(arm, photos, {"quality": quality}, range(len(photos)))
        return float(np.mean([view.nbytes for view in views]))

    asked = (mean(60) + mean(90)) / 2
    quality = bench.numbers(arm, photos, nbytes=asked)["quality"]
    distances = {other: abs(mean(other) - asked) for other in (quality - 5, quality, quality + 5)}
    assert min(distances, key=lambda other: distances[other]) == quality
    assert bench.numbers(arm, photos, nbytes=1)["quality"] == 1


def test_fewer_images_are_as_many_as_their_bytes_pay_for(bench: Workbench, photos: LabelledPhotos) -> None:
    arm = Arm("fewer", "control", 0.25, "bytes")
    numbers = bench.numbers(arm, photos, nbytes=1000, whole=4000)
    assert numbers == {"images": 10}
    assert bench.fewer(photos, numbers).sum() == 10
    assert bench.numbers(arm, photos, nbytes=9000, whole=4000) == {"images": 40}


def test_the_teacher_encodes_kept_tokens_as_itself(bench: Workbench, photos: LabelledPhotos) -> None:
    """Whatever else is in the batch, and whole images as its own method does."""
    model = random_teacher(SMALL)
    encoder = TeacherEncoder(model, CPU)
    kept = bench.views(Arm("random", "control", 0.25, "tokens"), photos, {}, range(3))
    whole = bench.views(Arm(FULL, "reference"), photos, {}, range(3))
    found = encoder.features([*kept, *whole])
    assert found.shape == (6, 2 * SMALL.width)
    for features, view in zip(found, [*kept, *whole], strict=True):
        positions = (view.places[:, 0] * GRID + view.places[:, 1]).long()
        latent = model.encode(normalise(view.patches)[None], positions[None])[0]
        expected = torch.cat([latent[0], latent[1:].mean(0)])
        assert features == pytest.approx(expected.detach().numpy(), abs=1e-4)
    assert encoder.flops(9) < encoder.flops(36) / 3


def test_a_model_of_timm_reads_whole_images(bench: Workbench, photos: LabelledPhotos, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone(f"test_resnet={tmp_path / 'weights.safetensors'}")
    encoder = TimmEncoder(backbone.model, CPU)
    views = bench.views(Arm("random", "control", 0.25, "tokens"), photos, {}, range(3))
    features = encoder.features(views)
    assert features.shape == (3, model.num_features)
    assert len({row.tobytes() for row in features}) == 3
    assert encoder.flops(9) == encoder.flops(36) > 1e6
    assert backbone.digest == load_backbone(f"test_resnet={tmp_path / 'weights.safetensors'}").digest
    with pytest.raises(UserError, match=r"--backbone test_vit: cannot load its weights"):
        load_backbone(f"test_vit={tmp_path / 'weights.safetensors'}")
    with pytest.raises(UserError, match=r"--backbone: timm has no weights for nest_tiny"):
        load_backbone("nest_tiny")
