"""Where a teacher comes from: a bundled or hub name, a file, a folder or a URL, read without running any code."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from patchsieve.pipeline.checks import meant
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.storage import (
    HUB_NAME,
    absolute_url,
    canonical_url,
    exists,
    hub_folder,
    is_local,
    join,
    read_bytes,
    read_object,
    split_name,
)

ALIASES = {
    size: f"facebook/vit-mae-{size.removeprefix('mae-')}" for size in ("mae-base", "mae-large", "mae-huge")
}
TINY = Path(__file__).parent / "tiny"
WEIGHTS_LIMIT = 16 * 2**30
"""Largest file of weights, in bytes: it goes through memory. MAE-H takes 2.6 GB."""

_SETTINGS_LIMIT = 2**20
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
_FILES_IN_FOLDER = ("teacher.safetensors", *_HUGGING_FACE_FILES)
# The licence of the release's repository, which its files carry; the hub's copies state their own.
_FAIR_FILE = re.compile(r"mae_(visualize|pretrain)_vit_")
_FAIR_LICENCE = "CC-BY-NC-4.0"


@dataclasses.dataclass(frozen=True)
class RawCheckpoint:
    """A teacher as it was found: weights under the file's own names, and what stands beside them.

    `settings`: our JSON; `hub_config`: Hugging Face's; `arguments`: the release's training arguments; each empty
    where there is none. `origin`: full path, URL or hub name, for telling published files by their names.
    """

    name: str
    origin: str
    weights: dict[str, Tensor]
    settings: dict[str, Any]
    hub_config: dict[str, Any]
    arguments: dict[str, Any]
    licence: str | None


def read_checkpoint(spec: str) -> RawCheckpoint:
    """Find and read a teacher. Raises UserError with the way out for what is not there or cannot be read."""
    if spec == "tiny":
        return _read_folder(str(TINY), name="tiny")
    if spec in ALIASES:
        return _read_hub(ALIASES[spec])
    url = absolute_url(spec)
    if not is_local(url):
        return _read_file(url) if canonical_url(url).endswith(_SUFFIXES) else _read_folder(url)
    if os.path.isdir(url):
        return _read_folder(url)
    if os.path.isfile(url):
        return _read_file(url)
    if HUB_NAME.fullmatch(spec) and not spec.endswith(_SUFFIXES):
        return _read_hub(spec)
    if "/" in spec or spec.endswith(_SUFFIXES):
        raise UserError(f"no teacher at {spec}: there is no such file or folder")
    raise UserError(
        f"unknown teacher {spec!r}; known: tiny, {', '.join(ALIASES)}, a name on the Hugging Face hub such as "
        "facebook/vit-mae-base, or the path or URL of a .pth, a .safetensors or a folder"
        f"{meant(spec, ['tiny', *ALIASES])}"
    )


def _read_hub(repository: str) -> RawCheckpoint:
    otherwise = (
        "give the path of such a folder or of a .pth of the MAE release, or use the bundled teacher tiny"
    )
    wanted = ["config.json", "README.md", "model.safetensors"]
    folder = hub_folder(repository, wanted, otherwise=otherwise)
    if not os.path.exists(join(folder, "model.safetensors")):
        folder = hub_folder(repository, ["pytorch_model.bin"], otherwise=otherwise)
    return _read_folder(folder, name=repository)


def _read_folder(url: str, *, name: str | None = None) -> RawCheckpoint:
    for file in _FILES_IN_FOLDER:
        if exists(join(url, file)):
            raw = _read_file(join(url, file))
            card = _licence_of_card(join(url, "README.md")) if is_local(url) else None
            shown = name or raw.settings.get("name") or os.path.basename(canonical_url(url))
            return dataclasses.replace(
                raw, name=shown, origin=name or canonical_url(url), licence=raw.licence or card
            )
    raise UserError(f"no teacher in {canonical_url(url)}: it holds none of {', '.join(_FILES_IN_FOLDER)}")


def _licence_of_card(url: str) -> str | None:
    """The licence that a model card states in the block between its first two lines of dashes."""
    if not exists(url):
        return None
    card = read_bytes(url, limit=_SETTINGS_LIMIT).decode("utf-8", "replace")
    head = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    stated = re.search(r"^license:\s*(\S+)", head[1], re.MULTILINE) if head else None
    return stated[1] if stated else None


def _read_file(url: str) -> RawCheckpoint:
    shown = canonical_url(url)
    file = os.path.basename(shown)
    found = (_read_json(join(split_name(url)[0], name)) for name in _settings_names(url, file))
    settings = next((content for content in found if content), {})
    hub_config = settings if "model_type" in settings else {}
    settings = {} if hub_config else settings
    weights, arguments = _read_weights(url, shown)
    licence = _FAIR_LICENCE if _FAIR_FILE.match(file) else None
    return RawCheckpoint(
        name=str(settings.get("name") or file),
        origin=shown,
        weights=weights,
        settings=settings,
        hub_config=hub_config,
        arguments=arguments,
        licence=settings.get("licence") or licence,
    )


def _settings_names(url: str, file: str) -> list[str]:
    """Files beside the weights that may describe them."""
    stem, suffix = os.path.splitext(file)
    # A server of the release's files holds no JSON, and may answer for one as if it was forbidden.
    own = [f"{stem}.json"] if suffix == ".safetensors" or is_local(url) else []
    return (["config.json"] if file in _HUGGING_FACE_FILES else []) + own


def _read_json(url: str) -> dict[str, Any]:
    if not exists(url):
        return {}
    return read_object(url, limit=_SETTINGS_LIMIT)


def _read_weights(url: str, shown: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the arguments beside them. The first bytes tell the format, not the name."""
    try:
        data = read_bytes(url, limit=WEIGHTS_LIMIT)
    except FileNotFoundError:
        raise UserError(f"no teacher at {shown}: there is no such file") from None
    if data[8:9] == b"{":
        try:
            return safetensors.torch.load(data), {}
        except SafetensorError as error:
            raise UserError(f"{shown} is a damaged .safetensors: {error}") from None
    return _unpickle(data, shown)


def _refuse_compressed(data: bytes) -> None:
    """Raise ValueError for an archive that would unpack to more than its own bytes: torch writes none."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > len(data):
            raise ValueError(f"{len(data)} bytes that unpack to {unpacked}")


def _unpickle(data: bytes, shown: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        _refuse_compressed(data)
        # The release stores its arguments beside the weights; a Namespace does nothing when it is made.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = "no checkpoint"
        if refused:
            way_out = "save its weights alone: torch.save({'model': model.state_dict()}, ...)"
            what = f"it holds {refused[1]}, and loading that could run code; {way_out}"
        raise UserError(f"cannot read weights from {shown}: {what}") from None
    except Exception as error:  # a damaged archive fails in many ways
        reason = str(error).strip().splitlines()
        raise UserError(f"cannot read weights from {shown}: {reason[0] if reason else 'damaged'}") from None
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f'cannot read weights from {shown}: neither it nor its "model" is a table of tensors')
    for name, value in weights.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"cannot read weights from {shown}: {name} claims more values than it has")
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    return dict(weights), arguments if isinstance(arguments, dict) else {}
