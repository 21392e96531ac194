"""Every alert, played through: a series for which it fires, when it does, and one beside it for which it does not."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from patchsieve.pipeline.cluster.metrics import METRICS
from patchsieve.pipeline.schedule.config import OnceConfig
from patchsieve.pipeline.score.config import ScoreConfig
from tests.helpers.checkout import ROOT
from tests.helpers.promql import Expression, Series, fires, seconds

RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus-rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
MINUTE, HOUR = 60.0, 3600.0
END = 3 * HOUR


def flat(value: float, *, since: float = 0.0, until: float = END) -> list[tuple[float, float]]:
    return [(since + 15 * n, value) for n in range(int((until - since) / 15) + 1)]


def growing(
    per_minute: float, *, since: float = 0.0, until: float = END, stop: float = END
) -> list[tuple[float, float]]:
    """A counter or a step that grows until `stop`, and then stands still."""
    return [(t, per_minute * (min(t, stop) - since) / MINUTE) for t, _ in flat(0, since=since, until=until)]


def images(**run: Any) -> dict[str, list[tuple[float, float]]]:
    return {'ray_patchsieve_images_total{run="r",host="a"}': growing(100, **run)}


LEFT = {'ray_patchsieve_shards_left{run="r"}': flat(5)}


def actors(state: str, count: float, **times: float) -> dict[str, list[tuple[float, float]]]:
    return {f'ray_patchsieve_actors{{run="r",state="{state}"}}': flat(count, **times)}


def attempts(outcome: str, per_minute: float) -> dict[str, list[tuple[float, float]]]:
    return {f'ray_patchsieve_shards_total{{run="r",outcome="{outcome}"}}': growing(per_minute)}


def waited(per_minute: float) -> dict[str, list[tuple[float, float]]]:
    return {
        'ray_patchsieve_waited_seconds_total{run="r",host="a"}': growing(per_minute),
        'ray_patchsieve_worked_seconds_total{run="r",host="a"}': growing(60 - per_minute),
    }


def bad(per_minute: float) -> dict[str, list[tuple[float, float]]]:
    return {**images(), 'ray_patchsieve_errors_total{run="r",stage="decode"}': growing(per_minute)}


STEP = 'ray_patchsieve_train_step{run="r"}'
NIGHTLY = 'kube_job_status_failed{namespace="n",job_name="patchsieve-nightly-29"}'
LAST = 'kube_cronjob_status_last_successful_time{cronjob="patchsieve-nightly"}'

# Alert, series, the minute at which it first fires (None: never).
CASES: list[tuple[str, Series, float | None]] = [
    # Before the first image, after the last, and while all is well, or nothing is left.
    ("PatchsieveNoProgress", LEFT, 20),
    ("PatchsieveNoProgress", {**LEFT, **images(stop=HOUR)}, 90),
    ("PatchsieveNoProgress", {**LEFT, **images()}, None),
    ("PatchsieveNoProgress", {'ray_patchsieve_shards_left{run="r"}': flat(0)}, None),
    # One worker of two that stands still is no stalled run.
    (
        "PatchsieveNoProgress",
        {**LEFT, **images(), 'ray_patchsieve_images_total{run="r",host="b"}': flat(7)},
        None,
    ),
    # The first failed shard, though nothing increases.
    (
        "PatchsieveShardsFailed",
        {'ray_patchsieve_shards_total{run="r",outcome="failed"}': flat(1, since=HOUR)},
        60,
    ),
    ("PatchsieveShardsFailed", attempts("done", 9), None),
    ("PatchsieveActorsDie", attempts("died", 1), 11),
    ("PatchsieveActorsDie", attempts("error", 0.5), None),
    ("PatchsieveActorsDie", attempts("lost", 9), None),
    ("PatchsieveSamplesBad", bad(6), 16),
    ("PatchsieveSamplesBad", bad(4), None),
    ("PatchsieveGpusWait", waited(20), 16),
    ("PatchsieveGpusWait", waited(15), None),
    ("PatchsieveActorsDoNotCome", actors("starting", 4), 8),
    ("PatchsieveActorsDoNotCome", {**actors("starting", 4), **actors("ready", 1)}, None),
    ("PatchsieveActorsDoNotCome", actors("starting", 4, until=2 * MINUTE), None),
    ("PatchsieveTrainingStalls", {STEP: growing(10, stop=HOUR)}, 135),
    ("PatchsieveTrainingStalls", {STEP: growing(10)}, None),
    # One that has ended is no stalled one.
    ("PatchsieveTrainingStalls", {STEP: growing(10, until=HOUR)}, None),
    ("PatchsieveTickFailed", {NIGHTLY: flat(1, since=HOUR)}, 60),
    ("PatchsieveTickFailed", {NIGHTLY.replace("patchsieve-nightly", "other"): flat(1)}, None),
    ("PatchsieveNoTick", {LAST: flat(-25 * HOUR)}, 61),
    ("PatchsieveNoTick", {LAST: flat(0)}, None),
]


@pytest.mark.parametrize(("alert", "series", "minute"), CASES)
def test_it_fires_when_it_should(alert: str, series: Series, minute: float | None) -> None:
    fired = fires(RULES[alert], series, until=END)
    assert [when / MINUTE for when in fired.values()] == ([] if minute is None else [minute])


def test_every_rule_is_played_both_ways_and_told() -> None:
    for way in (True, False):
        assert {alert for alert, _, minute in CASES if (minute is None) == way} == RULES.keys()
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert [alert for alert in RULES if f"`{alert}`" not in page] == []


def test_rules_read_metrics_that_there_are() -> None:
    ours = {name for metric in METRICS.values() for name in metric.exported}
    for rule in RULES.values():
        names = set(re.findall(r"\b(ray_patchsieve_\w+|kube_\w+)", rule["expr"]))
        assert names
        assert {name for name in names if name.startswith("ray_")} <= ours


def test_times_agree_with_those_of_runs() -> None:
    score = ScoreConfig(shards=("a",), out="o")
    # Once a stalled actor should have been replaced; before a run without any actor has ended.
    assert seconds(RULES["PatchsieveNoProgress"]["for"]) > score.stall_timeout
    assert seconds(RULES["PatchsieveActorsDoNotCome"]["for"]) < score.start_timeout
    assert OnceConfig(source=("a",), out="o").max_age is None


def test_what_is_not_understood_is_refused() -> None:
    for text in ("avg(x) > 0", "x offset 5m", "x > ", "x ! y"):
        with pytest.raises((ValueError, IndexError)):
            Expression(text).at({"x": [(0.0, 1.0)]}, 0.0)


def test_the_pod_monitor_scrapes_what_the_cluster_opens() -> None:
    documents = list(
        yaml.safe_load_all(
            (ROOT / "deploy/kuberay.yaml").read_text(encoding="utf-8").replace("<", "").replace(">", "")
        )
    )
    (cluster,) = [one for one in documents if one["kind"] == "RayCluster"]
    (policy,) = [one for one in documents if one["kind"] == "NetworkPolicy"]
    monitor = yaml.safe_load((ROOT / "deploy/podmonitor.yaml").read_text(encoding="utf-8"))
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    head = cluster["spec"]["headGroupSpec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    assert endpoint["targetPort"] == ports["metrics"] == 8080
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert head["metadata"]["labels"].items() <= wanted.items()
    (open_to_all,) = [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert open_to_all == [{"port": 8080}]
    operators = [
        peer["podSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]
        for peer in rule.get("from", ())
        if "namespaceSelector" in peer
    ]
    assert operators == [{"app.kubernetes.io/component": "kuberay-operator"}]
