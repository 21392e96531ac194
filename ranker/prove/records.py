"""What a measurement leaves behind, so that a rerun does what is missing: a file for each arm, and the choice.

config.json             what decides the figures (pipeline/output/settings.py)
fits/ARM.safetensors    the classifier of an arm, fitted to train images
choice.json             the selector that is tested, written before the test shards are opened
arms/ARM.json           what the arm gets right on the test images
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.output.owner import create_once
from patchsieve.ranker.prove.arms import Arm
from patchsieve.ranker.prove.measure import ArmResult, Cost, Fitted
from patchsieve.ranker.prove.probe import Penalty, Probe

FITS_FOLDER, ARMS_FOLDER, CHOICE_FILE = "fits", "arms", "choice.json"
_ABOUT = "patchsieve"


class Records:
    """The files of one measurement, of one identity. Each is written whole or not at all; others are refused."""

    def __init__(self, folder: str, identity: str, *, run_id: str) -> None:
        self._folder, self._identity, self._run_id = folder, identity, run_id

    def remove_temporaries(self) -> None:
        """Remove what killed runs left half written."""
        for name in ("", FITS_FOLDER, ARMS_FOLDER):
            storage.remove_temporaries(
                storage.join(self._folder, name) if name else self._folder, keep_run_id=None
            )

    def fitted(self, arm: Arm) -> Fitted | None:
        """What was fitted before, None where nothing was."""
        url = self._url(FITS_FOLDER, f"{arm.id}.safetensors")
        if (data := _content(url)) is None:
            return None
        with _reading(url):
            tensors = safetensors.torch.load(data)
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_ABOUT])
            identity = about["identity"]
        self._check(identity, url)
        with _reading(url):
            probe = Probe(**{name: tensors[name].numpy() for name in _probe_fields()})
            return Fitted(
                arm=arm,
                numbers=about["numbers"],
                penalty=Penalty(**about["penalty"]),
                cost=Cost(**about["cost"]),
                probe=probe,
            )

    def write_fitted(self, fitted: Fitted) -> None:
        """Keep the classifier of an arm."""
        about = {
            "identity": self._identity,
            "arm": fitted.arm.id,
            "numbers": fitted.numbers,
            "penalty": dataclasses.asdict(fitted.penalty),
            "cost": dataclasses.asdict(fitted.cost),
        }
        tensors = {name: torch.from_numpy(getattr(fitted.probe, name).copy()) for name in _probe_fields()}
        data = safetensors.torch.save(tensors, metadata={_ABOUT: json.dumps(about, sort_keys=True)})
        self._write(data, FITS_FOLDER, f"{fitted.arm.id}.safetensors")

    def tested(self, arm: Arm, images: int, contents: str) -> ArmResult | None:
        """What was tested before on as many images of shards of these contents, None where nothing was."""
        url = self._url(ARMS_FOLDER, f"{arm.id}.json")
        if (data := _content(url)) is None:
            return None
        with _reading(url):
            about = json.loads(data)
            identity, tested_on = about["identity"], (about["images"], about["contents"])
        self._check(identity, url)
        if tested_on != (images, contents):
            raise UserError(f"{url} was tested on other images: the test shards have changed since")
        with _reading(url):
            packed = {
                name: np.frombuffer(bytes.fromhex(bits), np.uint8) for name, bits in about["right"].items()
            }
            return ArmResult(
                arm=arm,
                numbers=about["numbers"],
                penalty=Penalty(**about["penalty"]),
                train_cost=Cost(**about["train_cost"]),
                test_cost=Cost(**about["test_cost"]),
                right={name: np.unpackbits(bits, count=images) == 1 for name, bits in packed.items()},
            )

    def write_tested(self, tested: ArmResult, contents: str) -> None:
        """Keep what an arm gets right; `contents`: digest of what was tested on."""
        about = {
            "identity": self._identity,
            "arm": tested.arm.id,
            "numbers": tested.numbers,
            "penalty": dataclasses.asdict(tested.penalty),
            "train_cost": dataclasses.asdict(tested.train_cost),
            "test_cost": dataclasses.asdict(tested.test_cost),
            "images": len(next(iter(tested.right.values()))),
            "contents": contents,
            "accuracy": {name: float(right_N.mean()) for name, right_N in tested.right.items()},
            "right": {name: np.packbits(right_N).tobytes().hex() for name, right_N in tested.right.items()},
        }
        data = json.dumps(about, indent=1, sort_keys=True, allow_nan=False).encode()
        self._write(data, ARMS_FOLDER, f"{tested.arm.id}.json")

    def fix_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Write down what is tested, unless that was done; returns what stands."""
        url = storage.join(self._folder, CHOICE_FILE)
        content = {"identity": self._identity, **choice}
        data = json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode()
        if create_once(url, data, run_id=self._run_id):
            return content
        with _reading(url):
            stored = storage.read_object(url)
            identity = stored["identity"]
        self._check(identity, url)
        return stored

    def _check(self, identity: object, url: str) -> None:
        if identity != self._identity:
            raise UserError(f"{url} is of another measurement: write to another folder, or remove it")

    def _url(self, folder: str, name: str) -> str:
        return storage.join(self._folder, folder, name)

    def _write(self, data: bytes, folder: str, name: str) -> None:
        storage.commit_bytes(data, self._url(folder, name), run_id=self._run_id)


def _content(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None


def _probe_fields() -> list[str]:
    return [field.name for field in dataclasses.fields(Probe)]


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """`storage.parsing`, with the way out of it."""
    try:
        with storage.parsing(url):
            yield
    except DamagedFileError as error:
        cause = error.__cause__ or error
        raise UserError(
            f"{url} was not written by patchsieve prove, or is damaged ({cause!r}): remove it"
        ) from None
