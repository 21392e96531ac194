"""Rankers on disk: a folder with the weights as safetensors and a `config.json` that says what they are.

`config.json` names the architecture, the teacher and the tables that the ranker was fitted to, the softmax temperature
and the digest of the weights; `ranker-<digest>.safetensors` holds the weights. A new ranker in an old folder
comes under a new name, and the JSON after it: whenever saving is killed, the folder holds a complete ranker. Both are
laid out as timm reads them (`timm_layout.py`), and `README.md` is a card for people.

A ranker is named by its folder or URL, or by its name on the Hugging Face hub; `tiny` comes with patchsieve.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from patchsieve.pipeline.errors import DamagedFileError, UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.storage import (
    HUB_NAME,
    absolute_url,
    canonical_url,
    commit_bytes,
    exists,
    hub_folder,
    is_local,
    join,
    list_folder,
    parsing,
    read_bytes,
    read_object,
    remove,
    split_name,
    stat,
)
from patchsieve.ranker.model.card import CARD_FILE, model_card
from patchsieve.ranker.model.names import BUNDLED
from patchsieve.ranker.model.ranker import Ranker, RankerConfig
from patchsieve.ranker.model.timm_layout import from_timm, timm_fields, to_timm

RANKER_VERSION = 2
RANKER_FILE = "config.json"
_WEIGHTS_LIMIT = 16 * 2**30
"""Largest file of weights, in bytes: it goes through memory."""

_FORMAT = "patchsieve ranker"
_SEAL = "sha256"
_FILE_DIGEST = "weights_sha256"
_TEACHER_FIELDS = ("name", "digest", "grid", "patch_size")
_WEIGHTS_NAME = re.compile(r"ranker-[0-9a-f]{16}\.safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedRanker:
    """A ranker as loaded: the model, frozen and in evaluation mode, and what is known of it.

    `name`: its folder's. `digest`: `ranker_digest`. `teacher`: name, digest, grid, patch size (and what else the table
    said). `tables`: identities of the rows it was fitted to. `temperature`: of the softmax over an image's scores.
    `extra`: what training stored with it, such as the fits of the baselines.
    """

    model: Ranker
    config: RankerConfig
    name: str
    digest: str
    teacher: dict[str, Any]
    tables: tuple[str, ...]
    temperature: float
    extra: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.head.weight.device


def ranker_digest(config: RankerConfig, state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of what a ranker computes with: its configuration, then each parameter in the order of names.

    Of a parameter: name, shape and values as little-endian float32.
    """
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True)
    digest = hashlib.sha256(f"{settings}\n".encode())
    for name in sorted(state):
        values = state[name].detach().cpu().float().contiguous().numpy().astype("<f4", copy=False)
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def save_ranker(
    folder: str,
    ranker: Ranker,
    *,
    teacher: Mapping[str, Any],
    tables: Sequence[str],
    temperature: float,
    extra: Mapping[str, Any] | None = None,
    half: bool = False,
    run_id: str = "save",
) -> str:
    """Save a ranker in a folder (path or URL), in place of one that is there, and return its digest.

    `teacher`: name, digest, grid (patches along a side) and patch_size, as a table has them. `tables`: identities of
    their rows. `extra`: anything that JSON can hold. `half`: weights as float16, which halves the file; the digest is
    that of the stored values. `run_id` names the temporary files of this run.

    Raises UserError for weights that are not finite in that precision, a teacher of another grid, a temperature that
    is not above 0, and a folder that cannot be written; InfrastructureError where the store fails.
    """
    config = ranker.config
    missing = [name for name in _TEACHER_FIELDS if name not in teacher]
    if missing:
        raise UserError(f"a ranker is saved with its teacher's {', '.join(missing)}")
    _check_teacher(config, teacher, "this ranker")
    _check_temperature(temperature, "this ranker")
    stored: dict[str, Tensor] = {}
    for name, tensor in ranker.state_dict().items():
        values = tensor.detach().cpu().float().contiguous()
        stored[name] = values.half() if half else values
        if not bool(stored[name].isfinite().all()):
            raise UserError(f"the ranker's {name} is not finite{' as float16' if half else ''}: not saved")
    digest = ranker_digest(config, stored)
    weights, file = _weights_name(digest), safetensors.torch.save(to_timm(ranker, stored))
    about: dict[str, Any] = {
        "format": _FORMAT,
        "schema_version": RANKER_VERSION,
        "config": dataclasses.asdict(config),
        "digest": digest,
        _FILE_DIGEST: hashlib.sha256(file).hexdigest(),
        "teacher": dict(teacher),
        "tables": list(tables),
        "temperature": temperature,
        "extra": dict(extra or {}),
        **timm_fields(ranker, weights_file=weights),
    }
    # As it is read back: what it says of itself is told apart from what was changed later.
    about[_SEAL] = digest_of(json.loads(json.dumps(about, allow_nan=False)))
    text = json.dumps(about, indent=2, allow_nan=False) + "\n"
    url = absolute_url(folder)
    commit_bytes(file, join(url, weights), run_id=run_id)
    commit_bytes(text.encode(), join(url, RANKER_FILE), run_id=run_id)
    commit_bytes(model_card(about).encode(), join(url, CARD_FILE), run_id=run_id)
    for info in list_folder(url, suffix=".safetensors"):
        name = split_name(info.url)[1]
        if name != weights and _WEIGHTS_NAME.fullmatch(name):
            remove(info.url)
    return digest


