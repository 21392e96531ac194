"""`python -m tests.ranker.model.public_names RANKER`: ranks and scores by the public names, without Ray."""

from __future__ import annotations

import sys

import numpy as np

import patchsieve
from tests.helpers.missing import leave_out

if __name__ == "__main__":
    leave_out("ray")
    image = np.zeros((50, 60, 3), np.uint8)
    ranker = patchsieve.load_ranker(sys.argv[1], device="cpu")
    print(patchsieve.rank_images([image], ranker).shape)
    teacher = patchsieve.load_teacher("tiny", precision="fp32")
    print(patchsieve.score_images([image], teacher, views=2)[0].score.shape)
