"""The judge: a classifier trained on real images that says which damage type an image shows.

It never judges a real image that it was trained on: folds take turns. Image i of any other set is judged by
judge i modulo their number, so that its accuracy can be compared with theirs on held-out real images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm, trange

from errors import UserError
from features import Squares, read_squares
from folders import Photo
from networks import Network
from seeds import numpy_rng, seed_of, torch_rng

BATCH = 32
PEAK = 4e-3  # of the learning rate


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (B, 3, H, W) with a Gaussian of `sigma` pixels."""
    import torchvision.transforms.functional  # slow to import

    return torchvision.transforms.functional.gaussian_blur(image, 2 * math.ceil(2.5 * sigma) + 1, sigma)


def augmented(image: Tensor, rng: torch.Generator, orientation: str = "any") -> Tensor:
    """Flips, quarter turns, soft warps, blur of 0 to 2 % of the side, light and noise.

    The judge is to look at the damage, not at how sharp a picture or how even an outline is, for a small
    base draws softly and unevenly. orientation "fixed": neither flips nor turns.
    """
    if orientation == "any":
        if torch.rand((), generator=rng) < 0.5:
            image = image.flip(3)
        image = image.rot90(int(torch.randint(4, (), generator=rng)), (2, 3))
    image = warped(image, rng)
    scale = image.shape[-1] / 128
    image = torch.cat([gaussian_blur(part, scale * (0.1 + 2.4 * float(torch.rand((), generator=rng))))
                       for part in image.split(4)])
    gain = 1 + 0.15 * torch.randn(len(image), 1, 1, 1, generator=rng).to(image.device)
    noise = torch.randn(image.shape, generator=rng).to(image.device)
    return (image * gain + 0.02 * noise).clamp(-1, 1)


