"""What a measurement leaves behind, so that a rerun does what is missing: a file for each arm, and the choice.

config.json             what decides the figures (pipeline/output/settings.py)
fits/ARM.safetensors    what was learned from an arm's train images: a classifier, or a transformer
choice.json             the selector that is tested, written before the test shards are opened
arms/ARM.json           what the arm gets right on the test images

ARM is followed by -seedN where arms are trained with several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.torch

from patchsieve.pipeline import storage
from patchsieve.pipeline.checks import typed
from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.output.owner import create_once
from patchsieve.ranker.prove.arms import Trial
from patchsieve.ranker.prove.learners import Weights
from patchsieve.ranker.prove.measure import Cost, Fitted, Tested, regimes_of

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

    def fitted(self, trial: Trial) -> Fitted | None:
        """What was fitted before, None where nothing was."""
        url = self._fit_url(trial)
        if (data := _content(url)) is None:
            return None
        with _reading(url):
            about, _ = _load(data)
            identity = about["identity"]
        self._check(identity, url)
        with _reading(url):
            return _fitted(about, trial)

    def weights(self, trial: Trial) -> Weights:
        """What was learned in a trial that was fitted before."""
        url = self._fit_url(trial)
        with _reading(url):
            return _load(storage.read_bytes(url))[1]

    def write_fitted(self, fitted: Fitted, weights: Weights) -> None:
        """Keep what was learned."""
        tensors = {name: value.contiguous() for name, value in weights.items()}
        about = {"identity": self._identity, "weights": _digest(tensors), **_about(fitted)}
        data = safetensors.torch.save(tensors, metadata={_ABOUT: json.dumps(about, sort_keys=True)})
        storage.commit_bytes(data, self._fit_url(fitted.trial), run_id=self._run_id)

    def tested(self, trial: Trial, images: int, contents: str) -> Tested | None:
        """What was tested before on as many images of shards of these contents, None where nothing was."""
        url = self._test_url(trial)
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
            # What is missing would count as wrong.
            whole = all(len(bits) == -(-images // 8) for bits in packed.values())
            if not whole or packed.keys() != set(regimes_of(trial.arm)):
                raise ValueError(f"it does not tell of all {images} images")
            return Tested(
                fitted=_fitted(about, trial),
                cost=_cost(about["test_cost"]),
                right={name: np.unpackbits(bits, count=images) == 1 for name, bits in packed.items()},
            )

    def write_tested(self, tested: Tested, contents: str) -> None:
        """Keep what a trial gets right; `contents`: digest of what was tested on."""
        about = {
            "identity": self._identity,
            **_about(tested.fitted),
            "test_cost": dataclasses.asdict(tested.cost),
            "images": len(next(iter(tested.right.values()))),
            "contents": contents,
            "accuracy": {name: float(right_N.mean()) for name, right_N in tested.right.items()},
            "right": {name: np.packbits(right_N).tobytes().hex() for name, right_N in tested.right.items()},
        }
        data = json.dumps(about, indent=1, sort_keys=True, allow_nan=False).encode()
        storage.commit_bytes(data, self._test_url(tested.fitted.trial), run_id=self._run_id)

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
            if not choice.keys() <= stored.keys() or stored["selector"] not in choice["candidates"]:
                raise ValueError("it names no selector that is tested here")
        self._check(identity, url)
        return stored

    def _check(self, identity: object, url: str) -> None:
        if identity != self._identity:
            raise UserError(f"{url} is of another measurement: write to another folder, or remove it")

    def _fit_url(self, trial: Trial) -> str:
        return storage.join(self._folder, FITS_FOLDER, f"{trial.id}.safetensors")

    def _test_url(self, trial: Trial) -> str:
        return storage.join(self._folder, ARMS_FOLDER, f"{trial.id}.json")


def _digest(tensors: Weights) -> str:
    return hashlib.sha256(safetensors.torch.save(dict(tensors))).hexdigest()


def _load(data: bytes) -> tuple[dict[str, Any], Weights]:
    """What a file of weights says of itself, and the weights."""
    tensors = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_ABOUT])
    # An earlier release wrote no digest.
    if about.get("weights", digest := _digest(tensors)) != digest:
        raise ValueError("its weights are not those that were written")
    return about, tensors


def _about(fitted: Fitted) -> dict[str, Any]:
    return {
        "trial": fitted.trial.id,
        "numbers": fitted.numbers,
        "validation": fitted.validation,
        "penalty": fitted.penalty,
        "train_cost": dataclasses.asdict(fitted.cost),
    }


def _fitted(about: Mapping[str, Any], trial: Trial) -> Fitted:
    fitted = typed(
        Fitted,
        {
            "trial": trial,
            **{name: about[name] for name in ("numbers", "validation", "penalty")},
            "cost": _cost(about["train_cost"]),
        },
    )
    if not 0 <= fitted.validation <= 1:
        raise ValueError(f"an accuracy of {fitted.validation}")
    return fitted


def _cost(told: Mapping[str, Any]) -> Cost:
    cost = typed(Cost, told)
    if not all(0 <= value < math.inf for value in dataclasses.astuple(cost)):
        raise ValueError(f"a cost of {dataclasses.astuple(cost)}")
    return cost


def _content(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None


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
