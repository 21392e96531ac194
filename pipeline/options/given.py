"""What is wrong with a command line, said in one line with the way out: before anything parses it."""

from __future__ import annotations

from collections.abc import Sequence

from patchsieve.pipeline.checks import meant
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.options.reading import Option


def check_given(
    command: str, options: Sequence[Option], arguments: Sequence[str], *, complete: bool = True
) -> None:
    """Refuse options that there are not, values that cannot be, and a command line that lacks what is needed.

    `complete`: whether nothing comes from a configuration file. Raises UserError, which names what was probably meant.
    """
    by_flag = {option.flag: option for option in options if option.flag}
    negations = {f"--no-{name[2:]}" for name, option in by_flag.items() if option.switch}
    seen: set[str] = set()
    places = 0
    at = 0
    while at < len(arguments):
        text, at = arguments[at], at + 1
        if not is_option(text):
            places += 1
            continue
        name, equals, value = text.partition("=")
        name = "--" + name[2:].replace("_", "-")
        if name in negations:
            continue
        option = by_flag.get(name)
        if option is None:
            raise UserError(
                f"there is no option {name}{meant(name, by_flag) or '.'} See patchsieve {command} --help"
            )
        seen.add(name)
        values = [value] if equals else []
        if not equals and not option.switch:
            while at < len(arguments) and not is_option(arguments[at]) and (option.many or not values):
                values.append(arguments[at])
                at += 1
        _check_values(option, values, equals=bool(equals))
    if complete:
        _check_missing(command, options, seen, places)


def is_option(text: str) -> bool:
    """Whether a word of a command line is an option, and no value such as -1."""
    return text.startswith("--") and len(text) > 2


def _check_values(option: Option, values: Sequence[str], *, equals: bool) -> None:
    if option.switch:
        if equals:
            raise UserError(f"{option.flag} takes no value: leave it out, or write --no-{option.flag[2:]}")
        return
    if not values:
        raise UserError(f"{option.flag} needs a value: {option.value}")
    for value in values:
        if option.choices and value not in option.choices:
            raise UserError(
                f"{option.flag} is {value!r}, must be one of {', '.join(option.choices)}{meant(value, option.choices)}"
            )
        if (
            not option.choices
            and not any(_reads(kind, value) for kind in option.kinds)
            and not _is_word(option, value)
        ):
            what = "a whole number" if float not in option.kinds else "a number"
            words = [word for word in option.value.split("|") if word not in ("N", "NUMBER")]
            raise UserError(
                f"{option.flag} is {value!r}, must be {' or '.join([what, *words])}{meant(value, words)}"
            )


def _reads(kind: type, value: str) -> bool:
    if kind is str or kind not in (int, float):
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _is_word(option: Option, value: str) -> bool:
    # None is how a command line takes a setting of a configuration file back.
    return value == "None" or value in option.value.split("|")


def _check_missing(command: str, options: Sequence[Option], seen: set[str], places: int) -> None:
    missing = [option for option in options if option.required and option.flag and option.flag not in seen]
    arguments = [option for option in options if option.required and not option.flag]
    if arguments and not places:
        missing = [*arguments, *missing]
    if missing:
        names = " and ".join(option.shown for option in missing)
        raise UserError(
            f"{names} {'is' if len(missing) == 1 else 'are'} missing; see patchsieve {command} --help"
        )
