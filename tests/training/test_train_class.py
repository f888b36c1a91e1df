"""train_class.py as a person runs it: what it leaves, how it goes on after a stop, how it fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from bases import Outcome, Place, command, rows, write_base, write_text
from forked_commands import ForkedCommands
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from trees import make_product, spoil

import sample
import train_class
from checkpoints import adapter
from runtime import device, pictures
from runtime.cli import parse
from runtime.errors import NotFinite, Signals
from runtime.tensor_files import read_own, save_tensors
from training import loop, run_folder, setup

SHORT = ("--resolution", 64, "--preview-every", 0, "--no-validate")


def train(place: Place, *arguments: object) -> Outcome:
    return command(train_class.main, "--data", place.data, "--base", place.base, *SHORT, *arguments)


def trained(place: Place, *arguments: object) -> dict[str, Tensor]:
    """The tensors of a run in ./run, which must succeed."""
    outcome = train(place, "--out", "run", *arguments)
    assert outcome.status == 0, outcome
    return load_file("run/adapter.safetensors")


def metrics(folder: str | Path = "run") -> list[dict]:
    """The rows of metrics.jsonl less its head and the time each step took."""
    head, *steps = rows(Path(folder) / "metrics.jsonl")
    assert "config" in head
    return [{key: value for key, value in row.items() if key != "seconds"} for row in steps]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- what a run leaves ---

def test_a_run_and_its_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "curves", pictures.curves)
    outcome = command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                      "--epochs", 3, "--preview-every", 2, "--preview-steps", 2, "--no-validate")
    assert outcome.status == 0 and "12 images: broken_large 3, broken_small 3" in outcome.out
    run = Path("runs/bottle-class")
    assert str(run) in outcome.out.splitlines()[-1]
    assert sorted(path.name for path in run.iterdir()) == [
        "adapter.safetensors", "config.json", "curves.png", "metrics.jsonl", "previews", "resume.safetensors"]
    assert sorted(path.name for path in (run / "previews").iterdir()) == ["epoch_0002.png", "epoch_0003.png"]
    with Image.open(run / "previews/epoch_0003.png") as preview, Image.open(run / "curves.png") as curves:
        assert preview.width > 4 * 64 and preview.height > 4 * 64 and curves.width > 300
    steps = metrics(run)
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert [row["epoch"] for row in steps] == [0] * 3 + [1] * 3 + [2] * 3
    assert all(row["lr"] == 1e-4 and 0.5 < row["loss"] < 2 and row["grad_norm"] > 0 for row in steps)
    config = json.loads((run / "config.json").read_text())
    assert config["epochs"] == 3 and config["precision"] == "fp32"
    assert config["images"] == {"broken_large": 3, "broken_small": 3, "contamination": 3, "good": 3}
    assert rows(run / "metrics.jsonl")[0]["config"] == config


def test_the_checkpoint_says_what_it_is_and_holds_only_what_was_trained(place: Place) -> None:
    tensors = trained(place, "--max-steps", 2, "--tokens-per-class", 3, "--rank", 4)
    with safe_open("run/adapter.safetensors", "pt") as file:
        header = json.loads(file.metadata()["adapter"])
    assert header["kind"] == "class" and header["step"] == 2 and header["tokens_per_class"] == 3
    assert header["classes"] == ["broken_large", "broken_small", "contamination", "good"]
    assert header["config"]["rank"] == 4 and header["base"] == str(place.base)
    assert tensors.pop("class_embedding.weight").shape == (4, 3 * 16)
    assert tensors.pop("class_null").shape == (3 * 16,)
    assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in tensors)
    assert all(tensor.abs().max() > 0 for key, tensor in tensors.items() if "attn1" in key)


def test_with_one_token_queries_and_keys_of_cross_attention_are_never_trained(place: Place) -> None:
    """Softmax over one token is 1, whatever they are."""
    inert = ("attn2.to_q.lora_B.weight", "attn2.to_k.lora_B.weight")
    one = trained(place, "--max-steps", 2, "--dropout", 0)
    assert all((tensor == 0).all() for key, tensor in one.items() if key.endswith(inert))
    assert all(tensor.abs().max() > 1e-5 for key, tensor in one.items()
               if key.endswith(("attn2.to_v.lora_B.weight", "attn2.to_out.0.lora_B.weight")))
    several = trained(place, "--max-steps", 2, "--dropout", 0, "--tokens-per-class", 2, "--restart")
    assert all(tensor.abs().max() > 1e-5 for key, tensor in several.items() if key.endswith(inert))


# --- going on ---

VARIANTS = {
    "recipe": (),
    "accumulate, ema, clip": ("--batch-size", 2, "--accumulate", 2, "--ema", 0.9, "--clip", 0.05),
    "null class, tokens, previews": ("--class-dropout", 0.5, "--tokens-per-class", 4, "--preview-every", 1,
                                     "--preview-steps", 1, "--preview-guidance", 2),
    "a worker": ("--workers", 1),
    "bf16": ("--precision", "bf16"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_continued_is_the_same_to_the_last_bit(name: str, place: Place,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of 7 steps and then the rest, which starts amid an epoch, against all at once."""
    for folder in ("once", "twice"):
        Path(folder).mkdir()
    monkeypatch.chdir("once")
    trained(place, *VARIANTS[name], "--max-steps", 7)
    monkeypatch.chdir("../twice")
    trained(place, *VARIANTS[name], "--max-steps", 4)
    trained(place, *VARIANTS[name], "--max-steps", 7)
    for file in ("adapter.safetensors", "resume.safetensors", "config.json"):
        assert Path("run", file).read_bytes() == Path("../once/run", file).read_bytes(), file
    assert metrics() == metrics("../once/run") and len(metrics()) == 7


