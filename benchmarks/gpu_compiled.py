"""A part of benchmarks.gpu_check: what --compile brings, block by block as the commands compile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import lora
from benchmarks.gpu_place import Found, Place, noise_batch, relative, unet_of
from runtime.device import DTYPES
from sd.compilation import compile_blocks
from sd.exact_shortcuts import set_fast
from sd.guidance import Contexts, guided
from sd.unet import UNet

Work = Callable[[], Tensor]


def sampling(place: Place, unet: UNet) -> Work:
    """A guided step of one image: eps_hat."""
    z_t, _, tokens = (x.to(place.device) for x in noise_batch(place))
    eps = guided(unet, Contexts(tokens[:1], tokens[1:]), 2.0)
    return torch.no_grad()(lambda: eps(z_t[:1], 500))


def training(place: Place, unet: UNet) -> Work:
    """Both passes of a training step of one image: the gradients."""
    inputs = [x.to(place.device) for x in noise_batch(place, images=1)]
    weights = lora.inject(unet.train())

    def passes() -> Tensor:
        lora.seed_dropout(unet, [5])
        lora.divide(unet)
        loss = unet(*inputs).float().square().sum()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])
    return passes


def timed(work: Work, count: int) -> tuple[float, float, Tensor]:
    """Seconds of the first two calls together, the median of the others, and the last result."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        result = work()
        result.sum().item()  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    return sum(seconds[:2]), statistics.median(seconds[2:]), result


def compiled(place: Place) -> Found:
    """A guided sampling step and the passes of a training step, with compiled blocks and without: seconds."""
    from torch._dynamo.utils import counters  # slow to import
    backend = "inductor" if place.device == "cuda" else "aot_eager"  # which needs no C++ compiler
    found: Found = {"backend": backend}
    for make in (sampling, training):
        unet = unet_of(place, place.device, DTYPES[place.low])
        set_fast(unet, True)
        work = make(place, unet)
        _, usual, expected = timed(work, 12)
        counters.clear()
        compile_blocks(unet, backend)
        first, seconds, result = timed(work, 12)
        found[make.__name__] = {
            "as it is": round(usual, 4), "compiled": round(seconds, 4), "first two compiled": round(first, 1),
            "graphs": counters["stats"]["unique_graphs"], "difference": relative(result, expected)}
    return found
