"""Text that others wrote (names of members, corpora and shards, messages of stores), as it is shown to people."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TextIO

# Control characters, what separates lines or turns the direction of text, and halves of characters: a terminal obeys
# them, a log takes them for lines of its own.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """The text as one line without effect on a terminal: what one would obey is written as `\\xNN` or `\\uNNNN`."""
    return _OBEYED.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


_last_said = 0.0


def last_said() -> float:
    """When something was last said, by `time.monotonic`."""
    return _last_said


def spoke() -> None:
    """Take note that something was shown now."""
    global _last_said  # noqa: PLW0603 -- of the process, as its output is
    _last_said = time.monotonic()


def clock() -> str:
    """The time of day, for lines of a log that people read."""
    return datetime.now().astimezone().strftime("%H:%M:%S")


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print each of these lines as `one_line`, at once; `file` None: standard output."""
    print("\n".join(map(one_line, lines)), file=file, flush=True)
    spoke()


def say_page(lines: Sequence[str]) -> None:
    """Print what a reader may stop reading, as `--help | head` does."""
    try:
        say(*lines)
    except BrokenPipeError:
        # Nothing is left to say; Python would say so when it ends.
        local_sink = os.devnull
        os.dup2(os.open(local_sink, os.O_WRONLY), sys.stdout.fileno())


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return one_line(super().formatMessage(record))


def show_warnings() -> None:
    """Have the warnings of this process, where nobody set up a handler for them, shown as `one_line`."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine())
