"""A ranker's folder as timm and the Hugging Face hub have it: the same scores, and a card that says how to get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise, unpatchify
from patchsieve.ranker.model.checkpoint import load_ranker, save_ranker
from tests.helpers.rankers import TEACHER, random_patches, small_ranker

EXTRA = {
    "agreement": 0.8125,
    "held_out": 12,
    "validation": "visible patches",
    "step": 30,
    "steps": 40,
    "rows": {"mask_ratio": 0.9},
    "training": {"loss": "ranknet", "base_lr": 0.001},
}


def save(folder: Path, **changes: Any) -> str:
    ranker = small_ranker(**changes)
    return save_ranker(str(folder), ranker, teacher=TEACHER, tables=["a" * 64], temperature=1.0, extra=EXTRA)


def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's client keeps what it fetched of somebody/ranker, when it may ask nobody."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = root / "models--somebody--ranker"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


@pytest.mark.parametrize(
    ("head", "model"),
    [
        ("cls", "vit_tiny_patch16_224"),
        ("token", "vit_tiny_patch16_224.augreg_in21k"),
        # Registers, and places for patches alone.
        ("token", "vit_small_patch14_reg4_dinov2"),
    ],
)
def test_timm_gives_the_same_scores(head: str, model: str, tmp_path: Path) -> None:
    save(tmp_path, head=head, model=model)
    ranker = load_ranker(str(tmp_path), device="cpu")
    patches = random_patches(2, ranker.model)
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        scores = read(unpatchify(normalise(patches), 16))
        wanted = ranker.model(patches)
    if head == "token":
        scores = scores[:, read.num_prefix_tokens :, 0]
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)
    data = resolve_model_data_config(read)
    assert (data["input_size"], data["crop_pct"], *data["mean"]) == ((3, 64, 64), 0.875, 0.485, 0.456, 0.406)


def test_from_the_hub_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = save(hub(tmp_path, monkeypatch), head="token")
    loaded = load_ranker("somebody/ranker", device="cpu")
    assert (loaded.digest, loaded.name) == (digest, "somebody/ranker")
    patches = random_patches(1, loaded.model)
    read = timm.create_model("hf-hub:somebody/ranker", pretrained=True).eval()
    with torch.inference_mode():
        scores = read(unpatchify(normalise(patches), 16))[:, 1:, 0]
        torch.testing.assert_close(scores, loaded.model(patches), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"cannot fetch some/other from .* no local folder .* tiny") as caught:
        load_ranker("some/other")
    assert "\n" not in str(caught.value)
    # A folder of that name comes first.
    monkeypatch.chdir(tmp_path)
    other = save(tmp_path / "somebody" / "ranker", head="cls")
    assert load_ranker("somebody/ranker", device="cpu").digest == other


def test_the_card_says_what_was_measured_and_how_to_load(tmp_path: Path) -> None:
    save(tmp_path, head="token")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "12 held-out images, visible patches): 0.812, at step 30 of 40" in card
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in card
    assert "scores = model(images)[:, model.num_prefix_tokens :, 0]" in card
    assert '\n      "loss": "ranknet"\n' in card
    assert '\n      "mask_ratio": 0.9\n' in card
    assert "hf upload user/name FOLDER --include README.md" in card
