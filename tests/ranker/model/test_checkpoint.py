"""Rankers on disk: what comes back, what a killed save leaves, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.model import checkpoint
from patchsieve.ranker.model.checkpoint import load_ranker, ranker_digest, save_ranker
from patchsieve.ranker.model.ranker import Ranker, RankerConfig
from tests.helpers.rankers import SMALLEST_VIT, TEACHER, random_patches, small_config, small_ranker

TABLES = ["a" * 64, "b" * 64]


def save(folder: Path | str, ranker: Ranker | None = None, **changes: Any) -> str:
    facts: dict[str, Any] = {"teacher": TEACHER, "tables": TABLES, "temperature": 0.7, **changes}
    return save_ranker(str(folder), ranker or small_ranker(), **facts)


def weights_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("head", ["cls", "token"])
def test_what_is_saved_comes_back(head: str, tmp_path: Path) -> None:
    ranker = small_ranker(head=head)
    extra = {"position_mean": [0.5] * 16, "ridge": {"weights": [1.0, 2.0]}}
    digest = save(tmp_path / "mine", ranker, extra=extra)
    state = torch.get_rng_state()
    loaded = load_ranker(str(tmp_path / "mine"), device="cpu")
    assert torch.equal(torch.get_rng_state(), state), "loading must not move a seeded generator"
    assert (loaded.config, loaded.digest, loaded.name) == (ranker.config, digest, "mine")
    assert (loaded.teacher, loaded.tables, loaded.temperature) == (TEACHER, tuple(TABLES), 0.7)
    assert (loaded.extra, str(loaded.device)) == (extra, "cpu")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    patches = random_patches(2, ranker)
    assert torch.equal(loaded.model(patches), ranker(patches))
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "config.json",
        f"ranker-{digest[:16]}.safetensors",
    ]


def test_half_of_the_bytes(tmp_path: Path) -> None:
    ranker = small_ranker()
    save(tmp_path / "full", ranker)
    digest = save(tmp_path / "half", ranker, half=True)
    (full,), (half,) = weights_in(tmp_path / "full"), weights_in(tmp_path / "half")
    assert half.stat().st_size < 0.51 * full.stat().st_size
    loaded = load_ranker(str(tmp_path / "half"), device="cpu")
    assert loaded.digest == digest
    patches = random_patches(2, ranker)
    assert loaded.model.head.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.model(patches), ranker(patches), rtol=0.01, atol=0.01)


def test_on_another_store() -> None:
    digest = save("memory://rankers/one")
    assert load_ranker("memory://rankers/one", device="cpu").digest == digest
    with pytest.raises(UserError, match="no ranker at memory://rankers/two"):
        load_ranker("memory://rankers/two")


def test_a_digest_is_of_values_and_configuration() -> None:
    def digest(ranker: Ranker, config: RankerConfig | None = None) -> str:
        return ranker_digest(config or ranker.config, ranker.state_dict())

    assert digest(small_ranker()) == digest(small_ranker())
    assert digest(small_ranker()) != digest(small_ranker(seed=1))
    assert digest(small_ranker()) != digest(small_ranker(), small_config(depth=None))
    # Rankers that were saved must load in later releases: this never changes.
    settings = (
        f'{{"depth": 2, "head": "cls", "image_size": 64, "model": "{SMALLEST_VIT}", "patch_size": 16}}\n'
    )
    values = b"a [1, 2]\n" + struct.pack("<2f", 1.5, -2) + b"b [3]\n" + struct.pack("<3f", 0, 1, 2)
    state = {"b": torch.arange(3), "a": torch.tensor([[1.5, -2.0]], dtype=torch.float16)}
    assert ranker_digest(small_config(), state) == hashlib.sha256(settings.encode() + values).hexdigest()


def test_a_killed_save_leaves_the_old_ranker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = save(tmp_path), small_ranker(seed=1)
    commit = storage.commit_bytes

    def killed_at_the_configuration(data: bytes, url: str, *, run_id: str) -> None:
        if url.endswith("config.json"):
            raise KeyboardInterrupt
        commit(data, url, run_id=run_id)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "commit_bytes", killed_at_the_configuration)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, new)
    assert len(weights_in(tmp_path)) == 2
    assert load_ranker(str(tmp_path), device="cpu").digest == old
    digest = save(tmp_path, new)
    assert [path.name for path in weights_in(tmp_path)] == [f"ranker-{digest[:16]}.safetensors"]
    assert load_ranker(str(tmp_path), device="cpu").digest == digest


def test_saving_removes_no_file_of_others(tmp_path: Path) -> None:
    (tmp_path / "teacher.safetensors").write_bytes(b"")
    (tmp_path / "ranker-mine.safetensors").write_bytes(b"")
    save(tmp_path)
    assert len(weights_in(tmp_path)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"name": "small", "grid": 4}}, "its teacher's digest, patch_size"),
        ({"teacher": {**TEACHER, "grid": 14}}, "4 x 4 patches of 16 px, its teacher 14 x 14 of 16 px"),
        ({"temperature": 0.0}, r"temperature of 0\.0"),
        ({"temperature": float("nan")}, "temperature of nan"),
    ],
)
def test_what_is_not_saved(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        save(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    ranker = small_ranker()
    with torch.no_grad():
        ranker.head.bias[3] = 70_000.0
    with pytest.raises(UserError, match=r"head\.bias is not finite as float16"):
        save(tmp_path, ranker, half=True)
    with torch.no_grad():
        ranker.head.bias[3] = float("nan")
    with pytest.raises(UserError, match=r"head\.bias is not finite: not saved"):
        save(tmp_path, ranker)


def change_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about))

    return apply


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (path,) = weights_in(folder)
        weights = safetensors.torch.load_file(path)
        change(weights)
        path.write_bytes(safetensors.torch.save(weights))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            change_config(lambda a: a.update(schema_version=3)),
            "of schema version 3, this patchsieve reads version 2",
        ),
        (change_config(lambda a: a.pop("schema_version")), "of schema version None"),
        (change_config(lambda a: a.pop("format")), "is of another program or job"),
        (change_config(lambda a: a.update(format=None, rows={})), "patchsieve train .* makes one"),
        (lambda folder: (folder / "config.json").write_text("[]"), "a JSON list, not an object"),
        (lambda folder: (folder / "config.json").write_text('{"format": '), "config.json is damaged"),
        (lambda folder: (folder / "config.json").unlink(), "there is no folder with a config.json"),
        (change_config(lambda a: a.pop("tables")), "not complete: KeyError.*tables"),
        (change_config(lambda a: a.pop("weights_sha256")), "not complete: KeyError.*weights_sha256"),
        (change_config(lambda a: a["teacher"].pop("grid")), "not complete: KeyError.*grid"),
        (change_config(lambda a: a.update(teacher=5)), "not complete: TypeError"),
        (change_config(lambda a: a.update(temperature="warm")), "not complete: ValueError.*warm"),
        (change_config(lambda a: a.update(temperature=float("inf"))), "temperature of inf"),
        (change_config(lambda a: a.update(digest="../../x")), r"not complete.*\.\./\.\./x"),
        (change_config(lambda a: a["teacher"].update(patch_size=8)), "4 x 4 patches of 16 px, its teacher"),
        (change_config(lambda a: a["config"].update(colour="red")), "not a ranker's.*colour"),
        (change_config(lambda a: a["config"].update(model="vit_none")), "timm has no model 'vit_none'"),
        (change_config(lambda a: a["config"].update(depth="2")), "depth is '2'"),
        (change_config(lambda a: a["config"].update(image_size=24_000)), "a grid of 1500 patches a side"),
        # Of 4 GB: nothing of it is made before the shapes are compared.
        (change_config(lambda a: a["config"].update(model="vit_giant_patch14_224")), "in the model"),
        (change_config(lambda a: a["config"].update(depth=1)), r"blocks\.1\..* unknown in the model"),
        (
            change_config(lambda a: a["config"].update(head="token")),
            r"head\.bias is \(16,\), \(1,\) in the model",
        ),
        (lambda folder: weights_in(folder)[0].unlink(), "not complete: there is no .*ranker-"),
        (lambda folder: weights_in(folder)[0].write_bytes(b"\x80\x04N." * 9), "damaged .safetensors"),
        (change_weights(lambda w: w.pop("head.bias")), r"head\.bias is missing, \(16,\) in the model"),
        (
            change_weights(lambda w: w["head.bias"].add_(1e-3)),
            "not the weights that its config.json describes",
        ),
    ],
)
def test_folders_that_are_refused(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        load_ranker(str(tmp_path), device="cpu")
    assert "\n" not in str(raised.value)


def test_places_without_a_ranker(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "none", tmp_path / "file", tmp_path):
        with pytest.raises(UserError, match=f"no ranker at {re.escape(str(place))}: there is no folder"):
            load_ranker(str(place))


def test_of_a_name_on_the_hub_only_what_its_configuration_names_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digest = save(tmp_path / "there")
    fetched: list[str] = []

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        fetched.extend(allow_patterns)
        return str(tmp_path / repository.partition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_ranker("user/there", device="cpu").name == "user/there"
    assert set(fetched) == {"config.json", f"ranker-{digest[:16]}.safetensors"}
    for name, told in (
        ("other", "{}"),
        ("odd", '{"format": "patchsieve ranker", "schema_version": 2, "digest": "*"}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(told)
        fetched.clear()
        with pytest.raises(UserError, match=f"user/{name}"):
            load_ranker(f"user/{name}")
        assert fetched == ["config.json"]
