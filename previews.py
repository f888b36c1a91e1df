"""What the first process shows of a run beside its state: previews, what these are worth, curves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from PIL import Image
from torch import Tensor

import processes
from batches import Plan
from recipe import RunConfig
from run_folder import RunFolder


class Preview(NamedTuple):
    """What the weights draw from fixed seeds: a picture to look at, images (N,3,R,R) in [-1,1], classes."""

    picture: Image.Image
    image: Tensor
    class_id: list[int]


Validate = Callable[[Preview], dict[str, float | None]]  # scores of a preview, null where not measured


class Shows:
    """Draws them, always from the weights that the checkpoint for use holds."""

    def __init__(self, config: RunConfig, plan: Plan, last: int, run: RunFolder,
                 preview: Callable[[], Preview], validate: Validate | None) -> None:
        self.config, self.plan, self.last, self.run = config, plan, last, run
        self.preview, self.validate = preview, validate

    def after(self, step: int, stopping: bool) -> None:
        """Draw what is due after a step, once its state is saved."""
        if self._due(step):
            self._draw(step)
        if processes.first() and (stopping or step + 1 == self.last or self._due(step)):
            self.run.draw_curves()

    def catch_up(self, step: int) -> None:
        """The same for the last step before a stop, as far as the stop came before it was done."""
        if self._due(step) and self.run.lacks_preview(step // self.plan.steps_per_epoch + 1):
            self._draw(step)
        if processes.first() and (step + 1 == self.last or self._due(step)):
            self.run.draw_curves()

    def _due(self, step: int) -> bool:
        every = self.config.preview_every
        return processes.first() and every > 0 and (step + 1 == self.last or self.plan.due(step, every))

    def _draw(self, step: int) -> None:
        epoch, run = step // self.plan.steps_per_epoch, self.run
        with swapped(run.tensors, run.average):
            shown = self.preview()
        if self.validate:
            run.save_validated(step + 1, epoch, self.validate(shown), self.config.best)
        run.save_preview(epoch + 1, shown.picture)  # last: where it is, the rest was done


@contextlib.contextmanager
def swapped(tensors: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Run a block with the averaged weights in the model's place, and put the trained ones back."""
    trained = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(average[name])
    try:
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(trained[name])
