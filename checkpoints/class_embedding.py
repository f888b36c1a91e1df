"""The damage-type embedding: what conditions the UNet where Stable Diffusion has a text encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.seeds import torch_rng

NULL = -1  # the class id of "no class": the unconditional input of classifier-free guidance


class ClassEmbedding(nn.Module):
    """Class ids -> UNet context: nn.Embedding(classes, tokens * dim), reshaped to `tokens` tokens a class.

    The recipe has one token. The null class has a row of its own; class dropout trains it.
    """

    def __init__(self, classes: int, dim: int, tokens: int = 1, init_std: float = 0.02,
                 seed: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(classes, tokens * dim)
        self.null = nn.Parameter(torch.empty(tokens * dim))
        rng = torch_rng(seed, "class embedding")
        for weight in (self.embedding.weight, self.null):
            nn.init.normal_(weight, std=init_std, generator=rng)

    def forward(self, class_id: Tensor) -> Tensor:
        """class_id (B,) integers, NULL for no class -> context (B, tokens, dim)."""
        row = self.embedding(class_id.clamp(min=0))
        row = torch.where((class_id == NULL)[:, None], self.null, row)
        return row.unflatten(1, (-1, self.dim))
