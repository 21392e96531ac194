"""`patchsieve evaluate` end to end: on photographs with the bundled teacher, and what it refuses in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from patchsieve.jobs import evaluate
from patchsieve.pipeline.pictures.demo_photos import find_photos
from patchsieve.pipeline.schedule.drift import read_evaluation
from patchsieve.pipeline.scoring.api import Teacher
from patchsieve.ranker.baselines.baselines import BASELINES
from patchsieve.ranker.batches.order import held_out
from patchsieve.ranker.evaluate.images import trained_contents
from patchsieve.ranker.evaluate.report import DIAGNOSTIC
from tests.helpers.evaluations import RATIO, made_up_fits, ranker_of, small_teacher
from tests.helpers.photos import photo, photo_samples, write_shard
from tests.helpers.score_runs import save_small_teacher

ROWS = {"mask_ratio": RATIO, "removal": "encoder", "metric": "l2", "masks": "uniform", "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.tar` with one sample that is no image, a teacher, and a ranker that learned from it."""
    folder = tmp_path_factory.mktemp("evaluate")
    samples = [("text", {"jpg": b"no image"}), *photo_samples(6, height=60, width=70)]
    write_shard(folder / "a.tar", samples)
    teacher = small_teacher(folder)
    ranker_of(folder / "ranker", teacher, rows=ROWS, training={"held_out": 0.5, "seed": 0}, **made_up_fits())
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return small_teacher(folder)


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        evaluate.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def arguments(folder: Path, **changes: Any) -> list[str]:
    """A small evaluation; `changes` are flags, None leaves one out, True gives it alone."""
    flags: dict[str, Any] = {
        "ranker": str(folder / "ranker"),
        "teacher": str(folder / "small-pixels-0.safetensors"),
    }
    flags |= {"precision": "fp32", "batch_size": "8", "max_partitions": "2", **changes}
    listed = [str(folder / "a.tar")]
    for name, value in flags.items():
        if value is not None:
            listed += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return listed