def load_ranker(folder: str, *, device: str | None = None) -> LoadedRanker:
    """Load the ranker in a folder, given by path or URL, or on the Hugging Face hub (`user/name`, where no local folder
    has that name), or the bundled `tiny`. `device` None: the first GPU, else the processor.

    Raises UserError, one line, for a folder without a ranker, of an unknown schema or not complete, and for weights
    that are damaged or not those of its `config.json`; InfrastructureError where a URL cannot be read now.
    """
    url = absolute_url(resolve_ranker(folder))
    shown = canonical_url(url)
    about = _read_about(url, shown)
    config = _config_of(about, shown)
    try:
        teacher, extra = dict(about["teacher"]), dict(about["extra"])
        tables = tuple(str(table) for table in about["tables"])
        digest, temperature = str(about["digest"]), float(about["temperature"])
        described = str(about[_FILE_DIGEST])
        weights = join(url, _weights_name(digest))
        _check_teacher(config, teacher, shown)
        _check_temperature(temperature, shown)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{shown}: its {RANKER_FILE} is not complete: {error!r}") from None
    stored, file_digest = _read_weights(weights)
    # Shapes alone until they are known to be those of the weights: no memory for what a file claims, no random draws.
    with torch.device("meta"):
        model = Ranker(config, drawn=False)
    _check_shapes(model, stored, shown)
    # Of the file too, since timm reads more of it than the weights that make the ranker.
    if ranker_digest(config, stored) != digest or file_digest != described:
        raise UserError(f"{shown}: these are not the weights that its {RANKER_FILE} describes")
    model.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, assign=True)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedRanker(
        model=model.to(where).eval().requires_grad_(False),
        config=config,
        name=split_name(shown.rstrip("/"))[1] if is_place(folder) else folder,
        digest=digest,
        teacher=teacher,
        tables=tables,
        temperature=temperature,
        extra=extra,
    )


def is_ranker(folder: str) -> bool:
    """Whether a folder holds what says that it is a ranker, sound or not."""
    url = join(folder, RANKER_FILE)
    try:
        return read_object(url).get("format") == _FORMAT
    except FileNotFoundError:
        return False
    except DamagedFileError:
        return any(_WEIGHTS_NAME.fullmatch(split_name(info.url)[1]) for info in list_folder(folder))


def check_ranker(folder: str) -> int:
    """Read a ranker whole, and return the bytes of its files; UserError where it is not as it was saved."""
    url = absolute_url(folder)
    loaded = load_ranker(folder, device="cpu")
    about = _read_about(url, canonical_url(url))
    seal = about.pop(_SEAL, None)
    with parsing(join(url, RANKER_FILE)):
        if seal != digest_of(about):
            raise ValueError("it is not as it was saved")
    files = (RANKER_FILE, _weights_name(loaded.digest))
    return sum(stat(join(url, name)).size or 0 for name in files)


