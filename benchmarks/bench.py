"""All benchmarks that need nothing but this machine, in under ten minutes: one table, a JSON, a picture.

What is kept of each are ratios measured side by side in one run (patchsieve against another way, the job against its
teacher, achieved against attainable), since times of a shared machine cannot be compared from day to day. They stand
beside the last ones that were saved for a machine of this kind; one that fell by more than 10 % is marked. Exit code 1
with `--strict` if there is such a one.

    python -m benchmarks.bench [--save] [--strict] [--only teacher decode]

A machine with a GPU, which may lack Ray, is asked by `gpu_check`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks._common import machine, show, write_json

FALL = 0.1
SAVED = Path(__file__).parent / "results"

JsonPath = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A benchmark: its options, and where in its JSON which ratio stands; `*` stands for every name there.

    `on_gpu`: its options where there is a GPU, if they are others. Every ratio is higher where things are better.
    """

    name: str
    options: str = ""
    on_gpu: str | None = None
    ratios: Mapping[str, JsonPath]


PARTS = (
    Part(name="limit", ratios={}),
    Part(
        name="teacher",
        options="--sizes tiny mae-base --removals decoder --no-compiled --no-savings --no-memory --rounds 3",
        on_gpu="--sizes mae-base mae-large --removals decoder --rounds 3",
        ratios={
            "times the published way": ("teacher", "*", "times_base", "*"),
            "share of the machine's rate": ("teacher", "*", "share_of_rate", "*"),
        },
    ),
    Part(name="decode", options="--rounds 5", ratios={"times Pillow": ("decode", "*", "times_pillow")}),
    Part(
        name="score_path",
        options="--teachers tiny --rounds 3 --photos 200 --seconds 4",
        on_gpu="--teachers mae-base --rounds 3 --photos 400",
        ratios={"of the teacher alone": ("score_path", "*", "ratio")},
    ),
    Part(
        name="score_job",
        options="--teachers tiny --rounds 3 --photos 200 --seconds 4",
        ratios={"of the teacher alone": ("score_job", "*", "ratio")},
    ),
    Part(
        name="train",
        options="--sizes tiny --seconds 5 --photos 100",
        ratios={"worked": ("train", "*", "worked")},
    ),
    Part(
        name="prune",
        options="--job-rounds 2 --seconds 6 --rounds 3",
        ratios={
            "training step, full over pruned": ("prune", "step_speedup"),
            "of a bare loop": ("prune", "job", "ratio"),
        },
    ),
    Part(name="start", options="--rounds 1", ratios={}),
    Part(name="scaling", options="--actors 100 --shards 20000", ratios={}),
    Part(name="done", options="--shards 20000", ratios={}),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """All benchmarks of this machine, against the last saved ones."""

    only: tuple[str, ...] = ()
    """Benchmarks to run; all by default."""
    save: bool = False
    """Keep the ratios as those to compare with, in benchmarks/results."""
    strict: bool = False
    """Exit with 1 where a ratio fell by more than 10 %."""
    out: Path = Path("bench-out")
    """Folder of the results."""


def kind_of(about: Mapping[str, Any]) -> str:
    """A name for machines whose ratios can be compared: processor, cores, matrix instructions, GPU."""
    parts = [about["processor"], f"{about['cores']} cores", *about["vector"], about["gpu"] or ""]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def find(results: Any, path: JsonPath, name: str = "") -> dict[str, float]:
    """The numbers at a path of nested dictionaries, named by what the stars stood for."""
    if not path:
        return {name: float(results)}
    found: dict[str, float] = {}
    for key in list(results) if path[0] == "*" else [path[0]]:
        if key in results:
            longer = f"{name}, {key}".removeprefix(", ") if path[0] == "*" else name
            found |= find(results[key], path[1:], longer)
    return found


def ratios_of(part: Part, results: Any) -> dict[str, float]:
    """All ratios of a benchmark by name, of ours alone; ValueError where its JSON lacks one that was asked for."""
    found: dict[str, float] = {}
    for title, path in part.ratios.items():
        numbers = {name: value for name, value in find(results, path).items() if "published way" not in name}
        if not numbers:
            raise ValueError(f"{part.name}: no {'/'.join(path)} in its results")
        found |= {
            f"{part.name}: {name}: {title}".replace(": :", ":"): value for name, value in numbers.items()
        }
    return found


def fallen(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Ratios that lost more than 10 % of what they were."""
    return [name for name, value in now.items() if name in before and value < (1 - FALL) * before[name]]


def compare(now: Mapping[str, float], before: Mapping[str, float]) -> list[list[str]]:
    """Lines of the table."""
    bad = fallen(now, before)
    return [
        [
            name,
            f"{value:.2f}",
            f"{before[name]:.2f}" if name in before else "-",
            f"{value / before[name] - 1:+.0%}" if before.get(name) else "-",
            "FELL" if name in bad else "",
        ]
        for name, value in now.items()
    ]


def draw(now: Mapping[str, float], before: Mapping[str, float], scratch: Path) -> None:
    """Ratios now and before as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 0.34 * len(now) + 1.2))
    rows = range(len(now))
    axes.barh([row - 0.2 for row in rows], list(now.values()), 0.4, label="now", color="#4878a8")
    saved = [before.get(name, 0.0) for name in now]
    axes.barh([row + 0.2 for row in rows], saved, 0.4, label="saved", color="#c0c8d0")
    axes.set_yticks(list(rows), list(now), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("ratio (higher is better)")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(scratch, dpi=110)
    print(f"written: {scratch}")


def run(part: Part, folder: Path) -> tuple[Any, float]:
    """A benchmark in a process of its own: what its JSON holds, and the seconds it took."""
    out, started = folder / f"{part.name}.json", time.perf_counter()
    print(f"== {part.name}", flush=True)
    options = (part.on_gpu if torch.cuda.is_available() else None) or part.options
    command = [sys.executable, "-m", f"benchmarks.{part.name}", *options.split(), "--out", str(out)]
    subprocess.run(command, check=True)
    return json.loads(out.read_text()), time.perf_counter() - started


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts of these names; all of them for none."""
    unknown = set(names) - {part.name for part in PARTS}
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))} here: {', '.join(part.name for part in PARTS)}")
    return [part for part in PARTS if not names or part.name in names]


def main(options: Options) -> int:
    """Run, compare, print, write; returns the exit code."""
    options.out.mkdir(parents=True, exist_ok=True)
    now: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for part in chosen(options.only):
        results, seconds[part.name] = run(part, options.out)
        now |= ratios_of(part, results)
    about = machine()
    scratch = SAVED / f"{kind_of(about)}.json"
    saved = json.loads(scratch.read_text()) if scratch.exists() else {"ratios": {}}
    before = saved["ratios"]
    since = (
        f"saved {saved['date']} on {saved['machine']['processor']}"
        if before
        else "nothing saved for this kind"
    )
    show(f"ratios, higher is better; {since}", ["", "now", "saved", "change", ""], compare(now, before))
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    results = {"date": time.strftime("%Y-%m-%d"), "ratios": now, "seconds": seconds}
    write_json(results, options.out / "bench.json")
    draw(now, before, options.out / "bench.png")
    if options.save:
        write_json({**results, "ratios": {**before, **now}}, scratch)
    bad = fallen(now, before)
    if bad:
        print(f"fell by more than {FALL:.0%}: {', '.join(bad)}")
    return 1 if bad and options.strict else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
