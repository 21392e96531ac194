"""Starts the process of which those of tests are forked (zygote.py)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ZYGOTE = Path(__file__).with_name("zygote.py")


def start_zygote(address: str) -> subprocess.Popen[bytes]:
    """Who asks at that socket is kept waiting from now on until all is loaded."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        return subprocess.Popen(
            [sys.executable, ZYGOTE, str(listener.fileno()), str(os.getpid())],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # no threads that forks would lack
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
