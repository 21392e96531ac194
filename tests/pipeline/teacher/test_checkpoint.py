"""Teachers from every format: the same weights, digest and reconstructions; parity with transformers."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.teacher import sources
from patchsieve.pipeline.teacher.architecture import TeacherConfig, parameter_shapes, sincos_positions
from patchsieve.pipeline.teacher.build import build_teacher, save_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher, weights_digest
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from tests.helpers.teachers import KNOWN_SIZES, SMALL, random_teacher, random_vit_mae, write_hub_folder

KNOWN_STATE = random_teacher(KNOWN_SIZES).state_dict()


def fair(path: Path, weights: dict[str, Tensor], **beside: Any) -> Path:
    torch.save({"model": weights, **beside}, path)
    return path


def reconstruct(file: TeacherFile, pixels_N3SS: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> Tensor:
    model, config = build_teacher(file), file.config
    n, grid, patch = len(pixels_N3SS), config.grid, config.patch_size
    patches = pixels_N3SS.reshape(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)
    patches_NLP = patches.reshape(n, grid * grid, -1)
    picked = patches_NLP.gather(1, visible_NV[..., None].expand(-1, -1, patches_NLP.shape[2]))
    with torch.no_grad():
        return model.decode(model.encode(picked, visible_NV), visible_NV, hidden_NH, hidden_NH.shape[1])


@pytest.mark.parametrize(
    ("written_by", "settings"),
    [
        ("transformers", {}),
        ("modules", {}),
        ("bin", {}),
        ("published", {"layer_norm_eps": 1e-3}),
        ("published", {"norm_pix_loss": True, "image_size": 64}),
    ],
)
def test_vit_mae_reconstructs_as_transformers_does(
    written_by: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    reference = random_vit_mae(mask_ratio=0.75, **settings)
    folder = tmp_path / "teacher"
    if written_by == "transformers":
        reference.save_pretrained(folder)
    else:
        write_hub_folder(folder, reference, names=written_by)
    side = settings.get("image_size", 48)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(5, 3, side, side, generator=generator)
    noise = torch.rand(5, (side // 8) ** 2, generator=generator)
    with torch.no_grad():
        expected = reference(pixels, noise=noise).logits
    order = noise.argsort(dim=1)
    count = int(order.shape[1] * 0.25)
    visible, hidden = order[:, :count], order[:, count:]
    file = read_teacher(str(folder))
    ours = reconstruct(file, pixels, visible, hidden)
    theirs = expected.gather(1, hidden[..., None].expand(-1, -1, expected.shape[2]))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # Hidden patches have to differ, or their order would go unseen.
    assert theirs.std(dim=1).mean() > 0.05
    assert file.config.norm_eps == reference.config.layer_norm_eps
    assert file.config.output_space == ("normalised" if settings.get("norm_pix_loss") else "pixels")


@pytest.mark.parametrize(
    "config", [SMALL, KNOWN_SIZES, TeacherConfig(depth=1, decoder_depth=1, mlp_ratio=2.5, patch_size=32)]
)
def test_shapes_are_those_of_the_model(config: TeacherConfig) -> None:
    with torch.device("meta"):
        state = MaskedAutoencoder(config).state_dict()
    assert parameter_shapes(config) == {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("image_size", [48, 112])
def test_computed_positions_are_those_of_transformers(image_size: int) -> None:
    reference = random_vit_mae(image_size=image_size)
    grid = image_size // 8
    reference.decoder.initialize_weights(grid**2)
    computed = reference.decoder.decoder_pos_embed[0]
    torch.testing.assert_close(sincos_positions(24, grid), computed, rtol=0, atol=1e-6)


def test_the_same_weights_give_one_teacher_in_every_format(tmp_path: Path) -> None:
    sizes = {
        "image_size": 32,
        "hidden_size": 192,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 256,
    }
    folder = write_hub_folder(tmp_path / "hub", random_vit_mae(**sizes))
    first = read_teacher(str(folder))
    arguments = argparse.Namespace(model="mae_vit_tiny", norm_pix_loss=False, lr=1e-3)
    save_teacher(build_teacher(first), str(tmp_path / "own"), name="own")
    save_teacher(build_teacher(first), str(tmp_path / "single.safetensors"), name="single")
    safetensors.torch.save_file(first.state, tmp_path / "bare.safetensors")
    others = [
        fair(tmp_path / "plain.pth", first.state),
        fair(tmp_path / "arguments.pth", first.state, args=arguments, epoch=3, optimizer={"state": [1]}),
        write_hub_folder(tmp_path / "modules", random_vit_mae(**sizes), names="modules"),
        tmp_path / "own",
        tmp_path / "single.safetensors",
        tmp_path / "bare.safetensors",
    ]
    torch.save(first.state, tmp_path / "bare.pth", _use_new_zipfile_serialization=False)
    for stem in ("plain", "arguments", "bare"):
        (tmp_path / f"{stem}.json").write_text('{"config": {"heads": 3, "decoder_heads": 16}}')
    for path in [*others, tmp_path / "bare.pth"]:
        file = read_teacher(str(path), output_space="pixels")
        assert file.state.keys() == first.state.keys()
        assert all(torch.equal(file.state[name], first.state[name]) for name in first.state)
        eps = 1e-6 if path.suffix == ".pth" or path.name == "bare.safetensors" else first.config.norm_eps
        assert file.config == TeacherConfig(**{**vars(first.config), "norm_eps": eps})
        # It changes what the same weights compute.
        assert (file.digest == first.digest) == (eps == first.config.norm_eps), path


def test_the_digest_sees_every_value_and_the_heads() -> None:
    state = {name: tensor.clone() for name, tensor in random_teacher(SMALL).state_dict().items()}
    digest = weights_digest(SMALL, state)
    assert digest == weights_digest(SMALL, dict(reversed(state.items())))
    for name in ("pos_embed", "mask_token", "decoder_blocks.1.mlp.fc2.bias"):
        changed = {**state, name: state[name].clone()}
        changed[name].view(-1)[-1] += 1e-6
        assert weights_digest(SMALL, changed) != digest
    heads = TeacherConfig(**{**vars(SMALL), "heads": 2})
    assert weights_digest(heads, state) != digest
    # Pinned: it names teachers in score tables.
    ones = {"b": torch.ones(2, 1), "a": torch.tensor([0.5])}
    assert weights_digest(SMALL, ones) == "a71d2cd1931e6358f4ed6e665dd08449aeefb0cb3dc5263bf4d4573d627e8e93"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("target", ["folder", "file.safetensors"])
def test_our_own_format_is_read_back(half: bool, target: str, tmp_path: Path) -> None:
    model = random_teacher(SMALL)
    saved = save_teacher(model, str(tmp_path / target), name="mine", half=half, licence="Apache-2.0")
    read = read_teacher(str(tmp_path / target))
    assert (read.config, read.name, read.licence, read.digest) == (SMALL, "mine", "Apache-2.0", saved.digest)
    for name, tensor in model.state_dict().items():
        expected = tensor.half().float() if half and "pos_embed" not in name else tensor
        assert torch.equal(read.state[name], expected), name
    weights = tmp_path / (target if target.endswith("s") else "folder/teacher.safetensors")
    stored = safetensors.torch.load_file(weights)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16 if half else torch.float32}
    assert not any("pos_embed" in name for name in stored)
    assert not list(tmp_path.rglob("*.tmp"))


def test_learned_positions_are_stored_in_full_precision(tmp_path: Path) -> None:
    model = random_teacher(SMALL)
    model.pos_embed += 1e-5
    save_teacher(model, str(tmp_path / "t"), name="t", half=True)
    assert torch.equal(read_teacher(str(tmp_path / "t")).state["pos_embed"], model.pos_embed)


def test_a_built_teacher_is_frozen_and_travels_between_processes(tmp_path: Path) -> None:
    save_teacher(random_teacher(SMALL), str(tmp_path / "t"), name="t")
    file = read_teacher(str(tmp_path / "t"))
    travelled = pickle.loads(pickle.dumps(file))
    assert (travelled.config, travelled.digest) == (file.config, file.digest)
    model = build_teacher(travelled)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("file", "beside", "expected"),
    [
        ("mae_visualize_vit_base.pth", {}, "pixels"),
        ("mae_visualize_vit_large_ganloss.pth", {}, "pixels"),
        ("mae_pretrain_vit_base_full.pth", {}, "normalised"),
        ("mine.pth", {}, "unknown"),
        ("mine.pth", {"args": argparse.Namespace(norm_pix_loss=True)}, "normalised"),
        ("mine.pth", {"args": argparse.Namespace(norm_pix_loss=False)}, "pixels"),
        ("mine.pth", {"args": argparse.Namespace(model="mae_vit_tiny")}, "unknown"),
    ],
)
def test_output_space_of_a_release_file(
    file: str, beside: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = fair(tmp_path / file, KNOWN_STATE, **beside)
    path.with_suffix(".json").write_text('{"config": {"heads": 3, "decoder_heads": 16}}')
    read = read_teacher(str(path))
    assert (read.config.output_space, read.name) == (expected, file)
    assert read.licence == ("CC-BY-NC-4.0" if file.startswith("mae_") else None)
    assert read_teacher(str(path), output_space="normalised").config.output_space == "normalised"


def test_json_beside_a_pth_tells_what_the_file_does_not(tmp_path: Path) -> None:
    path = fair(tmp_path / "mine.pth", random_teacher(SMALL).state_dict())
    with pytest.raises(UserError, match=r"does not tell its heads and decoder_heads.*\{\"heads\": \.\.\., "):
        read_teacher(str(path))
    config = {"heads": 4, "decoder_heads": 2, "output_space": "pixels"}
    (tmp_path / "mine.json").write_text(json.dumps({"config": config}))
    assert read_teacher(str(path)).config == SMALL


def offline_cache(root: Path, repository: str) -> Path:
    """Where the hub's client looks for a snapshot that it fetched before."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("names", ["published", "bin"])
