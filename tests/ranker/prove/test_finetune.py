"""Fine-tuning: one start and one recipe for every arm, dropped tokens cost nothing, seeds can be added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.ranker.prove.config import Recipe
from patchsieve.ranker.prove.finetune import fine_tune, predict
from patchsieve.ranker.prove.report import report_lines, to_json
from patchsieve.ranker.prove.tokens import TokenClassifier, Tokens, by_count, check_plain, encode_tokens
from patchsieve.ranker.prove.views import grid_places
from tests.helpers.proofs import GRID, PATCH, measured, proof_folder
from tests.helpers.teachers import SMALL, random_teacher

CLASSES = 2


def small_vit() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=GRID * PATCH, patch_size=PATCH, depth=2, num_classes=0
        )
        torch.nn.init.normal_(vit.pos_embed)
    return vit.eval()


def classifier(vit: Any, seed: int = 0) -> TokenClassifier:
    return TokenClassifier(vit, grid=GRID, patch_size=PATCH, classes=CLASSES, seed=seed)


def made_up_tokens(counts: list[int], seed: int = 0) -> list[Tokens]:
    """Images that keep so many patches; the even ones are dark."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for number, count in enumerate(counts):
        pixels = torch.randint(0, 128, (count, 3 * PATCH**2), generator=random) + 127 * (number % 2)
        places = grid_places(GRID, GRID)[torch.randperm(GRID**2, generator=random)[:count]]
        found.append(Tokens(pixels.to(torch.uint8), places))
    return found


def test_whole_images_are_what_timm_makes_of_them() -> None:
    vit = small_vit()
    images = torch.randn(3, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    model = classifier(check_plain(vit, "vit", grid=GRID, patch_size=PATCH))
    places = grid_places(GRID, GRID).expand(3, -1, -1)
    found = encode_tokens(model, patchify(images, PATCH), places, GRID)
    expected = vit.forward_features(images)
    torch.testing.assert_close(found, torch.cat([expected[:, 0], expected[:, 1:].mean(1)], 1))
    # In any order, and pixels as the model was trained on them: from -1 to 1.
    order = torch.randperm(GRID**2, generator=torch.Generator().manual_seed(2))
    pixels = torch.randint(0, 256, (1, GRID**2, 3 * PATCH**2), dtype=torch.uint8)
    whole = encode_tokens(model, pixels / 127.5 - 1, places[:1], GRID)
    torch.testing.assert_close(model(pixels[:, order], places[:1, order]), model.head(whole))


def test_images_of_different_counts_are_learned_in_one_batch_and_none_is_padded() -> None:
    counts = [9, 4, 9, 36, 4, 9]
    tokens = made_up_tokens(counts)
    assert list(by_count(tokens, [5, 1, 0, 3, 2], 2)) == [[1], [5, 0], [2], [3]]
    model = classifier(random_teacher(SMALL))
    recipe = Recipe(steps=20, batch_size=6, lr=3e-3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    labels = np.arange(len(tokens)) % 2
    spent = fine_tune(model, tokens, labels, recipe, seed=0)
    assert spent == pytest.approx(3 * 20 * sum(model.flops(count) for count in counts))
    assert predict(model, tokens).tolist() == labels.tolist()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert set(start) - changed == {"pos_embed"}, "a teacher's sines and cosines stay"
    # Alone or beside others: the same.
    together = model.logits(tokens, [0, 2, 5])
    torch.testing.assert_close(together[1], model.logits(tokens, [2])[0])


def test_the_start_is_one_for_a_seed_and_the_model_is_left_alone() -> None:
    vit = small_vit()
    before = vit.patch_embed.proj.weight.clone()
    models = [classifier(vit, seed=seed) for seed in (1, 1, 2)]
    weights = [model.head.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    fine_tune(
        models[0], made_up_tokens([4] * 8), np.arange(8) % 2, Recipe(steps=2, batch_size=4, lr=1e-2), seed=1
    )
    assert torch.equal(vit.patch_embed.proj.weight, before)
    assert not torch.equal(models[0].pos_embed, vit.pos_embed), "learned positions go on learning"


def test_a_training_that_diverges_is_said() -> None:
    model = classifier(random_teacher(SMALL))
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"training diverged: the loss is nan at step 1; try a lower --lr"):
        fine_tune(model, made_up_tokens([4] * 4), np.zeros(4, np.int64), Recipe(steps=2), seed=0)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("test_resnet", {}, "timm builds a ResNet"),
        ("test_vit", {}, "it sees 10 x 10 patches of 16 px"),
        (
            "vit_tiny_patch16_224",
            {"img_size": 48, "patch_size": 8, "pre_norm": True},
            "it has norms of its own",
        ),
        (
            "vit_tiny_patch16_224",
            {"img_size": 48, "patch_size": 8, "reg_tokens": 2},
            "it lacks a class token",
        ),
    ],
)
def test_what_cannot_leave_tokens_out_is_refused(name: str, options: dict[str, Any], reason: str) -> None:
    extra = {"depth": 1} if name.startswith("vit") else {}
    with pytest.raises(UserError, match=rf"--backbone m cannot be fine-tuned on patches \({reason}"):
        check_plain(timm.create_model(name, **options, **extra), "m", grid=GRID, patch_size=PATCH)


def test_arms_cost_the_same_and_go_on_by_arm_and_seed(tmp_path: Path) -> None:
    folder = proof_folder(tmp_path, train=16, test=6, in_marked=True)
    options = {
        "protocol": "finetune",
        "steps": 3,
        "batch_size": 8,
        "selector": "topk",
        "controls": "grid,fewer",
    }
    measured(folder, **options, seeds=1)
    lines: list[str] = []
    proof = measured(folder, lines.append, **options, seeds=2)
    fitted = [line[11:].split(", seed ") for line in lines if line.startswith("fitted")]
    assert [(name, rest[0]) for name, rest in fitted] == [
        (name, "1") for name in ("full", "topk at 0.25", "grid at 0.25", "fewer at 0.25")
    ]
    arms = {arm.arm.name: arm for arm in proof.arms}
    assert {arm.right[regime].shape for arm in proof.arms for regime in arm.right} == {(2, 6)}
    # As many steps for all: what costs less has fewer tokens.
    costs = {name: arm.train_cost.flops for name, arm in arms.items()}
    assert costs["topk"] == costs["grid"] < costs["full"] / 3
    assert costs["fewer"] == costs["full"]
    told = json.loads(to_json(proof, run_id="run"))
    assert (told["seeds"], len(told["arms"][1]["by_seed"]["pruned-pruned"])) == (2, 2)
    assert any(line.startswith("model      finetune on ") for line in report_lines(proof))
    # What is lost is done again, alone, and comes out the same.
    (tmp_path / "out" / "arms" / "grid-0.25-seed1.json").unlink()
    (tmp_path / "out" / "fits" / "grid-0.25-seed1.safetensors").unlink()
    again: list[str] = []
    assert (
        to_json(measured(folder, again.append, **options, seeds=2), run_id="run")
        == json.dumps(told, indent=1) + "\n"
    )
    assert [line[11:].split(", seed 1")[0] for line in again if "ed     " in line] == ["grid at 0.25"] * 2
    with pytest.raises(UserError, match=r"other settings .* recipe: "):
        measured(folder, **{**options, "steps": 4}, seeds=1)
