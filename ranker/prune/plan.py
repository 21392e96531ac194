"""The frozen plan of a prune run: `plan.json`, written once, and the request with what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import canonical_json
from patchsieve.pipeline.output.owner import create_once
from patchsieve.pipeline.output.settings import describe_differences
from patchsieve.pipeline.row_config import Precision
from patchsieve.ranker.prune.request import PruneRequest
from patchsieve.ranker.select.budget import Budget
from patchsieve.ranker.select.image_choice import ImagePlan

PLAN_FILE = "plan.json"


def stored_precision(request: PruneRequest, stored: Mapping[str, Any] | None) -> PruneRequest:
    """The request in the precision of the output's earlier runs, if there were any and it is not told another.

    `stored`: what `config.json` holds, None for a new output; a run that ended before it had any left `plan.json`.
    """
    if not request.source.needs_precision:
        return request
    rows = stored["rows"] if stored is not None else None
    if rows is None:
        with contextlib.suppress(FileNotFoundError):
            rows = storage.read_object(storage.join(request.config.out, PLAN_FILE)).get("asked")
    precision: Any = rows.get("precision") if isinstance(rows, Mapping) else None
    return request.with_precision(precision) if precision in get_args(Precision) else request


def read_plan(request: PruneRequest) -> PruneRequest | None:
    """The request with what is frozen in OUT, None where nothing is yet; UserError where it is of another request."""
    url = storage.join(request.config.out, PLAN_FILE)
    patches = images = None
    try:
        with storage.parsing(url):
            plan = storage.read_object(url)
            differences = describe_differences(dict(plan["asked"]), json.loads(canonical_json(request.asked)))
            if not differences and request.selector.target is not None:
                patches = float(plan["threshold"])
            if not differences and request.choice is not None:
                images = float(plan["whole_images"]["threshold"])
    except FileNotFoundError:
        return None
    if differences:
        raise UserError(
            f"{url} is a plan for other settings (there -> asked for): {'; '.join(differences)}. "
            "Ask for the same, or write to another folder"
        )
    return request.with_thresholds(patches=patches, images=images)


def freeze_plan(
    request: PruneRequest,
    *,
    budget: Budget | None,
    images: ImagePlan | None,
    left_out: Sequence[str],
    run_id: str,
) -> PruneRequest:
    """Write `plan.json`, once, and return the request with what it says. `left_out`: shards that gave no scores."""
    plan: dict[str, Any] = {"asked": request.asked, "left_out": list(left_out), "run_id": run_id}
    if budget is not None:
        plan |= dataclasses.asdict(budget)
    if images is not None:
        plan["whole_images"] = dataclasses.asdict(images)
    data = json.dumps(plan, indent=1, sort_keys=True).encode()
    create_once(storage.join(request.config.out, PLAN_FILE), data, run_id=run_id)
    frozen = read_plan(request)
    if frozen is None:
        raise UserError(f"{PLAN_FILE} was removed from {request.config.out} while this run wrote it")
    return frozen
