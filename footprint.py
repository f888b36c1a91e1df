"""What a training step needs, counted before any training: memory and arithmetic, from shapes alone.

The step runs on tensors without contents, as torch.compile's do, so nothing is loaded or computed. Counted
are the bytes of all tensors alive. What comes on top on a card (its context, the workspaces of convolutions,
the gaps of the allocator) is not in it.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import lora
from control import new_control
from header import ControlHeader
from machine import DTYPES, autocast
from recipe import RunConfig
from sd.controlnet import ControlNet
from sd.convolution import packed_bytes
from sd.layers import set_checkpointing, set_fast
from sd.unet import UNet, UNetConfig
from sd.vae import VAE, VAEConfig
from training import make_optimizer

aten = torch.ops.aten


class Footprint(NamedTuple):
    """Bytes, and FLOPs (two a multiplication with addition), of a step with its whole batch."""

    weights: int  # of the UNet with its adapters, or with a ControlNet
    packed: int  # more for the weights, on a CPU without checkpointing
    kept: int  # activations kept for the backward pass
    peak: int  # the most that is alive at once, with weights and optimizer state
    step: float  # FLOPs
    forward: float  # FLOPs of its forward pass
    encode: float  # FLOPs to encode one image


class _Shapes(FakeTensorMode):
    """Tensors without contents. Where a number is asked for (dropout's seed, Adam's step) it is 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            return 1
        return super().__torch_dispatch__(func, types, args, kwargs)


class _Count(TorchDispatchMode):
    """While it is on: the bytes of all tensors made and still alive, the most there were, and FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.flops = 0.0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.flops += _flops(func.overloadpacket, args, kwargs or {}, made)
        tree_map_only(Tensor, self._note, made)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._gone, storage.nbytes())
            self.alive += storage.nbytes()
            self.most = max(self.most, self.alive)

    def _gone(self, size: int) -> None:
        self.alive -= size


def _flops(operation: Any, args: Any, options: Any, made: Any) -> float:
    """Of one operation; torch's own table lacks attention as it runs on a CPU."""
    if operation is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if operation is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    known = flop_registry.get(operation)
    return known(*args, **options, out_val=made) if known else 0


class Step(NamedTuple):
    """What beside its flags makes a training step."""

    unet: UNetConfig
    vae: VAEConfig
    tokens: int = 1  # a class
    control_rank: int | None = None  # of the ControlNet that learns, 0 a whole one; None: adapters learn


def _networks(config: RunConfig, step: Step) -> tuple[UNet, ControlNet | None, list[torch.nn.Parameter]]:
    """The UNet, frozen in --precision, the ControlNet that steers it if there is one, and what learns."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[config.precision])
    unet = UNet(step.unet).train().requires_grad_(False)
    torch.set_default_dtype(default)
    if step.control_rank is None:
        return unet, None, lora.inject(unet, config.rank, config.alpha, config.dropout)
    about = ControlHeader("", None, "", step.control_rank, 3, False, 0.0)
    control = new_control(about, unet, config.seed).train()
    return unet, control, [weight for weight in control.parameters() if weight.requires_grad]


def footprint(config: RunConfig, step: Step, *, checkpointing: str) -> Footprint:
    """One training step of `config`, whose precision is not "auto"; checkpointing: none, lean or full."""
    side, batch, dtype = config.resolution // 8, config.batch_size, DTYPES[config.precision]
    with _Shapes(), _Count() as count:
        unet, control, weights = _networks(config, step)
        for net in (unet, control) if control else (unet,):
            set_fast(net, config.fast)
            set_checkpointing(net, checkpointing)
        tokens = torch.randn(batch, step.tokens, step.unet.cross_attention_dim)
        if not control:
            weights.append(tokens.requires_grad_())
        optimizer = make_optimizer(config, (weights, config.lr))
        z_t, t = torch.randn(batch, step.unet.in_channels, side, side), torch.zeros(batch, dtype=torch.long)
        condition = torch.randn(batch, 3, config.resolution, config.resolution)
        resident, count.flops = count.alive, 0.0
        with autocast(z_t.device, dtype):
            residuals = control(z_t, t, tokens, condition) if control else None
        with autocast(z_t.device, torch.float32 if config.fast else dtype):
            loss = unet(z_t, t, tokens, residuals).float().square().mean()
        kept, forward = count.alive - resident, count.flops
        loss.backward()
        whole, most, without_state = count.flops, count.most, count.alive
        optimizer.step()
        peak = max(count.most, most + count.alive - without_state)  # later its state is there all the time
        vae, count.flops = VAE(step.vae), 0.0
        with torch.no_grad():
            vae.posterior(torch.randn(1, 3, config.resolution, config.resolution))
    return Footprint(resident, packed_bytes(unet), kept, peak, whole, forward, count.flops)
