"""Muon, the optimizer that trained the embedded base: momentum with orthogonalised updates.

AdamW learns the strong directions of a layer first and the weak ones (in the VAE: the red-green axis, edges)
long after. Orthogonal updates learn all of them at the same pace. tiny/README.md compares the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def orthogonal(G: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximately the nearest orthogonal matrices to G (k, m, n): singular values between 0.7 and 1.2.

    Five steps of the quintic Newton-Schulz iteration with Muon's coefficients (K. Jordan 2024, "Muon: an
    optimizer for hidden layers in neural networks"). bf16 is precise enough for it.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = G.shape[1] > G.shape[2]
    X = (G / (G.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    X = X.mT if tall else X
    for _ in range(5):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class Muon(torch.optim.Optimizer):
    """Muon for the weights of linear layers and convolutions (as matrices c_out x rest), Adam for the others.

    Updates are scaled by 0.2 sqrt(longer side), so one learning rate suits both (Liu et al. 2025, arXiv
    2502.16982, section 2.2). dtype: the precision of the orthogonalisation.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, lr: float = 1e-3,
                 momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        self.dtype = dtype
        matrices = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        chosen = set(map(id, matrices))
        others = [p for p in model.parameters() if id(p) not in chosen]
        super().__init__([{"params": matrices, "muon": True}, {"params": others, "muon": False}],
                         {"lr": lr, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in (p for p in group["params"] if p.grad is not None):
                if group["muon"]:
                    alike.setdefault(p.flatten(1).shape, []).append(p)
                else:
                    p.sub_(group["lr"] * self._adam(p, group))
            for shape, parameters in alike.items():  # stacked: single matrices are too small to be efficient
                updates = orthogonal(torch.stack([self._momentum(p, group) for p in parameters]), self.dtype)
                for p, update in zip(parameters, updates, strict=True):
                    p.sub_(group["lr"] * 0.2 * max(shape) ** 0.5 * update.view(p.shape))

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov momentum as a matrix (c_out, rest)."""
        assert p.grad is not None
        m = self.state[p].setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
        return torch.lerp(p.grad, m, group["momentum"]).flatten(1)

    def _adam(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's update, not yet scaled by the learning rate."""
        assert p.grad is not None
        state, (beta1, beta2) = self.state[p], group["betas"]
        n = state.setdefault("n", torch.zeros(())).add_(1)
        m = state.setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 1 - beta1)
        v = state.setdefault("v", torch.zeros_like(p)).lerp_(p.grad.square(), 1 - beta2)
        return m / (1 - beta1 ** n) / ((v / (1 - beta2 ** n)).sqrt() + 1e-8)
