"""A dataclass filled from the command line: each field is a flag, with its default.

A value comes from the command line, or else from the file of --config, from a row of defaults that belongs to
another flag (a preset), or from the field's own default.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from runtime.config_files import flags_in
from runtime.flag_values import out_of_bounds
from runtime.suggestions import nearest

T = TypeVar("T")
LAST = ("speed", "networks", "experiments")  # groups at the end of a page
SHORT_PAGE = 12  # of more flags than these, --help shows those marked common


def flag(default: Any, help: str, *, group: str = "options", choices: tuple[str, ...] | None = None,
         minimum: float | None = None, above: float | None = None, maximum: float | None = None,
         positional: bool = False, bare: str | None = None, common: bool = False) -> Any:
    """A dataclass field that is also a command-line flag, or a positional argument.

    bare: the value where the flag is given without one. minimum and maximum are inclusive, above is not.
    common: --help shows it, others only --help-all. A field is named after its flag; a trailing underscore,
    as in from_, avoids a keyword of Python.
    """
    metadata = {"help": help, "group": group, "choices": choices, "minimum": minimum, "above": above,
                "maximum": maximum, "positional": positional, "bare": bare, "common": common}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field) -> Any:
    """A field's default; `...` where it must be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def changed(cls: type, name: str, default: Any, **metadata: Any) -> Any:
    """The flag `name` of the dataclass `cls` with another default, and other metadata where it is given."""
    inherited = next(field.metadata for field in dataclasses.fields(cls) if field.name == name)
    return flag(default, **{**inherited, **metadata})


class _Parser(argparse.ArgumentParser):
    whole: Callable[[], _Parser]  # the same with every flag on its page

    def error(self, message: str) -> NoReturn:
        """Print one line instead of the usage."""
        self.exit(2, f"error: {message} (see --help)\n")


