"""Real images as a base's VAE draws them: the most that a generator on this base can reach.

What the VAE blurs, no training brings back, and a classifier that knows sharp photos alone may not see it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from evaluation_data import Side
from features import read_mask_square, read_square
from files import save_image
from folders import Photo
from pictures import tensor_to_image
from sd.vae import VAE


@torch.no_grad()
def render(real: Side, classes: list[str], vae: VAE, resolution: int, out: Path) -> dict[Path, Photo]:
    """Each photo's square through the VAE and back, without the noise of its posterior.

    Writes pictures of `resolution` pixels, and their masks, in the dataset's layout under `out`. Returns the
    new photo of each old one's image file.
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
