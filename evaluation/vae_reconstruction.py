"""Real images after a pass through a base's VAE: the most that a generator on this base can reach.

No training restores what the VAE blurs, and a classifier of sharp photos may not recognise it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from checkpoints.adapter import find_adapter, read_adapter
from checkpoints.loading import base_of
from dataset.layouts import Photo, files_of
from evaluation.features import read_mask_square, read_square
from evaluation.image_sets import EvaluationSets
from evaluation.numbers import RENDERED, Findings
from evaluation.out_folder import mark
from runtime.errors import UserError
from runtime.pictures import tensor_to_image
from sd.pretrained.weights import load_vae
from sd.vae import VAE


@torch.no_grad()
def redrawn(vae: VAE, square: Tensor) -> Image.Image:
    """The picture that `vae` makes of one (3, R, R) in [-1, 1]: encoded to the posterior mean and decoded."""
    mean, _ = vae.posterior(square[None].to(vae.quant_conv.weight.device))
    return tensor_to_image(vae.decode(mean)[0].float().clamp(-1, 1).cpu())


def as_the_base_draws(sets: EvaluationSets, base: str | None, ckpt: str | None, device: torch.device,
                      findings: Findings, out: Path) -> dict[Path, Photo]:
    """The real photos after a pass through the VAE of `base`, by default the base of `ckpt`.

    None where neither is given, or where the base that `ckpt` names cannot be loaded, which is noted. Raises
    UserError where `base` cannot.
    """
    header, size = None, sets.fake_size
    if ckpt:  # painted photos may have another size than the model
        header = read_adapter(find_adapter(Path(ckpt)))[1]
        size = header.resolution
    try:
        if name := base or (header and base_of(find_adapter(Path(ckpt or "")), header)):
            return through_vae(sets, name, size, device, out)
    except UserError as error:
        if base:
            raise
        findings.missing[RENDERED] = f"the base of --ckpt {ckpt} cannot be loaded ({error}); give --base"
    return {}


def through_vae(sets: EvaluationSets, base: str, size: int, device: torch.device,
                out: Path) -> dict[Path, Photo]:
    """All real photos' squares encoded by the VAE of `base`, to the posterior mean, and decoded; by the
    original's image file.

    Writes pictures of `size` pixels, rounded down to a multiple of 8, and their masks, in the dataset's
    layout under `out`. Raises UserError where the VAE cannot be loaded.
    """
    vae, size, reconstructions = load_vae(base, device=device, dtype=torch.float32), max(8, size // 8 * 8), {}
    mark(out)
    real = sets.everything
    bar = tqdm(real.photos, desc="through the VAE", unit="image", disable=None)
    for number, (photo, class_id) in enumerate(zip(bar, real.label, strict=True)):
        files, mask = files_of(out, sets.classes[class_id], number), None
        if photo.mask is not None:
            mask = read_mask_square(photo, size)[0].byte().numpy()
        files.write(redrawn(vae, read_square(photo, size)), mask)
        reconstructions[photo.image] = Photo(files.image, None if mask is None else files.mask, None, "",
                                             photo.damage)
    return reconstructions
