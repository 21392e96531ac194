"""Pretraining: schedule, resume, what it leaves behind, and the predictors it is measured beside."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pretrain.config import PretrainConfig
from patchsieve.pipeline.pretrain.job import load_photos, pretrain
from patchsieve.pipeline.pretrain.report import reconstruction_errors
from patchsieve.pipeline.pretrain.training import Pretraining, decoded_patches, in_target_space, rate_factor
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from tests.helpers.archives import END, member
from tests.helpers.photos import photo_samples, write_shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("photos")
    bad = ("broken", {"jpg": b"no picture"})
    train = write_shard(folder / "train.tar", [*photo_samples(12, seed=1, height=80, width=100), bad])
    held_out = write_shard(folder / "held-out.tar", photo_samples(4, seed=2, height=80, width=100))
    return str(train), str(held_out)


def small(shards: tuple[str, str], out: Path, **changes: object) -> PretrainConfig:
    config = PretrainConfig(
        shards=shards[:1],
        test=shards[1:],
        out=str(out),
        image_size=64,
        width=32,
        depth=2,
        heads=2,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        steps=6,
        batch_size=4,
        warmup_steps=2,
        report_every=2,
    )
    return dataclasses.replace(config, **changes)


def test_learning_rate_rises_stays_and_falls_to_zero(tmp_path: Path) -> None:
    config = small(("a", "b"), tmp_path, steps=100, warmup_steps=10, decay_share=0.4)
    factors = [rate_factor(config, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:60] == [1.0] * 51
    assert factors[80] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(1 / 40)


def test_all_hidden_patches_are_decoded_at_the_end(tmp_path: Path) -> None:
    config = small(("a", "b"), tmp_path, steps=100, decoded_share=0.25)
    assert [decoded_patches(config, step, 12) for step in (0, 84, 85, 99)] == [3, 3, 12, 12]


def test_photos_are_shrunk_and_unreadable_ones_left_out(shards: tuple[str, str]) -> None:
    photos = load_photos(shards[:1], 40)
    assert len(photos) == 12
    assert {min(photo.shape[1:]) for photo in photos} == {40}


def test_photos_that_are_links_or_apart(tmp_path: Path) -> None:
    one, other = (fields["jpg"] for _, fields in photo_samples(2, height=80, width=100))
    data = member("b.cls", b"1") + member("0.jpg", b"", b"2") + member("a.jpg", one) + member("b.jpg", other)
    (tmp_path / "a.tar").write_bytes(data + END)
    assert len(load_photos([str(tmp_path / "a.tar")], 40)) == 1
    assert len(load_photos([str(tmp_path / "a.tar")], 40, unsorted=True)) == 2


def test_run_leaves_a_teacher_a_curve_and_an_evaluation(shards: tuple[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    pretrain(small(shards, tmp_path), said.append)
    teacher = read_teacher(str(tmp_path))
    assert teacher.config.output_space == "pixels"
    assert build_teacher(teacher).config.width == 32
    with (tmp_path / "curve.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6]
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["photos"] == 4
    assert evaluation["explained"]["teacher"] == pytest.approx(
        1 - evaluation["teacher"] / evaluation["variance"]
    )
    assert any("held-out error" in line for line in said)
    assert "on 4 held-out photos the teacher explains" in said[-2]
    assert "no better than that" in said[-2]  # after six steps


def test_second_run_needs_resume(shards: tuple[str, str], tmp_path: Path) -> None:
    pretrain(small(shards, tmp_path, steps=2), lambda line: None)
    with pytest.raises(UserError, match="--resume"):
        pretrain(small(shards, tmp_path, steps=2), lambda line: None)


def test_resumed_run_equals_an_uninterrupted_one(shards: tuple[str, str], tmp_path: Path) -> None:
    def train(out: Path, stop_at: int | None) -> dict[str, Tensor]:
        out.mkdir(exist_ok=True)
        photos, held_out = load_photos(shards[:1], 68), load_photos(shards[1:], 68)
        run = Pretraining(small(shards, out), photos, held_out, out, device=torch.device("cpu"))
        run.resume()
        while run.step < (stop_at or 6):
            run.train_step(*run.batch(run.step))
        run.save()
        return run.model.state_dict()

    whole = train(tmp_path / "whole", None)
    train(tmp_path / "parts", 3)
    parts = train(tmp_path / "parts", None)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_it_learns_the_photos_that_it_is_shown(shards: tuple[str, str], tmp_path: Path) -> None:
    photos = load_photos(shards[:1], 68)[:2]
    config = small(shards, tmp_path, steps=100, min_scale=0.9)
    run = Pretraining(config, photos, photos, tmp_path, device=torch.device("cpu"))
    before = run.held_out_error()
    run.run(every=100, report=lambda step, loss, error: None)
    assert run.held_out_error() < 0.6 * before


def test_checkpoint_of_another_architecture_is_refused(shards: tuple[str, str], tmp_path: Path) -> None:
    pretrain(small(shards, tmp_path, steps=2), lambda line: None)
    with pytest.raises(UserError, match="another architecture"):
        pretrain(small(shards, tmp_path, width=64, resume=True), lambda line: None)


def test_normalised_target_has_no_mean_and_unit_deviation() -> None:
    target = in_target_space(torch.rand(3, 5, 48), "normalised")
    assert torch.allclose(target.mean(-1), torch.zeros(3, 5), atol=1e-5)
    assert torch.allclose(target.var(-1), torch.ones(3, 5), atol=1e-3)


def test_trivial_predictors_match_a_naive_loop(shards: tuple[str, str]) -> None:
    photos = load_photos(shards[1:], 64)
    seen_calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def predict(seen: Tensor, seen_at: Tensor, hidden_at: Tensor) -> Tensor:
        seen_calls.append((seen, seen_at, hidden_at))
        return torch.zeros(len(seen), hidden_at.shape[1], seen.shape[2])

    errors = reconstruction_errors(photos, predict, size=64, patch_size=16, mask_ratio=0.75)
    assert errors.teacher == errors.zero
    ((seen, seen_at, hidden_at),) = seen_calls
    truth = _truth(photos, hidden_at)
    nearest = np.empty(truth.shape)
    for n, h in np.ndindex(*hidden_at.shape):
        row, column = divmod(int(hidden_at[n, h]), 4)
        distances = [(row - int(at) // 4) ** 2 + (column - int(at) % 4) ** 2 for at in seen_at[n]]
        patch = seen[n, int(np.argmin(distances))].reshape(-1, 3).numpy()
        nearest[n, h] = np.tile(patch.mean(0), 256)
    assert errors.nearest_visible == pytest.approx(float(((nearest - truth) ** 2).mean()), rel=1e-4)
    means = np.stack([np.tile(patches.reshape(-1, 3).numpy().mean(0), 256) for patches in seen])
    assert errors.mean_visible == pytest.approx(float(((means[:, None] - truth) ** 2).mean()), rel=1e-4)
    variance = float((truth.reshape(-1, 3) - truth.reshape(-1, 3).mean(0)).var())
    assert errors.variance == pytest.approx(variance, rel=1e-4)


def _truth(photos: list[Tensor], hidden_at: Tensor) -> np.ndarray:
    """The hidden patches' normalised pixels, cut out by hand from the centre crops."""
    from patchsieve.pipeline.images.views import apply_view, draw_view

    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    truth = np.empty((*hidden_at.shape, 768))
    for n, photo in enumerate(photos):
        box = draw_view(0, "", 0, height=photo.shape[1], width=photo.shape[2], crop="center", size=64)
        view = apply_view(photo, box, 64).permute(1, 2, 0).numpy() / 255
        for h, at in enumerate(hidden_at[n].tolist()):
            row, column = divmod(at, 4)
            patch = view[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
            truth[n, h] = ((patch - mean) / deviation).reshape(-1)
    return truth