def warped(image: Tensor, rng: torch.Generator) -> Tensor:
    """Displace (B, 3, S, S) smoothly, each image with its own strength: by 0 to 2.3 % of the side at a
    standard deviation, uncorrelated a sixth of the side apart."""
    strength = 3 / 64 * torch.rand(len(image), 1, 1, 1, generator=rng)
    shift = (strength * torch.randn(len(image), 2, 7, 7, generator=rng)).to(image.device)
    shift = F.interpolate(shift, image.shape[2:], mode="bicubic", align_corners=True)
    still = torch.eye(2, 3, device=image.device).expand(len(image), 2, 3)
    grid = F.affine_grid(still, list(image.shape), align_corners=False) + shift.permute(0, 2, 3, 1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def draw_batches(pools: tuple[int, ...], epochs: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Indices of each batch of BATCH images: an equal part from each of several pools laid end to end.

    pools: their sizes; `epochs` counts passes over the first. Each pool is shuffled anew when it is used up;
    a rest too small for a batch is left out.
    """
    parts = [min(BATCH // len(pools), size) for size in pools]
    firsts = [sum(pools[:i]) for i in range(len(pools))]
    orders: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(pools)
    for step in range(epochs * (pools[0] // min(BATCH, pools[0]))):
        chosen = []
        for i, (size, part, first) in enumerate(zip(pools, parts, firsts, strict=True)):
            place = step % (size // part)
            if place == 0:
                orders[i] = first + torch.randperm(size, generator=rng)
            chosen.append(orders[i][place * part:(place + 1) * part])
        yield torch.cat(chosen)


def fit(model: nn.Module, peaks: dict[nn.Module, float], image: Tensor, label: Tensor, epochs: int,
        rng: torch.Generator, orientation: str = "any", pools: tuple[int, ...] | None = None) -> nn.Module:
    """Train `model` on images (N, 3, S, S) in [-1, 1] of classes (N,); the last epoch's weights, eval mode.

    AdamW; the learning rates go through one cycle up to `peaks`, one for each part. pools: see draw_batches;
    by default all images are one.
    """
    pools = pools or (len(image),)
    steps = epochs * (pools[0] // min(BATCH, pools[0]))
    optimizer = torch.optim.AdamW([{"params": part.parameters()} for part in peaks], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(peaks.values()), steps)
    for chosen in tqdm(draw_batches(pools, epochs, rng), total=steps, leave=False, disable=None):
        loss = F.cross_entropy(model(augmented(image[chosen], rng, orientation)), label[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def fit_judge(network: Network, image: Tensor, label: Tensor, classes: int, epochs: int, key: tuple,
              orientation: str, pools: tuple[int, ...] | None = None) -> nn.Module:
    """A copy of `network` with a fresh last layer, trained: images -> logits (B, classes).

    A pure function of its arguments; leaves the global random generators as they were.
    """
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed_of("judge", *key))
        trunk = copy.deepcopy(network.trunk).requires_grad_(True).train()
        trunk.to(memory_format=torch.channels_last)  # a quarter less time a step on a CPU
        for module in trunk.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # keeps the statistics of its large training: a few dozen images make poor ones
        head = nn.Sequential(nn.Dropout(0.2), nn.Linear(network.dim, classes)).to(network.device)
        # What is pretrained moves slowly, or a few dozen images would undo it.
        peaks = {trunk: PEAK / 10, head: PEAK}
        return fit(nn.Sequential(trunk, head), peaks, image.to(network.device), label.to(network.device),
                   epochs, torch_rng("judge", *key), orientation, pools)


def stratified_folds(label: np.ndarray, names: list[str], count: int, seed: int) -> np.ndarray:
    """A fold (N,) for each image, so that every class is spread evenly over at most `count` folds.

    Raises UserError for a class of one image, which cannot be both learnt and tested.
    """
    sizes = np.bincount(label, minlength=len(names))
    if sizes.min() < 2:
        raise UserError(f"only {sizes.min()} image of {names[int(sizes.argmin())]}: a judge needs 2 of each "
                        "class, one to learn from and one to be tested on; add some, or leave that out")
    count, fold = min(count, int(sizes.min())), np.zeros(len(label), int)
    for class_id in range(len(names)):
        members = np.flatnonzero(label == class_id)
        fold[numpy_rng(seed, "folds", class_id).permutation(members)] = np.arange(len(members)) % count
    return fold


@torch.no_grad()
def classify(model: nn.Module, image: Tensor) -> np.ndarray:
    """The class (B,) that the model finds most likely, for each image (B, 3, S, S)."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)).argmax(1).cpu() for part in image.split(64)]
    return torch.cat(parts).numpy() if parts else np.zeros(0, int)


def confusion(label: np.ndarray, judged: np.ndarray, classes: int) -> np.ndarray:
    """(asked for, judged as) counts, classes x classes."""
    table = np.zeros((classes, classes), int)
    np.add.at(table, (label, judged), 1)
    return table


@dataclass(frozen=True)
class Judges:
    """Trained judges, and what each real image was taken for by one that had not seen it (-1: not asked)."""

    models: list[nn.Module]
    held_out: np.ndarray
    size: int

    def __call__(self, photos: list[Photo], batch_size: int = 32, workers: int = 0) -> np.ndarray:
        """The class (N,) of each photo, image i by judge i modulo their number."""
        batches = Squares(photos, self.size).batches(batch_size, workers)
        judged = [self.classify(batch, number * batch_size) for number, batch in enumerate(batches)]
        return np.concatenate(judged) if judged else np.zeros(0, int)

    def classify(self, image: Tensor, first: int = 0) -> np.ndarray:
        """The class (B,) of images (B, 3, size, size) in [-1, 1], which are number `first` and on."""
        turn = (first + np.arange(len(image))) % len(self.models)
        judged = np.zeros(len(image), int)
        for number, model in enumerate(self.models):
            judged[turn == number] = classify(model, image[turn == number])
        return judged


def train_judges(network: Network, photos: list[Photo], label: np.ndarray, classes: int, fold: np.ndarray,
                 epochs: int, seed: int, orientation: str) -> Judges:
    """One judge for each fold number from 0 on, trained on all images outside that fold and tested in it.

    Images of fold -1 are learnt from and never tested.
    """
    image = read_squares(photos, network.size)
    models, held_out = [], np.full(len(photos), -1)
    for number in trange(fold.max() + 1, desc="judges", disable=None):
        inside = torch.from_numpy(fold == number)
        model = fit_judge(network, image[~inside], torch.from_numpy(label)[~inside], classes, epochs,
                          (seed, number), orientation)
        held_out[fold == number] = classify(model, image[inside])
        models.append(model)
    return Judges(models, held_out, network.size)
