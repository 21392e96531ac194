"""`python -m tests.ranker.batches.reading_run TABLE WINDOW_BYTES`: reads batches of two passes; prints peaks."""

from __future__ import annotations

import json
import sys

from benchmarks._fresh_process import peak_memory
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.batches.index import index_tables
from patchsieve.ranker.batches.stream import TableBatches


def main() -> None:
    """Read to the end, keeping nothing."""
    index = index_tables(ScoreTables(sys.argv[1]), context="visible")
    batches = TableBatches(index, batch_size=32, seed=0, window_bytes=int(sys.argv[2]))
    rows, pixels = 0, 0
    before = peak_memory()
    with batches.stream(epochs=2) as stream:
        for batch in stream:
            rows += len(batch)
            pixels += batch.patches.numel()
    print(json.dumps({"rows": rows, "pixels": pixels, "growth": peak_memory() - before}))


if __name__ == "__main__":
    main()
