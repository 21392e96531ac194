"""`python -m tests.jobs.hasty_score ...`: `patchsieve score`, whose dry run measures the speed for an instant."""

from __future__ import annotations

import sys

from patchsieve.jobs import score
from patchsieve.pipeline.score import estimate

if __name__ == "__main__":
    estimate.PROBE_S = 0.0
    score.main(sys.argv[1:])