def test_fp16s_scaler_goes_on_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place one for the CPU: doubled after each good step, halved where the loss overflows."""
    scaler, losses = torch.amp.GradScaler, loop.step_losses
    monkeypatch.setattr(torch.amp, "GradScaler",
                        lambda enabled: scaler("cpu", init_scale=2.0**117, growth_interval=1))
    monkeypatch.setattr(loop, "step_losses", lambda *given: 1000 * losses(*given))
    trained(place, "--max-steps", 7)
    whole, steps = Path("run/resume.safetensors").read_bytes(), metrics()
    assert 0 < steps[-1]["skipped"] < 7
    trained(place, "--max-steps", 3, "--restart")
    with safe_open("run/resume.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"])["scaler"]["scale"] > 2.0**117
    trained(place, "--max-steps", 7)
    assert Path("run/resume.safetensors").read_bytes() == whole and metrics() == steps


def test_previews_workers_and_checkpointing_change_nothing_that_is_learnt(place: Place) -> None:
    def tensors(*arguments: object) -> dict[str, Tensor]:
        return trained(place, "--max-steps", 4, "--restart", *arguments)
    plain = tensors()
    for flags in (("--preview-every", 1, "--preview-steps", 1), ("--workers", 2),
                  ("--checkpointing", "lean"), ("--checkpointing", "full")):
        other = tensors(*flags)
        assert all(torch.equal(plain[key], other[key]) for key in plain), flags


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_amid_training_and_continued(number: int, place: Place, forked: ForkedCommands) -> None:
    flags = ["--data", place.data, "--base", place.base, *SHORT, "--out", "run", "--save-every", 1]
    pid = forked.start("train_class", Path.cwd(), *flags, "--max-steps", 3000)
    until = time.monotonic() + 600
    while not Path("run/resume.safetensors").exists() or len(metrics()) < 5:
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(pid, number)
    end = forked.wait(pid)
    done = len(metrics())
    if number == signal.SIGKILL:
        with open("run/metrics.jsonl", "a") as file:
            file.write('{"step": 4, "epo')  # as a kill amid a write leaves it
        Path(f"run/.adapter.safetensors.{pid}.tmp").write_text("half a checkpo")
    else:
        assert end.status == 130 and "Traceback" not in end.err
        assert end.err.splitlines()[-1] == f"saved after step {done}; the same command goes on"
    steps = done + 2
    last = command(train_class.main, *flags, "--max-steps", steps)
    assert last.status == 0 and not list(Path("run").glob(".*"))
    assert [row["step"] for row in metrics()] == list(range(1, steps + 1))
    went_on = load_file("run/adapter.safetensors")
    Path("run").rename("stopped")
    at_once = trained(place, "--save-every", 1, "--max-steps", steps)
    assert all(torch.equal(at_once[key], went_on[key]) for key in at_once)
    assert metrics() == metrics("stopped")


def test_signals_are_handed_back(place: Place) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trained(place, "--max-steps", 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with Signals(loop.announce_stop) as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.seen
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_finished_run_is_left_alone_and_a_longer_one_goes_on(place: Place) -> None:
    trained(place, "--max-steps", 3)
    before = Path("run/adapter.safetensors").read_bytes()
    trained(place, "--max-steps", 3)
    assert Path("run/adapter.safetensors").read_bytes() == before and len(metrics()) == 3
    trained(place, "--epochs", 2)
    assert len(metrics()) == 6 and json.loads(Path("run/config.json").read_text())["epochs"] == 2


def test_another_run_in_the_folder_is_refused_with_the_difference(place: Place, tmp_path: Path) -> None:
    trained(place, "--max-steps", 3, "--preview-every", 1, "--preview-steps", 1)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    outcome = train(place, "--out", "run", "--lr", 0.001, "--rank", 8)
    assert outcome.failed_with("--lr was 0.0001, is 0.001", "--rank was 16, is 8", "--restart")
    other = write_base(tmp_path / "other base", seed=1)
    assert train(place, "--base", other, "--out", "run").failed_with("base_fingerprint was")
    shutil.copytree(place.data, tmp_path / "fewer")
    (tmp_path / "fewer/image/good/000.png").unlink()
    assert train(place, "--data", tmp_path / "fewer", "--out", "run").failed_with("'good': 2")
    assert all(path.read_bytes() == content for path, content in before.items())

    trained(place, "--max-steps", 1, "--lr", 0.001, "--restart", "--preview-every", 0)
    assert len(metrics()) == 1 and not list(Path("run/previews").iterdir())


def test_data_and_base_may_move_and_the_run_goes_on(place: Place, tmp_path: Path) -> None:
    trained(place, "--max-steps", 2)
    shutil.copytree(place.data, tmp_path / "moved")
    shutil.copytree(place.base, tmp_path / "moved base")
    outcome = train(place, "--data", tmp_path / "moved", "--base", tmp_path / "moved base", "--out", "run",
                    "--max-steps", 3)
    assert outcome.status == 0 and len(metrics()) == 3


def test_another_product_of_the_same_name_is_refused_with_both(place: Place, tmp_path: Path) -> None:
    """Equal names, classes and counts, so the default run folder is the same one."""
    first, second = (make_product(tmp_path / line / "cap", seed=seed) for line, seed in (("A", 1), ("B", 2)))
    assert train(place, "--data", first, "--max-steps", 1).status == 0
    before = Path("runs/cap-class/resume.safetensors").read_bytes()
    outcome = train(place, "--data", second, "--max-steps", 2)
    assert outcome.failed_with("runs/cap-class", f"--data was {first}, is {second}", "other images")
    assert Path("runs/cap-class/resume.safetensors").read_bytes() == before
    assert train(place, "--data", second, "--max-steps", 1, "--restart").status == 0


# As recorded by the code of before run folders knew the content of their data, less what the test fills in.
EARLIER = json.loads("""{
    "features": "inception", "features_weights": null, "judge": "resnet18", "judge_weights": null,
    "resolution": 64, "augment": true, "orientation": "any", "normalize_to_neg1_pos1": true, "seed": 42,
    "load_masks": false, "dataset_sources": [], "product_classes": [], "max_samples_per_damage_type": null,
    "damage_type_to_class_id": [], "out": "run", "restart": false, "preview_every": 0,
    "save_every": 5, "preview_steps": 50, "preview_guidance": 1.0, "validate": false, "epochs": 250,
    "max_steps": 2, "batch_size": 4, "accumulate": 1, "lr": 0.0001, "lr_decay": ["100=0.5", "175=0.2"],
    "weight_decay": 0.01, "class_dropout": 0.0, "precision": "fp32", "checkpointing": "auto",
    "latent_variants": 25, "device": "auto", "workers": 0, "rank": 16, "alpha": 32.0, "dropout": 0.1,
    "tokens_per_class": 1, "init_std": 0.02,
    "images": {"broken_large": 3, "broken_small": 3, "contamination": 3, "good": 3}}""")


def test_a_run_of_an_earlier_version_goes_on(place: Place) -> None:
    """Its state lacks flags that came later: each had its default. The end is the same to the last bit."""
    once = trained(place, "--max-steps", 4)
    trained(place, "--max-steps", 2, "--restart")
    tensors, about = read_own(Path("run/resume.safetensors"), "state")
    earlier = EARLIER | {key: about["settings"][key] for key in ("data", "base", "base_fingerprint")}
    assert earlier.keys() < about["settings"].keys()
    save_tensors(Path("run/resume.safetensors"), tensors, "state", about | {"settings": earlier})
    Path("run/config.json").write_text(json.dumps(earlier))
    head, *others = Path("run/metrics.jsonl").read_text().splitlines()
    Path("run/metrics.jsonl").write_text("\n".join([json.dumps({"config": earlier}), *others]) + "\n")
    assert train(place, "--out", "run", "--ema", 0.5).failed_with("--ema was 0.0, is 0.5")
    again = trained(place, "--max-steps", 4)
    assert len(metrics()) == 4 and all(torch.equal(again[key], tensor) for key, tensor in once.items())


@pytest.mark.parametrize("inside", ["run", "image/run", "."])
def test_a_run_folder_in_the_data_is_refused(inside: str, place: Place) -> None:
    before = sorted(place.data.rglob("*"))
    assert train(place, "--out", place.data / inside, "--max-steps", 1).failed_with("--out", str(place.data))
    assert sorted(place.data.rglob("*")) == before


@pytest.mark.parametrize("name", ["resume.safetensors", "metrics.jsonl"])
def test_damaged_files_of_a_run(name: str, place: Place) -> None:
    trained(place, "--max-steps", 3)
    if name == "metrics.jsonl":
        lines = Path("run", name).read_text().splitlines()
        Path("run", name).write_text("\n".join([*lines[:2], "oops", *lines[2:]]) + "\n")
    else:
        spoil(Path("run", name), 0.9)
    assert train(place, "--out", "run", "--max-steps", 4).failed_with(name)


def test_a_run_goes_on_without_what_it_does_not_need(place: Place) -> None:
    """Deleted meanwhile: metrics begin anew, the rest is written again."""
    trained(place, "--max-steps", 2)
    for file in ("metrics.jsonl", "config.json", "adapter.safetensors"):
        Path("run", file).unlink()
    trained(place, "--max-steps", 3)
    assert [row["step"] for row in metrics()] == [3] and Path("run/config.json").exists()
    Path("run/metrics.jsonl").write_text('{"config": 1}\n{"step": "x"}\n')
    assert train(place, "--out", "run", "--max-steps", 4).failed_with("metrics.jsonl", "damaged")


def test_folders_that_are_no_run(place: Place) -> None:
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    assert train(place, "--out", "mine", "--max-steps", 1, "--restart").failed_with("mine/config.json")
    assert Path("mine/config.json").read_text() == "{}"
    Path("file").write_text("x")
    assert train(place, "--out", "file", "--max-steps", 1).failed_with("file")
    trained(place, "--max-steps", 1)
    Path("run/resume.safetensors").unlink()
    assert train(place, "--out", "run", "--max-steps", 1).failed_with("resume.safetensors", "--restart")


# --- the step ---

def test_accumulation_is_the_same_step(place: Place) -> None:
    """4 images at once, 2 times 2, 4 times 1: noise is drawn by image, so updates are equal but for rounding.

    AdamW moves each weight by about lr a step however small its gradient, so single weights may differ where
    that is nothing but rounding; compared are the means, relative to how far the weights moved.
    """
    flags = ("--dropout", 0.3, "--max-steps", 4, "--restart", "--class-dropout", 0.3)
    whole = trained(place, *flags, "--batch-size", 4)
    losses = [row["loss"] for row in metrics()]
    for size, times in ((2, 2), (1, 4)):
        parts = trained(place, *flags, "--batch-size", size, "--accumulate", times)
        for row, loss in zip(metrics(), losses, strict=True):
            assert row["loss"] == pytest.approx(loss, rel=1e-5)
        for key, tensor in whole.items():
            assert (parts[key] - tensor).abs().mean() < 0.02 * 4e-4, key


def test_the_embedding_may_have_a_rate_of_its_own(place: Place) -> None:
    """AdamW's first step moves every weight that has a gradient by its rate."""
    tensors = trained(place, "--max-steps", 1, "--embedding-lr", 0.5, "--init-std", 1e-9, "--lr", 1e-3)
    moved = tensors["class_embedding.weight"].abs().max(dim=1).values
    assert moved.max() == pytest.approx(0.5, rel=1e-3)
    assert max(v.abs().max() for k, v in tensors.items() if "lora_B" in k) == pytest.approx(1e-3, rel=1e-3)
    assert metrics()[0]["lr"] == 1e-3


