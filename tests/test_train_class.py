"""train_class.py as a person runs it: what it leaves, how it goes on after a stop, how it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bases import ROOT, Outcome, Place, command, place, rows, write_base
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from trees import spoil

import adapter
import learner
import machine
import pictures
import run_folder
import train_class
import training
from errors import Signals

__all__ = ["place"]
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
    """Runs land in a folder of their own; curves, slow to draw, are drawn in one test only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "curves", lambda rows: Image.new("RGB", (8, 8)))


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
    scaler, loss = torch.amp.GradScaler, train_class.diffusion_loss
    monkeypatch.setattr(torch.amp, "GradScaler",
                        lambda enabled: scaler("cpu", init_scale=2.0**117, growth_interval=1))
    monkeypatch.setattr(train_class, "diffusion_loss", lambda *given: 1000 * loss(*given))
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
def test_killed_amid_training_and_continued(number: int, place: Place) -> None:
    flags = ["--data", place.data, "--base", place.base, *SHORT, "--out", "run", "--save-every", 1]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train_class.py", *map(str, flags), "--max-steps", "3000"],
        stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not Path("run/resume.safetensors").exists() or len(metrics()) < 5:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    err = process.communicate(timeout=300)[1]
    done = len(metrics())
    if number == signal.SIGKILL:
        with open("run/metrics.jsonl", "a") as file:
            file.write('{"step": 4, "epo')  # as a kill amid a write leaves it
        Path("run/.adapter.safetensors.1.tmp").write_text("half a checkpo")
    else:
        assert process.returncode == 130 and "Traceback" not in err
        assert err.splitlines()[-1] == f"saved after step {done}; the same command goes on"
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
    with Signals(training.announce_stop) as interrupts:
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


def test_images_in_0_to_1_are_fed_as_they_are(place: Place) -> None:
    outcome = train(place, "--out", "run", "--max-steps", 1, "--no-normalize-to-neg1-pos1")
    assert outcome.status == 0


class Toy(nn.Module):
    """What an optimizer step needs of a model, with a loss that can be made to overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.optimizer = torch.optim.AdamW([{"params": [self.weight]}], lr=0.1)

    def step(self, factor: float, scaler: torch.amp.GradScaler) -> tuple[float, float]:
        batch = {"item": torch.zeros(2), "factor": torch.full((2,), factor)}
        return training.optimizer_step(lambda batch: (self.weight * batch["factor"]).square(), [batch], 2,
                                       self.optimizer, scaler, 0, training.MicroBatch(2))


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
    from machine import choose_checkpointing
    gpu, sizes = torch.device("cuda"), ("fp16", 4, 512, 320)
    for free, step, expected in ((8, "fast", "none"), (2.8, "fast", "lean"), (2, "fast", "full"),
                                 (8, "plain", "none"), (4, "plain", "full"), (4, "control", "none")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 2**34))
        assert choose_checkpointing("auto", step, gpu, *sizes, trained=10**6, packed=0) == expected
        for level in ("none", "lean", "full"):
            assert choose_checkpointing(level, step, gpu, *sizes, trained=10**6, packed=0) == level
    whole = {"trained": 361_279_120, "packed": 0}  # a ControlNet
    assert choose_checkpointing("auto", "control", gpu, *sizes, **whole) == "full"
    monkeypatch.setattr(machine, "free_memory", lambda device: 8 * 2**30)
    for batch, packed, expected in ((1, 10**9, "none"), (1, 8 * 10**9, "lean"), (4000, 0, "full")):
        assert choose_checkpointing("auto", "fast", torch.device("cpu"), "fp32", batch, 512, 320, 0,
                                    packed) == expected


def test_lean_is_no_plain_way(place: Place) -> None:
    outcome = train(place, "--no-fast", "--checkpointing", "lean")
    assert outcome.failed_with("--checkpointing lean", "--no-fast")


def test_a_batch_that_does_not_fit_is_halved_and_the_step_is_the_same(
        place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that holds one image at a time: 4, 2, 1 are tried once, and what was added before is undone."""
    flags = ("--max-steps", 2)
    whole, tried = trained(place, *flags), []
    losses = [row["loss"] for row in metrics()]
    computed = train_class.diffusion_loss

    def one_at_a_time(config: object, unet: nn.Module, context: nn.Module, batch: dict) -> Tensor:
        tried.append(len(batch["item"]))
        loss = computed(config, unet, context, batch)
        if len(batch["item"]) > 1:
            loss.sum().backward()  # the memory runs out in the midst of it
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(train_class, "diffusion_loss", one_at_a_time)
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
    monkeypatch.setattr(train_class, "diffusion_loss", never)
    assert train(place, "--out", "run").failed_with("out of memory", "--checkpointing full")


def test_the_end_of_a_run_says_what_it_took(place: Place) -> None:
    outcome = train(place, "--out", "run", "--max-steps", 2)
    said = re.search(r"2 steps of 4 images, (\S+) s each \(median\); peak memory (\S+) GiB", outcome.err)
    assert 0 < float(said[1]) < 60 and 0.1 < float(said[2]) < 30


def test_precision_by_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    from machine import choose_precision
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert choose_precision("auto", torch.device("cuda")) == expected
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


# --- mistakes ---

MISTAKES = {
    "guidance without a null class": (["--preview-guidance", 3], "--class-dropout"),
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
    import data
    shutil.copytree(place.data, tmp_path / "data")
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    monkeypatch.setattr(learner, "fingerprint", lambda unet: [
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
    subprocess.run(["umount", str(disk)], check=True)


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
    from sd.weights import load_unet
    with pytest.raises(Exception, match=r"less\.safetensors: does not fit .* missing"):
        adapter.load_adapter(Path("less.safetensors"), head, found,
                             load_unet(str(place.base), device="cpu", dtype=torch.float32), 16)
