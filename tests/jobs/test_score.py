"""The command line of the score job: refusals in one line, configuration files, the dry run, status without Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from patchsieve.jobs import score, status
from patchsieve.jobs.arguments import read_config
from patchsieve.pipeline.output.owner import Owner
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.score.config import ScoreConfig
from tests.helpers.checkout import ROOT, python_path
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here
from tests.helpers.servers import Trouble, serve_files

STATUS = """
import sys
from patchsieve.jobs import status
try:
    status.main(sys.argv[1:])
except SystemExit as end:
    print(end.code)
print(sorted({"ray", "torch"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.tar`, `small-*.safetensors` of known and unknown output space, an empty folder and a file."""
    folder = tmp_path_factory.mktemp("cli")
    write_shard(folder / "a.tar", photo_samples(4, height=50, width=60))
    save_small_teacher(folder)
    save_small_teacher(folder, output_space="unknown")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no folder")
    return folder


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `patchsieve score` in this process."""
    with pytest.raises(SystemExit) as ended:
        score.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], out: Path) -> str:
    """The one line of a command that cannot be done and has written nothing."""
    code, printed, line = run_command(capsys, *arguments, "--out", str(out))
    assert (code, printed) == (2, "")
    # Ray prints what actors of earlier tests have said whenever it arrives.
    line = "".join(part for part in line.splitlines(keepends=True) if " pid=" not in part)
    assert line.startswith("patchsieve score: ")
    assert line.count("\n") == 1
    assert not out.exists()
    return line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{}/none.tar"], r"no such shard: .*/none\.tar"),
        (["{}/none-*.tar"], r"nothing matches .*/none-\*\.tar"),
        (["{}/empty"], r"no \*\.tar directly in the folder .*/empty"),
        (["@{}/none.txt"], r"cannot read .*/none\.txt"),
        (["pipe:cat {}/a.tar"], r"pipe:"),
        (["{}/a.tar", "--root", "{}/empty"], r"a\.tar is not below --root"),
        (["{}/a.tar", "--mask-ratio", "0.95"], r"--mask-ratio 0\.95 shows 1 of 36 .* up to 0\.94"),
        (["{}/a.tar", "--mask-ratio", "1e-8"], r"--mask-ratio 1e-08 shows 36 of 36"),
        (["{}/a.tar", "--mask-ratio", "0"], r"mask ratio is 0\.0"),
        (["{}/a.tar", "--mask-ratio", "nan"], r"mask ratio is nan"),
        (["{}/a.tar", "--teacher", "no-such-teacher"], r"no-such-teacher"),
        (["{}/a.tar", "--teacher", "{}/none.pth"], r"no teacher at .*/none\.pth"),
        (["{}/a.tar", "--teacher", "{}/a.tar"], r"cannot read weights from .*/a\.tar"),
        (["{}/a.tar", "--teacher", "{}/small-unknown-0.safetensors", "--metric", "ssim"], "--output-space"),
        (["{}/a.tar", "--teacher", "{}/small-unknown-0.safetensors", "--metric", "psnr"], "--output-space"),
        (["{}/a.tar", "--views", "four"], r"--views is 'four'"),
        (["{}/a.tar", "--views", "8:4"], r"--views is .8:4."),
        (["{}/a.tar", "--views", "0"], r"--views is .0., must be a count"),
        (["{}/a.tar", "--views", "40000"], r"views 0:40000"),
        (["{}/a.tar", "--sample", "0"], r"sample is 0\.0"),
        (["{}/a.tar", "--image-field", ";"], r"image field is empty"),
        (
            ["{}/a.tar", "--estimator", "frozen", "--removal", "encoder"],
            r"decoder and metric l1 or l2, not removal encoder",
        ),
        (["{}/a.tar", "--estimator", "frozen", "--metric", "ssim"], r"not removal decoder and metric ssim"),
        (["{}/a.tar", "--estimator", "frozen", "--frozen-tokens", "34"], r"34 frozen tokens, .* hides 33"),
        (["{}/a.tar", "--estimator", "frozen", "--frozen-tokens", "0"], r"frozen tokens are 0"),
        (["{}/a.tar", "--frozen-tokens", "16"], r"--frozen-tokens 16 is for --estimator frozen"),
        (["{}/a.tar", "--batch-size", "0"], r"--batch-size is 0"),
        (["{}/a.tar", "--max-bad", "5"], r"--max-bad is 5\.0"),
        (["{}/a.tar", "--gpus-per-actor", "1.5"], r"--gpus-per-actor is 1\.5"),
        (["{}/a.tar", "--config", "{}/none.yaml"], r"--config .*/none\.yaml"),
        (["{}/a.tar", "--config"], r"--config"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], line: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.replace("{}", str(folder)) for argument in arguments]
    if "--teacher" not in filled:
        filled[1:1] = ["--teacher", str(folder / "small-pixels-0.safetensors")]
    assert re.search(line, refused(capsys, filled, tmp_path / "out"))


def test_a_url_that_cannot_be_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(folder / "small-pixels-0.safetensors")
    with serve_files() as server:
        server.files["/a.tar"] = b"secret"
        server.head_trouble["/a.tar"] = [Trouble("status", status=403)] * 9
        server.forever["/a.tar"] = Trouble("status", status=403)
        url = server.url("/a.tar?token=secret-token")
        line = refused(capsys, [url, "--teacher", teacher], tmp_path / "out")
    assert "cannot read" in line
    assert "secret-token" not in line


def test_an_output_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(folder / "small-pixels-0.safetensors")
    line = refused(capsys, [str(folder / "a.tar"), "--teacher", teacher], folder / "file" / "out")
    assert f"{folder / 'file'}" in line
    assert (folder / "file").read_text() == "no folder"


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Path]:
    """An output whose owner is alive."""
    out = tmp_path / "out"
    owner = Owner(str(out), "another-run")
    owner.acquire(heartbeat=False)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.01):
            owner.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    yield out
    ended.set()
    thread.join()
    owner.release()


def test_a_live_owner_stops_a_second_run(
    folder: Path, owned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = score_config([folder / "a.tar"], owned, str(folder / "small-pixels-0.safetensors"))
    (folder / "owned.yaml").write_bytes(config_to_yaml(config))
    code, printed, line = run_command(capsys, "--config", str(folder / "owned.yaml"))
    assert (code, printed) == (2, "")
    assert re.fullmatch(r"patchsieve score: .*/out is in use by .*another-run.*\n", line)
    # The owner's heartbeat replaces its file all the time.
    left = {path.name for path in owned.iterdir() if "owner.json" not in path.name}
    assert left <= {"config.json"}


def test_a_configuration_comes_back_from_its_file(folder: Path, tmp_path: Path) -> None:
    config = ScoreConfig(
        shards=("a.tar", "b-{000..003}.tar"),
        out="s3://bucket/out",
        teacher="tiny",
        views="4:8",
        mask_ratio=0.75,
        sample=0.02,
        batch_size=16,
        max_actors=3,
        price_per_hour=2.5,
        salvage=True,
        image_field="jpg;ünïcode",
    )
    path = tmp_path / "score.yaml"
    path.write_bytes(config_to_yaml(config))
    assert read_config("score", ScoreConfig, ["--config", str(path)]) == config
    assert read_config("score", ScoreConfig, [f"--config={path}"]) == config
    # Flags override, wherever they stand.
    flags = ["--views", "2", "--config", str(path), "--batch-size", "auto", "c.tar"]
    changed = dataclasses.replace(config, views="2", batch_size="auto", shards=("c.tar",))
    assert read_config("score", ScoreConfig, flags) == changed


def test_every_setting_comes_back_from_its_file(tmp_path: Path) -> None:
    config = ScoreConfig(shards=("a.tar",), out="out")
    path = tmp_path / "score.yaml"
    path.write_bytes(config_to_yaml(config))
    assert yaml.safe_load(path.read_bytes()).keys() == {f.name for f in dataclasses.fields(ScoreConfig)}
    assert read_config("score", ScoreConfig, ["--config", str(path)]) == config


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("veiws: '4'\nout: x\nshards: [a.tar]", "veiws"),
        ("- a\n- b", "no settings"),
        ("", "no settings"),
        ("views: [unclosed", "--config"),
        ("out: x\nshards: [a.tar]\nmask_ratio: high", "mask_ratio cannot be 'high'"),
        ("out: x\nshards: [a.tar]\nmetric: l3", "metric cannot be 'l3'"),
        ("out: x\nshards: [a.tar]\nsalvage: 1", "salvage cannot be '1'"),
        ("out: x\nshards: [a.tar]\nviews: [4, 8]", "views cannot be ['4', '8']"),
        ("out: x\nshards: [a.tar]\nsample: 2", "sample is 2.0"),
        ("out: x", "no shards given"),
        ("shards: [a.tar]\ndry_run: true\nverify_content: true", "--verify-content reads shards"),
        ("out: x\nshards: [a.tar]\nviews: '8:x'", "--views"),
    ],
)
def test_a_wrong_configuration_file_is_one_line(
    content: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    assert line in refused(capsys, ["--config", str(path)], tmp_path / "out")


def test_a_configuration_file_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("views: 8\nsample: 1\nshards: a.tar\n")
    config = read_config("score", ScoreConfig, ["--config", str(path), "--out", "out"])
    assert config == ScoreConfig(shards=("a.tar",), out="out", views="8", sample=1.0)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_dry_run_writes_nothing_and_starts_no_ray(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(folder / "a.tar"), "--out", str(out), "--dry-run", "--price-per-hour", "3600000"]
    arguments += [
        "--teacher",
        str(folder / "small-pixels-0.safetensors"),
        "--views",
        "8",
        "--max-actors",
        "2",
    ]
    done = python("-m", "tests.jobs.hasty_score", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert not out.exists()
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert told["shards"] == "1, 20.5 kB" or told["shards"].startswith("1, ")
    samples = int(re.match(r"about (\d+)$", told["samples"])[1])  # type: ignore[index]
    assert 4 <= samples <= 6, "four, and what the end of the archive looks like"
    assert told["teacher"] == "small (3 x 32 + 2 x 24, 48 px, predicts pixels)"
    assert f"about {8 * samples}, 3 of 36 patches visible" in told["views"]
    assert "GFLOP in all" in told["views"]
    assert "of shards" in told["table"]
    speed = r"[\d.]+ views/s per actor in (fp32|bf16), on \d+ CPU threads? of this machine$"
    assert re.match(speed, told["speed"])
    assert "with 1 actor," in told["time"], "there is one shard"
    assert "per shard" in told["time"]
    assert re.match(r"about [\d.]+ for [\d.]+ actor hours", told["price"])
    assert told["cheaper"].startswith("--estimator frozen, for a table to train on")


def test_status_without_ray_or_torch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = score_config([folder / "a.tar"], tmp_path, str(folder / "small-pixels-0.safetensors"))
    score_here(config)
    done = python("-c", STATUS, str(tmp_path), "--json")
    told, code, heavy = done.stdout.splitlines()
    assert (code, heavy, done.stderr) == ("0", "[]", "")
    assert json.loads(told)["rows"] == len(rows_of(tmp_path)) == 8
    with pytest.raises(SystemExit) as ended:
        status.main([str(tmp_path / "scores")])
    assert ended.value.code == 2
    printed, problem = capsys.readouterr()
    assert printed == ""
    assert re.fullmatch(r"patchsieve status: .* is no output folder of patchsieve.*\n", problem)
