"""Proof, before work begins, that a node reads the shards and writes to the output of its run."""

from __future__ import annotations

import os

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.output.division import owner_folder
from patchsieve.pipeline.output.owner import OWNER_FILE
from patchsieve.pipeline.shards.specs import Shard


def prove_access(out: str, shard: Shard, *, run_id: str, here: str) -> None:
    """Look up a shard, read the owner of the output and write beside it; `here` names the node in errors.

    Raises UserError where this node cannot, or sees another folder under the output's name than the driver.
    """
    try:
        storage.stat(shard.url)
    except (FileNotFoundError, InfrastructureError, UserError) as error:
        raise UserError(
            f"{here} cannot read {shard.name}: {error}; use storage that all nodes see"
        ) from error
    probe = storage.join(out, f".probe.{run_id}.{os.getpid()}.tmp")
    try:
        owner = storage.read_bytes(storage.join(owner_folder(out, run_id), OWNER_FILE))
        storage.commit_bytes(b"", probe, run_id=run_id)
        storage.remove(probe)
    except (OSError, InfrastructureError, UserError) as error:
        raise UserError(f"{here} cannot write to {out}: {error}; use storage that all nodes see") from error
    if run_id not in owner.decode(errors="replace"):
        raise UserError(f"{here} sees another {out} than the driver; use storage that all nodes see")
