"""deploy/slurm.sbatch, with a SLURM that only notes down what it is asked."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from patchsieve.jobs.arguments import read_config
from patchsieve.pipeline.score.config import ScoreConfig
from tests.helpers.checkout import ROOT

SCRIPT = ROOT / "deploy/slurm.sbatch"
PROGRAMS = {
    "srun": 'echo "srun $*" >> $LOG; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> $LOG; [ "$1" != show ] || printf "node-3\\nnode-4\\n"',
    "ray": 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    # Says that it runs, and ends when it is told to, or with the code that it is given.
    "patchsieve": """echo "patchsieve $*" >> $LOG; trap 'kill $!; exit 143' TERM
[ -z "$CODE" ] || { echo begun; exit $CODE; }
read -r line < $WAIT & echo begun; wait $!""",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    for name, text in PROGRAMS.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        program.chmod(0o755)
    os.mkfifo(tmp_path / "never")
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "WAIT": str(tmp_path / "never"),
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "8",
        "CODE": "",
    }


def submit(cluster: dict[str, str], *words: str, told: signal.Signals | None = None) -> tuple[int, list[str]]:
    """Exit code of a job, and what SLURM and patchsieve were asked. `told`: the signal that the job gets."""
    process = subprocess.Popen(["bash", SCRIPT, *words], env=cluster, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    if told is not None:
        process.send_signal(told)
    code = process.wait(60)
    process.stdout.close()
    return code, Path(cluster["LOG"]).read_text(encoding="utf-8").splitlines()


def test_a_task_of_an_array_works_on_its_part(cluster: dict[str, str]) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "CODE": "1"}
    code, asked = submit({**cluster, **array}, "score", "a b.tar", "--out", "o")
    assert code == 1
    assert asked[1:] == ["patchsieve score a b.tar --out o --part 3/8"]
    assert asked[0].startswith("srun --nodes=1 --ntasks=1 --cpus-per-task=8 patchsieve")


def test_before_its_limit_the_run_is_stopped_and_requeued(cluster: dict[str, str]) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    code, asked = submit({**cluster, **array}, "score", "a.tar", "--out", "o", told=signal.SIGUSR1)
    assert code == 143
    assert asked[-1] == "scontrol requeue 77"


def test_over_an_allocation_ray_is_started_on_every_node(cluster: dict[str, str]) -> None:
    whole = {"SLURM_JOB_NODELIST": "node-[3-4]", "SLURM_JOB_NUM_NODES": "2", "CODE": "0"}
    code, asked = submit({**cluster, **whole}, "score", "a.tar", "--out", "o")
    assert code == 0
    assert asked[0] == "scontrol show hostnames node-[3-4]"
    assert "ray symmetric-run --address node-3:6379 --min-nodes 2 --num-cpus 8 -- patchsieve" in asked[1]
    assert asked[2] == "patchsieve score a.tar --out o"


def test_ray_takes_these_options() -> None:
    # Its scripts are no public API: what they read their options from has to do.
    ray = Path(importlib.util.find_spec("ray").submodule_search_locations[0])  # type: ignore[union-attr, index]
    command = SCRIPT.read_text(encoding="utf-8").rpartition("ray symmetric-run")[2].partition(" -- ")[0]
    options = set(re.findall(r"--[a-z-]+", command))
    assert options == {"--address", "--min-nodes", "--num-cpus"}
    known = [
        (ray / f"scripts/{name}.py").read_text(encoding="utf-8") for name in ("symmetric_run", "scripts")
    ]
    assert {option for option in options if f'"{option}"' in known[0]} == {"--address", "--min-nodes"}
    assert '"--num-cpus"' in known[1]


def test_commands_of_its_head_are_ones_that_patchsieve_takes() -> None:
    commands = re.findall(
        r"^#   sbatch .*slurm\.sbatch score (.*)$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(commands) == 2
    for command in commands:
        config = read_config("score", ScoreConfig, [*shlex.split(command), "--part", "3/8"])
        assert config.out == "/data/tables"