class _HelpAll(argparse.Action):
    """Print the page with every flag, as argparse's own help action prints that of the common ones."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, _Parser)
        parser.whole().print_help()
        parser.exit()


class _Page(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        """Wrap without breaking flags and names at their hyphens, because users copy them."""
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
        if wrong := out_of_bounds(value, metadata):
            raise argparse.ArgumentTypeError(f"{text} is {wrong}")
        return value
    return convert


def _default_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    values = value if isinstance(value, list) else ["" if value is None else value]
    return " ".join(map(str, values)) or "none"


def _name(field: dataclasses.Field) -> str:
    return "--" + field.name.rstrip("_").replace("_", "-")


def _add(group: Any, field: dataclasses.Field, annotation: Any, shown: bool) -> None:
    """Add a field's flag: bool -> --x/--no-x, list[...] -> several values, `X | None` -> an optional X.

    shown: whether the page has it.
    """
    if isinstance(annotation, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    default = default_of(field)
    required = default is ...
    text = field.metadata["help"].replace("%", "%%")
    if not required and "(default:" not in text:  # else the help states it
        text += f" (default: {_default_text(default)})"
    several = typing.get_origin(annotation) is list
    if field.metadata["positional"]:
        group.add_argument(field.name, help=text, choices=field.metadata["choices"],
                           nargs="+" if several else None,
                           metavar=None if field.metadata["choices"] else field.name.upper())
        return
    name = _name(field)
    options: dict[str, Any] = {"dest": field.name, "help": text if shown else argparse.SUPPRESS,
                               "default": argparse.SUPPRESS}  # what is not given is filled in later
    if annotation is bool:
        group.add_argument(name, action=argparse.BooleanOptionalAction, **options)
        return
    kind = typing.get_args(annotation)[0] if several else annotation
    options["type"] = _number(kind, field.metadata) if kind in (int, float) else kind
    if field.metadata["choices"] is None:
        options["metavar"] = {int: "N", float: "X", str: "TEXT"}[kind]
    else:
        options["choices"] = field.metadata["choices"]
    if field.metadata["bare"] is not None:
        options |= {"nargs": "?", "const": field.metadata["bare"]}
    elif several:
        options["nargs"] = "+"
    group.add_argument(name, **options)


def parse(cls: type[T], description: str, epilog: str = "", argv: list[str] | None = None,
          program: str | None = None,
          row: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None) -> T:
    """Fill `cls`, a dataclass of `flag` fields, from `argv` (default: the process's own arguments).

    program: the text after "python" in the usage (default: the script's name). row: the values of --config
    and those of the command line -> those to use; what it leaves out has its default. A field whose default
    is `...` is required. A wrong value on the command line ends the process with one line and exit status 2.
    Raises UserError for one in the file of --config.
    """
    page: dict[str, Any] = {"prog": program, "description": description, "epilog": epilog}
    parser = _parser(cls, page, everything=False)
    found, unknown = parser.parse_known_args(argv)
    values = vars(found)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(cls, unknown)}")
    file = values.pop("config", None)
    filed = flags_in(file, cls) if file else {}
    given = filed | values
    missing = [_name(field) for field in dataclasses.fields(cls)  # type: ignore[arg-type]
               if default_of(field) is ... and field.name not in given]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return cls(**(row(filed, values) if row else given))


def _parser(cls: type, page: dict[str, Any], *, everything: bool) -> _Parser:
    """The parser of all flags. Its page shows the common ones, or everything."""
    parser = _Parser(**page, allow_abbrev=False, usage=_usage(cls), add_help=False, formatter_class=_Page)
    annotations, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    everything = everything or len(fields) <= SHORT_PAGE
    for title, members in _groups(cls).items():
        group = parser.add_argument_group(title)
        for field in members:
            _add(group, field, annotations[field.name],
                 everything or field.metadata["common"] or default_of(field) is ...)
    group = parser.add_argument_group("help")
    group.add_argument("-h", "--help", action="help", help="show the flags that most users need"
                       if len(fields) > SHORT_PAGE else "show this page")
    group.add_argument("--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS,
                       help="show all flags")
    parser.whole = lambda: _parser(cls, page, everything=True)
    group.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS,
                       help="take flags from a TOML or JSON file, or from the config.json of a run, as "
                            "epochs = 100; flags on the command line win (default: none)")
    return parser


def _meant(cls: type, unknown: Sequence[str]) -> str:
    """What was perhaps meant by the first word that no flag takes."""
    name = unknown[0].partition("=")[0]
    fields = {_name(field): field for field in dataclasses.fields(cls) if not field.metadata["positional"]}
    if not name.startswith("-"):
        required = next((flag for flag, field in fields.items() if default_of(field) is ...), "")
        return f"; did you mean {required} {name}?" if required else ""
    bare, known = name.strip("-"), [flag.strip("-") for flag in fields]
    words = bare.replace("-", " ")
    said = [flag.strip("-") for flag, field in fields.items() if field.metadata["help"].startswith(words)]
    close = nearest(bare, known, 0.8) or next(iter(said), None) or nearest(bare, known)
    value = "" if name.startswith("--") else "; a value that begins with a dash is given as --flag=-value"
    return f"; did you mean --{close}?" if close else value


def _groups(cls: type) -> dict[str, list[dataclasses.Field]]:
    """Fields by group: groups with required fields first, those of LAST last."""
    groups: dict[str, list[dataclasses.Field]] = {}
    for field in dataclasses.fields(cls):
        groups.setdefault(field.metadata["group"], []).append(field)
    return dict(sorted(groups.items(), key=lambda item: (
        all(field.default is not ... for field in item[1]), (item[0] in LAST, item[0] == LAST[-1]))))


def _usage(cls: type) -> str:
    """The usage line: only what is required."""
    words, annotations = ["python %(prog)s"], typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.metadata["positional"]:
            word = "|".join(field.metadata["choices"] or [field.name.upper()])
            words.append(f"{word} .." if typing.get_origin(annotations[field.name]) is list else word)
        elif field.default is ...:
            words.append(f"{_name(field)} ...")
    return " ".join([*words, "[flags]"])
