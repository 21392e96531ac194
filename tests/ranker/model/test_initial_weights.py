"""What a ranker starts from: above all, the encoder of its teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.build import save_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.model.initial_weights import initial_ranker, read_tables_teacher
from patchsieve.ranker.model.ranker import RankerConfig
from tests.helpers.rankers import TINY_VIT
from tests.helpers.teachers import random_teacher

CONFIG = TeacherConfig(
    image_size=64,
    patch_size=16,
    width=192,
    depth=3,
    heads=3,
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=2,
    output_space="pixels",
)


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    return random_teacher(CONFIG)


@pytest.fixture(scope="module")
def teacher(model: MaskedAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> TeacherFile:
    return save_teacher(model, str(tmp_path_factory.mktemp("teacher")), name="small")


def ranker_config(**changes: object) -> RankerConfig:
    config = RankerConfig(model=TINY_VIT, head="token", image_size=64, patch_size=16, depth=3)
    return dataclasses.replace(config, **changes)


def test_a_ranker_filled_with_its_teacher_computes_its_latents(
    model: MaskedAutoencoder, teacher: TeacherFile
) -> None:
    ranker = initial_ranker(ranker_config(), "teacher", teacher=teacher)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 5, 16 * 16 * 3), generator=generator, dtype=torch.uint8)
    places = torch.stack([torch.randperm(16, generator=generator)[:5] for _ in range(2)])
    with torch.inference_mode():
        expected = model.encode(normalise(pixels), places)
        found = ranker.backbone.norm(ranker._encode(pixels, ranker.position_embedding[places]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_fewer_blocks_are_the_first_ones(teacher: TeacherFile) -> None:
    ranker = initial_ranker(ranker_config(depth=2), "teacher", teacher=teacher)
    state = ranker.backbone.state_dict()
    assert len(ranker.backbone.blocks) == 2
    assert all(torch.equal(values, teacher.state[name]) for name, values in state.items())


def test_the_bundled_teacher_fills_the_smallest_model_of_timm() -> None:
    tiny = read_teacher("tiny")
    ranker = initial_ranker(RankerConfig(model=TINY_VIT, depth=8), "teacher", teacher=tiny)
    name = "blocks.7.mlp.fc2.weight"
    assert torch.equal(ranker.backbone.get_parameter(name), tiny.state[name])


def test_what_is_random_follows_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (initial_ranker(ranker_config(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(values, two[name]) for name, values in one.items())
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit_small_patch16_224"}, r"384 wide with 6 heads, .* small 192 wide with 3"),
        ({"depth": None}, r"has 12 blocks, the encoder of teacher small 3: add --depth 3 or less"),
        ({"image_size": 32}, r"sees 2 x 2 patches of 16 px, teacher small 4 x 4 of 16 px"),
        ({"model": "vit_wee_patch16_reg1_gap_256"}, "no class token"),
    ],
)
def test_models_that_a_teacher_cannot_fill(
    teacher: TeacherFile, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        initial_ranker(ranker_config(**changes), "teacher", teacher=teacher)


def test_another_perceptron_does_not_fit() -> None:
    narrow = random_teacher(dataclasses.replace(CONFIG, mlp_ratio=2.0))
    file = TeacherFile(narrow.config, "narrow", "0" * 64, None, narrow.state_dict())
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc1\.weight is \[768, 192\].* has \[384, 192\]"):
        initial_ranker(ranker_config(), "teacher", teacher=file)


def test_a_teacher_with_positions_of_its_own_does_not_fit(teacher: TeacherFile) -> None:
    learned = {**teacher.state, "pos_embed": teacher.state["pos_embed"] + 0.1}
    with pytest.raises(UserError, match="positions of its own"):
        initial_ranker(ranker_config(), "teacher", teacher=dataclasses.replace(teacher, state=learned))


def test_only_the_teacher_of_the_tables_is_taken(
    model: MaskedAutoencoder, teacher: TeacherFile, tmp_path: Path
) -> None:
    file = save_teacher(model, str(tmp_path / "here"), name="here")
    found = read_tables_teacher(str(tmp_path / "here"), name="small", digest=file.digest)
    assert found.digest == teacher.digest
    with pytest.raises(
        UserError, match=r"--teacher tiny has digest 9746d94b2184ed64, the teacher small that"
    ):
        read_tables_teacher("tiny", name="small", digest=teacher.digest)
    with pytest.raises(UserError, match=r"--weights teacher: add --teacher, since unknown teacher 'small'"):
        read_tables_teacher(None, name="small", digest=teacher.digest)
    tiny = read_teacher("tiny")
    assert read_tables_teacher(None, name="tiny", digest=tiny.digest).digest == tiny.digest
