"""CLIP's image encoder, for --clip."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.networks import Network, Standardised, WeightsMissing
from sd.pretrained.hub import fetch_first

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Embedding(nn.Module):
    """CLIP's image embedding, of length 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.net(pixel_values=image).image_embeds, dim=1)


def load_clip(name: str, device: torch.device) -> Network:
    """CLIP's image encoder from a hub id or a folder. Raises WeightsMissing where it cannot be loaded."""
    from transformers import CLIPVisionModelWithProjection  # slow to import

    try:
        if not Path(name).is_dir():  # offline this fails at once, transformers after a minute
            fetch_first(name, "main", ["config.json"])
        net = CLIPVisionModelWithProjection.from_pretrained(name, use_safetensors=True)
    except Exception as error:  # OSError, and whatever the hub's client raises
        reason = " ".join(str(error).split())[:200]
        raise WeightsMissing(f"--clip {name}: cannot be loaded ({reason})",
                             "give a hub id or a folder with config.json and weights") from error
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    trunk = Standardised(_Embedding(net), CLIP_MEAN, CLIP_STD).eval().requires_grad_(False).to(device)
    return Network("clip", trunk, nn.Identity(), (), net.config.image_size, net.config.projection_dim,
                   "FID-CLIP", f"{name}, SHA-256 {digest.hexdigest()[:8]}..", digest.hexdigest()[:16], device)
