"""Commands that pages show are ones that patchsieve takes, flag by flag; those that need no cluster run."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import patchsieve
from patchsieve.jobs.arguments import read_config
from patchsieve.jobs.cli import COMMANDS
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.score import estimate
from patchsieve.ranker.gallery import sheet
from patchsieve.ranker.prune import estimate as prune_estimate
from patchsieve.ranker.report import charts, outcomes
from tests.helpers.checkout import ROOT
from tests.helpers.galleries import leave
from tests.helpers.photos import photo
from tests.helpers.prune_runs import prune_here
from tests.helpers.score_runs import score_here
from tests.project.test_docs import PAGES

# `schedule` divides its command line itself.
READ_BY_ONE = sorted(set(COMMANDS) - {"schedule"})


def commands(text: str) -> list[list[str]]:
    """The words of every indented command of patchsieve; those with `...` or `[optional]` parts are sketches."""
    joined = re.sub(r" *\\\n *", " ", text)
    lines = re.findall(rf"^ {{4,}}patchsieve ((?:{'|'.join(READ_BY_ONE)}) .*)$", joined, re.MULTILINE)
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if not any(re.search(r"\.\.\.|^\[|\]$", word) for word in words)]


SHOWN = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}-{number}-{words[0]}")
    for page in PAGES
    for number, words in enumerate(commands(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_is_taken(words: list[str]) -> None:
    job, *arguments = words
    _, config_type, _ = importlib.import_module(f"patchsieve.jobs.{job}").main.args
    read_config(job, config_type, arguments)


# What the pages name, and what stands for it here.
NAMES = {
    "s3://photos/train-{000000..000999}.tar": "photos/*.tar",
    "photos/train-{000..127}.tar": "photos/*.tar",
    "photos/test-*.tar": "photos/*.tar",
    "photos/train-*.tar": "photos/*.tar",
    "shards/*.tar": "photos/*.tar",
    "shards": "photos",
    "shards/train": "packed",
    "s3://tables/train": "tables",
    "tables/train": "tables",
    "photo-0042": "photo-1",
    "user/name": "ranker",
    "FOLDER": "ranker",
    "tiny": "ranker",
    # Of the small ranker, whose patches have 8 px and images 48.
    "64": "16",
    "448": "96",
    "896": "192",
    "112": "48",
    "mae-base": "small-pixels-0.safetensors",
    "teacher": "small-pixels-0.safetensors",
}
# What takes more than little data: tests/jobs, tests/ranker/prove and tests/pipeline/pretrain run them.
ELSEWHERE = {"demo", "train", "evaluate", "prove", "pretrain"}
ON_A_CLUSTER: dict[str, Any] = {"score": score_here, "prune": prune_here}
WRITES = {"pack", "score", "prune"}
FREE = ("corpus/", "caltech101/", "s3://imagenet", "s3://coco", "s3://ltrp", "s3://bucket")


def to_run() -> list[str]:
    """Commands that run here, with what stands for the names in them; those that then are alike once."""
    found = []
    for page in PAGES:
        for words in commands(page.read_text(encoding="utf-8")):
            if words[0] in ELSEWHERE or any(word.startswith(FREE) for word in words):
                continue
            if words[0] in WRITES:
                words[words.index("--out") + 1] = "out"
            if "--teacher" in words:  # tiny is a ranker, too
                words[words.index("--teacher") + 1] = NAMES["mae-base"]
            if words[0] == "score" or "--sample" in words:
                words += ["--teacher", NAMES["mae-base"]]  # the last one counts
            found.append(shlex.join(NAMES.get(word, word) for word in words if word != "proof"))
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name."""
    folder = tmp_path_factory.mktemp("pages")
    leave(folder)
    (folder / "table").rename(folder / "tables")
    for place in ("flowers/train/rose", "flowers/train/tulip", "flowers/test/rose", "photos/rose"):
        (folder / place).mkdir(parents=True)
        (folder / place / "0.jpg").write_bytes(photo(0, 40, 50))
    patchsieve.pack(str(folder / "flowers" / "train"), out=str(folder / "packed"))
    return folder


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes long and tests of their own look at: charts, files of pictures, seconds of measuring."""
    monkeypatch.setattr(estimate, "PROBE_S", 0.0)
    for module in (sheet, prune_estimate):
        monkeypatch.setattr(module, "picture_file", lambda picture: b"")
    for module in (charts, outcomes):
        monkeypatch.setattr(module, "draw_vectors", lambda draw, **options: "")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("line", to_run())
def test_a_command_runs(
    line: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    job, *arguments = shlex.split(line)
    _, config_type, run = importlib.import_module(f"patchsieve.jobs.{job}").main.args
    config: Any = read_config(job, config_type, arguments)
    if job in WRITES:
        config = dataclasses.replace(config, out=str(tmp_path))
    if job in ON_A_CLUSTER and not config.dry_run:
        precision = {} if "baseline:" in line else {"precision": "fp32"}
        done = ON_A_CLUSTER[job](dataclasses.replace(config, batch_size=4, **precision))
        assert [result.failed for result in done.values()] == [None, None]
    else:
        assert run(config) == 0
        assert capsys.readouterr().out


def test_every_stage_to_reproduce_is_there() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    stages = [(words[0], "coco" in words[1]) for words in commands(page)]
    assert set(stages) == {
        *((job, False) for job in ("score", "train", "evaluate", "prune", "prove")),
        *((job, True) for job in ("score", "train", "evaluate", "prune")),
    }


def test_commands_are_found_and_misspelt_ones_are_not_taken() -> None:
    text = "Run `patchsieve score`:\n\n    patchsieve score 'a b.tar' \\\n        --out c   # again\n"
    text += "    patchsieve score SHARDS [--views 4]\n    patchsieve schedule once\n\npatchsieve score x\n"
    assert commands(text) == [["score", "a b.tar", "--out", "c"]]
    with pytest.raises(UserError, match="no option --jsn"):
        test_a_command_is_taken(["status", "x", "--jsn"])
