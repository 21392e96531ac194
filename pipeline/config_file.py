"""Job configurations as YAML: written beside every output, and read back by `--config`."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import yaml

from patchrank.pipeline.errors import UserError
from patchrank.pipeline.storage import read_bytes

_Config = TypeVar("_Config")


def config_from_yaml(path: str, config_type: type[_Config]) -> _Config:
    """A configuration as it was written beside an output; UserError names fields that do not exist."""
    try:
        values = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, FileNotFoundError) as error:
        raise UserError(f"--config {path}: {str(error).splitlines()[0]}") from error
    known = {field.name for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or not values.keys() <= known:
        wrong = sorted(map(str, values.keys() - known)) if isinstance(values, dict) else ["no mapping"]
        raise UserError(f"--config {path}: unknown settings: {', '.join(wrong)}")
    return config_type(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def config_to_yaml(config: Any) -> bytes:
    """The configuration as YAML that `--config` reads back."""
    values = dataclasses.asdict(config)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text.encode()
