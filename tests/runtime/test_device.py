"""Choosing a GPU on a machine that has none: what CUDA would answer is put in place of its answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bases import UNET, command

import sample
from runtime import device
from runtime.device import choose_device
from runtime.errors import NotFinite, UserError
from sampling.generation import SamplingConfig, sample_images
from sd.guidance import Contexts
from sd.unet import UNet

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture()
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A GPU to be described by a test; `chosen` is the device that was set."""
    about = SimpleNamespace(capability=(7, 5), architectures=CU130, chosen=None)
    answers = {"is_available": lambda: True, "get_arch_list": lambda: about.architectures,
               "get_device_capability": lambda device: about.capability,
               "get_device_name": lambda device: "Some Card",
               "set_device": lambda device: setattr(about, "chosen", device)}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "empty", lambda size, device: SimpleNamespace(device=torch.device(device)))
    flags = [(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
             (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
             (torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
    before = [getattr(*flag) for flag in flags]
    for flag in flags:
        setattr(*flag, True)
    yield about
    for flag, value in zip(flags, before, strict=True):
        setattr(*flag, value)


@pytest.mark.parametrize(("capability", "architectures", "way_out"), [
    ((7, 5), CU130, ""), ((8, 9), CU130, ""), ((8, 6), CU130, ""), ((9, 0), CU130, ""), ((12, 1), CU130, ""),
    ((13, 0), CU130, ""),  # made from compute_120
    ((7, 0), CU130, "whl/cu126"), ((6, 0), CU130, "whl/cu126"),
    ((9, 0), ["sm_75", "sm_80"], "newer PyTorch"), ((9, 0), ["sm_75", "compute_80"], ""),
    ((8, 6), ["gfx90a"], ""), ((9, 0), ["sm_80", "sm_90a"], "")])
def test_a_gpu_without_kernels_is_refused(capability: tuple[int, int], architectures: list[str],
                                          way_out: str, gpu: SimpleNamespace) -> None:
    gpu.capability, gpu.architectures = capability, architectures
    if not way_out:
        assert choose_device("auto") == gpu.chosen == torch.device("cuda:0")
        return
    with pytest.raises(UserError, match=f"{capability[0]}.{capability[1]}.*{way_out}.*--device cpu"):
        choose_device("auto")
    assert gpu.chosen is None


def test_every_process_has_its_own_gpu(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name, index in (("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda:3", 3)):
        assert choose_device(name) == gpu.chosen == torch.device("cuda", index)


def test_sums_stay_in_fp32(gpu: SimpleNamespace) -> None:
    choose_device("cuda")
    matmul = torch.backends.cuda.matmul
    assert not any((matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
                    matmul.allow_fp16_reduced_precision_reduction,
                    matmul.allow_bf16_reduced_precision_reduction))


def test_a_card_that_does_not_answer_is_no_reason_to_use_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user says so, by a flag or by hiding it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "cards", lambda: ["/dev/nvidia0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    outcome = command(sample.main, "--ckpt", "nowhere")
    assert outcome.failed_with("--device auto", "/dev/nvidia0", "--device cpu"), outcome
    assert choose_device("cpu") == torch.device("cpu")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert choose_device("auto") == torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(device, "cards", list)
    assert choose_device("auto") == torch.device("cpu")


def test_cards_are_device_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(device, "Path", lambda name: tmp_path)
    assert device.cards() == [str(tmp_path / name) for name in ("nvidia0", "nvidia1")]


def test_latents_that_overflow_are_no_image() -> None:
    unet = UNet(UNET)
    unet.conv_out.bias.data.fill_(torch.inf)
    contexts = Contexts(*torch.randn(2, 1, 1, UNET.cross_attention_dim))
    with pytest.raises(NotFinite, match="--precision fp32"):
        sample_images(unet, None, contexts, [("good", 0)], SamplingConfig(steps=2), 64)
