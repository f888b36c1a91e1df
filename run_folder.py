"""A run folder: what a training run leaves in it, and how it goes on after a stop."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapter import Header, save_adapter
from board import Board
from data import DefectDataset
from errors import UserError
from files import append_row, read_rows, save_image, save_json, save_rows, save_tensors
from pictures import curves

# Flags that may differ when a run goes on: where, how long, how it is shown, but not what it learns.
MAY_CHANGE = {"data", "base", "class_ckpt", "out", "epochs", "max_steps", "preview_every", "save_every",
              "preview_steps", "preview_guidance", "checkpointing", "device", "workers", "restart",
              "validate", "best", "features", "features_weights", "judge", "judge_weights",
              "tensorboard"}


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
        self.board: Board | None = None  # with --tensorboard, once the run has begun
        # What a run must share with the one it goes on from: its flags, and what these stood for.
        counts = Counter(item.class_id for item in dataset.items)
        self.settings = {**header.config, "images": {c: counts[i] for i, c in enumerate(header.classes)},
                         "base_fingerprint": header.fingerprint,
                         **({"class_checkpoint": header.control.class_ckpt} if header.control else {})}

    def begin(self, restart: bool) -> int:
        """Prepare the folder; the step to go on after. Raises UserError where it holds something else."""
        files = [self.state, self.adapter, self.best, self.settings_file, self.curves,
                 self.metrics]  # metrics last
        there = [file for file in files if file.exists()]
        rows = read_rows(self.metrics)
        if there and not (rows and "config" in rows[0]):
            raise UserError(f"{there[0]}: not left by a training run of this project; give another --out")
        if restart:
            for file in [*self.previews.glob("epoch_*.png"), *there]:
                file.unlink()
        for leftover in self.folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        step = 0
        if self.state.exists():
            step = self._load()
            print(f"{self.folder}: going on after step {step}", file=sys.stderr)
        elif self.adapter.exists():
            raise UserError(f"{self.folder}: holds a checkpoint, but no {self.state.name} to go on from; "
                            "give another --out, or --restart to throw that checkpoint away")
        else:
            rows = []
        kept = [row for row in rows[1:] if row.get("step", 0) <= step]
        save_rows(self.metrics, [{"config": self.settings}, *kept])
        save_json(self.settings_file, self.settings)
        if self.header.config["tensorboard"]:
            self.board = Board(self.folder / "tensorboard", kept, self.previews)
        return step

    def _load(self) -> int:
        """Fill weights, averages, optimizer and scaler from the state; returns its step."""
        try:
            with safe_open(self.state, framework="pt") as file:
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                about = json.loads(file.metadata()["state"])
            self._check(about["settings"])
            for name, tensor in self._weights().items():
                tensor.copy_(saved.pop(name))
        except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError) as error:
            raise UserError(f"{self.state}: damaged ({error}); --restart starts anew") from error
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scaler.load_state_dict(about["scaler"])
        return about["step"]

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
        """The checkpoint for use and the state to resume from; each replaces the one before."""
        save_adapter(self.adapter, self.average, dataclasses.replace(self.header, step=step))
        state = self._weights()
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
        about = {"step": step, "scaler": self.scaler.state_dict(), "settings": self.settings}
        save_tensors(self.state, state, "state", about)

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl, and to TensorBoard's files where they are wanted."""
        append_row(self.metrics, row)
        if self.board:
            self.board.log(row)

    def save_validated(self, step: int, epoch: int, scores: dict[str, float | None], rule: str) -> None:
        """Log what a preview was worth; keep its weights in best.safetensors if none before was as good."""
        rows = read_rows(self.metrics)[1:]
        earlier = [rank(row["validation"], rule) for row in rows if "validation" in row]
        self.log({"step": step, "epoch": epoch, "validation": scores})
        here = rank(scores, rule)
        if here is not None and all(other is None or here > other for other in earlier):
            save_adapter(self.best, self.average, dataclasses.replace(self.header, step=step))

    def draw_curves(self) -> None:
        """curves.png from metrics.jsonl."""
        save_image(self.curves, curves(read_rows(self.metrics)[1:]))

    def save_preview(self, epoch: int, image: Image.Image) -> None:
        """previews/epoch_NNNN.png."""
        save_image(self.previews / f"epoch_{epoch:04d}.png", image)
        if self.board:
            self.board.picture(epoch, image)


def rank(scores: dict[str, float | None], rule: str) -> tuple[float, ...] | None:
    """What the rule of --best compares, the larger the better; None where that was not measured."""
    if scores[rule] is None:
        return None
    if rule == "dca":
        return scores["dca"], -(scores["fid"] or 0)
    return (-scores[rule],)
