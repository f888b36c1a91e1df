"""Published ControlNets read by sd/weights.py: every layout, diffusers' readers of them, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from published import CONTROLNET_JSON, FP16, FP32, SMALL_CONTROLNET, SMALL_UNET, config_of

from runtime.errors import UserError
from sd.controlnet import ControlNet, ControlNetConfig
from sd.pretrained import compvis, weights
from sd.pretrained.components import CONTROLNET
from sd.pretrained.weights import load_controlnet
from sd.unet import UNetConfig

UNET = config_of(UNetConfig, SMALL_UNET)
TENSORS = published.random_tensors(published.controlnet_shapes(SMALL_CONTROLNET))


def write_controlnet(folder: Path, name: str = FP32, config: dict[str, Any] = SMALL_CONTROLNET) -> Path:
    """A repository as lllyasviel/control_v11p_sd15_seg, small."""
    published.write(folder / name, TENSORS, torch.float16 if name == FP16 else torch.float32)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(init: Path | str, channels: int = 3, config: UNetConfig = UNET) -> ControlNet:
    return load_controlnet(str(init), config, condition_channels=channels, device="cpu", dtype=torch.float32)


def assert_same(control: ControlNet, tensors: dict[str, torch.Tensor]) -> None:
    state = control.state_dict()
    assert state.keys() == tensors.keys() and not control.training
    assert all(torch.equal(state[name], tensors[name].float()) for name in state)


# --- every layout ---

def test_every_name_of_the_original_file() -> None:
    """control_v11p_sd15_seg_fp16.safetensors as published: 722,601,100 bytes, without metadata in it."""
    shapes = published.controlnet_shapes(CONTROLNET_JSON)
    file = {f"control_model.{name}": x for name, x in published.original_controlnet(shapes).items()}
    metadata = len('"__metadata__":{"format":"pt"},')
    assert abs(published.file_size(file, "F16") - metadata - 722_601_100) <= 8
    for old, new in published.original_controlnet({name: name for name in shapes}).items():
        assert compvis.controlnet_name(old) == new


@pytest.mark.parametrize("name", [FP32, FP16])
@torch.no_grad()
def test_folder_is_what_diffusers_reads(tmp_path: Path, name: str) -> None:
    ours = load(write_controlnet(tmp_path, name))
    assert_same(ours, TENSORS if name == FP32 else published.in_precision(TENSORS, torch.float16))
    theirs = ControlNetModel.from_pretrained(tmp_path, variant="fp16" if name == FP16 else None)
    rng = torch.Generator().manual_seed(0)
    inputs = (torch.randn(1, 4, 8, 8, generator=rng), torch.tensor([7]),
              torch.randn(1, 2, 24, generator=rng), torch.rand(1, 3, 64, 64, generator=rng))
    expected = theirs(*inputs).down_block_res_samples
    torch.testing.assert_close(ours(*inputs)[0][-1], expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_original_file_as_diffusers_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                prefix: str) -> None:
    monkeypatch.setattr(weights, "CONTROLNET",
                        CONTROLNET._replace(config=config_of(ControlNetConfig, SMALL_CONTROLNET)))
    tensors = {prefix + name: x for name, x in published.original_controlnet(TENSORS).items()}
    control = load(published.write(tmp_path / "seg.safetensors", tensors))
    assert_same(control, TENSORS)
    assert_same(control, convert_controlnet_checkpoint(dict(tensors), SMALL_CONTROLNET))


def test_a_condition_of_more_channels(tmp_path: Path) -> None:
    five = {"conditioning_channels": 5}
    name = "controlnet_cond_embedding.conv_in.weight"
    write_controlnet(tmp_path, config=SMALL_CONTROLNET | five)
    published.write(tmp_path / FP32, TENSORS | {name: torch.zeros(16, 5, 3, 3)})
    assert load(tmp_path, 5).config.conditioning_channels == 5


# --- faults ---

def assert_refused(init: Path | str, *expected: str, **given: Any) -> None:
    with pytest.raises(UserError) as caught:
        load(init, **given)
    message = str(caught.value)
    assert "\n" not in message and str(init) in message
    assert all(words in message for words in expected), message


@pytest.mark.parametrize(("key", "value"), [
    ("controlnet_conditioning_channel_order", "bgr"), ("global_pool_conditions", True),
    ("cross_attention_dim", 1024), ("use_linear_projection", True), ("addition_embed_type", "text_time")])
def test_of_another_kind(tmp_path: Path, key: str, value: Any) -> None:
    assert_refused(write_controlnet(tmp_path, config=SMALL_CONTROLNET | {key: value}), "config.json", key)


def test_for_another_base(tmp_path: Path) -> None:
    write_controlnet(tmp_path)
    assert_refused(tmp_path, "--init", "ControlNet's block_out_channels is (16, 32", config=UNetConfig())
    assert_refused(tmp_path, "--init", "conditioning_channels is 3, 4 is needed", channels=4)


def test_no_controlnet(tmp_path: Path) -> None:
    assert_refused(tmp_path, "--init", f"no {FP32}", config=UNetConfig())
    assert_refused("nowhere at all", "--init", "no such file or folder")
    write_controlnet(tmp_path)
    published.write(tmp_path / FP32, {name: x for name, x in TENSORS.items()
                                      if "controlnet_mid_block" not in name})
    assert_refused(tmp_path, "of the 340 tensors of SD 1.5's ControlNet it lacks 2", "controlnet_mid_block.b")
    unet = published.write(tmp_path / "unet.safetensors",
                           {"model.diffusion_model.out.0.weight": torch.zeros(1)})
    assert_refused(unet, "has 1 too many (model.diffusion_model.out.0.weight)", config=UNetConfig())
