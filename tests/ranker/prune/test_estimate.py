"""The dry run of prune: predictions against what a run then writes, sweeps, the teacher's error, and the sheet."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pictures.sheet import HIDDEN_GRAY
from patchsieve.pipeline.scoring.api import Teacher, load_teacher
from patchsieve.pipeline.shards.writer import PrunedTar
from patchsieve.ranker.evaluate.reconstruction import mask_errors
from patchsieve.ranker.prune import estimate as prune_estimate
from patchsieve.ranker.prune import sheet as prune_sheet
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.estimate import PruneEstimate, estimate_pruning
from patchsieve.ranker.prune.plan import freeze_plan
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.select.budget import find_budget
from patchsieve.ranker.select.image_choice import plan_images
from patchsieve.ranker.select.selection import keep_count
from tests.helpers.image_tables import write_image_table
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import index_of, members_of, prune_config, prune_here, save_small_ranker

PATCHES, COUNT = 16, 12
TEXT = ("text", {"jpg": b"no picture", "cls": b"2"})


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_ranker(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the padding that tarfile adds at the end, which is much of a small shard."""
    path = tmp_path_factory.mktemp("in") / "a.tar"
    with PrunedTar(path) as tar:
        for key, fields in [*photo_samples(COUNT, height=90, width=120), TEXT]:
            for field, data in fields.items():
                tar.add(f"{key}.{field}", data)
    return path


def dry(config: PruneConfig, **changes: Any) -> PruneEstimate:
    return estimate_pruning(make_prune_request(dataclasses.replace(config, dry_run=True, **changes)))


def test_thumbnails_are_counted(shard: Path, ranker: str, tmp_path: Path) -> None:
    config = prune_config([shard], tmp_path / "out", ranker, keep=0.5, background=32, dry_run=True)
    request = make_prune_request(dataclasses.replace(config, sheet=str(tmp_path / "sheet.png")))
    found = estimate_pruning(request)
    (line,) = [line for line in found.lines(request) if line.startswith("0.5 ")]
    assert line.startswith("0.5       4.0 of 16 patches, with the thumbnail as many tokens as 8.0, softmax")
    without = dry(config, background=None, keep=0.25).choices[0]
    assert found.choices[0].of_reencoded is not None
    assert without.of_reencoded is not None
    assert found.choices[0].of_reencoded > without.of_reencoded, "of crops that have no thumbnail"
    assert found.choices[0].bytes_after > without.bytes_after
    with Image.open(io.BytesIO((tmp_path / "sheet.png").read_bytes())) as opened:
        picture = np.asarray(opened.convert("RGB"))
    assert (picture == HIDDEN_GRAY).all(axis=2).sum() < 1000, "no holes"
    swept = dry(config, keep=None, sweep="0.5,0.75", select="window").choices
    assert [choice.kept for choice in swept] == [0.25, 0.5]


@pytest.mark.parametrize("form", ["packed", "masked"])
def test_predicted_bytes_are_those_of_the_run(shard: Path, ranker: str, tmp_path: Path, form: Any) -> None:
    config = prune_config([shard], tmp_path / "out", ranker, format=form, keep=0.25)
    found = dry(config)
    assert not (tmp_path / "out").exists(), "nothing of the output is written"
    prune_here(config)
    (choice,) = found.choices
    written = (tmp_path / "out" / "shards" / "a.tar").stat().st_size
    # All samples of the shard were read; what is scaled is the end of the archive alone.
    assert choice.bytes_after == pytest.approx(written, abs=1024)
    assert (found.images, found.left, found.dropped, found.plan) == (COUNT, 1, 0, None)
    assert choice.kept == 0.25
    box = 1 - (7 / 8 * 90) ** 2 / (90 * 120)
    assert found.lost == pytest.approx(box, abs=0.02)
    whole = prune_config([shard], tmp_path / "whole", ranker, format=form, keep=1.0)
    prune_here(whole)
    size = {
        out: sum(row["bytes_after"] for row in index_of(out) if row["kept"])
        for out in (tmp_path / "out", tmp_path / "whole")
    }
    assert choice.of_reencoded == pytest.approx(size[tmp_path / "out"] / size[tmp_path / "whole"], rel=1e-9)


