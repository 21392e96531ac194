"""The course of a training as files beside the ranker: CSV, TensorBoard events and a plot, written anew as it grows."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.storage import scratch_folder

CSV_FILE = "curve.csv"
CURVE_PLOT = "curve.png"
EVENTS_FOLDER = "tensorboard"

CurvePoint = Mapping[str, float | int | str | None]
"""One measurement. `step` is needed; `views_per_image`, `loss`, `learning_rate`, `agreement` with its `validation` (a
text), and `waited` are drawn. None: not known."""

_PANELS = {
    "loss": "loss (mean since the last measurement)",
    "agreement": "agreement with the teacher (Spearman)",
    "learning_rate": "learning rate",
    "waited": "share of the time spent waiting for rows",
}
_COLOURS = ("#1f6feb", "#0f7b6c", "#8250df")


def write_curves(
    folder_url: str, records: Sequence[CurvePoint], *, run_id: str, plotted: bool = True
) -> None:
    """Write `curve.csv`, `curve.png` and `tensorboard/` of all measurements so far, in order of their steps.

    `plotted` False leaves `curve.png` as it is, whose drawing takes most of a second.

    Each measurement has an event file of its own: TensorBoard reads on where a file ends, and never looks at one again
    that was replaced. Those of steps that are not in `records` are removed. The plot needs matplotlib: see `plot_note`.
    Raises UserError and InfrastructureError where the folder cannot be written.
    """
    if not records:
        return
    url = storage.absolute_url(folder_url)
    storage.commit_bytes(curve_csv(records), storage.join(url, CSV_FILE), run_id=run_id)
    _write_events(storage.join(url, EVENTS_FOLDER), records, run_id)
    if plotted and plot_note() is None:
        storage.commit_bytes(draw_curves(records), storage.join(url, CURVE_PLOT), run_id=run_id)


def plot_note() -> str | None:
    """What to tell the user where `write_curves` leaves the plot out, None where it draws it."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return f"{CURVE_PLOT} is left out: it needs matplotlib (pip install matplotlib)"


def curve_csv(records: Sequence[CurvePoint]) -> bytes:
    """A line per measurement under the names of the first one's values; empty where a value is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _write_events(folder: str, records: Sequence[CurvePoint], run_id: str) -> None:
    named = {f"events.out.tfevents.{int(record['step'] or 0):012d}": record for record in records}
    present = {storage.split_name(info.url)[1] for info in storage.list_folder(folder)}
    for name in present - set(named):
        if name.startswith("events.out.tfevents."):
            storage.remove(storage.join(folder, name))
    # The last one may have been measured anew by a run that went on from before it.
    last = max(named)
    for name, record in named.items():
        if name == last or name not in present:
            storage.commit_bytes(_event_file(record), storage.join(folder, name), run_id=run_id)


def _event_file(record: CurvePoint) -> bytes:
    """One measurement as a TensorBoard event file: each number a scalar, each text a text."""
    from tensorboardX import SummaryWriter

    step = int(record["step"] or 0)
    with scratch_folder() as scratch:
        events = scratch / "events"
        with SummaryWriter(str(events)) as writer:
            for name, value in record.items():
                if isinstance(value, str):
                    writer.add_text(name, value, step)
                elif value is not None and name != "step":
                    writer.add_scalar(name, value, step)
        (file,) = events.iterdir()
        return file.read_bytes()


def draw_curves(records: Sequence[CurvePoint]) -> bytes:
    """The plot as a PNG file; a kind of validation has a line of its own, as kinds cannot be compared."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), dpi=90)
    panels: Any = figure.subplots(2, 2, squeeze=False).flatten()
    for panel, (name, title) in zip(panels, _PANELS.items(), strict=True):
        kinds = list(dict.fromkeys(_kind(record) for record in records)) if name == "agreement" else [None]
        for kind, colour in zip(kinds, _COLOURS, strict=False):
            chosen = [
                record
                for record in records
                if record.get(name) is not None and (kind is None or _kind(record) == kind)
            ]
            panel.plot(
                [_place(record) for record in chosen],
                [record[name] for record in chosen],
                color=colour,
                marker="o",
                markersize=3,
                label=kind,
            )
        if any(kinds):
            panel.legend(title="held-out images, by", frameon=False)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    for panel in panels[2:]:
        panel.set_xlabel("views per image" if "views_per_image" in records[0] else "step")
    figure.subplots_adjust(left=0.07, right=0.98, top=0.95, bottom=0.08, hspace=0.25)
    scratch = io.BytesIO()
    figure.savefig(scratch, format="png")
    return scratch.getvalue()


def _kind(record: CurvePoint) -> str:
    return str(record.get("validation") or "")


def _place(record: CurvePoint) -> Any:
    return record["views_per_image"] if "views_per_image" in record else record["step"]
