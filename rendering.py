"""Real images as a base's VAE draws them: the most that a generator on this base can reach.

What the VAE blurs, no training brings back, and a classifier that knows sharp photos alone may not see it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from evaluation_data import Side, Sides
from features import read_mask_square, read_square
from files import save_image
from folders import Photo
from pictures import tensor_to_image
from sd.vae import VAE
from sd.weights import load_vae


def through_vae(sides: Sides, base: str, size: int, device: torch.device, out: Path) -> dict[Path, Photo]:
    """All real photos as the VAE of `base` draws them, by the original's image file.

    size: the side of the pictures, brought down to a multiple of 8, by which the VAE shrinks. Raises
    UserError where the VAE cannot be had.
    """
    everything = sides.reference + sides.held_out if sides.held_out else sides.reference
    vae = load_vae(base, device=device, dtype=torch.float32)
    return render(everything, sides.classes, vae, max(8, size // 8 * 8), out)


@torch.no_grad()
def render(real: Side, classes: list[str], vae: VAE, resolution: int, out: Path) -> dict[Path, Photo]:
    """Each photo's square through the VAE and back, without the noise of its posterior.

    Writes pictures of `resolution` pixels, and their masks, in the dataset's layout under `out`.
    """
    device, twins = vae.quant_conv.weight.device, {}
    bar = tqdm(real.photos, desc="through the VAE", unit="image", disable=None)
    for number, (photo, class_id) in enumerate(zip(bar, real.label, strict=True)):
        mean, _ = vae.posterior(read_square(photo, resolution)[None].to(device))
        *product, damage = classes[class_id].split("/")
        folder, name = out.joinpath(*product), f"{damage}/{number:04d}"
        image, mask = folder / "image" / f"{name}.png", None
        save_image(image, tensor_to_image(vae.decode(mean)[0].clamp(-1, 1).cpu()))
        if photo.mask is not None:
            mask = folder / "mask" / f"{name}_mask.png"
            save_image(mask, Image.fromarray((255 * read_mask_square(photo, resolution)[0]).byte().numpy()))
        twins[photo.image] = Photo(image, mask, None, "", photo.damage)
    return twins
