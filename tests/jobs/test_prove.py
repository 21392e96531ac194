"""`patchsieve prove` on the command line: table, plot, JSON, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from patchsieve.jobs import prove
from tests.helpers.proofs import one_penalty, proof_folder

pytestmark = pytest.mark.usefixtures(one_penalty.__name__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proof_folder(tmp_path_factory.mktemp("prove"), train=24, test=12, in_marked=True)


def run_command(
    capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str, test: str = "test.tar"
) -> tuple[int, str, str]:
    given = [str(folder / "train.tar"), "--test", str(folder / test), "--ranker", str(folder / "ranker")]
    given += ["--teacher", str(folder / "small-pixels-0.safetensors"), "--keep", "0.25"]
    given += ["--selector", "topk", "--controls", "grid,resize,jpeg", *arguments]
    with pytest.raises(SystemExit) as ended:
        prove.main(given)
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def test_a_table_a_plot_and_a_verdict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    code, printed, problems = run_command(capsys, folder, "--out", str(out), "--label", "json:kind")
    assert (code, problems) == (0, "")
    lines = printed.splitlines()
    assert any(line.startswith("verdict    at 0.25 of the patches and equal tokens") for line in lines)
    assert [line.split()[0] for line in lines if line.startswith("    ")][1:] == [
        "topk",
        "grid",
        "resize",
        "jpeg",
    ]
    assert (out / "prove.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((out / "prove.json").read_text())
    assert [arm["name"] for arm in told["arms"]] == ["full", "topk", "grid", "resize", "jpeg"]
    assert told["choice"]["why"] == "as asked for"
    assert yaml.safe_load((out / "prove.yaml").read_text())["label"] == "json:kind"
    # Again: nothing is measured, JSON alone is printed, and it is the same.
    code, printed, problems = run_command(
        capsys, folder, "--out", str(out), "--label", "json:kind", "--json", "--no-plot"
    )
    assert code == 0
    assert "fitted" not in problems
    assert {**json.loads(printed), "run_id": ""} == {**told, "run_id": ""}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep", "2"), "--keep is '2'"),
        (("--label", "kind"), "0 labelled images in the train shards"),
    ],
)
def test_refusals_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    code, _, line = run_command(capsys, folder, "--out", str(folder / "no"), *arguments)
    assert code == 2
    assert line.startswith(f"patchsieve prove: {said}")
    assert line.count("\n") == 1
