"""Job configurations as YAML: written beside every output, and read back by `--config`."""

from __future__ import annotations

import re
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from patchsieve.pipeline.checks import meant
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.storage import kept_settings, read_bytes

_NULLS = ("", "~", "null")
_TRUTH = {"true": True, "false": False}
_NUMBERS = {int: re.compile(r"[+-]?\d+"), float: re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")}
_SHOWN_CHARACTERS = 100
_MOST_NESTED = 8


class _Texts(yaml.BaseLoader):  # type: ignore[misc]  # untyped in its stubs
    """Reads every value as the text that stands there: what a setting may be is for its own type to say.

    YAML 1.1 takes 4:8 for 248 and 010 for 8. Aliases are refused: a few hundred bytes of them stand for gigabytes.
    So is what lies deep, which takes the parser the square of its depth.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("settings are read without aliases: write the value out")
        if self._depth == _MOST_NESTED:
            raise yaml.YAMLError(f"settings are nested more than {_MOST_NESTED} deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def settings_from_yaml(path: str, config_type: type[Any]) -> dict[str, Any]:
    """Settings of a configuration by name, those that the file holds.

    Raises UserError where it cannot be read, names a setting that does not exist, or gives one a value of
    another type; whether values make sense is for the configuration to say.
    """
    try:
        values = _Texts(read_bytes(path)).get_single_data()
    except (yaml.YAMLError, RecursionError, FileNotFoundError, InfrastructureError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: holds no settings by name")
    kinds = get_type_hints(config_type)
    unknown = sorted(str(name) for name in values if name not in kinds)
    if unknown:
        close = meant(unknown[0], kinds) if len(unknown) == 1 else ""
        raise UserError(f"--config {path}: unknown settings: {', '.join(unknown)}{close}")
    settings = {}
    for name, value in values.items():
        try:
            settings[name] = _fitted(value, kinds[name])
        except TypeError:
            known = [str(choice) for choice in _choices(kinds[name])]
            words = f", must be one of {', '.join(known)}{meant(str(value), known)}" if known else ""
            raise UserError(
                f"--config {path}: {name} cannot be {repr(value)[:_SHOWN_CHARACTERS]}{words}"
            ) from None
    return settings


def _choices(kind: Any) -> list[Any]:
    """The values that a setting of that type takes; empty where it takes others as well."""
    if get_origin(kind) in (Union, types.UnionType, tuple):
        found = [_choices(option) for option in get_args(kind) if option not in (type(None), ...)]
        return [choice for several in found for choice in several] if all(found) else []
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def _fitted(value: Any, kind: Any) -> Any:
    """A text, or a list of texts, as a setting of that type; TypeError where it is none."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in options and value in _NULLS:
            return None
        for option in options:
            try:
                return _fitted(value, option)
            except TypeError:
                continue
    elif origin is tuple:
        # One shard may stand alone.
        return tuple(_fitted(item, options[0]) for item in (value if isinstance(value, list) else [value]))
    elif not isinstance(value, str):
        raise TypeError
    elif origin is Literal:
        if value in options:
            return value
    elif kind is str:
        return value
    elif kind is bool:
        if value in _TRUTH:
            return _TRUTH[value]
    elif kind in _NUMBERS and _NUMBERS[kind].fullmatch(value):
        return kind(value)
    raise TypeError


def config_to_yaml(config: Any) -> bytes:
    """The configuration as YAML that `--config` reads back; see `kept_settings`."""
    text: str = yaml.safe_dump(kept_settings(config), sort_keys=False, allow_unicode=True)
    return text.encode()


def with_run_id(settings: bytes, run_id: str) -> bytes:
    """What `config_to_yaml` gave, and in its first line the run that it is of, as a comment."""
    return f"# run {run_id}\n".encode() + settings
