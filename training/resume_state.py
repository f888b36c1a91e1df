"""resume.safetensors: everything that a run needs to go on after a step as if it had not been stopped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.metadata import Header
from runtime.cli import default_of
from runtime.errors import UserError, out_of_memory
from runtime.tensor_files import read_own, save_tensors
from training.config import RunConfig

# Flags that may differ when a run is resumed: where, how long, what is shown, but not what is learnt.
MAY_CHANGE = {"data", "base", "class_ckpt", "out", "preset", "epochs", "max_steps", "preview_every",
              "save_every", "preview_steps", "preview_guidance", "checkpointing", "compile", "device",
              "workers", "restart", "validate", "best", "features", "features_weights", "judge",
              "judge_weights", "tensorboard", "plan", "json"}


@dataclass(frozen=True)
class Trainable:
    """What a run trains.

    net: the network in training mode; tensors: all that the checkpoint holds, live, by name; optimizer: over
    those of them that are trained; header: what the checkpoint says of itself.
    """

    net: nn.Module
    tensors: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    header: Header


class ResumeState:
    """Weights, their averages, optimizer and scaler, written to and filled from `file`."""

    def __init__(self, file: Path, trainable: Trainable, average: dict[str, Tensor],
                 scaler: torch.amp.GradScaler) -> None:
        self.file, self.optimizer, self.scaler = file, trainable.optimizer, scaler
        self.weights = {f"weight.{name}": tensor for name, tensor in trainable.tensors.items()}
        if average is not trainable.tensors:
            self.weights |= {f"average.{name}": tensor for name, tensor in average.items()}

    def save(self, step: int, skipped: int, settings: dict[str, Any]) -> None:
        """Replace the file. skipped: how many steps were; settings: what a resumed run must share."""
        state = dict(self.weights)
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
        save_tensors(self.file, state, "state", {"step": step, "scaler": self.scaler.state_dict(),
                                                 "skipped": skipped, "settings": settings})

    def load(self, config: RunConfig, settings: dict[str, Any]) -> tuple[int, int]:
        """Fill all from the file; returns its step and how many steps were skipped.

        Raises UserError where it is damaged or of a run with other settings.
        """
        saved, about = read_own(self.file, "state")
        try:
            check_settings(self.file.parent, config, settings, about["settings"])
            self._fill(saved)
            self.scaler.load_state_dict(about["scaler"])
            return int(about["step"]), int(about["skipped"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            if out_of_memory(error):
                raise
            raise UserError(f"{self.file}: does not fit ({error}); --restart starts over") from error

    def _fill(self, saved: dict[str, Tensor]) -> None:
        for name, tensor in self.weights.items():
            tensor.copy_(saved.pop(name))
        moments: dict[int, dict[str, Tensor]] = {}
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for name, tensor in saved.items():
            _, index, key = name.split(".")
            weight = weights[int(index)]
            # In its weight's memory format, because fused AdamW rounds otherwise; and a copy in any case,
            # because Windows replaces no file of which a tensor is still mapped.
            like = weight if tensor.shape == weight.shape else tensor
            copied = torch.empty_like(like, requires_grad=False).copy_(tensor)
            moments.setdefault(int(index), {})[key] = copied
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def check_settings(folder: Path, config: RunConfig, settings: dict[str, Any],
                   before: dict[str, Any]) -> None:
    """Raises UserError, listing the differences, where a run's settings are not those of `before`.

    A flag that an older state lacks had its default, or, where that is None, the value filled in now.
    """
    defaults = {field.name: default_of(field) for field in dataclasses.fields(config)}
    different = []
    for key, value in settings.items():
        earlier = before[key] if key in before else defaults.get(key)
        if key in MAY_CHANGE or earlier == value or (key not in before and earlier is None):
            continue
        if key == "data_digest":
            there, here = (" ".join(named["data"]) for named in (before, settings))
            different.append(f"--data was {there}, is {here}, with other images or masks")
        else:
            name = "--" + key.replace("_", "-") if key in defaults else key
            different.append(f"{name} was {earlier}, is {value}")
    if different:
        raise UserError(f"{folder} holds a run with other settings ({'; '.join(different)}): give those, "
                        "another --out, or --restart to start over")
