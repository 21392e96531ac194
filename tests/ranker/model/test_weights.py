"""Weights that a ranker starts from: files and those of timm, of this and of other architectures."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.model.ranker import Ranker
from tests.helpers.rankers import SMALLEST_VIT, small_config


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """What a file of timm holds: learned positions of 10 x 10 patches, and a classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return dict(timm.create_model(SMALLEST_VIT).state_dict())


@pytest.fixture(scope="module")
def file(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    path.write_bytes(safetensors.torch.save(published))
    return path


def parts_equal(ranker: Ranker, expected: dict[str, Tensor]) -> bool:
    state = ranker.backbone.state_dict()
    assert {name.split(".")[0] for name in state} == {"cls_token", "patch_embed", "blocks", "norm"}
    return all(torch.equal(values, expected[name]) for name, values in state.items())


def test_a_file_fills_the_transformer(file: Path, published: dict[str, Tensor], tmp_path: Path) -> None:
    assert parts_equal(Ranker(small_config(), weights=str(file)), published)
    assert not parts_equal(Ranker(small_config()), published)
    whole = Ranker(small_config(depth=None), weights=str(file))
    assert len(whole.backbone.blocks) == 6
    assert parts_equal(whole, published)
    torch.save({"state_dict": OrderedDict(published), "epoch": 3}, tmp_path / "vit.pth")
    assert parts_equal(Ranker(small_config(), weights=str(tmp_path / "vit.pth")), published)


@pytest.mark.filterwarnings("ignore:Resizing patch embeddings")
def test_patches_of_another_size_are_resampled(file: Path, published: dict[str, Tensor]) -> None:
    ranker = Ranker(small_config(patch_size=8), weights=str(file))
    assert ranker.backbone.patch_embed.proj.weight.shape == (64, 3, 8, 8)
    blocks = ranker.backbone.blocks.state_dict()
    assert all(torch.equal(values, published[f"blocks.{name}"]) for name, values in blocks.items())


def test_the_encoder_of_a_masked_autoencoder(tmp_path: Path) -> None:
    teacher = MaskedAutoencoder(
        TeacherConfig(image_size=64, width=192, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=2)
    )
    torch.save({"model": teacher.state_dict()}, tmp_path / "mae.pth")
    ranker = Ranker(small_config(model="vit_tiny_patch16_224"), weights=str(tmp_path / "mae.pth"))
    assert parts_equal(ranker, teacher.state_dict())


def test_weights_by_the_name_timm_gives_them(
    file: Path, published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = timm.get_pretrained_cfg(SMALLEST_VIT)
    assert known is not None
    assert known.hf_hub_id is not None
    cached = tmp_path / f"models--{known.hf_hub_id.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("0" * 40) / "model.safetensors").symlink_to(file)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert parts_equal(Ranker(small_config(), weights="timm"), published)


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot get timm's weights of test_vit.*give the path") as raised:
        Ranker(small_config(), weights="timm")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="timm has no weights for vit_small_patch16_18x2_224"):
        Ranker(small_config(model="vit_small_patch16_18x2_224"), weights="timm")
    with pytest.raises(UserError, match="resnet10t is no plain vision transformer"):
        Ranker(small_config(model="resnet10t"), weights="timm")


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_files_that_do_not_fit(file: Path, published: dict[str, Tensor], tmp_path: Path) -> None:
    def refused(weights: Path, message: str, model: str = SMALLEST_VIT) -> None:
        with pytest.raises(UserError, match=message) as raised:
            Ranker(small_config(model=model), weights=str(weights))
        assert "\n" not in str(raised.value)

    def changed(name: str, *, without: str = "-", **added: Tensor) -> Path:
        state = {key: value for key, value in published.items() if not key.startswith(without)}
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(safetensors.torch.save({**state, **added}))
        return path

    refused(tmp_path / "none.pth", "no weights at")
    refused(file, r"cannot load .* into vit_small_patch16_224: size mismatch", model="vit_small_patch16_224")
    refused(changed("short", without="blocks.5"), r"another architecture than .*lacks blocks\.5")
    longer = {"blocks.6.norm1.weight": torch.ones(64)}
    refused(changed("long", **longer), r"has no blocks\.6\.norm1\.weight")
    refused(changed("registers", reg_token=torch.zeros(1, 4, 64)), "has no reg_token")
    (tmp_path / "damaged.safetensors").write_bytes(file.read_bytes()[:1000])
    refused(tmp_path / "damaged.safetensors", "cannot load")
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    refused(tmp_path / "trap.pth", "weights_only")
    assert not (tmp_path / "sprung").exists()
