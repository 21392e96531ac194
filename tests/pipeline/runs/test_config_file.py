"""Configurations as YAML: what is written beside an output, and what `--config` makes of what people write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.runs.config_file import config_to_yaml, settings_from_yaml
from patchsieve.pipeline.runs.owned import RunRecord
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.storage import kept_settings
from patchsieve.pipeline.tables.schema import SCORES
from patchsieve.ranker.train.config import TrainConfig


def read(tmp_path: Path, text: str, kind: type[Any] = ScoreConfig) -> dict[str, Any]:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return settings_from_yaml(str(file), kind)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        # What YAML 1.1 takes for 248, 630, 8, a text, a truth value and a date.
        ("views: 4:8", "4:8"),
        ("views: 10:30", "10:30"),
        ("seed: 010", 10),
        ("max_bad: 1e-3", 0.001),
        ("out: on", "on"),
        ("out: 2024-01-01", "2024-01-01"),
        ("views: 4", "4"),
        ("views: '4:8'", "4:8"),
        ("sample: 1", 1.0),
        ("sample: .5", 0.5),
        ("salvage: true", True),
        ("max_actors: null", None),
        ("root: ~", None),
        ("frozen_tokens: all", "all"),
        ("frozen_tokens: 7", 7),
        ("shards: a.tar", ("a.tar",)),
        ("shards: [a.tar, 010]", ("a.tar", "010")),
    ],
)
def test_our_types_say_what_a_value_is(tmp_path: Path, line: str, value: object) -> None:
    (found,) = read(tmp_path, line).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: 0x10", "seed cannot be '0x10'"),
        ("seed: 1_000", "seed cannot be"),
        ("seed: 1.0", "seed cannot be"),
        ("salvage: yes", "salvage cannot be 'yes'"),
        ("sample: nan", "sample cannot be 'nan'"),
        ("views: [4, 8]", "views cannot be"),
        ("removal: encoders", "cannot be 'encoders', must be one of decoder, encoder. Did you mean encoder"),
        ("removel: both", "unknown settings: removel. Did you mean removal"),
        ("a: &a [x]\nshards: *a", "without aliases"),
        ("[" * 20_000, "more than 8 deep"),
        ("shards: \udcff", "."),
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=reason) as told:
        settings_from_yaml(str(file), ScoreConfig)
    assert "\n" not in str(told.value)


def test_a_few_bytes_never_stand_for_gigabytes(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(UserError, match="without aliases") as told:
        read(tmp_path, "\n".join(lines))
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    "config",
    [
        ScoreConfig(shards=("a.tar", "4:8"), out="null and void", views="4:8", max_bad=1e-7, salvage=True),
        TrainConfig(tables=("t",), out="o", base_lr=1.5e-05, depth=None, images=("a",)),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, config: Any) -> None:
    found = read(tmp_path, config_to_yaml(config).decode(), type(config))
    assert type(config)(**found) == config


def test_no_secret_of_a_url_is_kept_in_an_output(tmp_path: Path) -> None:
    url = "https://me:hushhush@h/{}?sig=hushhush"
    config = ScoreConfig(
        shards=(url.format("{0..9}.tar"), "@" + url.format("list.txt")),
        out=str(tmp_path),
        teacher=url.format("mae.pth"),
        root=url.format("corpus"),
    )
    output = OutputFolder(str(tmp_path), SCORES, run_id="run-1")
    RunRecord(output, config, []).begin()
    output.adopt_config({}, other=kept_settings(config))
    (tmp_path / "score.yaml").write_bytes(config_to_yaml(config))
    kept = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "hushhush" not in kept
    assert kept.count("https://h/mae.pth") == 3
    assert dataclasses.asdict(config)["teacher"] == url.format("mae.pth")


def test_a_folder_without_a_name_is_not_the_root() -> None:
    with pytest.raises(UserError, match="empty"):
        OutputFolder("", SCORES, run_id="run-1")