def test_either_part_may_stay_as_it_starts(place: Place) -> None:
    start = trained(place, "--max-steps", 1, "--lr", 1e-9)
    lora_alone = trained(place, "--max-steps", 2, "--embedding-lr", 0, "--lr", 1e-2, "--restart")
    embedding_alone = trained(place, "--max-steps", 2, "--embedding-lr", 1e-2, "--lr", 0, "--restart")
    assert torch.allclose(lora_alone["class_embedding.weight"], start["class_embedding.weight"], atol=1e-7)
    assert (embedding_alone["class_embedding.weight"] - start["class_embedding.weight"]).abs().max() > 1e-3
    up = [key for key in start if "lora_B" in key]
    assert any(lora_alone[key].any() for key in up) and not any(embedding_alone[key].any() for key in up)
    assert train(place, "--out", "run", "--lr", 0).failed_with("--lr 0")


def test_bf16_learns_the_same_but_for_its_rounding(place: Place) -> None:
    trained(place, "--max-steps", 3)
    losses = [row["loss"] for row in metrics()]
    trained(place, "--max-steps", 3, "--precision", "bf16", "--restart")
    assert [row["loss"] for row in metrics()] == pytest.approx(losses, rel=0.02)
    assert [row["loss"] for row in metrics()] != losses


