"""A command line that cannot be is one line, with what was probably meant."""

from __future__ import annotations

import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.options.given import check_given
from patchsieve.pipeline.options.reading import options_of
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.ranker.evaluate.config import EvaluateConfig
from patchsieve.ranker.prune.config import PruneConfig

PRUNE = "photos/*.tar --ranker tiny --out pruned"


def check(line: str, config: type = PruneConfig, *, complete: bool = True) -> None:
    check_given("prune", options_of(config), line.split(), complete=complete)


@pytest.mark.parametrize(
    "line",
    [
        PRUNE,
        "--out=pruned --ranker=tiny photos/*.tar",
        f"{PRUNE} --keep 0.5 --drop-bad --no-salvage --drop_bad",
        f"{PRUNE} --select window --batch-size auto --limit-shards 3",
        f"{PRUNE} --batch-size 8 --table one two",
        f"{PRUNE} --keep None --temperature -1",
    ],
)
def test_what_can_be_passes(line: str) -> None:
    check(line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{PRUNE} --kep 0.5", r"no option --kep\. Did you mean --keep\? See patchsieve prune --help"),
        (f"{PRUNE} --zzzzzz 0.5", r"no option --zzzzzz\. See"),
        (
            f"{PRUNE} --select topp",
            r"--select is 'topp', must be one of topk, .*random\. Did you mean topk\?",
        ),
        (f"{PRUNE} --keep half", "--keep is 'half', must be a number$"),
        (f"{PRUNE} --limit-shards 1.5", "--limit-shards is '1.5', must be a whole number$"),
        (f"{PRUNE} --batch-size aut", r"must be a whole number or auto\. Did you mean auto\?"),
        (f"{PRUNE} --keep", "--keep needs a value: NUMBER"),
        (f"{PRUNE} --keep --drop-bad", "--keep needs a value: NUMBER"),
        (f"{PRUNE} --drop-bad=yes", "--drop-bad takes no value"),
        ("photos/*.tar --out pruned", "--ranker TEXT is missing; see patchsieve prune --help"),
        ("--ranker tiny --out pruned", r"SHARDS\.\.\. is missing"),
        ("", r"SHARDS\.\.\. and --ranker TEXT and --out TEXT are missing"),
    ],
)
def test_what_cannot_be_is_said_with_the_way_out(line: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        check(line)
    assert "\n" not in str(refused.value)


def test_what_a_file_may_hold_is_not_missed() -> None:
    check("--keep 0.5", complete=False)


def test_a_switch_that_is_on_can_be_turned_off_and_on() -> None:
    for words in ("--no-plot", "--plot"):
        check(f"x.tar --ranker r --teacher tiny {words}", EvaluateConfig)
    check("x.tar --out o --no-compile", ScoreConfig)
