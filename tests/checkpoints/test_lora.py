"""lora.py against its formula, against peft on the same tensors, and inside a small UNet."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import lora
from runtime.errors import UserError
from sd.exact_shortcuts import cross_attention, set_fast
from sd.layers import TransformerBlock
from sd.unet import UNet, UNetConfig

SMALL = UNetConfig(block_out_channels=(8, 16, 16, 16), cross_attention_dim=12, attention_head_dim=2,
                   norm_num_groups=4)
COUNT = 8  # adapters in a TransformerBlock: four in each of its two attentions


def block(dtype: torch.dtype = torch.float32) -> TransformerBlock:
    torch.manual_seed(0)
    return TransformerBlock(dim=16, heads=2, context_dim=12).to(dtype)


def block_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 16, generator=rng).to(dtype), torch.randn(2, 5, 12, generator=rng).to(dtype)


def train_a_little(model: nn.Module, std: float = 0.3) -> None:
    """B away from zero, so that adapters have an effect and A has gradients."""
    rng = torch.Generator().manual_seed(2)
    for key, tensor in lora.lora_state(model).items():
        if "lora_B" in key:
            tensor.copy_(torch.randn(tensor.shape, generator=rng) * std)


def adapted(base: nn.Module, **options: float) -> nn.Module:
    model = copy.deepcopy(base)
    lora.inject(model, **{"rank": 4, "alpha": 6, "dropout": 0.0, **options})
    train_a_little(model)
    return model


def peft_twin(base: nn.Module, ours: nn.Module, rank: int, alpha: float, dropout: float) -> nn.Module:
    """peft's model on a copy of the same base, with our adapters' tensors."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(lora.TARGETS))
    twin = get_peft_model(copy.deepcopy(base), config)
    state = {f"base_model.model.{key}": tensor.clone() for key, tensor in lora.lora_state(ours).items()}
    assert set(get_peft_model_state_dict(twin)) == set(state)  # the same layers, the same keys
    set_peft_model_state_dict(twin, state)
    return twin


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of all trainable parameters, peft's under our names."""
    return {name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
            for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Elementwise, with `tolerance` relative, and absolute where an element is small beside the largest."""
    assert_close(ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


def assert_same_training_step(ours: nn.Module, twin: nn.Module, inputs: tuple[Tensor, ...], tolerance: float,
                              autocast: torch.dtype | None = None) -> None:
    """The same output, input gradient and adapter gradients, from the same state of the global generator."""
    outputs, input_gradients = [], []
    for model in (ours, twin):
        x, *rest = (tensor.clone().requires_grad_() for tensor in inputs)
        torch.manual_seed(3)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            y = model(x, *rest)
        y.float().square().sum().backward()
        outputs.append(y)
        input_gradients.append(x.grad)
    assert outputs[0].dtype == outputs[1].dtype
    assert_same(*outputs, tolerance)
    assert_same(*input_gradients, tolerance)
    our_gradients, their_gradients = gradients(ours), gradients(twin)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        assert gradient.dtype == torch.float32
        assert gradient.abs().max() > 0
        assert_same(gradient, their_gradients[name], tolerance)


# -------------------------------------------------------------------------------- peft as oracle

@pytest.mark.parametrize(("rank", "alpha"), [(4, 8), (16, 32), (3, 7), (1, 0.5)])
def test_forward_and_gradients_equal_pefts(rank: int, alpha: float) -> None:
    base = block()
    ours = adapted(base, rank=rank, alpha=alpha)
    twin = peft_twin(base, ours, rank, alpha, 0.0)
    assert_same_training_step(ours, twin, block_inputs(), tolerance=1e-6)


def test_dropout_is_where_peft_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Masks drawn as peft draws them.
    monkeypatch.setattr(lora, "keep_mask", lambda x, p, keys: F.dropout(torch.ones_like(x), p) != 0)
    base = block()
    ours = adapted(base, dropout=0.4)
    lora.seed_dropout(ours, [0])  # so that no keys are drawn, which peft does not
    set_fast(ours, False)
    twin = peft_twin(base, ours, 4, 6, 0.4)
    inputs = block_inputs()
    assert_same_training_step(ours, twin, inputs, tolerance=1e-6)
    without = adapted(base)
    assert not torch.allclose(ours(*inputs), without(*inputs), atol=1e-3)  # the dropout did something,
    assert torch.equal(ours.eval()(*inputs), without.eval()(*inputs))      # and only in training


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_as_often_as_it_says(p: float) -> None:
    x = torch.empty(3, 333, 101)  # not a multiple of four
    kept = lora.keep_mask(x, p, [0])
    assert kept.shape == x.shape and kept.dtype == torch.bool
    assert abs(kept.float().mean() - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    for i in range(4):  # four elements come of one draw
        assert abs(kept.flatten()[i::4].float().mean() - (1 - p)) < 5 * (4 * p * (1 - p) / x.numel()) ** 0.5
    together = (kept.flatten()[1:] & kept.flatten()[:-1]).float().mean()
    assert abs(together - (1 - p) ** 2) < 0.02
    assert torch.equal(lora.keep_mask(x, p, [0]), kept)
    assert not torch.equal(lora.keep_mask(x, p, [1]), kept)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dropout_scales_what_it_leaves(fast: bool, dtype: torch.dtype) -> None:
    """y = B A (x kept / (1 - p)) and its gradients, against the formula in float64."""
    layer = lora.LoRALinear(nn.Linear(6, 5, dtype=dtype).requires_grad_(False), 3, 3, 0.4, torch.Generator())
    layer.fast, layer.keys = fast, [7]
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(2, 9, 6).to(dtype).requires_grad_()
    weights = [layer.lora_A.weight, layer.lora_B.weight]
    W, b, A, B, again = (tensor.detach().double().requires_grad_()
                         for tensor in (layer.weight, layer.bias, *weights, x))
    expected = F.linear(again, W, b) + again * lora.keep_mask(x, 0.4, [7]) / 0.6 @ A.T @ B.T
    gradient = torch.randn(2, 9, 5).to(dtype)
    tolerance = {"rtol": 0.05, "atol": 0.1} if dtype == torch.bfloat16 else {}
    actual = layer(x)
    torch.testing.assert_close(actual.double(), expected, **tolerance)
    for ours, theirs in zip(torch.autograd.grad(actual, [*weights, x], gradient),
                            torch.autograd.grad(expected, [A, B, again], gradient.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def test_dropout_by_key_is_each_rows_own() -> None:
    """In any batch, at any place in it; and of a model, other in each layer."""
    x = torch.ones(3, 50, 7)
    whole = lora.keep_mask(x, 0.5, [5, 6, 7])
    assert torch.equal(whole, torch.cat([lora.keep_mask(x[:1], 0.5, [key]) for key in (5, 6, 7)]))
    assert torch.equal(whole[1:], lora.keep_mask(x[1:], 0.5, [6, 7]))
    assert len(whole.flatten(1).unique(dim=0)) == 3
    with pytest.raises(ValueError):
        lora.keep_mask(x, 0.5, [5, 6])
    model = adapted(block(), dropout=0.5)
    lora.seed_dropout(model, [5, 6])
    keys = [layer.keys for _, layer in lora.adapters(model)]
    assert len({key for row in keys for key in row}) == 2 * len(keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dividing_all_at_once_changes_nothing(dtype: torch.dtype) -> None:
    """The same bits as layer by layer; no gradient where there is no influence; never weights of before."""
    x, context = block_inputs(dtype)
    steps = []
    for at_once in (False, True):
        model = adapted(block(dtype), dropout=0.3).train()
        lora.seed_dropout(model, [5, 6])
        if at_once:
            lora.divide(model)
        y = model(x, context[:, :1])  # one token: to_q and to_k of the cross-attention are idle
        y.float().square().sum().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
        assert sum(gradient is None for gradient in gradients) == 4
        lora.load_lora_state(model, {key: 2 * tensor for key, tensor in lora.lora_state(model).items()})
        steps.append((y, model(x, context[:, :1]), *gradients))
    for apart, together in zip(*steps, strict=True):
        assert together is None if apart is None else torch.equal(apart, together)
    assert not torch.equal(steps[1][0], steps[1][1])


@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float16])
def test_fp32_adapters_beside_a_half_base_equal_pefts(base_dtype: torch.dtype) -> None:
    base = block(base_dtype)
    ours = adapted(base)
    twin = peft_twin(base, ours, 4, 6, 0.0)
    assert all(tensor.dtype == torch.float32 for tensor in lora.lora_state(ours).values())
    inputs = block_inputs(base_dtype)
    assert ours(*inputs).dtype == base_dtype
    assert_same_training_step(ours, twin, inputs, tolerance=2 * torch.finfo(base_dtype).eps)


@pytest.mark.parametrize(("base_dtype", "autocast"), [
    (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)])
def test_autocast_equals_pefts(base_dtype: torch.dtype, autocast: torch.dtype) -> None:
    base = block(base_dtype)
    ours = adapted(base)
    twin = peft_twin(base, ours, 4, 6, 0.0)
    # The two scale the adapter's part at different places, so roundings to the autocast type differ.
    assert_same_training_step(ours, twin, block_inputs(base_dtype), 4 * torch.finfo(autocast).eps, autocast)


# -------------------------------------------------------------------------------- the formula

@settings(max_examples=60, deadline=None)
@given(rank=st.integers(1, 9), c_in=st.integers(1, 12), c_out=st.integers(1, 12),
       alpha=st.floats(0.01, 64), strength=st.floats(-2, 2), bias=st.booleans(),
       batch=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 2**31))
def test_y_is_the_papers_equation(rank: int, c_in: int, c_out: int, alpha: float, strength: float, bias: bool,
                                  batch: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    base = nn.Linear(c_in, c_out, bias=bias)
    layer = lora.LoRALinear(base, rank, alpha, 0.0, torch.Generator().manual_seed(seed))
    nn.init.normal_(layer.lora_B.weight)
    layer.strength = strength
    x = torch.randn(*batch, c_in)
    W, A, B = base.weight.double(), layer.lora_A.weight.double(), layer.lora_B.weight.double()
    assert A.shape == (rank, c_in)
    assert B.shape == (c_out, rank)
    s = strength * alpha / rank
    expected = x.double() @ (W + s * B @ A).T + (base.bias.double() if bias else 0)
    # Rounding is relative to the sum of the magnitudes added, since the terms may cancel.
    size = x.double().abs() @ (W.abs() + abs(s) * B.abs() @ A.abs()).T
    if bias:
        size = size + base.bias.double().abs()
    y = layer(x)
    assert y.shape == (*batch, c_out)
    assert ((y - expected).abs() <= 1e-5 * size + 1e-30).all()
    merged = layer.merged()
    assert ((merged(x) - expected).abs() <= 1e-5 * size + 1e-30).all()


def test_a_fresh_adapter_changes_no_bit() -> None:
    base, inputs = block(), block_inputs()
    ours = copy.deepcopy(base)
    parameters = lora.inject(ours, dropout=0.0)
    assert torch.equal(ours(*inputs), base(*inputs))
    assert all(parameter.count_nonzero() == 0 for parameter in parameters[1::2])  # the Bs
    for A in parameters[::2]:
        bound = 1 / math.sqrt(A.shape[1])  # kaiming-uniform with a = sqrt(5)
        assert 0.9 * bound < A.abs().max() <= bound


def test_strength() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"to_q": nn.Linear(16, 24)})
    base = copy.deepcopy(model["to_q"])
    lora.inject(model, rank=4, targets=["to_q"], dropout=0.0)
    train_a_little(model)
    x = torch.randn(5, 16)

    def at(strength: float) -> Tensor:
        lora.set_strength(model, strength)
        return model["to_q"](x)

    assert torch.equal(at(0), base(x))
    for strength in (0.25, 1.0, 1.7, -1.0):
        assert_same(at(strength) - at(0), strength * (at(1) - at(0)), 2e-6)
    lora.lora_state(model)["to_q.lora_B.weight"].fill_(math.inf)
    assert torch.equal(at(0), base(x))  # at 0 the adapter is not even computed


# -------------------------------------------------------------------------------- inject

def test_counts_at_full_size() -> None:
    with torch.device("meta"):
        unet = UNet()
    base_keys = list(unet.state_dict())
    parameters = lora.inject(unet)
    layers = [name for name, module in unet.named_modules() if isinstance(module, lora.LoRALinear)]
    assert len(layers) == 128
    assert sum(parameter.numel() for parameter in parameters) == 3_188_736
    assert {id(p) for p in parameters} == {id(p) for p in unet.parameters() if p.requires_grad}
    inert = [p for name, p in unet.named_parameters() if re.search(r"attn2\.to_[qk]\.lora", name)]
    assert sum(p.numel() for p in inert) == 795_648  # no gradient where the context has one token
    assert [key for key in unet.state_dict() if "lora_" not in key] == base_keys
    assert len(base_keys) == 686


def test_base_keys_and_tensors_stay_the_checkpoints() -> None:
    base = block()
    checkpoint_state = base.state_dict()
    weights = {name: id(parameter) for name, parameter in base.named_parameters()}
    parameters = lora.inject(base, rank=4)
    assert weights.items() <= {name: id(parameter) for name, parameter in base.named_parameters()}.items()
    missing, unexpected = base.load_state_dict(checkpoint_state, strict=False)
    assert unexpected == []
    assert set(missing) == set(lora.lora_state(base))
    assert len(missing) == len(parameters) == 2 * COUNT
    assert [name for name, p in base.named_parameters() if p.requires_grad] == list(lora.lora_state(base))
    assert [p.data_ptr() for p in parameters] == [t.data_ptr() for t in lora.lora_state(base).values()]


def test_targets_match_whole_components_only() -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("to_q", "into_q", "to_q2", "to_k")})
    model["to_v"] = nn.Conv2d(4, 4, 1)
    model["to_out"] = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    lora.inject(model, targets=["to_q", "to_out.0"])
    assert {key.split(".lora_")[0] for key in lora.lora_state(model)} == {"to_q", "to_out.0"}
    with pytest.raises(UserError, match="'to_v'"):
        lora.inject(model, targets=["to_k", "to_v"])
    assert type(model["to_k"]) is nn.Linear  # a refused call changes nothing


def test_A_depends_on_seed_and_name_alone() -> None:
    def state(seed: int, **options: object) -> dict[str, Tensor]:
        model = block()
        lora.inject(model, rank=4, seed=seed, **options)
        return lora.lora_state(model)

    first = state(0)
    torch.manual_seed(99)  # neither the global generator,
    before = torch.get_rng_state()
    model = block()
    torch.set_rng_state(before)
    lora.inject(model, rank=4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)  # which is left as it was,
    assert all(torch.equal(first[key], tensor) for key, tensor in lora.lora_state(model).items())
    fewer = state(0, targets=["to_v", "to_k"])  # nor the other layers matter
    assert all(torch.equal(first[key], tensor) for key, tensor in fewer.items())
    other = state(1)
    As = [key for key in first if "lora_A" in key]
    assert not any(torch.equal(first[key], other[key]) for key in As)
    assert not torch.equal(first["attn1.to_q.lora_A.weight"], first["attn1.to_k.lora_A.weight"])


def test_the_mode_of_the_base_is_kept() -> None:
    model = block().eval()
    lora.inject(model, dropout=0.5)
    assert not any(module.training for module in model.modules())
    lora.merge(model)
    assert not any(module.training for module in model.modules())


# -------------------------------------------------------------------------------- merge

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_merge_restores_plain_layers_that_compute_the_same(dtype: torch.dtype, strength: float) -> None:
    base, inputs = block(dtype), block_inputs(dtype)
    model = adapted(base)
    lora.set_strength(model, strength)
    with torch.no_grad():
        before = model(*inputs)
        expected = {name: layer.weight.double() + strength * 6 / 4 * layer.lora_B.weight.double()
                    @ layer.lora_A.weight.double()
                    for name, layer in model.named_modules() if isinstance(layer, lora.LoRALinear)}
    lora.merge(model)
    assert list(model.state_dict()) == list(base.state_dict())
    assert all(type(module) is not lora.LoRALinear for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert len(expected) == COUNT
    for name, W in expected.items():
        assert after[f"{name}.weight"].dtype == dtype
        # One rounding to the base's type (half an ulp), plus fp32 sums; subnormals have a step of their own.
        error = (after[f"{name}.weight"].double() - W).abs()
        slack = torch.finfo(torch.float32).eps * (W.abs().max() * 8)
        assert (error <= torch.finfo(dtype).eps / 2 * W.abs() + slack).all()
    untouched = base.state_dict().keys() - {f"{name}.weight" for name in expected}
    assert all(torch.equal(after[key], base.state_dict()[key]) for key in untouched)
    assert_same(model(*inputs), before, 8 * torch.finfo(dtype).eps)
    if strength == 0:
        assert all(torch.equal(after[key], tensor) for key, tensor in base.state_dict().items())


def test_merge_leaves_the_shared_base_weights_alone() -> None:
    model = block()
    kept, value = model.attn1.to_q.weight, model.attn1.to_q.weight.detach().clone()
    lora.inject(model)
    train_a_little(model)
    lora.merge(model)
    assert torch.equal(kept, value)
    assert not torch.equal(model.attn1.to_q.weight, value)


# -------------------------------------------------------------------------------- state

def test_state_round_trip() -> None:
    ours, inputs = adapted(block()), block_inputs()
    state = {key: tensor.clone() for key, tensor in lora.lora_state(ours).items()}
    assert all(re.fullmatch(r"attn[12]\.to_(q|k|v|out\.0)\.lora_[AB]\.weight", key) for key in state)
    fresh = block()
    parameters = lora.inject(fresh, rank=4, alpha=6, dropout=0.0, seed=7)
    lora.load_lora_state(fresh, {key: tensor.half() for key, tensor in reversed(state.items())})
    assert all(p.dtype == torch.float32 and p.requires_grad for p in parameters)  # filled, never replaced
    lora.load_lora_state(fresh, state)
    assert torch.equal(fresh(*inputs), ours(*inputs))
    again = block()
    lora.inject(again, rank=4, alpha=6, dropout=0.0, seed=8)
    again.load_state_dict(ours.state_dict())  # strict, the whole model
    assert torch.equal(again(*inputs), ours(*inputs))


def test_a_wrong_state_is_refused_whole() -> None:
    ours = adapted(block())
    state = {key: tensor.clone() for key, tensor in lora.lora_state(ours).items()}
    key = "attn2.to_k.lora_A.weight"
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    cases = [({name: zeros[name] for name in zeros if name != key}, rf"missing: {re.escape(key)};"),
             ({**zeros, "mid.to_q.lora_A.weight": zeros[key]}, r"unexpected: mid\.to_q\.lora_A\.weight;"),
             ({**zeros, key: torch.zeros(8, 12)}, r"another shape: attn2\.to_k\S+A\.weight;"),
             ({}, rf"missing: attn1\.\S+ and {2 * COUNT - 1} more;")]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message) as error:
            lora.load_lora_state(ours, wrong)
        assert "\n" not in str(error.value)
        assert all(torch.equal(state[name], tensor) for name, tensor in lora.lora_state(ours).items())
    with pytest.raises(UserError, match="unexpected"):
        lora.load_lora_state(block(), state)  # never injected


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"alpha": float("nan")}, {"dropout": 1.0},
                                     {"dropout": -0.1}, {"targets": ["nowhere"]}])
def test_wrong_options(options: dict[str, float]) -> None:
    model = block()
    with pytest.raises(UserError):
        lora.inject(model, **options)
    assert all(p.requires_grad for p in model.parameters())


def test_a_second_injection_is_refused() -> None:
    model = block()
    lora.inject(model)
    with pytest.raises(UserError, match="no plain linear layer"):
        lora.inject(model)


# -------------------------------------------------------------------------------- company it keeps

@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_changes_no_gradient(autocast: bool) -> None:
    results = []
    for checkpointed in (False, True):
        model, inputs = adapted(block(), dropout=0.3), block_inputs()  # the re-run must draw the same dropout
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = checkpoint(model, *inputs, use_reentrant=False) if checkpointed else model(*inputs)
        y.float().square().mean().backward()
        results.append(gradients(model))
    assert len(results[0]) == 2 * COUNT
    assert all(torch.equal(gradient, results[1][name]) for name, gradient in results[0].items())


def test_deepcopy_is_independent() -> None:
    ours, inputs = adapted(block()), block_inputs()
    twin, before = copy.deepcopy(ours), ours(*inputs)
    assert torch.equal(twin(*inputs), before)
    lora.set_strength(twin, 0.5)
    for tensor in lora.lora_state(twin).values():
        tensor.zero_()
    assert torch.equal(ours(*inputs), before)


def test_to_device_moves_adapters_with_the_base() -> None:
    model = adapted(block()).to("meta")
    x, context = (tensor.to("meta") for tensor in block_inputs())
    assert model(x, context).device.type == "meta"


# -------------------------------------------------------------------------------- in the UNet

def test_one_token_gives_cross_attentions_to_q_and_to_k_no_gradient() -> None:
    """The softmax over one token is 1 whatever q and k are, so they are not computed. All else learns."""
    torch.manual_seed(0)
    unet = UNet(SMALL).train()
    lora.inject(unet, rank=4, dropout=0.1)
    train_a_little(unet, std=0.1)
    for tokens in (1, 4):
        unet.zero_grad(set_to_none=True)
        context = torch.randn(2, tokens, SMALL.cross_attention_dim)
        unet(torch.randn(2, 4, 16, 16), torch.tensor([3, 900]), context).square().mean().backward()
        for name, weight in unet.named_parameters():
            if tokens == 1 and re.search(r"attn2\.to_[qk]\.lora_", name):
                assert weight.grad is None, name
            elif "lora_" in name:
                assert weight.grad.abs().max() > 1e-6, name


def test_dropout_strikes_each_pixel_by_itself_where_the_context_has_one_token() -> None:
    block = TransformerBlock(16, heads=2, context_dim=8)
    lora.inject(block, rank=4, dropout=0.5)
    train_a_little(block, std=1.0)
    x, context = torch.randn(1, 5, 16), torch.randn(1, 1, 8)
    made = cross_attention(block.eval().attn2, block.norm2, x, context)
    assert made.expand(1, 5, 16)[0].unique(dim=0).shape[0] == 1
    dropped = cross_attention(block.train().attn2, block.norm2, x, context)
    assert dropped.shape == (1, 5, 16) and len(dropped[0].unique(dim=0)) == 5