def test_a_sweep_tries_each_ratio(shard: Path, ranker: str, tmp_path: Path) -> None:
    config = prune_config([shard], tmp_path / "out", ranker)
    ways: list[dict[str, Any]] = [
        *({}, {"select": "cluster"}, {"target_ratio": 1.0}, {"select": "nucleus"}),
        *(
            {"select": "window", "windows": 2},
            {"select": "region"},
            {"select": "window", "target_ratio": 1.0},
        ),
    ]
    for way in ways:
        choices = dry(config, sweep="0.25,0.5,0.75", **way).choices
        assert [choice.label for choice in choices] == ["0.25", "0.5", "0.75"]
        sizes = [choice.bytes_after for choice in choices]
        assert sizes == sorted(sizes), way
        kept, mass = [choice.kept for choice in choices], [choice.mass or 0.0 for choice in choices]
        if way.get("select") == "nucleus":
            assert all(m >= asked - 1e-6 for m, asked in zip(mass, (0.25, 0.5, 0.75), strict=True))
        else:
            assert kept == pytest.approx([0.25, 0.5, 0.75], abs=1 / PATCHES / COUNT)
            assert mass == sorted(mass)
            assert mass[-1] < 1
    index = dry(config, sweep="0.5", format="index").choices[0]
    assert (index.bytes_after, index.of_reencoded) == (0, None)


def test_what_it_prints(shard: Path, ranker: str, tmp_path: Path) -> None:
    config = prune_config([shard], tmp_path / "out", ranker, dry_run=True, sweep="0.5")
    request = make_prune_request(config)
    lines = estimate_pruning(request).lines(request)
    assert lines[0].startswith("shards    1, ")
    assert lines[1].endswith(", 4 x 4 patches of 16 px")
    assert lines[2] == f"sample    {COUNT} images ranked, 1 left as they are"
    assert lines[3].startswith("crop      center to 64 px, ")
    assert lines[4].startswith("0.5       8.0 of 16 patches, softmax mass 0.")
    assert "images" in lines[4]
    assert len(lines) == 5


def test_a_frozen_budget_is_told_as_it_is(shard: Path, ranker: str, tmp_path: Path) -> None:
    config = prune_config([shard], tmp_path / "out", ranker, target_ratio=0.5)
    assert dry(config).choices[0].kept == pytest.approx(0.5, abs=1 / PATCHES / COUNT)
    request = make_prune_request(config)
    budget = find_budget(lambda: [np.log(np.full((2, 4), 0.25))], 1.0)
    freeze_plan(request, budget=budget, images=None, left_out=[], run_id="run")
    assert dry(config).choices[0].kept == 1.0
    assert dry(config, target_ratio=0.25, sweep="0.25").choices[0].kept < 0.3, "a sweep looks beyond the plan"
    with pytest.raises(UserError, match=r"--target-ratio: 0\.5 -> 0\.25"):
        dry(config, target_ratio=0.25)


def test_whole_images_that_go(shard: Path, ranker: str, tmp_path: Path) -> None:
    keys = [key for key, _ in photo_samples(COUNT, height=90, width=120)]
    scores = {key: [float(number)] * 2 for number, key in enumerate(keys[:-2])}
    table = write_image_table(tmp_path, shard, scores)
    config = prune_config([shard], tmp_path / "out", ranker, keep_images=0.4, table=(str(table),))
    found = dry(config)
    assert (found.images, found.left, found.dropped, found.unscored) == (4 + 2, 1, 6, 2)
    assert found.plan is not None
    assert (found.plan.scored, found.plan.kept, found.plan.threshold) == (10, 4, 5.5)
    request = make_prune_request(dataclasses.replace(config, dry_run=True))
    (told,) = [line for line in found.lines(request) if line.startswith("images")]
    assert told == (
        "images    4 of 10 with a score stay, those from 5.5 on (experimental); in the sample 6 go, 2 without a score "
        "stay"
    )
    assert (
        found.choices[0].bytes_after
        < 0.6 * dry(dataclasses.replace(config, keep_images=1.0)).choices[0].bytes_after
    )
    assert request.choice is not None
    frozen = dataclasses.replace(plan_images(request.choice, request.shards), threshold=8.0)
    freeze_plan(request, budget=None, images=frozen, left_out=[], run_id="run")
    assert dry(config).dropped == 8, "what is frozen decides"
    nothing = prune_config([shard], tmp_path / "none", ranker, min_score=99.0, table=(str(table),))
    only = write_shard(tmp_path / "in" / "only.tar", photo_samples(2, height=90, width=120))
    write_image_table(tmp_path / "only", only, dict(list(scores.items())[:2]))
    with pytest.raises(
        UserError, match="none of the 2 samples read can be pruned; 2 are dropped for their score"
    ):
        dry(nothing, shards=(str(only),), table=(str(tmp_path / "only"),))


