"""A measurement after interruptions, in a folder that is taken, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.prove import photos
from patchsieve.ranker.prove import run as prove_run
from patchsieve.ranker.prove.report import Proof, report_lines, to_json
from tests.helpers.proofs import marked_shard, measured, one_penalty, proof_config, proof_folder

pytestmark = pytest.mark.usefixtures(one_penalty.__name__)


def figures(proof: Proof) -> dict[str, Any]:
    """The JSON without the time at which the test shards were opened."""
    found: dict[str, Any] = json.loads(to_json(proof, run_id="run"))
    del found["choice"]["opened"]
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proof_folder(tmp_path_factory.mktemp("small"), train=20, test=8, in_marked=True)


class _InterruptedError(Exception):
    pass


def test_an_interrupted_measurement_goes_on_and_comes_to_the_same(small: Path) -> None:
    controls = "grid,attention,jpeg"
    whole = measured(small, out=str(small / "whole"), controls=controls)
    out = str(small / "often")
    for stop in ("fitted     cluster", "fitted     jpeg", "tested     grid"):

        def say(line: str, stop: str = stop) -> None:
            if line.startswith(stop):
                raise _InterruptedError

        with pytest.raises(_InterruptedError):
            measured(small, say, out=out, controls=controls)
    lines: list[str] = []
    resumed = measured(small, lines.append, out=out, controls=controls)
    # What was said to be done was done, and is not done again.
    assert not any(line.startswith("fitted") for line in lines)
    assert not any(
        line.startswith(("tested     full", "tested     topk", "tested     grid")) for line in lines
    )
    assert any(line.startswith("tested     jpeg") for line in lines)
    assert figures(resumed) == figures(whole)
    again: list[str] = []
    assert figures(measured(small, again.append, out=out, controls=controls)) == figures(whole)
    assert [line.split()[0] for line in again] == ["train", "test"]
    # Intervals over what test images share, of figures that are there.
    shared = measured(small, again.append, out=out, controls=controls, group=("json:kind",))
    assert [line.split()[0] for line in again] == ["train", "test"] * 2
    arm, same = whole.arms[0], shared.arms[0]
    assert "intervals  over 4 of json:kind" in report_lines(shared)
    assert (arm.right["full-pruned"] == same.right["full-pruned"]).all()
    assert whole.interval(arm, "full-pruned") != shared.interval(same, "full-pruned")


def test_the_selector_is_fixed_before_the_test_shards_are_opened(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the validation split: the test images have no say in it."""
    out = small / "order"
    read = photos.read_photos
    seen = []

    def watched(shards: Any, split: str, *rest: Any, **options: Any) -> Any:
        seen.append((split, (out / "choice.json").exists()))
        return read(shards, split, *rest, **options)

    monkeypatch.setattr(prove_run, "read_photos", watched)
    proof = measured(small, out=str(out), controls="random,jpeg")
    assert seen == [("train", False), ("test", True)]
    choice = json.loads((out / "choice.json").read_text())
    assert choice["candidates"] == proof.choice["candidates"]
    assert choice["candidates"][choice["selector"]] == max(choice["candidates"].values())
    assert choice["test_shards"][0].endswith("test.tar")
    tested = {path.stem for path in (out / "arms").iterdir()}
    fitted = {path.stem for path in (out / "fits").iterdir()}
    untested = {f"{name}-0.25" for name in choice["candidates"] if name != choice["selector"]}
    assert fitted - tested == untested


def test_another_measurement_in_the_folder_is_refused(small: Path) -> None:
    out = str(small / "taken")
    options = {"out": out, "selector": "topk", "controls": "grid"}
    measured(small, **options)
    with pytest.raises(UserError, match=r"other settings .* seed: 0 -> 1"):
        measured(small, **options, seed=1)
    with pytest.raises(UserError, match=r"other settings .* selector: topk -> cluster"):
        measured(small, **{**options, "selector": "cluster"})
    arm = small / "taken" / "arms" / "grid-0.25.json"
    about = json.loads(arm.read_text())
    arm.write_text(json.dumps({**about, "identity": "0" * 64}))
    with pytest.raises(UserError, match=r"grid-0.25.json is of another measurement"):
        measured(small, **options)
    odd: list[dict[str, Any]] = [
        {"right": {name: bits[:-2] for name, bits in about["right"].items()}},
        {"right": {}},
        {"validation": "0.5"},
        {"train_cost": {**about["train_cost"], "tokens": float("nan")}},
    ]
    for changes in odd:
        arm.write_text(json.dumps({**about, **changes}))
        with pytest.raises(
            UserError, match=r"grid-0.25.json was not written by patchsieve prove, or is damaged"
        ):
            measured(small, **options)
    choice = small / "taken" / "choice.json"
    told = choice.read_text()
    choice.write_text(told.replace('"selector": "topk"', '"selector": "../x"'))
    with pytest.raises(UserError, match=r"choice.json was not written by patchsieve prove, or is damaged"):
        measured(small, **options)
    choice.write_text(told)
    arm.write_bytes(b"{")
    with pytest.raises(UserError, match=r"grid-0.25.json was not written by patchsieve prove, or is damaged"):
        measured(small, **options)
    fit = small / "taken" / "fits" / "grid-0.25.safetensors"
    whole = fit.read_bytes()
    for spoilt in (whole[:-8], whole[:-1] + bytes([whole[-1] ^ 1])):
        fit.write_bytes(spoilt)
        with pytest.raises(
            UserError, match=r"grid-0.25.safetensors was not written by patchsieve prove, or is damaged"
        ):
            measured(small, **options)


