"""Python imports a module of this name at its start; tests/conftest.py puts this folder where processes of tests look.

Many of them do not even start themselves: see zygote.py.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

MODULES = ("patchsieve", "tests.")
# What pytest-xdist starts its processes with.
TEST_PROCESS = "import sys;exec(eval(sys.stdin.readline()))"
PROGRAMS = tuple(
    os.path.join("ray", *path.split("/"))
    for path in (
        "_private/workers/setup_worker.py",
        "_private/workers/default_worker.py",
        "_private/log_monitor.py",
        "_private/runtime_env/agent/main.py",
        "autoscaler/_private/monitor.py",
        "dashboard/agent.py",
        "dashboard/dashboard.py",
    )
)


def _is_handed_over(words: list[str]) -> bool:
    """Processes of pytest-xdist, Ray's workers and helpers, and modules of ours but for those that measure memory."""
    if words[:1] in (["-P"], ["-u"]):
        words = words[1:]
    if words[:1] == ["-c"]:
        return words[1] == TEST_PROCESS
    if words[:1] == ["-m"]:
        return (
            words[1].startswith(MODULES) and "memory" not in words[1] and not words[1].endswith("reading_run")
        )
    return bool(words) and words[0].endswith(PROGRAMS)


if __name__ == "sitecustomize":  # a test imports it as well
    zygote = os.environ.get("PATCHSIEVE_ZYGOTE")
    if zygote and _is_handed_over(sys.orig_argv[1:]):
        import_module("hand_over").hand_over(zygote)
    import_module("no_compiler").install()
