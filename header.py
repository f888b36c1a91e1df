"""What a checkpoint says of itself, as JSON in its safetensors header; checked, for it may be anyone's."""

from __future__ import annotations

import os
import typing
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

from config import fits, recorded
from errors import UserError

T = TypeVar("T")
KINDS = ("class", "inpaint", "control")
MOST = {"resolution": 4096, "tokens_per_class": 77, "rank": 1280}  # as the flags; what memory depends on


@dataclass(frozen=True)
class ControlHeader:
    """What a checkpoint with a ControlNet says of that. All of the class checkpoint is in the same file."""

    class_ckpt: str  # SHA-256 of that checkpoint's file
    init: str | None  # the published ControlNet that training began with; None: a copy of the UNet's encoder
    fingerprint: str  # which weights the frozen encoder has; "" where it was trained too
    rank: int  # of the low-rank updates; 0: all was trained
    channels: int  # of the condition
    class_channels: bool  # whether each class has its own channel; else all are the mask
    mask_dropout: float  # 0: the empty mask says "no damage", so there is no guidance over masks


@dataclass(frozen=True)
class Header:
    """What every checkpoint says."""

    kind: str  # which strategy made it: one of KINDS
    classes: list[str]  # class names by id
    base: str  # the base model as it was given to --base
    fingerprint: str  # which weights that was, however they were stored
    resolution: int
    tokens_per_class: int
    class_dropout: float  # 0: the table's null class is untrained
    rank: int
    alpha: float
    step: int
    config: dict[str, Any]  # the whole command line of the run
    control: ControlHeader | None = None
    prompts: list[str] = field(default_factory=list)  # of the classes; none: a table of tokens instead

    @property
    def has_null(self) -> bool:
        """Whether there is a null condition to guide from: the text encoder's "", or one that was trained."""
        return bool(self.prompts) or self.class_dropout > 0


def read_header(path: Path, fields: dict[str, Any]) -> Header:
    """The header that the file `path` holds as `fields`. Raises UserError where no training wrote it."""
    try:
        if fields["kind"] not in KINDS:
            raise UserError(f"{path}: a checkpoint of kind {fields['kind']!r}; known here: "
                            f"{', '.join(KINDS)}")
        control = fields.get("control")
        header = Header(**fields | {"control": None if control is None else ControlHeader(**control)})
        _check(header)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: its header cannot be read ({error}); is it of another version?") from error
    return header


def trained_with(header: Header, flags: type[T], **changes: Any) -> T:
    """The values of `flags`, a command line's dataclass, in the checkpoint's training, but for `changes`.

    Raises UserError for values that no command line has.
    """
    try:
        return recorded(flags, header.config | changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"the checkpoint's record of its command line cannot be read ({error}); is it of "
                        "another version?") from error


def _check(header: Header) -> None:
    """Raises ValueError for what is of another type, takes endless memory, or would leave the folder."""
    for part in (header, header.control) if header.control else (header,):
        for name, kind in typing.get_type_hints(type(part)).items():
            if not fits(getattr(part, name), kind):
                raise ValueError(f"{name} {getattr(part, name)!r}")
    wrong = [f"{name} {getattr(header, name)}" for name, most in MOST.items()
             if not 1 <= getattr(header, name) <= most]
    wrong += [f"class {name!r}" for name in header.classes if not _is_folder(name)]
    count = len(header.classes)
    if count == 0 or len(set(header.classes)) < count or len(header.prompts) not in (0, count):
        wrong.append(f"classes {header.classes}")
    if not fits(header.config.get("data"), list[str]):
        wrong.append("data")
    if control := header.control:
        channels = count if control.class_channels else 3
        if control.channels != channels or not 0 <= control.rank <= MOST["rank"]:
            wrong.append(f"channels {control.channels}, rank {control.rank}")
    if (header.kind == "control") != (header.control is not None):
        wrong.append("control")
    if wrong:
        raise ValueError(wrong[0])


def _is_folder(name: str) -> bool:
    """Whether a class's name, damage or product/damage, leads down from where images are written."""
    place = PurePath(name)
    return (bool(place.parts) and not place.anchor and ".." not in place.parts and place.as_posix() == name
            and b"\0" not in os.fsencode(name))