def test_hub_names_and_aliases(names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = write_hub_folder(
        offline_cache(tmp_path, "facebook/vit-mae-base"), random_vit_mae(norm_pix_loss=True), names=names
    )
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- vision\n---\n# license: none\n")
    read = read_teacher("mae-base")
    assert (read.name, read.licence) == ("facebook/vit-mae-base", "apache-2.0")
    # What is known of the published weights, not what their config says.
    assert read.config.output_space == "pixels"
    assert read_teacher("facebook/vit-mae-base").digest == read.digest
    assert read_teacher(str(folder)).config.output_space == "pixels"
    with pytest.raises(UserError, match=r"cannot fetch facebook/vit-mae-huge .*\.pth.*tiny") as caught:
        read_teacher("mae-huge")
    assert "\n" not in str(caught.value)


def test_teachers_at_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = random_teacher(KNOWN_SIZES)
    saved = save_teacher(model, "memory://teachers/mine", name="mine")
    with fsspec.open("memory://teachers/mae_visualize_vit_tiny.pth", "wb") as buffer:
        torch.save({"model": model.state_dict()}, buffer)
    assert read_teacher("memory://teachers/mine").digest == saved.digest
    assert read_teacher("memory://teachers/mine/teacher.safetensors").config == KNOWN_SIZES
    read = read_teacher("memory://teachers/mae_visualize_vit_tiny.pth")
    assert (read.digest, read.config, read.name) == (saved.digest, KNOWN_SIZES, "mae_visualize_vit_tiny.pth")
    monkeypatch.setattr(sources, "WEIGHTS_LIMIT", 1000)
    with pytest.raises(UserError, match="bytes, more than 1000 allowed"):
        read_teacher("memory://teachers/mae_visualize_vit_tiny.pth")
