"""Lets a fork of the zygote do what this process was started for, and ends as the fork ends.

This process stays as the one its parent knows: it passes signals on; where it is killed, so is the fork.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _files() -> list[int]:
    """The open files that a program started by this process would get."""
    numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    found = []
    for number in numbers:
        try:
            if os.get_inheritable(number):
                found.append(number)
        except OSError:
            pass  # was the listing's own
    return found


def _request(files: list[int]) -> bytes:
    umask = os.umask(0)
    os.umask(umask)
    limits = {name for name in vars(resource) if name.startswith("RLIMIT_")}
    leads = "session" if os.getsid(0) == os.getpid() else "group" if os.getpgrp() == os.getpid() else ""
    request = {
        "arguments": sys.orig_argv[1:],
        "environ": dict(os.environ),
        "files": files,
        "folder": os.getcwd(),
        "leads": leads,
        "limits": {getattr(resource, name): resource.getrlimit(getattr(resource, name)) for name in limits},
        "path": sys.path,
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "umask": umask,
    }
    return json.dumps(request).encode() + b"\n"


def hand_over(address: str) -> None:
    """Returns where there is no zygote, or it was started in another environment: this process then goes on itself."""
    files = _files()
    request = _request(files)
    begun, begin = os.pipe()
    # The first zygote answers where another one listens, that one with a fork's number.
    answer = address
    while os.path.isabs(answer):
        link, place, answer = socket.socket(socket.AF_UNIX), answer, ""
        try:
            link.connect(place)
        except OSError:
            break
        socket.send_fds(link, [request], [begun, *files])
        answers = link.makefile()
        answer = answers.readline().strip()
    os.close(begun)
    fork = int(answer or "0")
    if not fork:
        os.close(begin)
        return
    Path("/proc/self/comm").write_text(f"for {fork}")  # tests/helpers/forks.py finds the fork by it
    os.close(begin)
    for number in PASSED_ON:
        signal.signal(number, lambda number, frame: os.kill(fork, number))
    status = int(answers.readline() or signal.SIGKILL)
    if os.WIFSIGNALED(status):
        ended_by = os.WTERMSIG(status)
        if ended_by in PASSED_ON:
            signal.signal(ended_by, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), ended_by)
    os._exit(os.WEXITSTATUS(status))
