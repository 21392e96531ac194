"""Job configurations as YAML: written beside every output, and read back by `--config`."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.storage import read_bytes


def settings_from_yaml(path: str, config_type: type[Any]) -> dict[str, Any]:
    """Settings of a configuration by name, those that the file holds.

    Raises UserError where it cannot be read, names a setting that does not exist, or gives one a value of
    another type; whether values make sense is for the configuration to say.
    """
    try:
        values = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, FileNotFoundError, InfrastructureError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: holds no settings by name")
    kinds = get_type_hints(config_type)
    unknown = sorted(str(name) for name in values if name not in kinds)
    if unknown:
        raise UserError(f"--config {path}: unknown settings: {', '.join(unknown)}")
    settings = {}
    for name, value in values.items():
        try:
            settings[name] = _fitted(value, kinds[name])
        except TypeError:
            raise UserError(f"--config {path}: {name} cannot be {value!r}") from None
    return settings


def _fitted(value: Any, kind: Any) -> Any:
    """The value as a setting of that type, from what YAML makes of it; TypeError where it is none."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for option in options:
            try:
                return _fitted(value, option)
            except TypeError:
                continue
    elif origin is tuple:
        # One shard may stand alone.
        return tuple(_fitted(item, options[0]) for item in (value if isinstance(value, list) else [value]))
    elif origin is Literal:
        if isinstance(value, str) and value in options:
            return value
    elif kind in (float, str) and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TypeError


def config_to_yaml(config: Any) -> bytes:
    """The configuration as YAML that `--config` reads back."""
    values = dataclasses.asdict(config)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text.encode()


def with_run_id(settings: bytes, run_id: str) -> bytes:
    """What `config_to_yaml` gave, and in its first line the run that it is of, as a comment."""
    return f"# run {run_id}\n".encode() + settings
