"""A dataclass filled from the command line: one field is one flag, its default is the recipe's."""

from __future__ import annotations

import argparse
import dataclasses
import math
import textwrap
import types
import typing
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
LAST = ("networks", "machine")  # groups at the end of a page


def flag(default: Any, help: str, *, group: str = "options", choices: tuple[str, ...] | None = None,
         minimum: float | None = None, above: float | None = None, maximum: float | None = None,
         positional: bool = False, bare: str | None = None) -> Any:
    """A dataclass field that is also a command-line flag, or a word without one where it is `positional`.

    bare: what the flag means without a value. Bounds are inclusive, but for `above`. A field is called as its
    flag; from_ is --from, a word of Python's.
    """
    metadata = {"help": help, "group": group, "choices": choices, "minimum": minimum, "above": above,
                "maximum": maximum, "positional": positional, "bare": bare}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage text."""
        self.exit(2, f"error: {message} (see --help)\n")


class _Page(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        """The usual lines, but no flag or name is broken at its hyphens: they are to be copied."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False,
                             break_long_words=False)


def _number(kind: type, metadata: Any) -> Any:
    def convert(text: str) -> float | int:
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if kind is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if wrong := _out_of_bounds(value, metadata):
            raise argparse.ArgumentTypeError(f"{text} is {wrong}")
        return value
    return convert


def _out_of_bounds(value: float, metadata: Any) -> str:
    """What is wrong with a number; "" where nothing is."""
    low, above, high = metadata["minimum"], metadata["above"], metadata["maximum"]
    if low is not None and value < low:
        return f"too small: at least {low}"
    if above is not None and value <= above:
        return f"too small: more than {above}"
    return f"too large: at most {high}" if high is not None and value > high else ""


def _default_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    values = value if isinstance(value, list) else ["" if value is None else value]
    return " ".join(map(str, values)) or "none"


def _name(field: dataclasses.Field) -> str:
    return "--" + field.name.rstrip("_").replace("_", "-")


def _add(group: Any, field: dataclasses.Field, annotation: Any) -> None:
    """One flag for one field: bool -> --x/--no-x, list[...] -> several values, `X | None` -> optional X."""
    arguments = [a for a in typing.get_args(annotation) if a is not type(None)]
    if isinstance(annotation, types.UnionType):
        annotation = arguments[0]
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default
    required = default is ...
    text = field.metadata["help"].replace("%", "%%")
    if not required and "(default:" not in text:  # else the help says better what happens without the flag
        text += f" (default: {_default_text(default)})"
    several = typing.get_origin(annotation) is list
    if field.metadata["positional"]:
        group.add_argument(field.name, help=text, choices=field.metadata["choices"],
                           nargs="+" if several else None,
                           metavar=None if field.metadata["choices"] else field.name.upper())
        return
    name = _name(field)
    options: dict[str, Any] = {"dest": field.name, "help": text, "required": required}
    if not required:  # the dataclass has it; argparse, in some of Python's versions, would say it twice
        options["default"] = argparse.SUPPRESS
    if annotation is bool:
        group.add_argument(name, action=argparse.BooleanOptionalAction, **options)
        return
    kind = typing.get_args(annotation)[0] if several else annotation
    options["type"] = _number(kind, field.metadata) if kind in (int, float) else kind
    if field.metadata["choices"] is None:
        options["metavar"] = {int: "N", float: "X", str: "TEXT"}[kind]
    else:
        options["choices"] = field.metadata["choices"]
    bare = field.metadata["bare"]
    if bare is not None:
        options["const"] = bare
    group.add_argument(name, nargs="+" if several else None if bare is None else "?", **options)


def parse(cls: type[T], description: str, epilog: str = "", argv: list[str] | None = None,
          program: str | None = None) -> T:
    """Fill `cls`, a dataclass of `flag` fields, from `argv` (default: the process's own arguments).

    program: what follows "python" in the usage, by default the script's name. A field whose default is `...`
    must be given. A wrong value ends in one line and exit status 2.
    """
    parser = _Parser(program, description=description, epilog=epilog, allow_abbrev=False, usage=_usage(cls),
                     add_help=False, formatter_class=_Page)
    annotations = typing.get_type_hints(cls)
    for title, fields in _groups(cls).items():
        group = parser.add_argument_group(title)
        for field in fields:
            _add(group, field, annotations[field.name])
    parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this page")
    return cls(**vars(parser.parse_args(argv)))


def _groups(cls: type) -> dict[str, list[dataclasses.Field]]:
    """Fields by their group: first those in which something must be given, last those that few will need."""
    groups: dict[str, list[dataclasses.Field]] = {}
    for field in dataclasses.fields(cls):
        groups.setdefault(field.metadata["group"], []).append(field)
    return dict(sorted(groups.items(), key=lambda item: (
        all(field.default is not ... for field in item[1]), (item[0] in LAST, item[0] == LAST[-1]))))


def _usage(cls: type) -> str:
    """What must be given; all else is in the groups below, each with its default."""
    words, annotations = ["python %(prog)s"], typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.metadata["positional"]:
            word = "|".join(field.metadata["choices"] or [field.name.upper()])
            words.append(f"{word} .." if typing.get_origin(annotations[field.name]) is list else word)
        elif field.default is ...:
            words.append(f"{_name(field)} ...")
    return " ".join([*words, "[flags]"])


def fits(value: Any, kind: Any) -> bool:
    """Whether a value that JSON holds is of the type that an annotation names; numbers are finite."""
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(fits(value, part) for part in parts)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if kind in (int, float):
        return type(value) in (int, kind) and abs(value) < 2**63  # which infinity and nan are not
    return value is None if kind is type(None) else isinstance(value, typing.get_origin(kind) or kind)


def recorded(cls: type[T], values: dict[str, Any]) -> T:
    """`cls` from what a file holds of a command line, other flags' values left out. Raises ValueError, naming
    the first, where one is of another type than its flag or out of its bounds.
    """
    kinds, given = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            value = given[field.name] = values[field.name]
            choices = field.metadata["choices"]
            if (not fits(value, kinds[field.name]) or choices and value not in choices
                    or type(value) in (int, float) and _out_of_bounds(value, field.metadata)):
                raise ValueError(f"{field.name} {value!r}")
    return cls(**given)
