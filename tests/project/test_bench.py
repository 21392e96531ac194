"""The comparison of benchmark results with saved ones."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from benchmarks.bench import PARTS, Part, compare, fallen, kind_of, ratios_of

RESULTS = {
    "teacher": {
        "tiny": {"times_base": {"ours": 1.5, "theirs": 1.0}, "batch": 4},
        "base": {"times_base": {"ours": 1.8, "published way, fp32": 1.0}},
    }
}


def test_stars_name_what_is_measured() -> None:
    part = Part(name="teacher", ratios={"times": ("teacher", "*", "times_base", "*")})
    assert ratios_of(part, RESULTS) == {
        "teacher: tiny, ours: times": 1.5,
        "teacher: tiny, theirs: times": 1.0,
        "teacher: base, ours: times": 1.8,
    }


def test_a_ratio_that_is_not_there_is_an_error_and_no_empty_table() -> None:
    with pytest.raises(ValueError, match="teacher/share"):
        ratios_of(Part(name="teacher", ratios={"share": ("teacher", "share")}), RESULTS)


def test_what_fell_by_more_than_a_tenth_is_marked() -> None:
    before = {"a": 1.0, "b": 2.0, "c": 1.0, "gone": 5.0}
    now = {"a": 0.91, "b": 1.79, "c": 1.4, "new": 0.1}
    assert fallen(now, before) == ["b"]
    marks = {line[0]: line[-1] for line in compare(now, before)}
    assert marks == {"a": "", "b": "FELL", "c": "", "new": ""}


def test_machines_of_another_kind_are_not_compared() -> None:
    about = {"processor": "AMD EPYC", "cores": 2, "vector": ["avx2", "avx512_bf16"], "gpu": None}
    assert kind_of(about) == "amd-epyc-2-cores-avx2-avx512-bf16"
    assert kind_of({**about, "vector": ["amx_tile"]}) != kind_of(about)
    assert kind_of({**about, "gpu": "NVIDIA H200"}) != kind_of(about)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_a_benchmark_with_these_options(part: Part) -> None:
    options = importlib.import_module(f"benchmarks.{part.name}").Options
    known = {field.name.replace("_", "-") for field in dataclasses.fields(options)}
    for word in f"{part.options} {part.on_gpu or ''}".split():
        if word.startswith("--"):
            assert word.removeprefix("--").removeprefix("no-") in known, word
