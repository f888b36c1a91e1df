"""Images drawn in batches, shared out among processes."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from runtime import distributed
from sampling.drawings import Sample
from sampling.further_damages import draw_damages
from sampling.generation import Wanted
from sampling.inputs import Input, Inputs
from sampling.sample_folder import SampleFolder
from sampling.selection import Selection


def batches_of(classes: list[str], per_class: int, batch_size: int,
               wanted: list[Wanted]) -> list[list[Wanted]]:
    """All (class, number) pairs cut into batches; of these the batches that hold a wanted pair.

    Rounding depends on the batch size. So a command that was stopped within a batch draws the whole batch
    again, and ends with the same files as one that was not stopped.
    """
    pairs = [(damage, number) for damage in classes for number in range(per_class)]
    batches = [pairs[i:i + batch_size] for i in range(0, len(pairs), batch_size)]
    return [batch for batch in batches if not set(wanted).isdisjoint(batch)]


def draw_all(batches: list[list[Wanted]], inputs: Inputs, draw: Callable[[list[Input]], list[Sample]],
             folder: SampleFolder, wanted: set[Wanted], selection: Selection | None = None) -> None:
    """Each process draws every count-th batch and writes its files; the first writes the rows, in order.

    draw: inputs -> samples. With a selection, which draws images one by one, each comes with the drawings
    thrown away before it.
    """
    def draw_batch(pairs: list[Wanted]) -> list[Sample]:
        return draw_damages(inputs, pairs, draw)

    with tqdm(total=len(wanted), unit="image", disable=None if distributed.first() else True) as bar:
        for start in range(0, len(batches), distributed.count()):
            _draw_turn(batches[start:start + distributed.count()], draw_batch, folder, wanted, bar, selection)
    distributed.wait()  # for the others' images: the first describes them all, and lets go of the folder


def _draw_turn(turn: list[list[Wanted]], draw_batch: Callable[[list[Wanted]], list[Sample]],
               folder: SampleFolder, wanted: set[Wanted], bar: tqdm, selection: Selection | None) -> None:
    """One batch a process; its images are let go before others are drawn."""
    own = turn[distributed.rank()] if distributed.rank() < len(turn) else []
    if selection:
        drawn = [selection.draw(draw_batch, folder, pair) for pair in own]
    else:
        drawn = [[one] for one in draw_batch([folder.drawn_as(pair) for pair in own])] if own else []
    entries = [entry for pair, samples in zip(own, drawn, strict=True) if pair in wanted
               for entry in folder.entries(samples, *pair)]
    for entry in entries:
        if entry.thrown_away:
            entry.write()
    for found in distributed.gather([entry._replace(image=None, mask=None) for entry in entries]):
        for entry in found:
            folder.note(entry)
    distributed.wait()  # for the rows
    for entry in entries:
        if not entry.thrown_away:
            entry.write()
    bar.update(sum(pair in wanted for batch in turn for pair in batch))
