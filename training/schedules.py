"""When a run is saved, and when it draws a preview. Both from the weights that the checkpoint holds."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

from torch import Tensor

from runtime import distributed
from runtime.errors import NotFinite, UserError, message, out_of_memory
from training.batches import EpochOrder
from training.config import RunConfig
from training.previews import Preview
from training.run_folder import RunFolder, Scores

SKIPS = 20  # in a row: fp16's scaler needs 16 to halve its scale from 65536 down to 1
DIVERGED = ("step {step}: the loss is {loss:g}, the gradient norm {norm:g}; {skipped} steps in a row were "
            "skipped. Lower --lr, use --clip 1 or --precision fp32; the state of step {saved} is kept")


class SaveSchedule:
    """Saves when that is due; where the loss is not finite, only after the next step with a finite one."""

    def __init__(self, config: RunConfig, order: EpochOrder, steps: range, run: RunFolder) -> None:
        self.config, self.order, self.steps, self.run = config, order, steps, run
        self.saved, self.due, self.skipped = steps.start, False, 0  # skipped: in a row

    def count(self, loss: float, norm: float) -> None:
        """Count a step that was skipped because its loss or gradient norm was not finite."""
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        self.skipped, self.run.skipped = (self.skipped + 1) * skipped, self.run.skipped + skipped

    def after(self, step: int, loss: float, norm: float, stopping: bool) -> None:
        """Save the state if that is due. Raises UserError where the training has diverged."""
        finished = step + 1 == self.steps.stop
        self.due = self.due or finished or stopping or self.order.due(step, self.config.save_every)
        if self.skipped == SKIPS or (finished and not math.isfinite(loss)):
            raise UserError(DIVERGED.format(step=step + 1, loss=loss, norm=norm, skipped=self.skipped,
                                            saved=self.saved))
        if self.due and math.isfinite(loss):  # otherwise the weights may be ruined
            self.run.save(step + 1)
            self.saved, self.due = step + 1, False
            if distributed.first() and not sys.stderr.isatty():  # a log file has no progress bar
                skips = f", {self.run.skipped} steps skipped" if self.run.skipped else ""
                print(f"step {self.saved} of {self.steps.stop}: loss {loss:.4f}{skips}", file=sys.stderr,
                      flush=True)


class PreviewSchedule:
    """Draws and scores previews on rank 0, each after the save of its step."""

    def __init__(self, config: RunConfig, order: EpochOrder, last: int, run: RunFolder,
                 draw: Callable[[], Preview], validate: Callable[[Preview], Scores] | None) -> None:
        self.config, self.order, self.last, self.run = config, order, last, run
        self.draw, self.validate = draw, validate

    def after(self, step: int, stopping: bool) -> None:
        """Draw what is due after a step."""
        if self._due(step):
            self._draw(step)
        self._draw_curves(step, stopping)

    def catch_up(self, step: int) -> None:
        """Draw what was due after the last step before a stop, if the stop came before it was drawn."""
        if self._due(step) and self.run.lacks_preview(step // self.order.steps_per_epoch + 1):
            self._draw(step)
        self._draw_curves(step, stopping=False)

    def _due(self, step: int) -> bool:
        every = self.config.preview_every
        return distributed.first() and every > 0 and (step + 1 == self.last or self.order.due(step, every))

    def _draw(self, step: int) -> None:
        epoch, run = step // self.order.steps_per_epoch, self.run
        try:
            with swapped(run.trainable.tensors, run.average):
                preview = self.draw()
            scores = self.validate(preview) if self.validate else None
        except (RuntimeError, NotFinite) as error:  # no reason to end the training
            if not isinstance(error, NotFinite) and not out_of_memory(error):
                raise
            print(f"step {step + 1}: no preview: {message(error)}", file=sys.stderr)
            return
        if scores is not None:
            run.save_validated(step + 1, epoch, scores)
        run.save_preview(epoch + 1, preview.picture)  # last: the file marks the preview as complete

    def _draw_curves(self, step: int, stopping: bool) -> None:
        if distributed.first() and (stopping or step + 1 == self.last or self._due(step)):
            self.run.draw_curves()


@contextlib.contextmanager
def swapped(tensors: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Run a block with the averaged weights in the model, then restore the trained ones."""
    trained = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(average[name])
    try:
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(trained[name])
