"""Files of ours that are read back: whatever is wrong with one, it is named in one line as damaged.

Nothing that lies in a folder can be trusted to be what was written there. The parsers fail in many ways on what is not
(Arrow's and Python's own errors, Unicode, recursion, missing fields); callers see one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from patchsieve.pipeline.errors import DamagedFileError, InfrastructureError
from patchsieve.pipeline.storage.retry import describe_error
from patchsieve.pipeline.storage.streams import READ_LIMIT, read_bytes
from patchsieve.pipeline.storage.urls import canonical_url


@contextlib.contextmanager
def parsing(url: str) -> Iterator[None]:
    """In the block, every exception is a DamagedFileError about this file.

    FileNotFoundError and InfrastructureError stay what they are: the file is not there, or nobody can tell.
    """
    try:
        yield
    except (DamagedFileError, FileNotFoundError, InfrastructureError):
        raise
    except Exception as error:
        raise DamagedFileError(
            f"{canonical_url(url)} is damaged, or not what it should be: {describe_error(error)}"
        ) from error


def read_object(url: str, *, limit: int = READ_LIMIT) -> dict[str, Any]:
    """The JSON object that a file holds; raises DamagedFileError for anything else, and above `limit` bytes."""
    with parsing(url):
        found = json.loads(read_bytes(url, limit=limit))
        if not isinstance(found, dict):
            raise ValueError(f"a JSON {type(found).__name__}, not an object")
        return found
