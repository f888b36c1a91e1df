"""A run folder: what a training run leaves in it, and how it goes on after a stop."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import processes
from adapter import read_adapter, save_adapter
from board import Board
from config import fits
from data import DefectDataset
from errors import UserError
from files import (
    append_row,
    read_own,
    read_rows,
    remove_leftovers,
    save_image,
    save_json,
    save_rows,
    save_tensors,
    sync,
)
from header import Header
from locks import locked
from pictures import curves

# Flags that may differ when a run goes on: where, how long, how it is shown, but not what it learns.
MAY_CHANGE = {"data", "base", "class_ckpt", "out", "epochs", "max_steps", "preview_every", "save_every",
              "preview_steps", "preview_guidance", "checkpointing", "device", "workers", "restart",
              "validate", "best", "features", "features_weights", "judge", "judge_weights",
              "tensorboard", "plan", "json"}


class RunFolder:
    """What is kept of a run: checkpoint for use, state to resume from, settings, metrics, curves, previews.

    tensors: what is trained, live; average: what the checkpoint for use holds, the same or their average.
    """

    def __init__(self, folder: Path, header: Header, dataset: DefectDataset, tensors: dict[str, Tensor],
                 average: dict[str, Tensor], optimizer: torch.optim.Optimizer,
                 scaler: torch.amp.GradScaler) -> None:
        self.folder, self.header, self.tensors, self.average = folder, header, tensors, average
        self.optimizer, self.scaler = optimizer, scaler
        self.adapter, self.state = folder / "adapter.safetensors", folder / "resume.safetensors"
        self.metrics, self.settings_file = folder / "metrics.jsonl", folder / "config.json"
        self.curves, self.previews = folder / "curves.png", folder / "previews"
        self.best = folder / "best.safetensors"
        self.skipped = 0  # steps whose gradient was not finite
        self.board: Board | None = None  # with --tensorboard, once the run has begun
        # What a run must share with the one it goes on from: its flags, and what these stood for.
        counts = Counter(item.class_id for item in dataset.items)
        self.settings = {**header.config, "images": {c: counts[i] for i, c in enumerate(header.classes)},
                         "base_fingerprint": header.fingerprint,
                         **({"class_checkpoint": header.control.class_ckpt} if header.control else {})}

    @contextlib.contextmanager
    def opened(self, restart: bool) -> Iterator[int]:
        """While the block runs, the folder is this run's; yields the step to go on after.

        Raises UserError where another process has it, or it holds something else.
        """
        with locked(self.folder) if processes.first() else contextlib.nullcontext():
            step = self._begin(restart) if processes.first() else 0
            processes.wait()
            if not processes.first() and self.state.exists():
                step = self._load()
            if processes.add_up(step) != [processes.count() * step]:
                raise UserError(f"{self.folder}: not the same for all processes; give a folder that they "
                                "share")
            yield step

    def _begin(self, restart: bool) -> int:
        """Prepare the folder; the step to go on after."""
        files = [self.state, self.adapter, self.best, self.settings_file, self.curves,
                 self.metrics]  # metrics last
        there = [file for file in files if file.exists()]
        rows = read_rows(self.metrics)
        if not all(fits(row.get("step", 0), int) for row in rows):
            raise UserError(f"{self.metrics}: damaged; delete it, and the run goes on without")
        known = bool(rows) and "config" in rows[0]
        # A state says by itself what it is, but is not read where a restart throws it away.
        if there and not known and (restart or not self.state.exists()):
            raise UserError(f"{there[0]}: not left by a training run of this project; give another --out")
        if restart:
            for file in [*self.previews.glob("epoch_*.png"), *there]:
                file.unlink()
        remove_leftovers(self.folder)
        step = 0
        if self.state.exists():
            step = self._load()
            if self._adapter_step() != step:  # stopped between the state and the checkpoint
                self._save_adapter(step)
            print(f"{self.folder}: going on after step {step}", file=sys.stderr)
        elif self.adapter.exists():
            raise UserError(f"{self.folder}: holds a checkpoint, but no {self.state.name} to go on from; "
                            "give another --out, or --restart to throw that checkpoint away")
        else:
            rows = []
        kept = [row for row in rows[known:] if row.get("step", 0) <= step]
        save_rows(self.metrics, [{"config": self.settings}, *kept])
        save_json(self.settings_file, self.settings)
        if self.header.config["tensorboard"]:
            self.board = Board(self.folder / "tensorboard", kept, self.previews)
        return step

    def _load(self) -> int:
        """Fill weights, averages, optimizer and scaler from the state; returns its step."""
        saved, about = read_own(self.state, "state")
        try:
            self._check(about["settings"])
            return self._fill(saved, about)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{self.state}: does not fit ({error}); --restart starts anew") from error

    def _fill(self, saved: dict[str, Tensor], about: dict[str, Any]) -> int:
        for name, tensor in self._weights().items():
            tensor.copy_(saved.pop(name))
        moments: dict[int, dict[str, Tensor]] = {}
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for name, tensor in saved.items():
            _, index, key = name.split(".")
            weight = weights[int(index)]
            if tensor.shape == weight.shape:  # lying as its weight does, or fused AdamW rounds otherwise
                tensor = torch.empty_like(weight, requires_grad=False).copy_(tensor)
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scaler.load_state_dict(about["scaler"])
        self.skipped = int(about["skipped"])
        return int(about["step"])

    def _check(self, before: dict[str, Any]) -> None:
        """Raises UserError, listing the differences, where the state is of a run with other settings."""
        names = {key: "--" + key.replace("_", "-") for key in self.header.config}
        changed = [f"{names.get(key, key)} was {before.get(key)}, is {value}"
                   for key, value in self.settings.items()
                   if key not in MAY_CHANGE and before.get(key) != value]
        if changed:
            raise UserError(f"{self.folder} holds a run with other settings ({'; '.join(changed)}): "
                            "give those, another --out, or --restart to start anew")

    def _weights(self) -> dict[str, Tensor]:
        """Trained and averaged weights by their names in the state."""
        weights = {f"weight.{name}": tensor for name, tensor in self.tensors.items()}
        if self.average is not self.tensors:
            weights |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        return weights

    def save(self, step: int) -> None:
        """The state to resume from, then the checkpoint for use; each replaces the one before.

        A stop between the two leaves an earlier step's checkpoint; it is written when the run goes on.
        """
        if not processes.first():
            return
        sync(self.metrics)
        state = self._weights()
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
        about = {"step": step, "scaler": self.scaler.state_dict(), "skipped": self.skipped,
                 "settings": self.settings}
        save_tensors(self.state, state, "state", about)
        self._save_adapter(step)

    def _save_adapter(self, step: int) -> None:
        save_adapter(self.adapter, self.average, dataclasses.replace(self.header, step=step))

    def _adapter_step(self) -> int | None:
        """Which step's the checkpoint for use is; None where there is none, or a damaged one."""
        try:
            return read_adapter(self.adapter)[1].step
        except (UserError, OSError):
            return None

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl, and to TensorBoard's files where they are wanted."""
        if not processes.first():
            return
        append_row(self.metrics, row)
        if self.board:
            self.board.log(row)

    def save_validated(self, step: int, epoch: int, scores: dict[str, float | None], rule: str) -> None:
        """Keep a preview's weights in best.safetensors if none before was as good, then log its scores."""
        validated = {row["step"]: row["validation"] for row in read_rows(self.metrics)[1:]
                     if "validation" in row}
        earlier = [rank(other, rule) for at, other in validated.items() if at < step]
        here = rank(scores, rule)
        if here is not None and all(other is None or here > other for other in earlier):
            save_adapter(self.best, self.average, dataclasses.replace(self.header, step=step))
        if step not in validated:  # drawn again after a stop
            self.log({"step": step, "epoch": epoch, "validation": scores})

    def draw_curves(self) -> None:
        """curves.png from metrics.jsonl."""
        save_image(self.curves, curves(read_rows(self.metrics)[1:]))

    def save_preview(self, epoch: int, image: Image.Image) -> None:
        """previews/epoch_NNNN.png."""
        save_image(self._preview(epoch), image)
        if self.board:
            self.board.picture(epoch, image)


    def lacks_preview(self, epoch: int) -> bool:
        """Whether a stop came between the state and the epoch's preview, which is drawn after it."""
        file = self._preview(epoch)
        return not file.exists() or file.stat().st_mtime_ns < self.state.stat().st_mtime_ns

    def _preview(self, epoch: int) -> Path:
        return self.previews / f"epoch_{epoch:04d}.png"


def rank(scores: dict[str, float | None], rule: str) -> tuple[float, ...] | None:
    """What the rule of --best compares, the larger the better; None where that was not measured."""
    if scores[rule] is None:
        return None
    if rule == "dca":
        return scores["dca"], -(scores["fid"] or 0)
    return (-scores[rule],)
