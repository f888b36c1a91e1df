"""Training small networks: batches, augmentation and the loop. For the classifier and the segmenter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

BATCH = 32
PEAK = 4e-3  # of the learning rate


def turned(images: list[Tensor], rng: torch.Generator) -> list[Tensor]:
    """The same random flip and quarter turn for all of (B, C, S, S), such as images and their masks."""
    flip = bool(torch.rand((), generator=rng) < 0.5)
    turns = int(torch.randint(4, (), generator=rng))
    return [(image.flip(3) if flip else image).rot90(turns, (2, 3)) for image in images]


def relit(image: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """(B, 3, S, S) times a gain of 1, give or take `strength`, for each image, plus a little noise."""
    gain = 1 + strength * torch.randn(len(image), 1, 1, 1, generator=rng).to(image.device)
    return image * gain + 0.02 * torch.randn(image.shape, generator=rng).to(image.device)


def steps_of(pools: tuple[int, ...], epochs: int) -> int:
    """The number of batches that draw_batches yields."""
    return epochs * (pools[0] // min(BATCH, pools[0]))


def draw_batches(pools: tuple[int, ...], epochs: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Indices of each batch of BATCH images: an equal part from each of several pools laid end to end.

    pools: their sizes; `epochs` counts passes over the first. A pool is shuffled again when it is used up; a
    rest too small for a batch is left out.
    """
    parts = [min(BATCH // len(pools), size) for size in pools]
    firsts = [sum(pools[:i]) for i in range(len(pools))]
    orders: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(pools)
    for step in range(steps_of(pools, epochs)):
        chosen = []
        for i, (size, part, first) in enumerate(zip(pools, parts, firsts, strict=True)):
            place = step % (size // part)
            if place == 0:
                orders[i] = first + torch.randperm(size, generator=rng)
            chosen.append(orders[i][place * part:(place + 1) * part])
        yield torch.cat(chosen)


def fit(peaks: dict[nn.Module, float], loss: Callable[[Tensor], Tensor], batches: Iterable[Tensor],
        steps: int, decay: float = 0.01) -> None:
    """Minimise loss(indices of a batch) by AdamW, over `steps` batches, then set the parts to eval mode.

    peaks: the parts to train, each with the peak of its learning rate, which follows one cycle.
    """
    optimizer = torch.optim.AdamW([{"params": part.parameters()} for part in peaks], weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(peaks.values()), steps)
    for chosen in tqdm(batches, total=steps, leave=False, disable=None):
        optimizer.zero_grad()
        loss(chosen).backward()
        optimizer.step()
        schedule.step()
    for part in peaks:
        part.eval()
