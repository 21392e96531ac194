"""The ranker that comes with patchsieve: found by its name, small, and as training leaves one."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch

import patchsieve
from patchsieve.pipeline.images.patches import normalise, unpatchify
from patchsieve.ranker.model.card import CARD_FILE, model_card
from patchsieve.ranker.model.checkpoint import RANKER_FILE, check_ranker, resolve_ranker
from tests.helpers.rankers import random_patches


def test_it_is_loaded_by_name_and_of_the_bundled_teacher() -> None:
    ranker = patchsieve.load_ranker("tiny")
    assert ranker.name == "tiny"
    assert ranker.teacher["digest"] == patchsieve.load_teacher("tiny").file.digest
    assert ranker.temperature > 0
    folder = Path(resolve_ranker("tiny"))
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 12e6


def test_its_folder_is_one_that_train_leaves_and_timm_reads() -> None:
    folder = resolve_ranker("tiny")
    about = json.loads(Path(folder, RANKER_FILE).read_text(encoding="utf-8"))
    assert Path(folder, CARD_FILE).read_text(encoding="utf-8").startswith(model_card(about))
    assert check_ranker(folder) > 7e6
    ranker = patchsieve.load_ranker("tiny", device="cpu")
    patches = random_patches(1, ranker.model)
    read = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        scores = read(unpatchify(normalise(patches), 16))[:, read.num_prefix_tokens :, 0]
        torch.testing.assert_close(scores, ranker.model(patches), rtol=1e-4, atol=1e-4)