def test_changed_test_shards_are_told(small: Path, tmp_path: Path) -> None:
    shard = tmp_path / "test.tar"
    marked_shard(shard, 8, 2, in_marked=True)
    changes = {"test": (str(shard),), "out": str(tmp_path / "out"), "selector": "topk", "controls": "grid"}
    measured(small, **changes)
    data = bytearray(shard.read_bytes())
    at = data.index(b"png", 600)
    data[data.index(b"IDAT", at) + 9] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"test"):
        measured(small, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selector": "best"}, r"--selector is 'best', must be auto or one of topk"),
        ({"ranker": "baseline:grid"}, r"--ranker is baseline:grid: baselines are controls already"),
        ({"teacher": "tiny"}, r"ranks 6 x 6 patches of 8 px, --teacher tiny sees 14 x 14 of 16 px"),
        (
            {"background": 12},
            r"--background 12 must be a multiple of 8 px, and take less than the 9 of 36 patches",
        ),
        ({"background": 24}, r"--background 24 must be .* 9 of 36 patches that --keep 0.25 leaves"),
        ({"controls": "grid,best"}, r"--controls: there is no 'best', only all or random"),
        ({"merge": ("8,9",)}, r"--merge: no train image has the label '8'"),
        ({"label": "kind"}, r"0 labelled images in the train shards"),
        ({"backbone": "no_such_net"}, r"--backbone: timm has no model 'no_such_net'"),
        ({"backbone": "resnet10t=/nowhere/file.pth"}, r"--backbone: there is no file '/nowhere/file.pth'"),
    ],
)
def test_what_cannot_be_measured(small: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measured(small, out=str(tmp_path / "out"), **changes)
    assert not storage.exists(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": ()}, "others to test on with --test"),
        ({"keep": "0.25,1"}, "--keep is '0.25,1'"),
        ({"keep": "half"}, "--keep is 'half'"),
        ({"merge": ("0",)}, "--merge '0' names no two labels"),
        ({"validation": 0.0}, "--validation is 0.0, must lie between 0 and 1"),
        ({"tolerance": 1.0}, "--tolerance is 1.0"),
        ({"quality": 101}, "--quality is 101"),
        ({"limit_test": 0}, "--limit-test is 0"),
        ({"label": ":"}, "--label names no field"),
        ({"seeds": 2}, "--seeds is for --protocol finetune"),
        ({"lr": 1e-3}, "--lr is for --protocol finetune"),
        ({"protocol": "finetune", "seeds": 0}, "--seeds is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"gpus_per_worker": 0.5}, "--gpus-per-worker is for --workers"),
        ({"protocol": "finetune", "lr": 2.0}, "--lr is 2.0, must lie between 0 and 1"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        proof_config(tmp_path, **changes)


def test_a_ranker_without_fits_has_no_arms_of_them(small: Path, tmp_path: Path) -> None:
    config = json.loads((small / "ranker" / "config.json").read_text())
    del config["extra"]["baselines"]
    for file in (small / "ranker").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    proof = measured(
        small,
        ranker=str(tmp_path),
        out=str(tmp_path / "out"),
        selector="topk",
        controls="ridge,grid,position",
    )
    assert [arm.arm.name for arm in proof.arms] == ["full", "topk", "grid"]
    assert any(note.startswith("position and ridge are no arms: ") for note in proof.notes)


def test_selectors_over_a_thumbnail(small: Path) -> None:
    options = {"out": str(small / "mixed"), "selector": "topk+16", "background": 16, "controls": "random"}
    proof = measured(small, **options)
    assert [arm.arm.name for arm in proof.arms] == ["full", "thumbnail+16", "topk+16", "random", "random+16"]
    assert [arm.train_cost.tokens for arm in proof.arms] == [36, 4, 9, 9, 9]
    assert any(
        note.startswith("topk+16 at 0.25 less its thumbnail alone, which costs 4") for note in proof.notes
    )


def test_controls_may_be_added_later(small: Path) -> None:
    options = {"out": str(small / "later"), "selector": "topk"}
    measured(small, **options, controls="grid")
    lines: list[str] = []
    proof = measured(small, lines.append, **options, controls="fewer,grid")
    assert [arm.arm.name for arm in proof.arms] == ["full", "topk", "grid", "fewer"]
    assert [line.split()[:2] for line in lines if "ed     " in line] == [
        ["fitted", "fewer"],
        ["tested", "fewer"],
    ]
