"""The file of --config: TOML, JSON, or the config.json that a training run leaves."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.flag_values import accepted
from runtime.suggestions import did_you_mean

OF_A_RUN = "data_digest"  # in every config.json of a run
# What a run notes beside its flags; and what is not to be repeated: a run is not deleted by its own record.
NOTED = ("images", "data_digest", "base_fingerprint", "class_checkpoint", "restart", "plan", "json")


def flags_in(name: str, cls: type) -> dict[str, Any]:
    """The values of the fields of `cls` in a TOML or JSON file, or in the config.json of a run's folder.

    Raises UserError where it cannot be read, for an unknown name, and for a value that the flag refuses.
    """
    kinds, values = typing.get_type_hints(cls), {}
    fields = {field.name.rstrip("_"): field.name for field in dataclasses.fields(cls)
              if not field.metadata["positional"]}
    for key, value in _table(name).items():
        field = fields.get(key.replace("-", "_"))
        if field is None:
            raise UserError(f"--config {name}: {key} is no flag of this command"
                            + (did_you_mean(key, fields) or "; is the file for another one?"))
        several = typing.get_origin(kinds[field]) is list and not isinstance(value, list)
        values[field] = [value] if several else value
    try:
        return accepted(cls, values)
    except ValueError as error:
        raise UserError(f"--config {name}: {error} is not what the flag takes (see --help-all)") from None


def _table(name: str) -> dict[str, Any]:
    """Names and values in a file, without what a run notes beside its flags."""
    file = Path(name, "config.json") if Path(name).is_dir() else Path(name)
    example = "write flags as TOML in a .toml file, one a line, such as epochs = 100, or as one JSON object"
    try:
        text = file.read_text(encoding="utf-8")
        values = _toml(text) if file.suffix.lower() == ".toml" else json.loads(text)
    except FileNotFoundError:
        raise UserError(f"--config {name}: {file} is not there; give a TOML or JSON file, or the folder of a "
                        "run") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {name}: cannot be read ({error}); {example}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {name}: not a table of flags; {example}")
    known = NOTED if OF_A_RUN in values else ()
    return {key: value for key, value in values.items() if key not in known}


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        raise UserError("--config: reading TOML needs Python 3.11 or later; write the flags as JSON")
    import tomllib
    return tomllib.loads(text)
