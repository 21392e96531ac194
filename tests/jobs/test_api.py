"""The commands as calls: the tutorial's notebook runs as it stands, on fewer photos and a smaller teacher."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import patchsieve
from patchsieve.pipeline.errors import UserError
from tests.helpers.checkout import ROOT
from tests.helpers.score_runs import save_small_teacher

HERE: dict[str, Any] = {"gpus_per_actor": 0.0, "max_actors": 1, "precision": "fp32"}


def with_settings(call: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return lambda *given, **named: call(*given, **{**named, **settings})


@pytest.mark.ray
def test_the_tutorial(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_small_teacher(tmp_path)
    training = {
        "depth": 1,
        "batch_size": 8,
        "accumulate": 4,
        "views_per_image": 4,
        "held_out": 0.4,
        "workers": "auto",
        "gpus_per_worker": 0.0,
    }
    smaller = {
        "score": {"teacher": teacher, "views": "2", "mask_ratio": 0.75, **HERE},
        "train": training,
        "prune": HERE,
    }
    for name, settings in smaller.items():
        monkeypatch.setattr(patchsieve, name, with_settings(getattr(patchsieve, name), **settings))
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    # The small teacher sees 6 x 6 patches of 8 px.
    for given, taken in (
        ('32), ("test", 8', '6), ("test", 2'),
        ('"tiny", views=22', "load_teacher(TEACHER)"),
        ('fields=("cls",)', 'fields=("cls",), patch_size=8'),
        ("(14, 14)", '(6, 6), "patch_size": 8'),
    ):
        assert given in code
        code = code.replace(given, taken)
    names: dict[str, Any] = {"TEACHER": teacher, "load_teacher": patchsieve.load_teacher}
    exec(code, names)

    assert (names["packed"].photos, names["packed"].classes) == (12, ("chelsea", "coffee"))
    assert (names["scored"].exit_code, names["scored"].rows) == (0, 24)
    assert names["ranker"].digest == patchsieve.load_ranker("ranker").digest
    assert (names["pruned"].exit_code, names["pruned"].kept) == (0, 4 * 18)
    assert len(list(patchsieve.PrunedDataset("pruned/train/shards"))) == 12
    assert re.search(r"^test: 72 of 144 patches stay$", said := capsys.readouterr().out, re.MULTILINE), said
    assert re.search(r"^accuracy [01]\.\d{3} of 4 test photos$", said, re.MULTILINE), said
    assert "\n2 workers, there is room for 4\n" in said
    assert all((tmp_path / f"{name}.png").stat().st_size > 500 for name in ("teacher", "ranker", "sheet"))


def test_settings_that_cannot_be_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--views is '0'"):
        patchsieve.score("photos.tar", out=str(tmp_path / "out"), views="0")
    with pytest.raises(UserError, match="--keep is 2"):
        patchsieve.prune("photos.tar", ranker="tiny", out=str(tmp_path / "out"), keep=2)
    with pytest.raises(UserError, match="dry_run is for the command alone"):
        patchsieve.score("none.tar", out="out", dry_run=True)
    with pytest.raises(UserError, match="sheet is for the command alone"):
        patchsieve.prune("none.tar", ranker="tiny", out="out", sheet="sheet.png")
    with pytest.raises(UserError, match=r"there is no setting 'teachr'\. Did you mean teacher"):
        patchsieve.score("photos.tar", out=str(tmp_path / "out"), teachr="tiny")
    assert not (tmp_path / "out").exists()
