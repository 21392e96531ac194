"""What prune refuses before it starts, where outputs go, and the plan of a budget."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.plan import freeze_plan, read_plan, stored_precision
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune.survey import SURVEY, ShardSurvey, budget_of
from patchsieve.ranker.select.patch_scorer import PatchScorer
from patchsieve.ranker.select.selector import Selector
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import index_of, prune_config, pruning_of, save_small_ranker


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_ranker(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of one file name in two folders, and a third one."""
    root = tmp_path_factory.mktemp("in")
    for number, name in enumerate(("one/photos.tar", "two/photos.tar", "three.tar")):
        write_shard(root / name, photo_samples(4 + number, number, height=80, width=100))
    return root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.0}, "--keep is 0.0, must be above 0 and at most 1"),
        ({"keep": 1.5}, "--keep is 1.5, must be above 0 and at most 1"),
        ({"target_ratio": -1.0}, "--target-ratio is -1.0, must be above 0"),
        ({"mass": 0.5}, "--mass does nothing with --select topk"),
        ({"select": "nucleus", "keep": 0.5}, "--keep does nothing with --select nucleus"),
        ({"target_ratio": 0.5, "keep": 0.5}, "--keep does nothing with --target-ratio"),
        ({"target_ratio": 0.5, "select": "random"}, "leave out --select random"),
        ({"cluster_rule": "ours"}, "--cluster-rule does nothing with --select topk"),
        ({"windows": 2}, "--windows does nothing with --select topk"),
        ({"windows": 2, "select": "region"}, "--windows does nothing with --select region"),
        ({"windows": 0, "select": "window"}, "--windows is 0, must be at least 1"),
        ({"windows": 2, "target_ratio": 0.5}, "--windows does nothing with --select topk"),
        ({"compactness": 1.0, "select": "window"}, "--compactness does nothing with --select window"),
        ({"select": "window", "keep": 0.5, "target_ratio": 0.5}, "--keep does nothing with --target-ratio"),
        ({"select": "window", "floor": 3}, "--floor does nothing with --select window"),
        ({"target_ratio": 0.5, "select": "nucleus"}, "which topk, window, region can be told: leave out"),
        ({"seed": 1}, "--seed is for --select random and baseline:random"),
        ({"format": "index", "quality": 80}, "--format index writes no images"),
        ({"codec": "png", "quality": 80}, "--quality does nothing with --codec png"),
        ({"quality": 0}, "--quality is 0, must be from 1 to 100"),
        ({"max_bad": 2.0}, "--max-bad is 2.0"),
        ({"batch_size": 0}, "--batch-size is 0, must be at least 1"),
        ({"sweep": "0.5"}, "--sweep is for --dry-run"),
        ({"sweep": "half", "dry_run": True}, "--sweep is 'half', must be ratios"),
        ({"sweep": "0.5", "keep": 0.5, "dry_run": True}, "--sweep tries ratios in place of --keep"),
        (
            {"keep_images": 0.5},
            "--keep-images needs the images' scores: name tables of patchsieve score with",
        ),
        ({"min_score": 0.5}, "--min-score needs the images' scores"),
        ({"table": ("t",)}, "--table is for --keep-images and --min-score: add one of them"),
        ({"keep_images": 0.5, "min_score": 1.0, "table": ("t",)}, "both say which images stay"),
        ({"keep_images": 1.5, "table": ("t",)}, "--keep-images is 1.5, must be above 0 and at most 1"),
        ({"min_score": float("nan"), "table": ("t",)}, "--min-score is nan, must be a number"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PruneConfig(shards=("a.tar",), out="out", ranker="ranker", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 100}, "--size 100 must be a multiple of 64"),
        (
            {"dry_run": True, "verify_content": True},
            "--verify-content reads shards, which --dry-run does not",
        ),
        ({"ranker": "baseline:colour"}, "there is no baseline 'colour'"),
        (
            {"ranker": "baseline:ridge"},
            "needs its fit: name the folder of a ranker that holds it with --from",
        ),
        ({"ranker": "baseline:attention"}, "needs a teacher: name one with --teacher"),
        ({"teacher": "tiny"}, "--from and --teacher are for baselines"),
        (
            {"ranker": "baseline:variance", "precision": "fp32"},
            "--precision does nothing with baseline:variance",
        ),
        (
            {"ranker": "baseline:variance", "precision": "auto", "select": "nucleus"},
            "has no temperature: add --temperature",
        ),
        (
            {
                "ranker": "baseline:variance",
                "precision": "auto",
                "select": "nucleus",
                "temperature": math.inf,
            },
            "--temperature is inf, must be a number above 0",
        ),
        ({"select": "nucleus", "ceiling": 17}, "kept patches are to be 1 to 17 of 16"),
        ({"image_field": " ; "}, "names no field"),
        (
            {"select": "window", "keep": 0.25, "windows": 5},
            "--windows 5 are more than the 4 patches .* keep more",
        ),
        (
            {"select": "window", "target_ratio": 0.5, "windows": 2},
            "--windows 2 are more than the 1 patches .* add --floor 2 or more",
        ),
        ({"background": 20}, "--background 20 must be a multiple of 16, the patch of .*, below 64"),
        ({"background": 64}, "--background 64 must be a multiple of 16, .*, below 64, the size of the crop"),
        (
            {"background": 48, "keep": 0.5},
            "the thumbnail takes 9 of the 8 patches that may stay of an image: ask for a smaller --background",
        ),
        ({"background": 32, "target_ratio": 0.25}, "the thumbnail takes 4 of the 4 patches"),
        ({"select": "region", "compactness": -1.0}, "compactness is -1.0, must be from 0 to 1000"),
        (
            {"ranker": "baseline:variance", "precision": "auto", "select": "window", "target_ratio": 0.5},
            "--target-ratio weighs patches by a softmax, .* has no temperature",
        ),
    ],
)
def test_combinations_that_cannot_work(
    folder: Path, ranker: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = prune_config([folder / "three.tar"], tmp_path / "out", ranker)
    with pytest.raises(UserError, match=message):
        make_prune_request(dataclasses.replace(config, **changes))


def test_places(folder: Path, ranker: str, tmp_path: Path) -> None:
    both = [folder / "one" / "photos.tar", folder / "two" / "photos.tar"]
    with pytest.raises(UserError, match="would both be written to"):
        make_prune_request(prune_config(both, tmp_path, ranker))
    rooted = make_prune_request(prune_config(both, tmp_path, ranker, root=str(folder)))
    assert sorted(rooted.paths.values()) == ["shards/one/photos.tar", "shards/two/photos.tar"]
    assert rooted.tar_folders == ["shards/one", "shards/two"]
    for out in (folder / "one", folder / "one" / "pruned"):
        with pytest.raises(UserError, match=r"lies in .*, a folder of shards to prune"):
            make_prune_request(prune_config(both[:1], out, ranker))
    link = tmp_path / "link"
    link.symlink_to(folder / "one")
    with pytest.raises(UserError, match="a folder of shards to prune"):
        make_prune_request(prune_config(both[:1], link / "pruned", ranker))
    with pytest.raises(UserError, match="lies in --out"):
        make_prune_request(prune_config(both[:1], folder, ranker))


def test_what_is_part_of_the_identity(folder: Path, ranker: str, tmp_path: Path) -> None:
    config = prune_config([folder / "three.tar"], tmp_path / "out", ranker)

    def identity(**changes: Any) -> str:
        return digest_of(make_prune_request(dataclasses.replace(config, **changes)).fields)

    assert identity(select="window") == identity(select="window", windows=1)
    assert identity(select="region") == identity(select="region", compactness=4.0)
    assert identity() == identity(batch_size=8, max_actors=3, keep=0.5, size=64, quality=90, salvage=True)
    others = [
        identity(**changes)
        for changes in (
            {"keep": 0.25},
            {"quality": 80},
            {"codec": "webp"},
            {"size": 128},
            {"crop": "squash"},
            {"drop_bad": True},
            {"format": "masked"},
            {"format": "index"},
            {"select": "random"},
            {"select": "random", "seed": 1},
            {"select": "nucleus"},
            {"select": "nucleus", "temperature": 2.0},
            {"select": "window"},
            {"select": "window", "windows": 2},
            {"select": "window", "target_ratio": 0.5},
            {"target_ratio": 0.5},
            {"select": "region"},
            {"select": "region", "compactness": 1.0},
            {"background": 16},
            {"background": 32},
            {"background": 32, "size": 128},
            {"ranker": save_small_ranker(tmp_path, seed=1)},
            {"precision": "bf16"},
        )
    ]
    assert len({identity(), *others}) == len(others) + 1


def test_identities_are_pinned(folder: Path, ranker: str, tmp_path: Path) -> None:
    """Outputs of before can be resumed: what selectors that are added later read is no part of them."""
    config = prune_config([folder / "three.tar"], tmp_path / "out", ranker)
    found = {
        select: make_prune_request(dataclasses.replace(config, **changes)).selector.fields
        for select, changes in {
            "topk": {},
            "budget": {"target_ratio": 0.5},
            "window": {"select": "window"},
            "region": {"select": "region"},
        }.items()
    }
    assert found == {
        "topk": {"select_way": "topk", "select_count": 8},
        "budget": {
            "select_way": "budget",
            "select_temperature": 0.5,
            "select_floor": 1,
            "select_ceiling": 16,
            "select_target": 0.5,
        },
        "window": {"select_way": "window", "select_count": 8, "select_windows": 1},
        "region": {"select_way": "region", "select_count": 8, "select_compactness": 4.0},
    }
    assert "background" not in make_prune_request(config).spec.fields


@pytest.mark.parametrize(
    ("changes", "coarse"),
    [
        ({"background": 32}, 4),
        ({"background": 32, "size": 128}, 1),
        ({"background": 48, "size": 128}, 3),  # of 9 patches of 16 px, where a kept one has 4
        ({"background": 32, "format": "masked"}, 4),
        ({"background": 32, "format": "index"}, 4),
    ],
)
def test_a_thumbnail_is_paid_from_what_may_stay(
    folder: Path, ranker: str, tmp_path: Path, changes: dict[str, Any], coarse: int
) -> None:
    config = prune_config([folder / "three.tar"], tmp_path / "out", ranker, **changes)

    def selector(**more: Any) -> Selector:
        return make_prune_request(dataclasses.replace(config, **more)).selector

    assert (selector().count, selector(keep=1.0).count) == (8 - coarse, 16 - coarse)
    assert selector(target_ratio=0.5).target == 0.5 - coarse / 16
    assert selector(select="nucleus") == dataclasses.replace(
        make_prune_request(dataclasses.replace(config, select="nucleus", background=None)).selector,
        coarse=coarse,
    ), "a mass is one of patches"


@pytest.mark.parametrize("select", ["topk", "window", "region"])
def test_a_budget_is_met_and_frozen(folder: Path, ranker: str, tmp_path: Path, select: Any) -> None:
    shards = [folder / "one" / "photos.tar", folder / "three.tar"]
    config = prune_config(shards, tmp_path / "out", ranker, select=select, target_ratio=0.4, floor=2)
    request = make_prune_request(config)
    assert read_plan(request) is None
    survey = OutputFolder(config.out, SURVEY, run_id="run")
    scorer = PatchScorer(request.source, device=torch.device("cpu"), batch_size=4)
    work = ShardSurvey(request, scorer, run_id="run", threads=1, provenance={"run_id": "run"})
    for shard in request.shards:
        assert work.run(shard).failed is None
    assert survey.plan(request.shards, digest_of(request.survey_fields)).todo == []
    budget = budget_of(survey, request.shards, request.selector)
    planned = freeze_plan(request, budget=budget, images=None, left_out=[], run_id="run")
    threshold = planned.selector.threshold
    images = 4 + 6
    assert (budget.images, budget.allowed, budget.kept) == (images, int(images * 16 * 0.4), budget.allowed)
    pruning = pruning_of(planned)
    for shard in planned.shards:
        pruning.run(shard)
    kept = [row["kept"] for row in index_of(config.out)]
    assert sum(kept) == budget.kept
    assert min(kept) >= 2
    assert len(set(kept)) > 1, "counts differ between images"
    # Shards that come later use the same threshold; another budget is refused by name.
    more = dataclasses.replace(config, shards=(*config.shards[1:],))
    later = read_plan(make_prune_request(more))
    assert later is not None
    assert later.selector.threshold == threshold
    with pytest.raises(UserError, match=r"--target-ratio: 0\.4 -> 0\.5"):
        read_plan(make_prune_request(dataclasses.replace(config, target_ratio=0.5)))
    # The scores are those of one precision: a plan that is there tells which.
    untold = make_prune_request(dataclasses.replace(config, precision="auto"))
    assert untold.source.needs_precision
    assert stored_precision(untold, None) == untold.with_precision("fp32")
    assert stored_precision(untold, {"rows": {"precision": "bf16"}}) == untold.with_precision("bf16")
    elsewhere = make_prune_request(dataclasses.replace(config, precision="auto", out=str(tmp_path / "none")))
    assert stored_precision(elsewhere, None).source.needs_precision
    with pytest.raises(UserError, match="precision: fp32 -> bf16"):
        read_plan(make_prune_request(dataclasses.replace(config, precision="bf16")))
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (plan["threshold"], plan["kept"], plan["left_out"]) == (threshold, budget.kept, [])