def _weights_name(digest: str) -> str:
    # By content, so that a file under this name never changes; from the digest alone, so that it cannot be a path.
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is no digest")
    return f"ranker-{digest[:16]}.safetensors"


def _check_teacher(config: RankerConfig, teacher: Mapping[str, Any], shown: str) -> None:
    if (teacher["grid"], teacher["patch_size"]) != (config.grid, config.patch_size):
        raise UserError(
            f"{shown} sees {config.grid} x {config.grid} patches of {config.patch_size} px, its teacher "
            f"{teacher['grid']} x {teacher['grid']} of {teacher['patch_size']} px"
        )


def _check_temperature(temperature: float, shown: str) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"{shown} has a softmax temperature of {temperature}, which must be above 0")


def _read_about(url: str, shown: str) -> dict[str, Any]:
    """The content of `config.json`, of a schema that is known."""
    try:
        about = read_object(join(url, RANKER_FILE))
    except FileNotFoundError:
        raise UserError(f"no ranker at {shown}: there is no folder with a {RANKER_FILE}") from None
    except DamagedFileError as error:
        raise UserError(f"no ranker at {shown}: {error}") from None
    if about.get("format") != _FORMAT:
        raise UserError(
            f"no ranker at {shown}: its {RANKER_FILE} is of another program or job"
            + (
                f"; of score tables, patchsieve train {shown} --out RANKER makes one"
                if "rows" in about
                else ""
            )
        )
    if about.get("schema_version") != RANKER_VERSION:
        raise UserError(
            f"{shown} is a ranker of schema version {about.get('schema_version')}, this patchsieve reads version "
            f"{RANKER_VERSION}: use the release that wrote it"
        )
    return about


def _config_of(about: dict[str, Any], shown: str) -> RankerConfig:
    try:
        return RankerConfig(**about["config"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{shown}: the configuration in its {RANKER_FILE} is not a ranker's: {error}"
        ) from None


def _read_weights(url: str) -> tuple[dict[str, Tensor], str]:
    """Weights by the ranker's names, and the SHA-256 (hex) of their file."""
    shown = canonical_url(url)
    try:
        data = read_bytes(url, limit=_WEIGHTS_LIMIT)
        return from_timm(safetensors.torch.load(data)), hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        raise UserError(f"the ranker is not complete: there is no {shown}") from None
    except SafetensorError as error:
        raise UserError(f"{shown} is a damaged .safetensors: {error}") from None


def _check_shapes(model: Ranker, weights: dict[str, Tensor], shown: str) -> None:
    """Refuse tensors of other names or shapes than the model's."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise UserError(
            f"{shown}: weights do not fit its {RANKER_FILE}: {name} is {found.get(name, 'missing')}, "
            f"{expected.get(name, 'unknown')} in the model"
        )


def is_place(name: str) -> bool:
    """Whether a ranker is named by its folder or URL, not as a bundled one or one on the hub."""
    if name in BUNDLED:
        return False
    return HUB_NAME.fullmatch(name) is None or not is_local(name) or exists(absolute_url(name))


def resolve_ranker(name: str) -> str:
    """The folder of a ranker: that of a bundled one by its name, of one on the hub once it is fetched, else the path or
    URL as given.

    Raises UserError for a bundled name whose folder this installation lacks, and for what cannot be fetched.
    """
    if is_place(name):
        return name
    if name not in BUNDLED:
        otherwise = "give the folder of a ranker, or use the bundled one, tiny"
        # The one file of weights that it names, however many lie there, and of whatever size.
        about = _read_about(hub_folder(name, [RANKER_FILE], otherwise=otherwise), name)
        with parsing(f"{name}/{RANKER_FILE}"):
            weights = _weights_name(str(about["digest"]))
        return hub_folder(name, [RANKER_FILE, weights], otherwise=otherwise)
    folder = Path(__file__).resolve().parent.parent / name
    if not folder.is_dir():
        raise UserError(
            f"the bundled ranker {name!r} is not part of this installation: name the folder of a ranker"
        )
    return str(folder)
