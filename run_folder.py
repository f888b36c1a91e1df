"""A run folder: what a training run leaves in it, and how it goes on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errors import UserError
from files import save_image, save_json, save_tensors, write_atomic
from pictures import curves

# Flags that may differ when a run goes on: they change where, how long and how it is shown, not what it learns.
MAY_CHANGE = {"data", "out", "epochs", "max_steps", "preview_every", "save_every", "preview_steps",
              "preview_guidance", "device", "workers", "restart"}


class RunFolder:
    """What is kept of a run: checkpoint for use, state to resume from, settings, metrics, curves."""

    def __init__(self, folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor],
                 average: dict[str, Tensor], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 save_adapter: Callable[[Path, dict[str, Tensor], int], None]) -> None:
        self.folder, self.settings, self.tensors, self.average = folder, settings, tensors, average
        self.optimizer, self.scaler, self.save_adapter = optimizer, scaler, save_adapter
        self.metrics = folder / "metrics.jsonl"

    def begin(self) -> int:
        """Prepare the folder; the step to go on with. Raises UserError where another run lies there."""
        state, settings = self.folder / "resume.safetensors", self.settings
        if not state.exists() or settings["restart"]:
            self.folder.mkdir(parents=True, exist_ok=True)
            state.unlink(missing_ok=True)
            save_json(self.folder / "config.json", settings)
            write_atomic(self.metrics, lambda path: path.write_text(json.dumps({"config": settings}) + "\n"))
            return 0
        before = json.loads((self.folder / "config.json").read_text())
        changed = [f"--{k.replace('_', '-')} was {before.get(k)}, is {v}" for k, v in settings.items()
                   if k not in MAY_CHANGE and before.get(k) != v]
        if changed:
            raise UserError(f"{self.folder} holds a run with other settings ({'; '.join(changed)}): "
                            "give those, another --out, or --restart to start anew")
        step = self._load(state)
        rows = self.metrics.read_text().splitlines()
        kept = [row for row in rows if json.loads(row).get("step", 0) <= step]
        write_atomic(self.metrics, lambda path: path.write_text("\n".join(kept) + "\n"))
        print(f"{self.folder}: going on after step {step}")
        return step

    def _load(self, path: Path) -> int:
        try:
            with safe_open(path, framework="pt") as file:
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                metadata = json.loads(file.metadata()["state"])
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}); --restart starts anew") from error
        for prefix, own in (("weight.", self.tensors), ("average.", self.average)):
            for name, tensor in own.items():
                tensor.copy_(saved[prefix + name])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scaler.load_state_dict(metadata["scaler"])
        return metadata["step"]

    def save(self, step: int) -> None:
        """The checkpoint for use, the state to resume from and the curves; each replaces the one before."""
        self.save_adapter(self.folder / "adapter.safetensors", self.average, step)
        state = {f"weight.{k}": v for k, v in self.tensors.items()}
        state |= {f"average.{k}": v.clone() for k, v in self.average.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        metadata = {"step": step, "scaler": self.scaler.state_dict()}
        save_tensors(self.folder / "resume.safetensors", state, {"state": json.dumps(metadata)})
        rows = [json.loads(line) for line in self.metrics.read_text().splitlines()]
        save_image(self.folder / "curves.png", curves([row for row in rows if "step" in row]))

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
