"""LoRA (Hu et al. 2021, arXiv 2106.09685): trainable low-rank adapters beside frozen linear layers.

The command `python lora.py convert CKPT OUT --to diffusers|peft|kohya` is in convert.py.
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

import errors
import seeds
from errors import UserError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def stays(x: Tensor, p: float, keys: Sequence[int]) -> Tensor:
    """Which elements of x (B, ...) dropout leaves, each with probability 1 - p (to 1/65536): bool.

    keys: seeds, one a row of x, which alone decide what is dropped in it, or one for all of x. On a CPU
    F.dropout draws a double for each element; 16 random bits do as well in a third of the time.
    """
    if len(keys) not in (1, len(x)):
        raise ValueError(f"{len(keys)} keys for {len(x)} rows")
    size = x.numel() // len(keys)
    bits = torch.empty(len(keys), -(-size // 4), dtype=torch.int64, device=x.device)
    for row, key in zip(bits, keys, strict=True):
        row.random_(-2**63, None, generator=torch.Generator(x.device).manual_seed(key))
    return (bits.view(torch.int16)[:, :size] >= round(p * 2**16) - 2**15).view(x.shape)


class _DroppedOut(torch.autograd.Function):
    """A dropout(x), of which x is kept, as the layers beside keep it too, and one byte an element.

    lean: not even that, for what is dropped is drawn again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, p: float, keys: Sequence[int], lean: bool) -> Tensor:
        stay = stays(x, p, keys)
        ctx.save_for_backward(x, A, None if lean else stay)
        ctx.p, ctx.keys = p, keys
        return F.linear(torch.where(stay, x, 0), (A / (1 - p)).to(x.dtype))  # scaled where it is small

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, A, stay = ctx.saved_tensors
        stay = stays(x, ctx.p, ctx.keys) if stay is None else stay
        left = torch.where(stay, x, 0).reshape(-1, x.shape[-1]).to(gradient.dtype)
        for_A = (gradient.reshape(-1, gradient.shape[-1]).T @ left).to(A.dtype) / (1 - ctx.p)
        for_x = torch.where(stay, gradient @ (A / (1 - ctx.p)).to(gradient.dtype), 0)
        return for_x, for_A, None, None, None


def new_key() -> int:
    """From torch's generator on the CPU, which checkpointing sets back before it computes a layer again."""
    return int(torch.randint(2**62, ()))


class LoRALinear(nn.Linear):
    """y = W x + b + strength * alpha/r * B A dropout(x), eq. 3 of the paper; A is (r, in) and B is (out, r).

    W and b are the base layer's own tensors under their own names, so the base's keys stay the checkpoint's.
    The adapter adds `lora_A.weight` and `lora_B.weight`, in fp32 whatever W is. `strength` is for sampling.
    """

    fast, lean = True, False  # as in sd/layers.py

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float,
                 rng: torch.Generator) -> None:
        # Layers made on the meta device allocate and draw nothing; the real tensors then take their places.
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha, self.dropout, self.strength = rank, alpha, dropout, 1.0
        self.keys: list[int] = []  # of the batch's dropout, one an image; none: torch's generator decides
        A = torch.empty(rank, base.in_features, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=rng)
        B = torch.zeros(base.out_features, rank, dtype=torch.float32, device="cpu")  # zero: delta starts at 0
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device="meta")
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device="meta")
        for layer, weight in ((self.lora_A, A), (self.lora_B, B)):
            layer.weight = nn.Parameter(weight.to(base.weight.device))
        self.train(base.training)

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.strength * self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), all in the precision of x; W is not kept in a higher one."""
        y = super().forward(x)
        if self.strength == 0:
            return y
        A, B = self.lora_A.weight, self.lora_B.weight
        if not self.training or not self.dropout:
            h = F.linear(x, A.to(x.dtype))
        else:
            keys = self.keys or [new_key()]
            h = (_DroppedOut.apply(x, A, self.dropout, keys, self.lean) if self.fast else
                 F.linear(x * (stays(x, self.dropout, keys) / (1 - self.dropout)).to(x.dtype), A.to(x.dtype)))
        return torch.add(y, F.linear(h, B.to(h.dtype)), alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with W + scale * B A, summed in fp32 and rounded once to W's dtype."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        W, A, B = self.weight.float(), self.lora_A.weight.float(), self.lora_B.weight.float()
        weight = torch.addmm(W, B, A, alpha=self.scale).to(self.weight.dtype)
        plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), self.bias
        return plain.train(self.training)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The adapted layers of an injected model, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def inject(model: nn.Module, rank: int = 16, alpha: float = 32, dropout: float = 0.1,
           targets: Sequence[str] = TARGETS, seed: int = 0) -> list[nn.Parameter]:
    """Freeze all of `model` and adapt, in place, each linear layer whose dotted name ends in a target.

    Call it once the base has its weights, dtype and device. A depends on (seed, layer name) alone.
    Returns the adapters' parameters: A and B of each layer, in module order.
    """
    if rank < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise UserError(f"--rank {rank} --alpha {alpha} --dropout {dropout}: give a rank of 1 or more, "
                        "an alpha above 0 and a dropout from 0 to below 1")
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen: set[str] = set()
    for target in targets:
        found = {name for name in linears if f".{name}".endswith(f".{target}")}
        if not found:
            raise UserError(f"LoRA target {target!r}: the model has no plain linear layer of that name")
        chosen |= found
    model.requires_grad_(False)
    parameters: list[nn.Parameter] = []
    for name in [name for name in linears if name in chosen]:
        layer = LoRALinear(linears[name], rank, alpha, dropout, seeds.torch_rng(seed, name))
        _replace(model, name, layer)
        parameters += [layer.lora_A.weight, layer.lora_B.weight]
    return parameters


def seed_dropout(model: nn.Module, keys: Sequence[int]) -> None:
    """From now on each adapter's dropout is a function of its name and a row's key: the same in any batch."""
    for name, layer in adapters(model):
        layer.keys = [seeds.seed_of(key, name) for key in keys]


def set_strength(model: nn.Module, strength: float) -> None:
    """Set the adapters' strength at sampling: 0 the base alone, 1 as trained."""
    for _, layer in adapters(model):
        layer.strength = strength


def merge(model: nn.Module) -> None:
    """Replace every adapter, at its present strength, by a plain linear layer that computes the same."""
    for name, layer in list(adapters(model)):
        _replace(model, name, layer.merged())


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Run a block with the adapters merged, at their present strength, and put them back."""
    layers = dict(adapters(model))
    merge(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            _replace(model, name, layer)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' own tensors: "<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r)."""
    return {f"{name}.{part}.weight": getattr(layer, part).weight.detach()
            for name, layer in adapters(model) for part in ("lora_A", "lora_B")}


def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fill an injected model's adapters. All is checked before anything is written."""
    own = lora_state(model)
    shapes = [f"{key} {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
              for key in own.keys() & state.keys() if state[key].shape != own[key].shape]
    for problem, keys in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys()),
                          ("of another shape", shapes)):
        if keys:
            first, *rest = sorted(keys)
            raise UserError(f"LoRA tensors {problem}: {first}" + (f" and {len(rest)} more" if rest else "")
                            + "; was the adapter trained with another base, --rank or targets?")
    for key, tensor in own.items():
        tensor.copy_(state[key])


def main() -> None:
    """The command line, which is not needed to train or to draw."""
    from convert import main as convert
    convert()


if __name__ == "__main__":
    errors.run(main)
