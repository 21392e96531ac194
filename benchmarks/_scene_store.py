"""Features of what arms leave of scenes, made chunk by chunk and kept, so that a stopped run goes on.

Shape suffixes: N scenes, V squares of their pictures (`Lite0.squares`), D features.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._scene_arms import Arm, Scorer, kept, share_kept, views
from benchmarks._scene_maker import Maker, Scene
from benchmarks._scene_probe import Head, Lite0

CHUNK = 25


@dataclasses.dataclass(frozen=True)
class Seen:
    """`features`: float16 `[V, D]`; `scene`: number of each square's, `[V]`; `numbers`: of the scenes, `[N]`;
    `share`: of the object that was kept, `[N]`, 1 for whole images; `nbytes`: of its files in a tar, `[N]`.
    """

    features: NDArray[np.float16]
    scene: NDArray[np.int64]
    numbers: NDArray[np.int64]
    share: NDArray[np.float64]
    nbytes: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of a scene, as `Scene` has them."""

    label: str
    object: str
    background: str
    box: Sequence[int]
    sharpness: Sequence[float]


class Store:
    """A folder of features, by split, arm and chunk."""

    def __init__(self, folder: Path, split: str, make: Maker, scorer: Scorer, probe: Lite0) -> None:
        self._folder = folder / "features" / split
        self._make, self._scorer, self._probe = make, scorer, probe

    def fill(self, arms: Sequence[Arm], scenes: int, say: Callable[[str], None]) -> None:
        """Make what is not there of the first so many scenes, all arms of a chunk before the next chunk."""
        for start in range(0, scenes, CHUNK):
            missing = [arm for arm in arms if not self._file(arm, start).exists()]
            if not missing:
                continue
            numbers = range(start, min(start + CHUNK, scenes))
            made = {number: self._make(number) for number in numbers}
            scores = {
                (name, number): self._scorer(name, scene, number)
                for name in {arm.scores for arm in missing if arm.scores}
                for number, scene in made.items()
            }
            self._write_facts(start, made)
            for arm in missing:
                self._write(arm, start, made, scores)
            say(f"scenes {start} to {numbers[-1]}, {len(missing)} arms")

    def read(self, arm: Arm, scenes: int) -> Seen:
        """What is there of the first so many scenes."""
        parts = []
        for start in range(0, scenes, CHUNK):
            if self._file(arm, start).exists():
                with np.load(self._file(arm, start)) as stored:
                    parts.append({name: stored[name] for name in stored.files})
        if not parts:
            return Seen(
                np.empty((0, 1280), np.float16),
                *(np.empty(0, kind) for kind in (np.int64, np.int64, float, np.int64)),
            )
        return Seen(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def facts(self, scenes: int) -> dict[int, Facts]:
        """Of the first so many scenes that were made, by number."""
        found: dict[int, Facts] = {}
        for start in range(0, scenes, CHUNK):
            path = self._folder / "facts" / f"{start:05d}.json"
            if path.exists():
                found |= {int(number): Facts(**one) for number, one in json.loads(path.read_text()).items()}
        return found

    def _write_facts(self, start: int, made: dict[int, Scene]) -> None:
        told = {
            number: dataclasses.asdict(Facts(one.label, one.object, one.background, one.box, one.sharpness))
            for number, one in made.items()
        }
        _put(self._folder / "facts" / f"{start:05d}.json", json.dumps(told).encode())

    def _write(
        self, arm: Arm, start: int, made: dict[int, Scene], scores: dict[tuple[str, int], NDArray[np.float32]]
    ) -> None:
        pictures, scene_of, shares, sizes = [], [], [], []
        for number, scene in made.items():
            size = scene.pixels.shape[1]
            keep_L = kept(arm, scores[arm.scores, number], size) if arm.scores else None
            shown, nbytes = views(arm, scene, keep_L)
            pictures += shown
            scene_of += [number] * len(shown)
            shares.append(1.0 if keep_L is None or arm.as_jpeg else share_kept(scene, keep_L))
            sizes.append(nbytes)
        squares = self._probe.squares(pictures)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            features=np.concatenate(squares),
            scene=np.repeat(np.array(scene_of, np.int64), [len(one) for one in squares]),
            numbers=np.array(list(made), np.int64),
            share=np.array(shares),
            nbytes=np.array(sizes),
        )
        _put(self._file(arm, start), buffer.getvalue())

    def _file(self, arm: Arm, start: int) -> Path:
        return self._folder / arm.id / f"{start:05d}.npz"


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_bytes(data)
    partial.replace(path)


def right(seen: Seen, head: Head, facts: Mapping[int, Facts]) -> NDArray[np.float64]:
    """Whether each scene's object was named, float64 `[N]`."""
    answers = head.answer(seen.features, seen.scene)
    return np.array([float(answers[number] == facts[number].label) for number in seen.numbers.tolist()])
