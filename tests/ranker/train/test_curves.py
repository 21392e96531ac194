"""The course of a training as CSV, TensorBoard events and a plot."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from patchsieve.ranker.train.curves import CurvePoint, draw_curves, plot_note, write_curves


def record(step: int, agreement: float | None = 0.5, kind: str = "visible patches") -> CurvePoint:
    return {
        "step": step,
        "views_per_image": step / 4,
        "loss": 3.0 / step,
        "learning_rate": 1e-3,
        "agreement": agreement,
        "validation": kind,
        "waited": 0.01,
        "seconds": 2.0 * step,
    }


def events_in(data: bytes) -> list[Event]:
    """An event file by its format: length, its checksum, the event, its checksum."""
    events = []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def scalars(folder: Path) -> dict[tuple[int, str], float]:
    found = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in events_in(file.read_bytes()):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[event.step, value.tag] = value.simple_value
    return found


def test_a_curve_is_told_in_three_ways(tmp_path: Path) -> None:
    write_curves(str(tmp_path), [record(4), record(8, None)], run_id="run-1")
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["agreement"], row["validation"]) for row in rows] == [
        ("4", "0.5", "visible patches"),
        ("8", "", "visible patches"),
    ]
    told = scalars(tmp_path / "tensorboard")
    assert told[4, "loss"] == pytest.approx(0.75)
    assert told[4, "agreement"] == 0.5
    assert (8, "agreement") not in told
    assert told[8, "seconds"] == 16
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (900, 576)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv", "curve.png", "tensorboard"]


def test_a_curve_grows_and_goes_back_with_its_training(tmp_path: Path) -> None:
    events = tmp_path / "tensorboard"
    write_curves(str(tmp_path), [record(4)], run_id="run-1", plotted=False)
    first = (events / "events.out.tfevents.000000000004").read_bytes()
    write_curves(str(tmp_path), [record(4), record(8)], run_id="run-1", plotted=False)
    # TensorBoard has read that file to its end: it stays as it is.
    assert (events / "events.out.tfevents.000000000004").read_bytes() == first
    assert {step for step, _ in scalars(events)} == {4, 8}
    write_curves(str(tmp_path), [record(4), record(6, 0.7)], run_id="run-2", plotted=False)
    assert {step for step, _ in scalars(events)} == {4, 6}
    write_curves(str(tmp_path), [record(4), record(6, 0.8)], run_id="run-2", plotted=False)
    assert scalars(events)[6, "agreement"] == pytest.approx(0.8)
    write_curves(str(tmp_path), [], run_id="run-2", plotted=False)
    assert {step for step, _ in scalars(events)} == {4, 6}


def test_curves_go_to_any_store(plotted: list[int]) -> None:
    write_curves("memory://curves/out", [record(4), record(8)], run_id="run-1")
    store = fsspec.filesystem("memory")
    names = sorted(Path(name).name for name in store.find("/curves/out"))
    assert names == [
        "curve.csv",
        "curve.png",
        "events.out.tfevents.000000000004",
        "events.out.tfevents.000000000008",
    ]
    assert plotted == [2]


def test_kinds_of_validation_are_drawn_apart() -> None:
    mixed = [record(4), record(8, 0.6), record(12, 0.3, "whole images"), record(16, 0.35, "whole images")]
    one = [{**entry, "validation": "visible patches"} for entry in mixed]
    pictures = [np.asarray(Image.open(io.BytesIO(draw_curves(records)))) for records in (mixed, one)]
    assert not np.array_equal(*pictures)
    draw_curves([{"step": 1, "loss": 2.0}])


def test_without_matplotlib_the_plot_is_left_out_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plot_note() is None
    found = importlib.util.find_spec

    def without(name: str):
        return None if name == "matplotlib" else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert "curve.png is left out: it needs matplotlib" in (plot_note() or "")
    write_curves(str(tmp_path), [record(4)], run_id="run-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv", "tensorboard"]