def test_the_teachers_error(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Any] = []

    def watched(teacher: Teacher, patches: Any, keep_NL: Any) -> Any:
        errors = mask_errors(teacher, patches, keep_NL)
        masks.append((keep_NL, errors))
        return errors

    monkeypatch.setattr(prune_estimate, "mask_errors", watched)
    config = prune_config([shard], tmp_path / "out", "baseline:variance", dry_run=True)
    request = make_prune_request(
        dataclasses.replace(config, teacher="tiny", sweep="0.3,1.0", target_ratio=1.0, temperature=5.0)
    )
    found = estimate_pruning(request)
    few, all_kept = found.choices
    assert few.errors is not None
    assert few.errors == tuple(masks[0][1].mean(axis=1))
    assert len(set(masks[0][0].sum(axis=1))) > 1, "masks of different counts"
    assert (min(few.errors) > 0, all_kept.errors) == (True, (0.0, 0.0))
    lines = found.lines(request)
    assert f"error {few.errors[0]:.4f} in pixels, {few.errors[1]:.3f} normalised" in lines[4]
    assert lines[-1] == "error     mean square, of tiny rebuilding the images from what stays"
    # Each image's error is its own, whatever the others keep.
    alone = mask_errors(load_teacher("tiny", precision="fp32"), masks_patches(shard)[:1], masks[0][0][:1])
    assert alone[:, 0] == pytest.approx(masks[0][1][:, 0], rel=1e-4)


def masks_patches(shard: Path) -> Any:
    """Patches `[1, L, P]` of the first photo's crop, as the baseline sees it."""
    import torch

    from patchsieve.pipeline.images.decode import decode_image
    from patchsieve.pipeline.images.patches import patchify
    from patchsieve.pipeline.images.views import apply_view, draw_view

    image = decode_image(members_of(shard)[0][1])
    box = draw_view(0, "", 0, height=image.shape[1], width=image.shape[2], crop="center", size=224)
    return patchify(torch.stack([apply_view(image, box, 224)]), 16)


def test_a_teacher_of_another_grid(shard: Path, ranker: str, tmp_path: Path) -> None:
    config = prune_config([shard], tmp_path / "out", ranker)
    with pytest.raises(UserError, match=r"--teacher tiny sees 14 x 14 patches of 16 px, .* 4 x 4 of 16"):
        dry(config, teacher="tiny")
    with pytest.raises(UserError, match="--from and --teacher are for baselines"):
        make_prune_request(dataclasses.replace(config, teacher="tiny"))


def test_the_sheet_shows_what_stays(shard: Path, ranker: str, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    config = prune_config([shard], tmp_path / "out", ranker)
    dry(config, sweep="0.25,0.75", sheet=str(path))
    with Image.open(io.BytesIO(path.read_bytes())) as opened:
        picture = np.asarray(opened.convert("RGB"))
    gray = (picture == HIDDEN_GRAY).all(axis=2)
    # Twelve of 16 patches are gray at the first ratio, four at the second, in each of 8 rows; drawn three times as
    # large, as there are 64 x 64 pixels.
    dropped = PATCHES * 2 - keep_count(PATCHES, 0.25) - keep_count(PATCHES, 0.75)
    expected = prune_sheet.SHEET_PHOTOS * dropped * (3 * 16) ** 2
    assert gray.sum() == pytest.approx(expected, rel=0.02)
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png"}