def test_the_loss_falls(place: Place) -> None:
    """On four photos, at a high rate: the mean loss of the last steps is below that of the first."""
    trained(place, "--max-steps", 40, "--lr", 0.01, "--max-samples-per-damage-type", 1, "--no-augment",
            "--tokens-per-class", 4)
    losses = [row["loss"] for row in metrics()]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


class Toy(nn.Module):
    """What an optimizer step needs of a model, with a loss that can be made to overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.optimizer = torch.optim.AdamW([{"params": [self.weight]}], lr=0.1)

    def step(self, factor: float, scaler: torch.amp.GradScaler) -> tuple[float, float]:
        batch = {"item": torch.zeros(2), "factor": torch.full((2,), factor)}
        return loop.optimizer_step(lambda batch: (self.weight * batch["factor"]).square(), [batch], 2,
                                       self.optimizer, scaler, 0, loop.MicroBatch(2))


def test_an_overflowing_gradient_skips_the_step() -> None:
    """In fp16 the scale is halved until it fits."""
    toy, scaler = Toy(), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    assert toy.step(10.0, scaler) == (100.0, float("inf")) and (toy.weight == 1).all()
    assert scaler.get_scale() == 2.0**126
    while (toy.weight == 1).all():
        loss, norm = toy.step(10.0, scaler)
    assert loss == 100 and norm == pytest.approx(200 / 2**0.5) and scaler.get_scale() > 1
    toy = Toy()
    toy.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert toy.step(1.0, torch.amp.GradScaler(enabled=False)) == (1.0, float("inf"))
    assert (toy.weight == 1).all()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(place: Place) -> None:
    flags = ("--save-every", 1, "--lr-decay", "1=1e30")
    before = trained(place, "--epochs", 1, *flags)
    assert train(place, "--out", "run", "--epochs", 9, *flags).failed_with("the loss is", "--lr")
    kept = load_file("run/adapter.safetensors")
    assert all(torch.equal(before[key], kept[key]) for key in before)


def test_checkpointing_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.device import choose_checkpointing
    gpu, sizes = torch.device("cuda"), ("fp16", 4, 512, 320)
    small = {"trained": 10**6, "packed": 0, "one_token": True}
    for free, step, expected in ((8, "fast", "none"), (2.8, "fast", "lean"), (2, "fast", "full"),
                                 (9, "plain", "none"), (4, "plain", "full"), (4.5, "control", "none")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 2**34))
        assert choose_checkpointing("auto", step, gpu, *sizes, **small) == expected
        for level in ("none", "lean", "full"):
            assert choose_checkpointing(level, step, gpu, *sizes, **small) == level
    whole = {**small, "trained": 361_279_120}  # a ControlNet
    assert choose_checkpointing("auto", "control", gpu, *sizes, **whole) == "full"
    monkeypatch.setattr(device, "free_memory", lambda device: 8 * 2**30)
    for batch, packed, expected in ((1, 10**9, "none"), (1, 8 * 10**9, "lean"), (4000, 0, "full")):
        assert choose_checkpointing("auto", "fast", torch.device("cpu"), "fp32", batch, 512, 320, 0,
                                    packed, one_token=True) == expected


def test_checkpointing_counts_several_tokens(place: Place, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Their attention keeps more: what fits for one token may not for four, nor for a prompt."""
    chosen = []

    def noted(*settings: object, **more: bool) -> str:
        monkeypatch.setattr(device, "free_memory", lambda device: 3.2 * 2**30)
        chosen.append(device.choose_checkpointing("auto", "fast", torch.device("cuda"), "fp16", 4, 512, 320,
                                                  trained=10**6, packed=0, one_token=more["one_token"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "choose_checkpointing", noted)
    prompts = Place(write_text(write_base(tmp_path / "text")), place.data)
    for where, flags in ((place, ()), (place, ("--tokens-per-class", 4)), (prompts, ("--context", "prompt"))):
        assert train(where, *flags).status == 130
    assert chosen == ["none", "lean", "lean"]


def test_lean_is_no_plain_way(place: Place) -> None:
    outcome = train(place, "--no-fast", "--checkpointing", "lean")
    assert outcome.failed_with("--checkpointing lean", "--no-fast")


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")], ids=type)
def test_a_batch_that_does_not_fit_is_halved_and_the_step_is_the_same(
        error: RuntimeError, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that holds one image at a time: 4, 2, 1 are tried once, and what was added before is undone."""
    flags = ("--max-steps", 2)
    whole, tried = trained(place, *flags), []
    losses = [row["loss"] for row in metrics()]
    computed = loop.step_losses

    def one_at_a_time(*arguments: object) -> Tensor:
        losses = computed(*arguments)
        tried.append(len(losses))
        if len(losses) > 1:
            losses.sum().backward()  # the memory runs out in the midst of it
            raise error
        return losses

    monkeypatch.setattr(loop, "step_losses", one_at_a_time)
    outcome = train(place, "--out", "run", "--restart", *flags)
    assert outcome.status == 0 and tried == [4, 2] + [1] * 8
    assert [line.split(" at once")[0] for line in outcome.err.splitlines() if "out of memory" in line] == [
        "out of memory: from here on 2", "out of memory: from here on 1"]
    assert [row["loss"] for row in metrics()] == pytest.approx(losses, rel=1e-5)
    parts = load_file("run/adapter.safetensors")
    assert all((parts[key] - tensor).abs().mean() < 0.02 * 2e-4 for key, tensor in whole.items())


def test_one_image_that_does_not_fit_ends_in_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(loop, "step_losses", never)
    assert train(place, "--out", "run").failed_with("out of memory", "--checkpointing full")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), NotFinite("overflowed"),
                                   RuntimeError("CUDNN_STATUS_ALLOC_FAILED")], ids=type)
def test_a_preview_that_does_not_fit_is_left_out(error: Exception, place: Place,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on, and so does a resumed one; any other error ends it."""
    whole = trained(place, "--max-steps", 3)
    monkeypatch.setattr(loop, "draw_preview", raising(error))
    flags = ("--out", "no previews", "--preview-every", 1, "--max-steps")
    for steps in (3, 6):
        outcome = train(place, *flags, steps)
        assert outcome.status == 0 and f"step {steps}: no preview: " in outcome.err, outcome
    assert not list(Path("no previews/previews").glob("*.png"))
    assert len(metrics("no previews")) >= 6 and whole
    monkeypatch.setattr(loop, "draw_preview", raising(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        train(place, *flags, 9)


def raising(error: Exception) -> object:
    def fail(*arguments: object) -> None:
        raise error
    return fail


def test_the_end_of_a_run_says_what_it_took_and_what_is_next(place: Place) -> None:
    outcome = train(place, "--out", "my $run", "--max-steps", 2)
    line = outcome.out.splitlines()[-1].partition("python sample.py ")[2]
    assert parse(sample.Config, "", argv=shlex.split(line)).ckpt == "my $run"
    said = re.search(r"2 steps of 4 images, (\S+) s each \(median\); peak memory (\S+) GiB", outcome.err)
    assert 0 < float(said[1]) < 60 and 0.1 < float(said[2]) < 30


def test_precision_by_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.device import choose_precision
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert choose_precision("auto", torch.device("cuda")) == expected
        assert choose_precision("auto", torch.device("cuda"), drawing=True) == "fp16"
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


# --- mistakes ---

MISTAKES = {
    "guidance without a null class": (["--preview-guidance", 3], "--class-dropout"),
    "guidance of a preset without it": (["--preset", "tiny", "--class-dropout", 0], "of --preset tiny"),
    "images in [0,1]": (["--no-normalize-to-neg1-pos1"], "--no-normalize-to-neg1-pos1"),
    "lr decay": (["--lr-decay", "100"], "EPOCH=FACTOR"),
    "resolution": (["--resolution", 100], "64 or 128"),
    "no such base": (["--base", "no/such/base"], "no/such/base"),
    "no such data": (["--data", "no such data"], "no such data"),
    "no GPU": (["--device", "cuda:7"], "--device cuda:7"),
    "no device": (["--device", "abacus"], "--device abacus"),
    "fp16 on a CPU": (["--precision", "fp16", "--device", "cpu"], "--precision fp16"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, place: Place) -> None:
    flags, expected = MISTAKES[name]
    assert train(place, "--out", "run", "--max-steps", 1, *flags).failed_with(expected)
    assert not Path("run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_while_training(workers: int, place: Place, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a worker, whose error comes with its traceback in its text: one line."""
    shutil.copytree(place.data, tmp_path / "data")
    monkeypatch.setattr("dataset.decoded.CACHE_BYTES", 0)
    monkeypatch.setattr(setup, "fingerprint", lambda unet: [
        spoil(file, 0.5) for file in (tmp_path / "data").rglob("image/*/*.png")] and "0")
    outcome = train(place, "--data", tmp_path / "data", "--out", "run", "--workers", workers,
                    "--latent-variants", 0)
    assert outcome.failed_with(".png", "cannot be read") and "worker" not in outcome.err


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a full disk can only be made by root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(place: Place, full_disk: Path) -> None:
    run = full_disk / "run"
    flags = ("--out", run, "--rank", 1, "--save-every", 1, "--latent-variants", 1)
    assert train(place, *flags, "--epochs", 1).status == 0
    before = (run / "adapter.safetensors").read_bytes()
    ballast = full_disk / "ballast"
    with pytest.raises(OSError):
        ballast.write_bytes(bytes(2**20))
    outcome = train(place, *flags, "--epochs", 3)
    assert outcome.failed_with(str(run), "No space left")
    assert (run / "adapter.safetensors").read_bytes() == before
    os.truncate(ballast, ballast.stat().st_size - 8192)  # room for a few rows, not for a checkpoint
    assert train(place, *flags, "--epochs", 3).failed_with(str(run), "No space left")
    assert (run / "adapter.safetensors").read_bytes() == before and not list(run.glob(".*"))
    ballast.unlink()
    assert train(place, *flags, "--epochs", 3).status == 0 and len(metrics(run)) == 9


def test_a_checkpoint_is_copied_strictly(place: Place) -> None:
    tensors = trained(place, "--max-steps", 1)
    key = next(key for key in tensors if "lora_A" in key)
    adapter.save_adapter(Path("less.safetensors"), {k: v for k, v in tensors.items() if k != key},
                         adapter.read_adapter(Path("run/adapter.safetensors"))[1])
    found, head = adapter.read_adapter(Path("less.safetensors"))
    from sd.pretrained.weights import load_unet
    with pytest.raises(Exception, match=r"less\.safetensors: does not fit .* missing"):
        adapter.load_adapter(Path("less.safetensors"), head, found,
                             load_unet(str(place.base), device="cpu", dtype=torch.float32), 16)
