"""`python -m tests.pipeline.storage.unpickler`: reads by what it is sent, a filesystem and shards, as a worker does."""

from __future__ import annotations

import pickle
import sys


def main() -> None:
    """Nothing is loaded before; prints how long the object is by either way."""
    files, shards = pickle.load(sys.stdin.buffer)
    from patchsieve.pipeline import storage

    print(files.get_file_info("test-bucket/folder/a.bin").size, len(storage.read_bytes(shards[0].url)))


if __name__ == "__main__":
    main()
