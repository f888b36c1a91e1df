"""LoRA files as the programs of others spell them: one SD 1.5 LoRA in each, read alike; all else is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bases import Outcome, command
from safetensors.torch import load_file, save_file
from torch import Tensor

import lora
from checkpoints.external_lora import add, start_from
from runtime.errors import UserError
from sd.unet import UNet, UNetConfig

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = [f"{BLOCK}.attn{a}.{target}" for a in (1, 2) for target in ("to_q", "to_k", "to_v", "to_out.0")]
PARTS = (("A", "down"), ("B", "up"))
Spelling = dict[str, Tensor]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pairs(context: int = 768) -> dict[str, dict[str, Tensor]]:
    """module -> A (4, in) and B (320, 4)."""
    rng = torch.Generator().manual_seed(0)
    widths = {name: context if "attn2.to_k" in name or "attn2.to_v" in name else 320 for name in LAYERS}
    return {name: {"A": torch.randn(4, widths[name], generator=rng), "B": torch.randn(320, 4, generator=rng)}
            for name in LAYERS}


def spelled(form: str, context: int = 768) -> Spelling:
    """The LoRA's tensors; form: a name with {module}, and {part} (A, B) or {way} (down, up)."""
    return {name_of(form, module, part, way): pair[part] for module, pair in pairs(context).items()
            for part, way in PARTS}


def name_of(form: str, module: str, part: str, way: str) -> str:
    block, _, target = module.rpartition(".to_")
    return form.format(module=module, flat=module.replace(".", "_"), part=part, way=way, block=block,
                       target="to_" + target.removesuffix(".0"))


def convert(tensors: Spelling, source: str, *flags: object) -> Outcome:
    save_file(tensors, "lora.safetensors")
    return command(lora.main, "convert", "lora.safetensors", "out", "--from", source, *flags)


SPELLINGS = {
    "diffusers": "unet.{module}.lora_{part}.weight",
    "diffusers before peft": "unet.{module}.lora.{way}.weight",
    "processor": "unet.{block}.processor.{target}_lora.{way}.weight",
    "oldest, without unet": "{block}.processor.{target}_lora.{way}.weight",
    "OneTrainer": "unet.{module}.lora_{way}.weight",
    "an adapter's name": "unet.{module}.lora_{part}.default.weight",
    "peft without its prefix": "{module}.lora_{part}.weight"}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_one_lora(name: str) -> None:
    outcome = convert(spelled(SPELLINGS[name]), "diffusers", "--to", "kohya")
    assert outcome.status == 0, outcome
    found = load_file("out/out.safetensors")
    for module, pair in pairs().items():
        key = f"lora_unet_{module.replace('.', '_')}"
        assert torch.equal(found[f"{key}.lora_down.weight"], pair["A"])
        assert torch.equal(found[f"{key}.lora_up.weight"], pair["B"]) and found[f"{key}.alpha"] == 4
    assert len(found) == 3 * len(LAYERS)


def test_an_alpha_beside_diffusers_names() -> None:
    """As OneTrainer writes it: alpha / rank is 1/2."""
    tensors = spelled("unet.{module}.lora_{way}.weight")
    alphas = {f"unet.{module}.alpha": torch.tensor(2.0) for module in LAYERS}
    assert convert(tensors | alphas, "diffusers", "--to", "kohya").status == 0
    found = load_file("out/out.safetensors")
    assert all(value == 2 for name, value in found.items() if name.endswith("alpha"))


def test_text_encoder_alone() -> None:
    name = "lora_te_text_model_encoder_layers_3_mlp_fc1"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 768), f"{name}.lora_up.weight": torch.ones(3072, 2)}
    for prefix in ("lora_te_", "lora_te1_"):
        renamed = {key.replace("lora_te_", prefix): tensor for key, tensor in tensors.items()}
        assert convert(renamed, "kohya", "--to", "diffusers").status == 0
        assert {key.partition(".lora")[0] for key in load_file("out/pytorch_lora_weights.safetensors")} == {
            "text_encoder.text_model.encoder.layers.3.mlp.fc1"}
        Path("out").rename(prefix)


FLAT = "lora_unet_" + BLOCK.replace(".", "_") + "_attn1_to_q"
ONE = torch.ones(4, 4)
OTHERS: dict[str, tuple[Spelling, str]] = {
    "SD 2": (spelled("unet.{module}.lora_{way}.weight", context=1024), "a LoRA for SD 2.x"),
    "SD 2, kohya": (spelled("lora_unet_{flat}.lora_{way}.weight", context=1024), "a LoRA for SD 2.x"),
    "SDXL by width": (spelled("unet.{module}.lora.{way}.weight", context=2048), "a LoRA for SDXL"),
    "SDXL, oldest": (spelled("{block}.processor.{target}_lora.{way}.weight", context=2048), "for SDXL"),
    "SDXL, kohya": ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": ONE}, "a LoRA for SDXL"),
    "SDXL's second encoder": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": ONE}, "for SDXL"),
    "SD 2's encoder": ({"lora_te_text_model_encoder_layers_22_mlp_fc1.lora_down.weight": ONE}, "for SD 2.x"),
    "FLUX": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": ONE}, "for SD 3 or FLUX"),
    "LoHa": ({f"{FLAT}.hada_w1_a": ONE}, "a LoHa adapter"),
    "DoRA": ({f"unet.{LAYERS[0]}.lora_magnitude_vector.default.weight": ONE}, "a DoRA adapter"),
    "GLoRA": ({f"{FLAT}.a1.weight": ONE}, "a GLoRA adapter"),
    "Tucker": ({f"{FLAT}.lora_mid.weight": ONE}, "a LoCon in Tucker's form adapter"),
    "norms": ({f"{FLAT}.w_norm": ONE}, "a full-weight adapter"),
    "several adapters": (spelled("unet.{module}.lora_{part}.default.weight")
                         | spelled("unet.{module}.lora_{part}.other.weight"), "several adapters for unet."),
    "embedding, A1111": ({"emb_params": torch.ones(1, 768)}, "a textual-inversion embedding"),
    "embedding, diffusers": ({"<scratch>": torch.ones(768)}, "a textual-inversion embedding"),
    "embedding, any word": ({"scratch": torch.ones(3, 768)}, "a textual-inversion embedding"),
    "an endless name": ({"x" + "_lora" * 10**5 + ".down": ONE}, "no plain LoRA")}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_lora_for_it_is_named(name: str) -> None:
    tensors, expected = OTHERS[name]
    outcome = convert({key: tensor.clone() for key, tensor in tensors.items()}, "diffusers", "--to", "kohya")
    assert outcome.failed_with("lora.safetensors", expected), outcome
    assert not Path("out").exists()


def test_another_bases_shapes_are_said_first() -> None:
    """Whether its layers are trained here or not, a file for another base fits nowhere."""
    unet = UNet(UNetConfig(block_out_channels=(8, 16, 16, 16), cross_attention_dim=12, attention_head_dim=2,
                           norm_num_groups=4))
    lora.inject(unet, rank=4)
    for target in ("attn1.to_q", "ff.net.2"):
        name = f"unet.{BLOCK}.{target}"
        save_file({f"{name}.lora_A.weight": torch.ones(4, 320), f"{name}.lora_B.weight": torch.ones(320, 4)},
                  "x.safetensors")
        for read in (lambda: start_from(unet, Path("x.safetensors")),
                     lambda: add(unet, "unet", Path("x.safetensors"), 1.0)):
            with pytest.raises(UserError, match=r"\(320, 320\).*another base"):
                read()
