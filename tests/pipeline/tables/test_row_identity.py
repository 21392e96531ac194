"""What makes rows the same rows: the identity of a score table and the settings in it."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.tables.schema import row_identity
from tests.helpers.tables import CONFIG, TEACHER

# SHA-256 of this text, written by hand: the settings in the order of their names, without spaces.
GOLDEN_TEXT = (
    '{"crop":"random","decoder":"test-1","estimator":"exact","first_view":0,"image_field":"jpg;jpeg;png",'
    '"mask_ratio":0.9,"masks":"uniform","metric":"l1","precision":"fp32","removal":"decoder","rows_version":1,'
    '"sample":1.0,"seed":0,"size":224,"store":"patches",'
    '"teacher":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","views":4}'
)
GOLDEN_IDENTITY = "928139083b54fa07552b98e6aee344a6726c99c4a7c453018da671ac865812a9"


def test_row_identity_is_pinned() -> None:
    # Another value here would make every existing output of every user be refused or scored again.
    assert row_identity(CONFIG, TEACHER.digest) == GOLDEN_IDENTITY
    assert hashlib.sha256(GOLDEN_TEXT.encode()).hexdigest() == GOLDEN_IDENTITY


def test_row_identity_does_not_depend_on_how_a_number_or_field_is_written() -> None:
    written_otherwise = dataclasses.replace(
        CONFIG, mask_ratio=np.float64(0.9), sample=1, image_field=" JPG; .jpeg;png;"
    )
    assert row_identity(written_otherwise, TEACHER.digest) == GOLDEN_IDENTITY


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_ratio", 0.75),
        ("first_view", 4),
        ("views", 5),
        ("crop", "center"),
        ("masks", "spread"),
        ("removal", "encoder"),
        ("metric", "l2"),
        ("seed", 1),
        ("size", 448),
        ("precision", "bf16"),
        ("store", "view"),
        ("sample", 0.5),
        ("image_field", "png;jpeg;jpg"),
        ("decoder", "test-2"),
    ],
)
def test_every_setting_is_part_of_the_identity(field: str, value: object) -> None:
    changed = dataclasses.replace(CONFIG, **{field: value})
    assert row_identity(changed, TEACHER.digest) != GOLDEN_IDENTITY


def test_the_frozen_estimator_and_its_tokens_are_part_of_the_identity() -> None:
    changes: list[dict[str, Any]] = [{"frozen_tokens": tokens} for tokens in (8, 30, "all")]
    configs = [dataclasses.replace(CONFIG, estimator="frozen", **change) for change in changes]
    identities = {row_identity(config, TEACHER.digest) for config in configs}
    assert len(identities | {GOLDEN_IDENTITY}) == 4


def test_the_teacher_is_part_of_the_identity() -> None:
    assert row_identity(CONFIG, "f" * 64) != GOLDEN_IDENTITY


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask_ratio": 1.0},
        {"mask_ratio": float("nan")},
        {"sample": 0.0},
        {"sample": 1.5},
        {"views": 0},
        {"first_view": -1},
        {"first_view": 32767, "views": 2},
        {"crop": "middle"},
        {"metric": "l3"},
        {"size": 0},
        {"image_field": " ; "},
        {"decoder": ""},
        {"frozen_tokens": 30},
    ],
)
def test_settings_that_make_no_rows_are_refused(wrong: dict[str, object]) -> None:
    field = next(iter(wrong)).removeprefix("first_").replace("_", " ")
    with pytest.raises(UserError, match=f"^{field}"):
        dataclasses.replace(CONFIG, **wrong)


def test_output_space_counts_only_where_images_are_compared() -> None:
    def identity(metric: str, space: str) -> str:
        return row_identity(dataclasses.replace(CONFIG, metric=metric), TEACHER.digest, space)

    assert identity("l1", "pixels") == identity("l1", "normalised")
    assert identity("psnr", "pixels") != identity("psnr", "normalised")
