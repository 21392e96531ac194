"""The help of a command: for a terminal, and as Markdown for the reference."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from patchsieve.pipeline.options.reading import TITLES, Option, options_of, summary_of

_COLUMN = 28
_WIDEST = 110

CONFIG_TEXT = (
    "Settings as YAML, such as score, train and prune leave beside their output; options override them."
)


def help_page(
    command: str,
    config_type: type,
    *,
    examples: Sequence[str],
    recipes: Sequence[str] = (),
    width: int | None = None,
) -> list[str]:
    """What `--help` prints, in lines of at most `width` characters (None: those of the terminal)."""
    room = min(width or shutil.get_terminal_size().columns, _WIDEST)
    options = options_of(config_type)
    lines = [usage(command, options), "", *textwrap.wrap(summary_of(config_type).split("\n\n")[0], room)]
    for group, title in TITLES.items():
        mine = [option for option in options if option.group == group]
        entries = [(option.shown, told(option)) for option in mine]
        if group == "output":
            entries.append(("--config FILE", _config(recipes)))
        if entries:
            lines += ["", f"{title}:", *(line for entry in entries for line in _entry(*entry, room))]
    lines += ["", "Examples:", *(f"  {example}" for example in examples)]
    return lines


def usage(command: str, options: Iterable[Option]) -> str:
    """How the command is called: what it cannot do without."""
    needed = [
        option.shown if not option.flag else f"{option.flag} {option.value}" for option in _needed(options)
    ]
    optional = [f"[{option.shown}]" for option in options if not option.flag and not option.required]
    return " ".join(["usage: patchsieve", command, *needed, *optional, "[OPTIONS]"])


def _needed(options: Iterable[Option]) -> list[Option]:
    return [option for option in options if option.required]


def told(option: Option) -> str:
    """The option's text, with its default where that is one."""
    if option.required and option.flag:
        return f"{option.text} (needed)"
    if option.default and not option.switch:
        return f"{option.text} (default: {option.default})"
    return f"{option.text} (on unless --no-{option.flag[2:]})" if option.default else option.text


def _config(recipes: Sequence[str]) -> str:
    shipped = f" Shipped: {', '.join(recipes)}." if recipes else ""
    return CONFIG_TEXT + shipped


def _entry(left: str, text: str, room: int) -> list[str]:
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, max(20, room - _COLUMN), break_on_hyphens=False) or [""]
    head = f"  {left}"
    if len(head) >= _COLUMN - 1:
        return [head, *(indent + line for line in lines)]
    return [head.ljust(_COLUMN) + lines[0], *(indent + line for line in lines[1:])]


def reference(
    configs: Mapping[str, type],
    *,
    examples: Mapping[str, Sequence[str]],
    recipes: Mapping[str, Sequence[str]],
) -> str:
    """All commands and options as Markdown."""
    parts = []
    for command, config_type in configs.items():
        options = options_of(config_type)
        parts.append(f"## {command}\n\n{summary_of(config_type).split(chr(10) * 2)[0]}\n")
        parts.append("".join(f"    {line}\n" for line in (usage(command, options), *examples[command])))
        for group, title in TITLES.items():
            rows = [(option.shown, told(option)) for option in options if option.group == group]
            if group == "output":
                rows.append(("--config FILE", _config(recipes.get(command, ()))))
            if rows:
                cells = "".join(f"| `{_cell(left)}` | {_cell(text)} |\n" for left, text in rows)
                parts.append(f"| {title} | |\n|---|---|\n{cells}")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