def refused(capsys: pytest.CaptureFixture[str], folder: Path, **changes: Any) -> str:
    code, _, line = run_command(capsys, *arguments(folder, **changes))
    assert code == 2
    assert line.startswith("patchsieve evaluate: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.slow
def test_the_bundled_ranker_on_photographs_that_it_never_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = find_photos(None)[:2]
    write_shard(
        tmp_path / "photos.tar", [(path.stem, {path.suffix[1:]: path.read_bytes()}) for _, path in found]
    )
    code, printed, problems = run_command(
        capsys,
        *(str(tmp_path / "photos.tar"), "--ranker", "tiny", "--teacher", "tiny"),
        *("--max-partitions", "2", "--masks", "spread", "--aggregate", "log", "--precision", "fp32"),
        *("--batch-size", "11", "--out", str(tmp_path / "out")),
    )
    assert (code, problems) == (0, "")
    assert "reference  2 partitions (22 views), spread masks, aggregate log, mask ratio 0.9" in printed
    assert DIAGNOSTIC in printed
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(told["agreement"]) == {"ranker", *BASELINES}
    assert told["dense"]["choice"] is None
    # What the drift watch of a schedule reads of it.
    watched = read_evaluation(str(tmp_path / "out"))
    assert watched is not None
    assert dataclasses.asdict(watched.of_ceiling) == told["agreement"]["ranker"]["of_ceiling"]
    # Real scores of a real teacher repeat, and follow texture more than chance or random weights do.
    assert told["rho"]["value"] > 0.3
    spearman = {name: found["spearman"]["value"] for name, found in told["agreement"].items()}
    assert spearman["variance"] > spearman["random"]
    # Measured: 0.75 on average, 0.14 ahead; dense scores of two partitions are far from exact themselves.
    assert spearman["ranker"] > 0.6
    assert spearman["ranker"] > spearman["ridge"] + 0.1
    errors = {name: curve["errors"]["pixel"] for name, curve in told["reconstruction"]["selectors"].items()}
    for values in errors.values():
        assert values[0]["value"] > values[2]["value"] > 0
    assert (tmp_path / "out" / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    assert "max_partitions: 2" in (tmp_path / "out" / "evaluate.yaml").read_text()


def test_settings_come_from_the_ranker_and_json_stands_alone(
    folder: Path, teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, talk = run_command(capsys, *arguments(folder, json=True, no_reconstruct=True))
    assert code == 0
    told = json.loads(printed)
    assert talk.startswith("images     6, from 1 shard\nscoring ")
    assert {name: told["dense"][name] for name in ("mask_ratio", "removal", "metric")} == {
        name: ROWS[name] for name in ("mask_ratio", "removal", "metric")
    }
    assert told["dense"]["seed"] == 1
    assert told["dense"]["choice"]["masks"] == told["dense"]["masks"]
    assert told["reconstruction"] is None
    assert any(note.startswith("1 sample without an image") for note in told["notes"])
    assert any("measure slightly different things" in note for note in told["notes"])
    assert not any("seed" in note for note in told["notes"])
    asked = run_command(
        capsys, *arguments(folder, json=True, no_reconstruct=True, removal="decoder", seed=0, limit_images=2)
    )
    other = json.loads(asked[1])
    assert (other["dense"]["removal"], other["images"]) == ("decoder", 2)
    assert any(note.startswith("seed 0 is that of the ranker's tables") for note in other["notes"])
    ranker_of(tmp_path / "untold", teacher)
    flags = {"ranker": tmp_path / "untold", "masks": "uniform", "limit_images": 2, "no_reconstruct": True}
    code, printed, _ = run_command(capsys, *arguments(folder, **flags))
    assert code == 0
    assert (
        "does not tell how its tables were scored: takes mask_ratio 0.9, removal decoder, metric l1"
        in printed
    )


def test_shards_it_was_trained_on_give_only_what_it_held_out(
    folder: Path, teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256((folder / "a.tar").read_bytes()).hexdigest()
    training = {"held_out": 0.5, "seed": 3}
    trained = ranker_of(tmp_path / "r", teacher, tables=[f"{digest}:0:4"], training=training, rows=ROWS)
    assert trained_contents(trained) == {digest}
    line = refused(capsys, folder, ranker=tmp_path / "r")
    assert "r was trained on" in line
    assert "add --only-held-out" in line
    flags = {"ranker": tmp_path / "r", "only_held_out": True, "json": True, "no_reconstruct": True}
    code, printed, _ = run_command(capsys, *arguments(folder, **flags))
    expected = [key for key, _ in photo_samples(6, height=60, width=70) if held_out(key, 0.5, 3)]
    assert 2 <= len(expected) < 6
    assert (code, json.loads(printed)["images"]) == (0, len(expected))


def test_what_cannot_be_measured_is_one_line(
    folder: Path, teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_small_teacher(tmp_path, seed=1)
    assert "learned from teacher small" in refused(capsys, folder, teacher=other)
    assert "no ranker at" in refused(capsys, folder, ranker=tmp_path / "none")
    assert "--max-partitions is 3" in refused(capsys, folder, max_partitions=3)
    assert "--limit-images is 1" in refused(capsys, folder, limit_images=1)
    assert "--masks: the table of --dense tells that" in refused(capsys, folder, dense="t", masks="uniform")
    assert "no score table" in refused(capsys, folder, dense=tmp_path / "nothing")
    ranker_of(tmp_path / "several", teacher, rows={**ROWS, "removal": ["decoder", "encoder"]})
    line = refused(capsys, folder, ranker=tmp_path / "several")
    assert "fitted to tables of removal decoder and encoder: choose with --removal" in line
    ranker_of(tmp_path / "odd", teacher, rows={**ROWS, "metric": "taste"})
    assert "metric of its tables is 'taste'" in refused(capsys, folder, ranker=tmp_path / "odd")
    ranker_of(tmp_path / "untold", teacher)
    line = refused(capsys, folder, ranker=tmp_path / "untold", only_held_out=True)
    assert "does not tell which images its training held out" in line
    write_shard(tmp_path / "one.tar", [("only", {"jpg": photo(1, 60, 70)})])
    code, _, line = run_command(capsys, str(tmp_path / "one.tar"), *arguments(folder)[1:])
    assert code == 2
    assert "1 image in 1 shard " in line


def test_a_plot_without_the_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    line = refused(capsys, folder, out=tmp_path / "out")
    assert "needs matplotlib: pip install matplotlib" in line
    assert not (tmp_path / "out").exists()
