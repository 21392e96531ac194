"""The options of a command, read off its configuration: names, types in words, defaults, texts, groups."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from patchsieve.pipeline.checks import flag

Group = Literal["what", "how", "where", "output"]

TITLES: dict[Group, str] = {
    "what": "What it works on",
    "how": "How it works",
    "where": "Where it runs",
    "output": "What it leaves and says",
}

_GROUPS: dict[Group, str] = {
    "what": """shards tables paths path key out ranker fits teacher table test images root limit_shards limit_images
        limit_train limit_test samples image_field unsorted sample folder labels classes label merge held_out
        only_held_out source dense""",
    "where": """gpus_per_actor cpus_per_actor max_actors head_node batch_size compile decode_pixels precision workers
        gpus_per_worker accumulate stall_timeout start_timeout max_restarts checkpoint_minutes address working_dir
        max_jobs""",
    "output": """format codec quality size background store plot json log_format dry_run sweep sheet price_per_hour
        max_bad salvage drop_bad redo_errors verify_content resume measure_every report_every""",
}
GROUP_OF: dict[str, Group] = {name: group for group, names in _GROUPS.items() for name in names.split()}
"""Of the settings that do not decide how a command works."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option or argument. `flag`: as it is written, empty for an argument; `value`: what follows it, in words;
    `choices`: the only values it takes, none where others are possible; `default`: as it is told, empty for none.

    `kinds`: the plain types that a value can have; `switch`: whether it takes none; `many`: whether it takes several.
    """

    name: str
    flag: str
    value: str
    text: str
    group: Group
    default: str
    required: bool
    choices: tuple[str, ...] = ()
    kinds: tuple[type, ...] = ()
    switch: bool = False
    many: bool = False

    @property
    def shown(self) -> str:
        """The option and its value, as a help page has them."""
        if not self.flag:
            return f"{self.value}..." if self.many else self.value
        if self.switch:
            return f"{self.flag}, --no-{self.flag[2:]}" if self.default == "on" else self.flag
        return f"{self.flag} {self.value}{'...' if self.many else ''}"


def options_of(config_type: type) -> tuple[Option, ...]:
    """The options of a configuration, in its order."""
    hints = get_type_hints(config_type, include_extras=True)
    texts = _texts(config_type)
    fields = dataclasses.fields(config_type)
    return tuple(
        _option(field, hints[field.name], texts[field.name]) for field in fields if field.name in texts
    )


def summary_of(config_type: type) -> str:
    """What the command does, in a sentence or two."""
    return inspect.getdoc(config_type) or ""


def _option(field: dataclasses.Field[Any], hint: Any, text: str) -> Option:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    plain = get_args(hint)[0] if marks else hint
    asked = next((mark for mark in marks if hasattr(mark, "metavar")), None)
    positional = tyro.conf.Positional in marks or any("positional" in str(mark).lower() for mark in marks)
    many = get_origin(plain) is tuple
    parts = [part for part in _parts(get_args(plain)[0] if many else plain) if part is not type(None)]
    choices = tuple(str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part))
    kinds = tuple(part for part in parts if isinstance(part, type))
    words = [*choices, *(_WORDS[kind] for kind in kinds if kind in _WORDS)]
    metavar = getattr(asked, "metavar", None)
    name = getattr(asked, "name", None) or field.name
    return Option(
        name=field.name,
        flag="" if positional else flag(name),
        value=str(metavar or "|".join(words)),
        text=text,
        group=GROUP_OF.get(field.name, "how"),
        default=_default(field),
        required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        choices=() if kinds else choices,
        kinds=kinds,
        switch=kinds == (bool,),
        many=many,
    )


_WORDS: dict[type, str] = {str: "TEXT", int: "N", float: "NUMBER"}


def _parts(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [part for option in get_args(hint) for part in _parts(option)]
    return [hint]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING or value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _texts(config_type: type) -> dict[str, str]:
    """The string below each field, those of base classes first."""
    found: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            told = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(told, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(told.value).split())
    return found
