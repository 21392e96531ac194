"""Mutants of the files that keep promises: what their own tests, without Ray and object stores, do not notice.

    pip install mutmut==3.8.1                     # for this alone; the project does not depend on it
    python -m tests.faults.mutants FOLDER ['patchsieve.pipeline.output.owner*'...]

Copies the checkout to FOLDER, which must not exist, and runs mutmut there on the mutants of those names, by default on
all. `cd FOLDER && python -m mutmut results` lists what survived, `... show NAME` says what it is. What a test calls on
another thread, or in another process, it may count as untested.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.helpers.checkout import ROOT

MUTATED = (
    *("score_on_ray/policy", "storage/writing"),
    *(f"output/{name}" for name in ("owner", "done", "records", "sealed", "folder")),
)
TESTS = (
    *(
        "score_on_ray/test_policy",
        "score_on_ray/test_device_policy",
        "storage/test_races",
        "storage/test_writing",
    ),
    *(
        f"output/test_{name}"
        for name in ("damage", "done_check", "folder", "owner", "owner_takeover", "sealed")
    ),
    *("output/test_parts", "output/test_settings"),
)
# Servers of their own, and what takes seconds.
LEFT_OUT = ("s3", "object_store", "http", "sixteen", "many_long_names", "eight_parts", "rerun_after_a_kill")


def settings() -> str:
    """What mutmut is told, as a part of pyproject.toml."""
    chosen = ["-n", "0", "-m", "not ray", "-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    return f"""
[tool.mutmut]
source_paths = ["patchsieve"]
only_mutate = {[f"patchsieve/pipeline/{name}.py" for name in MUTATED]}
also_copy = ["tests", "benchmarks", "docs"]
pytest_add_cli_args = {chosen}
pytest_add_cli_args_test_selection = {[f"tests/pipeline/{name}.py" for name in TESTS]}
timeout_constant = 1.0
timeout_multiplier = 15.0
"""


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    # Mutants are named by paths, so that the links in it become folders.
    for name in ("patchsieve", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pipeline", "ranker", "jobs"):
        (folder / name).symlink_to(Path("patchsieve") / name)
    told = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(told + settings(), encoding="utf-8")
    os.chdir(folder)
    # Processes by themselves: a fork of another one would have what that has imported.
    os.environ["PATCHSIEVE_ZYGOTE"] = ""
    os.execv(sys.executable, [sys.executable, "-m", "mutmut", "run", "--max-children", "2", *sys.argv[2:]])


if __name__ == "__main__":
    main()
