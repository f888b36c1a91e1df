"""Whether values from JSON or TOML are such as their flags take."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def out_of_bounds(value: float, metadata: Any) -> str:
    """Which bound a number violates; "" if none."""
    low, above, high = metadata["minimum"], metadata["above"], metadata["maximum"]
    if low is not None and value < low:
        return f"too small: at least {low}"
    if above is not None and value <= above:
        return f"too small: more than {above}"
    return f"too large: at most {high}" if high is not None and value > high else ""


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON has the type of an annotation; numbers have to be finite."""
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(fits(value, part) for part in parts)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if kind in (int, float):
        return type(value) in (int, kind) and abs(value) < 2**63  # False for infinity and nan
    return value is None if kind is type(None) else isinstance(value, typing.get_origin(kind) or kind)


def accepted(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that belong to fields of `cls`, a dataclass of flags.

    Raises ValueError naming the first value that its flag would refuse.
    """
    kinds, given = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            value = given[field.name] = values[field.name]
            choices, items = field.metadata["choices"], value if isinstance(value, list) else [value]
            if (not fits(value, kinds[field.name]) or choices and any(item not in choices for item in items)
                    or any(out_of_bounds(item, field.metadata) for item in items
                           if type(item) in (int, float))):
                raise ValueError(f"{field.name} {value!r}")
    return given


def recorded(cls: type[T], values: dict[str, Any]) -> T:
    """`cls` from a recorded command line; names that are no field are ignored. Raises as `accepted` does."""
    return cls(**accepted(cls, values))
