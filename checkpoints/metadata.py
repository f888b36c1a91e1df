"""A checkpoint's description: JSON in its safetensors header, validated because the file may be untrusted."""

from __future__ import annotations

import os
import typing
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

from checkpoints.presets import DRAWING, MOST_GUIDANCE
from checkpoints.strategies import STRATEGIES, Strategy
from runtime.errors import UserError
from runtime.flag_values import fits, recorded

T = TypeVar("T")
MOST = {"resolution": 4096, "tokens_per_class": 77, "rank": 1280}  # the flags' limits, which bound memory


@dataclass(frozen=True)
class ControlHeader:
    """The part about a ControlNet. The same file also holds the whole class checkpoint."""

    class_ckpt: str  # SHA-256 of that checkpoint's file
    init: str | None  # the published ControlNet that training began with; None: a copy of the UNet's encoder
    fingerprint: str  # of the frozen encoder's weights; "" where the encoder was trained
    rank: int  # of the low-rank updates; 0: all weights were trained
    channels: int  # of the condition
    class_channels: bool  # each class has its own channel; else every channel is the mask
    mask_dropout: float  # 0: the empty mask means "no damage", so guidance by the mask is not possible


@dataclass(frozen=True)
class Header:
    """The header of every checkpoint."""

    kind: str  # the strategy, a key of STRATEGIES
    classes: list[str]  # class names by id
    base: str  # --base
    fingerprint: str  # of the base's weights, in whichever file layout and precision
    resolution: int
    tokens_per_class: int
    class_dropout: float  # 0: the null class is untrained
    rank: int
    alpha: float
    step: int
    config: dict[str, Any]  # all flags of the run
    control: ControlHeader | None = None
    prompts: list[str] = field(default_factory=list)  # one a class with --context prompt, else none
    drawing: dict[str, float] = field(default_factory=dict)  # flags of sample.py that suit it best
    shape: list[int] = field(default_factory=list)  # [h,w], the middle of its square that is kept; []: all

    @property
    def strategy(self) -> Strategy:
        """The strategy that trained it."""
        return STRATEGIES[self.kind]

    @property
    def one_token(self) -> bool:
        """Whether its context is one token, not several a class nor a prompt."""
        return self.tokens_per_class == 1 and not self.prompts

    @property
    def has_null(self) -> bool:
        """Whether guidance has a null condition: the empty prompt, or a trained null class."""
        return bool(self.prompts) or self.class_dropout > 0


def read_header(path: Path, fields: dict[str, Any]) -> Header:
    """The header of the file `path`, given as `fields`. Raises UserError where no training wrote it."""
    try:
        if fields["kind"] not in STRATEGIES:
            raise UserError(f"{path}: a checkpoint of kind {fields['kind']!r}; known here: "
                            f"{', '.join(STRATEGIES)}")
        control = fields.get("control")
        header = Header(**fields | {"control": None if control is None else ControlHeader(**control)})
        _check(header)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: its header cannot be read ({error}); is it of another version?") from error
    return header


def trained_with(header: Header, flags: type[T], **changes: Any) -> T:
    """An instance of `flags`, a dataclass of flags, as the checkpoint was trained, except for `changes`.

    Raises UserError for values that the command line would refuse.
    """
    try:
        return recorded(flags, header.config | changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"the checkpoint's record of its command line cannot be read ({error}); is it of "
                        "another version?") from error


def _check(header: Header) -> None:
    """Raises ValueError for wrong types, excessive sizes, and class names that leave the output folder."""
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
    if header.strategy.controls != (header.control is not None):
        wrong.append("control")
    if header.shape and not (len(header.shape) == 2 and max(header.shape) == header.resolution
                             and min(header.shape) > 0):
        wrong.append(f"shape {header.shape}")
    wrong += [f"drawing {name} {value!r}" for name, value in header.drawing.items()
              if name not in DRAWING or not fits(value, float) or not 0 <= value <= MOST_GUIDANCE]
    if wrong:
        raise ValueError(wrong[0])


def _is_folder(name: str) -> bool:
    """Whether a class's name, damage or product/damage, is a relative path below the output folder."""
    place = PurePath(name)
    return (bool(place.parts) and not place.anchor and ".." not in place.parts and place.as_posix() == name
            and b"\0" not in os.fsencode(name))
