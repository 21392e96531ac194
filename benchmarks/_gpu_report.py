"""What the steps of `gpu_check` found, as docs/performance.md would say it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any


def report(results: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown; `results`: the JSON of each step that is done, by name."""
    lines: list[str] = []
    if results:
        about = next(iter(results.values()))["machine"]
        card = about["gpu"] or "no GPU"
        lines.append(
            f"Measured on {card} with {about['cores']} cores ({about['processor']}), torch {about['torch']}."
        )
    for name, found in results.items():
        lines += ["", *_PARTS[name.partition("-")[0]](found)]
    return lines


def _tests(found: Any) -> list[str]:
    tests = found["tests"]
    lines = [
        f"Tests for GPUs: {tests['passed']} passed, {len(tests['failed'])} failed, {tests['skipped']} skipped."
    ]
    lines += [f"- failed: {name}" for name in tests["failed"]]
    return lines + [f"- not loaded: {name}: {reason}" for name, reason in tests["not_loaded"].items()]


def _limit(found: Any) -> list[str]:
    rates = found["limit"]["gflop_per_second"]
    lines = ["| at most | |", "|---|---|"]
    lines += [f"| matrix products, {name} | {rate / 1000:,.1f} TFLOP/s |" for name, rate in rates.items()]
    return [*lines, f"| copy | {found['limit']['gigabytes_per_second'] / 1000:,.2f} TB/s |"]


def _score_path(found: Any) -> list[str]:
    lines = ["| from file to table | batch | teacher alone | path | share |", "|---|---|---|---|---|"]
    for size, path in found["score_path"].items():
        alone = statistics.median(path["teacher_views_per_second"])
        job = statistics.median(one["views_per_second"] for one in path["job"])
        numbers = f"{alone:,.0f} | {job:,.0f} | {path['ratio']:.2f}"
        lines.append(f"| {size}, {path['precision']} | {path['batch_size']} | {numbers} |")
    return lines


def _decode(found: Any) -> list[str]:
    lines = ["| on one core | ms an image | times Pillow |", "|---|---|---|"]
    return lines + [
        f"| {name} | {one['milliseconds_per_image']['patchsieve']:.2f} | {one['times_pillow']:.2f} |"
        for name, one in found["decode"].items()
    ]


def _teacher(found: Any) -> list[str]:
    lines: list[str] = []
    for name, one in found["teacher"].items():
        lines += [
            f"| {name} | batch | views/s | of the rate | times {one['base']} |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {way} | {one['batch_size'][way]} | {speed:,.1f} | {one['share_of_rate'][way]:.0%} "
            f"| {one['times_base'][way]:.2f} |"
            for way, speed in one["views_per_second"].items()
        ]
    return lines


_PARTS = {"tests": _tests, "limit": _limit, "score_path": _score_path, "decode": _decode, "teacher": _teacher}
