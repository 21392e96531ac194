"""Metrics as Prometheus scrapes them, and the dashboard that draws them."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from patchsieve.pipeline.cluster.metrics import METRICS
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.runs.progress import make_display
from patchsieve.ranker.prune.request import make_prune_request
from patchsieve.ranker.prune_on_ray.run import prune
from tests.helpers.checkout import ROOT
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.prune_runs import prune_config, save_small_ranker
from tests.helpers.score_processes import wait_until
from tests.helpers.score_runs import run_score, save_small_teacher, score_config

DASHBOARD = ROOT / "deploy/grafana.json"
NAME = re.compile(r"\bray_patchsieve_\w+")
SAMPLE = re.compile(r"^(ray_patchsieve_\w+){(.*)} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class Sample:
    """A line of what Prometheus scrapes."""

    name: str
    labels: Mapping[str, str]
    value: float


def scrape() -> list[Sample]:
    """The metrics of ours that this machine's Ray exports."""
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    return [
        Sample(name, dict(LABEL.findall(labels)), float(value))
        for name, labels, value in SAMPLE.findall(text)
    ]


def total(samples: list[Sample], name: str, **labels: str) -> float:
    """Sum over what is not told, as over the processes of one run."""
    exported = f"ray_patchsieve_{name}"
    return sum(s.value for s in samples if s.name == exported and labels.items() <= s.labels.items())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_prometheus_scrapes_what_the_summary_says(tmp_path: Path) -> None:
    half_bad = [
        *photo_samples(3, 1, 64, 64),
        ("text", {"jpg": b"no picture"}),
        ("bare", {"txt": b"no image"}),
    ]
    (empty := tmp_path / "empty.tar").touch()
    shards = [
        write_shard(tmp_path / "half-bad.tar", half_bad),
        write_shard(tmp_path / "good.tar", photo_samples(4, 2, 64, 64)),
        empty,
    ]
    teacher = save_small_teacher(tmp_path)
    summary = run_score(score_config(shards, tmp_path / "out", teacher, max_bad=0.5))
    assert (summary.done, len(summary.failed), summary.images, summary.bad) == (2, 1, 7, 2)
    run = {"run": summary.run_id, "command": "score"}

    # Ray brings them every ten seconds.
    wait_until(lambda: total(scrape(), "shards_total", **run) == 3, "the end of the run")
    samples = scrape()
    assert total(samples, "images_total", **run) == summary.images
    assert total(samples, "views_total", **run) == summary.views
    assert total(samples, "read_bytes_total", **run) == sum(path.stat().st_size for path in shards[:2])
    assert total(samples, "shards_total", outcome="done", **run) == summary.done
    assert total(samples, "shards_total", outcome="failed", **run) == len(summary.failed)
    assert total(samples, "errors_total", stage="decode", **run) == 1
    assert total(samples, "errors_total", stage="sample", **run) == 1
    assert total(samples, "errors_total", **run) == sum(summary.faults.values())
    assert total(samples, "shard_seconds_count", **run) == summary.done
    waited, worked = (total(samples, f"{what}_seconds_total", **run) for what in ("waited", "worked"))
    assert waited / (waited + worked) == pytest.approx(summary.waited_share)
    assert total(samples, "batch_size", **run) == 4
    assert total(samples, "shards_left", **run) == 0
    assert total(samples, "actors", state="starting", **run) == 0

    # What a run on processors has, by the names that are announced.
    expected = {name for metric in METRICS.values() if "train" not in metric.name for name in metric.exported}
    ours = {sample.name for sample in samples if run.items() <= sample.labels.items()}
    assert ours == expected - set(METRICS["patchsieve_gpu_memory_bytes"].exported)
    for sample in samples:
        metric = next(metric for metric in METRICS.values() if sample.name in metric.exported)
        assert set(metric.labels) <= sample.labels.keys()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_prune_tells_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [write_shard(tmp_path / f"shards/{n}.tar", photo_samples(3 + n, n, 64, 64)) for n in range(2)]
    (empty := tmp_path / "shards/empty.tar").touch()
    out = tmp_path / "out"
    config = prune_config([*shards, empty], out, save_small_ranker(tmp_path), log_format="json")
    summary = prune(make_prune_request(config), make_display("json"), settings=config_to_yaml(config))
    assert (summary.done, len(summary.failed), summary.images) == (2, 1, 7)
    run = {"run": summary.run_id, "command": "prune"}
    wait_until(lambda: total(scrape(), "shards_total", **run) == 3, "the end of the run")
    samples = scrape()
    assert total(samples, "images_total", **run) == summary.images
    assert total(samples, "shards_total", outcome="done", **run) == 2
    assert total(samples, "shards_total", outcome="failed", **run) == 1
    assert total(samples, "shard_seconds_count", **run) == 2
    assert total(samples, "shards_left", **run) == 0

    # Standard output holds nothing else. (This Ray shows what its workers print, after a prefix.)
    lines = [line for line in capsys.readouterr().out.splitlines() if "pid=" not in line]
    events = list(map(json.loads, lines))
    assert {(event["job"], event["run_id"]) for event in events} == {("prune", summary.run_id)}
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("run begun", "run ended")
    done = {event["shard"]: event for event in events if event["event"] == "shard done"}
    assert {name: event["images"] for name, event in done.items()} == {str(shards[0]): 3, str(shards[1]): 4}
    (failed,) = [event for event in events if event["event"] == "shard failed"]
    assert failed["shard"] == str(empty)
    assert (out / "prune.yaml").read_text().startswith(f"# run {summary.run_id}\n")


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] != "row":
            yield panel


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    drawn = {
        name for panel in panels() for target in panel["targets"] for name in NAME.findall(target["expr"])
    }
    assert drawn <= {name for metric in METRICS.values() for name in metric.exported}
    assert [metric.name for metric in METRICS.values() if not drawn & set(metric.exported)] == []


def test_what_the_dashboard_groups_by_are_labels_of_the_metric() -> None:
    names = {name: metric for metric in METRICS.values() for name in metric.exported}
    for panel in panels():
        for target in panel["targets"]:
            (metric,) = {names[name].labels for name in NAME.findall(target["expr"])}
            by = {
                label
                for group in re.findall(r"by \(([^)]*)\)", target["expr"])
                for label in group.split(", ")
            }
            assert by - {"le"} <= set(metric), panel["title"]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by, panel["title"]
            assert target["expr"].count("(") == target["expr"].count(")")


def test_grafana_can_place_the_panels_and_finds_its_data_source() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert (board["uid"], board["schemaVersion"]) == ("patchsieve", 39)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables.keys() == {"datasource", "command", "run"}
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] in ("stat", "timeseries")
        assert panel["description"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs)) > 0
        for target in panel["targets"]:
            assert {"$datasource", "${datasource}"} & {target["datasource"]["uid"]}
            assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) == {"command", "run"}


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    told = set(NAME.findall(page))
    for metric in METRICS.values():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{metric.shown}` |")]
        assert all(f"`{label}`" in row for label in metric.labels if label not in ("command", "run")), row
    assert told <= {name for metric in METRICS.values() for name in (*metric.exported, metric.shown)}
