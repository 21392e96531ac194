"""`python -m tests.pipeline.score.decoders_left`: is killed while it has a decoder, whose process it prints."""

from __future__ import annotations

import dataclasses
import os
import signal

from patchsieve.pipeline.score.decoders import Decoders
from patchsieve.pipeline.scoring.views import View
from tests.helpers.forks import worker_of
from tests.helpers.photos import photo
from tests.helpers.tables import CONFIG

PATCH = 16
ROWS = dataclasses.replace(CONFIG, views=3)


def views_of(decoders: Decoders, key: str, data: bytes) -> list[View]:
    """What a decoder makes of an image."""
    return decoders.pool.submit(decoders.views_of, key, data).result()


def main() -> None:
    """Nothing of it is tidied up."""
    decoders = Decoders(ROWS, PATCH, 1)
    views_of(decoders, "k", photo(1))
    print(worker_of(decoders._all[0]._process.pid), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
