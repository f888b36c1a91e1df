"""LoRA (Hu et al. 2021, arXiv 2106.09685): trainable low-rank adapters beside frozen linear layers.

Begin at LoRALinear. What stands before it computes the same in fewer launches and less memory.
The command `python lora.py convert CKPT OUT --to diffusers|peft|kohya` is in checkpoints/convert.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from runtime import errors, seeds
from runtime.errors import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def keep_mask(x: Tensor, p: float, keys: Sequence[int]) -> Tensor:
    """A dropout mask for x (B, ...): bool, True with probability 1 - p (to 1/65536).

    keys: one seed a row of x, or one for all of x; the mask depends on nothing else. On a CPU, F.dropout
    draws a double an element; 16 random bits take a third of the time. Raises ValueError for other counts.
    """
    if len(keys) not in (1, len(x)):
        raise ValueError(f"{len(keys)} keys for {len(x)} rows")
    size = x.numel() // len(keys)
    bits = torch.empty(len(keys), -(-size // 4), dtype=torch.int64, device=x.device)
    for row, key in zip(bits, keys, strict=True):
        row.random_(-2**63, None, generator=torch.Generator(x.device).manual_seed(key))
    return (bits.view(torch.int16)[:, :size] >= round(p * 2**16) - 2**15).view(x.shape)


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """All in `dtype`, by one launch on a GPU."""
    if all(x.dtype == dtype for x in tensors):
        return tensors
    made = [torch.empty_like(x, dtype=dtype) for x in tensors]
    torch._foreach_copy_(made, tensors)
    return made


class _Divided(torch.autograd.Function):
    """weights[i] / divisors[i] in `dtype`, of any number of weights in few launches; computed in fp32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, divisors: Sequence[float], *weights: Tensor
                ) -> tuple[Tensor, ...]:
        ctx.divisors = divisors
        ctx.set_materialize_grads(False)  # a weight without influence gets no gradient, not one of zeros
        return tuple(_cast(list(torch._foreach_div(weights, divisors)), dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [(g, d) for g, d in zip(gradients, ctx.divisors, strict=True) if g is not None]
        found = iter(torch._foreach_div(_cast([g for g, _ in there], torch.float32), [d for _, d in there]))
        return None, None, *(None if g is None else next(found) for g in gradients)


class _DroppedOut(torch.autograd.Function):
    """A (keep * x). It saves x, as other layers do, and the mask; lean draws the mask again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, p: float, keys: Sequence[int], lean: bool) -> Tensor:
        keep = keep_mask(x, p, keys)
        ctx.save_for_backward(x, A, None if lean else keep)
        ctx.p, ctx.keys = p, keys
        return F.linear(x * keep, A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, A, keep = ctx.saved_tensors
        keep = keep_mask(x, ctx.p, ctx.keys) if keep is None else keep
        kept, dtype = (x * keep).reshape(-1, x.shape[-1]), gradient.dtype  # of autocast, if that is on
        for_A = gradient.reshape(-1, len(A)).T @ kept.to(dtype)
        for_x = (gradient @ A.to(dtype)).mul_(keep) if ctx.needs_input_grad[0] else None
        return for_x, for_A, None, None, None


class LoRALinear(nn.Linear):
    """y = W x + b + strength * alpha/r * B A dropout(x), eq. 3 of the paper; A is (r, in) and B is (out, r).

    W and b are the base layer's own tensors under their own names, so state dict keys of the base stay. The
    adapter adds `lora_A.weight` and `lora_B.weight`, always fp32. `strength` is 1 in training.
    """

    fast, lean, checkpointing = True, False, False  # set by sd/exact_shortcuts.py

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float,
                 rng: torch.Generator) -> None:
        # Layers made on the meta device allocate and draw nothing; the real tensors replace theirs.
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha, self.dropout, self.strength = rank, alpha, dropout, 1.0
        self.keys: list[int] = []  # seeds of the dropout, one an image; [] for torch's global generator
        self.divided: tuple[Sequence[Tensor], int] | None = None  # of `divide`: A and B, and their version
        A = torch.empty(rank, base.in_features, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=rng)
        B = torch.zeros(base.out_features, rank, dtype=torch.float32, device="cpu")  # so B A starts at 0
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device="meta")
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device="meta")
        for layer, weight in ((self.lora_A, A), (self.lora_B, B)):
            layer.weight = nn.Parameter(weight.to(base.weight.device))
        self.train(base.training)

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.strength * self.alpha / self.rank

    @property
    def divisors(self) -> tuple[float, float]:
        """Of A and of B, which take over dropout's 1 / (1 - p) and `scale`, so that x is not scaled."""
        return 1 - self.dropout, 1 / self.scale

    def _divided(self, dtype: torch.dtype) -> Sequence[Tensor]:
        """A and B by their divisors, in `dtype`; those of `divide` while the weights are as they were."""
        weights = self.lora_A.weight, self.lora_B.weight
        version = sum(weight._version for weight in weights)
        if self.divided and self.divided[1] == version and self.divided[0][0].dtype == dtype:
            return self.divided[0]
        return _Divided.apply(dtype, self.divisors, *weights)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), computed in the dtype of x."""
        y, p = super().forward(x), self.dropout * self.training
        if self.strength == 0:
            return y
        if p and self.checkpointing and not self.keys:  # the backward pass would draw other masks
            raise ValueError("dropout in recomputed blocks needs the keys of seed_dropout")
        keys = (self.keys or [int(torch.randint(2**62, ()))]) if p else []
        if self.fast and self.training:
            A, B = self._divided(y.dtype)
            h = _DroppedOut.apply(x, A, p, keys, self.lean) if p else F.linear(x, A)
            return torch.addmm(y.reshape(-1, len(B)), h.reshape(-1, len(A)), B.T).view_as(y)
        # The same, as it stands in the paper.
        dropped = x * (keep_mask(x, p, keys) / (1 - p)).to(x.dtype) if p else x
        h = F.linear(dropped, self.lora_A.weight.to(x.dtype))
        return torch.add(y, F.linear(h, self.lora_B.weight.to(h.dtype)), alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer with W + scale * B A, summed in fp32 and rounded once to W's dtype."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        W, A, B = self.weight.float(), self.lora_A.weight.float(), self.lora_B.weight.float()
        weight = torch.addmm(W, B, A, alpha=self.scale).to(self.weight.dtype)
        plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), self.bias
        return plain.train(self.training)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The adapted layers of an injected model, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def inject(model: nn.Module, rank: int = 16, alpha: float = 32, dropout: float = 0.1,
           targets: Sequence[str] = TARGETS, seed: int = 0) -> list[nn.Parameter]:
    """Freeze `model` and adapt, in place, each linear layer whose dotted name ends in a target.

    Call it when the base has its weights, dtype and device. A depends on (seed, layer name) only. Returns the
    trainable parameters, A and B of each layer in module order. Raises UserError for values out of range.
    """
    if rank < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise UserError(f"--rank {rank} --alpha {alpha} --dropout {dropout}: give a rank of 1 or more, "
                        "an alpha above 0 and a dropout from 0 to below 1")
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = {target: [name for name in linears if f".{name}".endswith(f".{target}")] for target in targets}
    if unknown := [target for target, names in chosen.items() if not names]:
        raise UserError(f"LoRA target {unknown[0]!r}: the model has no plain linear layer of that name")
    model.requires_grad_(False)
    parameters = []
    for name in [name for name in linears if name in set().union(*chosen.values())]:
        layer = LoRALinear(linears[name], rank, alpha, dropout, seeds.torch_rng(seed, name))
        model.set_submodule(name, layer)
        parameters += [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
    return parameters


def seed_dropout(model: nn.Module, keys: Sequence[int]) -> None:
    """Seed the dropout of the next batch. keys: one an image; its masks are then the same in any batch."""
    for name, layer in adapters(model):
        layer.keys = [seeds.seed_of(key, name) for key in keys]


def divide(model: nn.Module) -> None:
    """Scale and cast the adapters of all layers for the next batch, at once instead of layer by layer."""
    layers = [layer for _, layer in adapters(model) if layer.fast and layer.strength]
    if layers:
        weights = [weight for layer in layers for weight in (layer.lora_A.weight, layer.lora_B.weight)]
        divisors = [divisor for layer in layers for divisor in layer.divisors]
        made = _Divided.apply(layers[0].weight.dtype, divisors, *weights)
        for i, layer in enumerate(layers):
            pair = slice(2 * i, 2 * i + 2)
            layer.divided = made[pair], sum(weight._version for weight in weights[pair])


def set_strength(model: nn.Module, strength: float) -> None:
    """Set the strength of all adapters: 0 is the base alone, 1 as trained."""
    for _, layer in adapters(model):
        layer.strength = strength


def merge(model: nn.Module) -> None:
    """Replace every adapted layer by the plain linear layer that computes the same."""
    for name, layer in list(adapters(model)):
        model.set_submodule(name, layer.merged())


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Run a block with the adapters merged, then restore them."""
    layers = dict(adapters(model))
    merge(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors, live: "<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r)."""
    return {f"{name}.{part}.weight": getattr(layer, part).weight.detach()
            for name, layer in adapters(model) for part in ("lora_A", "lora_B")}


def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy `state` into an injected model. Raises UserError, before any copy, where keys or shapes differ."""
    own = lora_state(model)
    shapes = [key for key in own.keys() & state.keys() if state[key].shape != own[key].shape]
    for problem, keys in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys()),
                          ("of another shape", shapes)):
        if keys:
            first, *rest = sorted(keys)
            raise UserError(f"LoRA tensors {problem}: {first}" + (f" and {len(rest)} more" if rest else "")
                            + "; was the adapter trained with another base, --rank or targets?")
    for key, tensor in own.items():
        tensor.copy_(state[key])


def main() -> None:
    """The command line. Training and sampling do not import it."""
    from checkpoints.convert import main as convert
    convert()


if __name__ == "__main__":
    errors.run(main)
