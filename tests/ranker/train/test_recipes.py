"""Recipes that come with patchsieve: `--config NAME` finds them, and `published` says what the paper did."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from patchsieve.jobs.arguments import read_config
from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.train.config import TrainConfig
from tests.helpers.checkout import ROOT

RECIPES = ROOT / "ranker" / "recipes"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_shipped_recipe_sets_what_it_says(recipe: str) -> None:
    told = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    config = read_config("train", TrainConfig, ["labels", "--out", "ranker", "--config", recipe])
    assert config.tables == ("labels",)
    assert {name: getattr(config, name) for name in told} == told


def test_the_published_recipe_is_that_of_the_paper() -> None:
    config = read_config("train", TrainConfig, ["labels", "--out", "ranker", "--config=published"])
    published = {
        "base_lr": 1.5e-4,
        "beta2": 0.95,
        "weight_decay": 0.06,
        "clip": 0,
        "views_per_image": 400,
        "warmup_views": 40,
        "batch_size": 4096,
        "model": "vit_small_patch16_224",
        "head": "cls",
        "loss": "list_mle",
    }
    assert {name: getattr(config, name) for name in published} == published


def test_flags_override_a_recipe_and_a_file_is_given_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["labels", "--out", "ranker", "--views-per-image", "8", "--config", "published"]
    assert read_config("train", TrainConfig, flags).views_per_image == 8
    monkeypatch.chdir(tmp_path)
    Path("published").write_text("batch_size: 512")
    assert read_config("train", TrainConfig, [*flags[:-1], "./published"]).batch_size == 512
    with pytest.raises(UserError, match="--config of-mine: "):
        read_config("train", TrainConfig, [*flags[:-1], "of-mine"])
