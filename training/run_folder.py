"""A run folder: what a training run leaves in it, and how a stopped run resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from checkpoints.adapter import read_adapter, save_adapter
from runtime import distributed
from runtime.errors import UserError
from runtime.files import append_row, read_rows, save_image, save_json, save_rows, sync
from runtime.flag_values import fits
from runtime.locks import locked
from runtime.pictures import curves
from runtime.trusted_paths import remember
from training.config import RunConfig
from training.latents import Latents
from training.resume_state import ResumeState, Trainable
from training.tensorboard_log import Board

Scores = dict[str, float | None]  # of a preview; None where not measured


class RunFolder:
    """The files of a run: checkpoint, state to resume from, settings, metrics, curves, previews.

    average: the tensors that the checkpoint is saved from: the trained ones, or with --ema their average.
    """

    def __init__(self, config: RunConfig, trainable: Trainable, latents: Latents) -> None:
        self.config, self.trainable, header = config, trainable, trainable.header
        self.average = trainable.tensors
        if config.ema:
            self.average = {name: tensor.clone() for name, tensor in trainable.tensors.items()}
        self.scaler = torch.amp.GradScaler(enabled=config.precision == "fp16")
        self.folder = folder = Path(config.out)
        self.adapter, self.state_file = folder / "adapter.safetensors", folder / "resume.safetensors"
        self.state = ResumeState(self.state_file, trainable, self.average, self.scaler)
        self.metrics, self.settings_file = folder / "metrics.jsonl", folder / "config.json"
        self.curves, self.previews = folder / "curves.png", folder / "previews"
        self.best = folder / "best.safetensors"
        self.skipped = 0  # steps whose loss or gradient was not finite
        self.board: Board | None = None  # with --tensorboard, once the run has begun
        # A resumed run must share the flags, and what they stood for.
        counts = Counter(item.class_id for item in latents.items)
        self.settings = {**header.config, "images": {c: counts[i] for i, c in enumerate(header.classes)},
                         "data_digest": latents.digest(masks=config.load_masks),
                         "base_fingerprint": header.fingerprint,
                         **({"class_checkpoint": header.control.class_ckpt} if header.control else {})}

    @contextlib.contextmanager
    def opened(self, restart: bool) -> Iterator[int]:
        """While the block runs, the folder is locked for this run; yields the step to go on after.

        Raises UserError where another process writes to it, or it holds something else.
        """
        with locked(self.folder) if distributed.first() else contextlib.nullcontext():
            step = self._begin(restart) if distributed.first() else 0
            distributed.wait()
            if not distributed.first() and self.state_file.exists():
                step = self._load()
            if distributed.add_up(step) != [distributed.count() * step]:
                raise UserError(f"{self.folder}: not the same for all processes; give a folder that "
                                "they share")
            yield step

    def _begin(self, restart: bool) -> int:
        """Prepare the folder; returns the step to go on after."""
        files = [self.state_file, self.adapter, self.best, self.settings_file, self.curves,
                 self.metrics]  # metrics last
        there = [file for file in files if file.exists()]
        rows = read_rows(self.metrics)
        if not all(fits(row.get("step", 0), int) for row in rows):
            raise UserError(f"{self.metrics}: damaged; delete it, and the run goes on without it")
        known = bool(rows) and "config" in rows[0]
        # A state identifies itself when it is read, but a restart does not read it.
        if there and not known and (restart or not self.state_file.exists()):
            raise UserError(f"{there[0]}: not left by a training run of this project; give another --out")
        if restart:
            for file in [*self.previews.glob("epoch_*.png"), *there]:
                file.unlink()
        remember(*self.config.data, self.config.base, getattr(self.config, "init", None))
        step = 0
        if self.state_file.exists():
            step = self._load()
            if self._adapter_step() != step:  # stopped between the state and the checkpoint
                self._save_adapter(step)
            print(f"{self.folder}: going on after step {step}", file=sys.stderr)
        elif self.adapter.exists():
            raise UserError(f"{self.folder}: holds a checkpoint, but no {self.state_file.name} to go on "
                            "from; give another --out, or --restart to delete that checkpoint")
        else:
            rows = []
        kept = [row for row in rows[known:] if row.get("step", 0) <= step]
        save_rows(self.metrics, [{"config": self.settings}, *kept])
        save_json(self.settings_file, self.settings)
        if self.config.tensorboard:
            self.board = Board(self.folder / "tensorboard", kept, self.previews)
        return step

    def _load(self) -> int:
        """Fill weights, averages, optimizer and scaler from the state; returns its step."""
        step, self.skipped = self.state.load(self.config, self.settings)
        return step

    def save(self, step: int) -> None:
        """Write the state to resume from, then the checkpoint; each replaces the one before.

        A stop between the two leaves the checkpoint of an earlier step; resuming the run writes it again.
        """
        if not distributed.first():
            return
        sync(self.metrics)
        self.state.save(step, self.skipped, self.settings)
        self._save_adapter(step)

    def _save_adapter(self, step: int) -> None:
        save_adapter(self.adapter, self.average, dataclasses.replace(self.trainable.header, step=step))

    def _adapter_step(self) -> int | None:
        """The step of the checkpoint; None where it is absent or damaged."""
        try:
            return read_adapter(self.adapter)[1].step
        except (UserError, OSError):
            return None

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl, and with --tensorboard to its files."""
        if not distributed.first():
            return
        append_row(self.metrics, row)
        if self.board:
            self.board.log(row)

    def save_validated(self, step: int, epoch: int, scores: Scores) -> None:
        """Keep a preview's weights in best.safetensors if they are the best so far, then log its scores."""
        rule = self.config.best
        validated = {row["step"]: row["validation"] for row in read_rows(self.metrics)[1:]
                     if "validation" in row}
        earlier = [rank(other, rule) for at, other in validated.items() if at < step]
        here = rank(scores, rule)
        if here is not None and all(other is None or here > other for other in earlier):
            save_adapter(self.best, self.average, dataclasses.replace(self.trainable.header, step=step))
        if step not in validated:  # it is there if the run was stopped before its preview was written
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
        """Whether the run was stopped between saving the state and drawing the epoch's preview."""
        file = self._preview(epoch)
        return not file.exists() or file.stat().st_mtime_ns < self.state_file.stat().st_mtime_ns

    def _preview(self, epoch: int) -> Path:
        return self.previews / f"epoch_{epoch:04d}.png"


def rank(scores: Scores, rule: str) -> tuple[float, ...] | None:
    """What the rule of --best compares, larger is better; None where that was not measured."""
    score = scores.get(rule)
    if score is None:
        return None
    if rule != "dca":
        return (-score,)
    fid = scores.get("fid")
    return score, -math.inf if fid is None else -fid  # with equal DCA an unmeasured FID does not win
