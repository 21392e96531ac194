"""`python -m tests.helpers.faulty_run FAULTS ARGUMENTS...`: the score job with faults, as a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from patchsieve.jobs.score import main
from patchsieve.pipeline.score_on_ray import policy as queue_policy
from tests.helpers.faults import Faults

if __name__ == "__main__":
    faults = dataclasses.replace(Faults(**json.loads(sys.argv[1])), driver=os.getpid())
    faults.put_in_actors()
    faults.put_in_process()
    # The shards of tests are small, and an actor that is held in one should leave others to other actors.
    queue_policy.AHEAD_S = 0.0
    main(sys.argv[2:])
