"""A model whose tensors fit, but whose objective or schedule is not SD 1.5's, is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from bases import CPU, Place, command, write_base
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from forked_commands import ForkedCommands
from hub_server import HubServer
from published import FP32, components
from safetensors.torch import save_file

import sample
import train_class
from runtime.errors import UserError
from sd.pretrained.components import AUTOENCODER, CONTROLNET, UNET, read_config
from sd.pretrained.weights import load_unet, load_vae

SD15 = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False}


def write_schedule(folder: Path, **changes: Any) -> Path:
    (folder / "scheduler").mkdir(exist_ok=True)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(SD15 | changes))
    return file


def train(base: Path, data: Path, out: Path) -> Any:
    return command(train_class.main, "--data", data, "--base", base, "--resolution", 64, "--max-steps", 1,
                   "--no-validate", "--preview-every", 0, "--out", out)


@pytest.mark.parametrize("changes", [
    {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"rescale_betas_zero_snr": True},
    {"beta_schedule": "linear"}, {"beta_end": 0.02}, {"num_train_timesteps": 4000},
    {"trained_betas": [0.1, 0.2]}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}])
def test_another_schedule_is_refused_by_name(changes: dict[str, Any], place: Place, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    file = write_schedule(base, **changes)
    (key, value), = changes.items()
    outcome = train(base, place.data, tmp_path / "run")
    assert outcome.failed_with(f"--base {base}", str(file), str(value), "" if key == "_class_name" else key)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_does_not_meet_a_base_that_became_v_prediction(place: Place, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_schedule(base)
    assert train(base, place.data, tmp_path / "run").status == 0
    write_schedule(base, prediction_type="v_prediction")
    flags = ("--ckpt", tmp_path / "run", "--out", tmp_path / "images", "--per-class", 1, "--steps", 1)
    assert command(sample.main, *flags).failed_with(str(base), "v_prediction")


def test_every_sampler_of_sd15_passes(tmp_path: Path) -> None:
    """The fields that diffusers writes for its own schedulers, with SD 1.5's schedule."""
    base = write_base(tmp_path / "base")
    for kind in (DDPMScheduler, PNDMScheduler):
        kind.from_config(SD15).save_pretrained(base / "scheduler")
        load_unet(str(base), **CPU)
    (base / "scheduler" / "scheduler_config.json").write_text("[]")
    with pytest.raises(UserError, match="not a scheduler_config"):
        load_unet(str(base), **CPU)


def test_from_the_hub_nothing_large_is_fetched(base: Path, forked: ForkedCommands, tmp_path: Path) -> None:
    """And a repository without a scheduler is known to have none, also without a network."""
    other, plain = (Path(shutil.copytree(base, tmp_path / name)) for name in ("other", "plain"))
    write_schedule(other, prediction_type="v_prediction")
    shutil.rmtree(plain / "scheduler")
    with HubServer({"someone/other": other, "someone/plain": plain}) as server:
        environment = server.environment(tmp_path / "cache")
        refused = forked.python("load_unet('someone/other', **CPU)", environment, tmp_path)
        assert refused.status == 2 and "someone/other: this model has prediction_type" in refused.err
        assert server.count("GET", FP32) == 0
        assert forked.python("load_unet('someone/plain', **CPU)", environment, tmp_path).status == 0
    environment |= {"HF_HUB_OFFLINE": "1"}
    again = forked.python("load_unet('someone/plain', **CPU)", environment, tmp_path)
    assert again.status == 0 and again.err == "", again.err


@pytest.mark.usefixtures("small_original")
@pytest.mark.parametrize(("extra", "metadata", "yaml", "expected"), [
    ({"v_pred": torch.zeros(0)}, {}, "", "predicts v"),
    ({"ztsnr": torch.zeros(0)}, {}, "", "zero terminal SNR"),
    ({}, {"modelspec.prediction_type": "v"}, "", "predicts v"),
    ({}, {}, 'model:\n  params:\n    parameterization: "v"\n', "predicts v"),
    ({"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(16, 1024)},
     {}, "", "Stable Diffusion 2"),
    ({"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(32, 2048)},
     {}, "", "SDXL"),
    ({}, {"modelspec.prediction_type": "epsilon"}, "parameterization: eps", "")])
def test_what_a_single_file_tells(extra: dict[str, torch.Tensor], metadata: dict[str, str], yaml: str,
                                  expected: str, base: Path, tmp_path: Path) -> None:
    """The VAE is refused as well: SDXL's has the same tensors, but its latents another scale."""
    file = tmp_path / "model.safetensors"
    tensors = published.original_tensors(*components(base)) | extra
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    if yaml:
        file.with_suffix(".yaml").write_text(yaml)
    for load in (load_unet, load_vae):
        if expected:
            with pytest.raises(UserError, match=f"--base {file}: this model .*{expected}"):
                load(str(file), **CPU)
        else:
            load(str(file), **CPU)


# Fields that say how a model was made, or choose among equal computations.
HARMLESS = {"sample_size", "upcast_attention", "force_upcast", "addition_embed_type_num_heads",
            "addition_time_embed_dim", "projection_class_embeddings_input_dim"}


@pytest.mark.parametrize(("component", "model"), [
    (UNET, UNet2DConditionModel), (AUTOENCODER, AutoencoderKL), (CONTROLNET, ControlNetModel)])
def test_every_field_of_diffusers_config_is_judged(component: Any, model: Any, tmp_path: Path) -> None:
    """A field that is neither read nor compared could change what the model computes unnoticed."""
    parameters = list(inspect.signature(model.__init__).parameters.values())[1:]
    fields = set(vars(component.config)) | set(component.settings) | set(component.blocks(4))
    assert {parameter.name for parameter in parameters} <= fields | HARMLESS
    file = tmp_path / "config.json"
    file.write_text(json.dumps({parameter.name: parameter.default for parameter in parameters}
                               | vars(component.config) | component.blocks(4)))
    assert read_config(component, file) == component.config
