"""sample.py as a person runs it, on checkpoints of a few training steps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import ROOT, Outcome, Place, command, rows, write_base
from forked_commands import ForkedCommands
from PIL import Image
from pipelines import our_checkpoint, our_images
from trees import make_product, spoil

import sample
import train_class
from checkpoints import adapter, loading
from runtime.files import sha256
from runtime.tensor_files import save_tensors
from sampling import generation, journal, sample_folder

CLASSES = ["broken_large", "broken_small", "contamination", "good"]


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a null class and four tokens a class."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    outcome = command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                      "--preview-every", 0, "--max-steps", 6, "--lr", 0.02, "--class-dropout", 0.2,
                      "--tokens-per-class", 4, "--init-std", 1, "--out", folder)
    assert outcome.status == 0, outcome
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(run: Path, *arguments: object) -> Outcome:
    return command(sample.main, "--ckpt", run, "--steps", 4, "--per-class", 2, *arguments)


def pixels(out: str, damage: str, number: int) -> np.ndarray:
    with Image.open(Path(out, "image", damage, f"{number:03d}.png")) as image:
        return np.asarray(image).astype(int)


def files(out: str = "generated") -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(Path(out).rglob("*"))
            if path.is_file()}


def rewritten(run: Path, to: str, **changes: object) -> Path:
    """The checkpoint with a changed header."""
    tensors, header = adapter.read_adapter(run / "adapter.safetensors")
    about = dataclasses.asdict(header) | changes
    save_tensors(Path(to), tensors, "adapter", about)
    return Path(to)


def test_what_it_leaves(run: Path) -> None:
    outcome = draw(run)
    assert outcome.status == 0 and "generated/grid.png" in outcome.out
    assert sorted(files()) == sorted([f"image/{damage}/{number:03d}.png" for damage in CLASSES
                                      for number in (0, 1)] + ["gallery.html", "grid.png", "samples.jsonl"])
    noted = rows(Path("generated/samples.jsonl"))
    assert [row["file"] for row in noted] == [f"image/{damage}/{number:03d}.png" for damage in CLASSES
                                              for number in (0, 1)]
    assert noted[3] == {
        "file": "image/broken_small/001.png", "class": "broken_small", "number": 1, "seed": 42, "steps": 4,
        "sampler": "ddim", "eta": 0.0, "guidance": 1.0, "lora_scale": 1.0, "precision": "fp32",
        "checkpoint": sha256(run / "adapter.safetensors"), "base": noted[3]["base"], "resolution": 64,
        "loras": [], "strength": 1.0, "guidance_interval": [0, 999], "layout": "ds"}
    with Image.open("generated/grid.png") as grid:
        assert grid.height > 4 * 64 and grid.width > 2 * 64
    drawn = [pixels("generated", damage, number) for damage in CLASSES for number in (0, 1)]
    assert all(image.shape == (64, 64, 3) and image.std() > 1 for image in drawn)
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])
    assert json.loads(draw(run, "--json").out) == {
        "out": "generated", "classes": CLASSES, "per_class": 2, "drawn": 0,
        "rejected": 0, "journal": "generated/samples.jsonl", "grid": "generated/grid.png",
        "gallery": "generated/gallery.html"}


def test_what_is_drawn_depends_on_seed_class_and_number_alone(run: Path) -> None:
    """The same picture in any batch and company; bit for bit where the batches are of one size."""
    for size in (1, 3, 4):
        assert draw(run, "--out", f"by {size}", "--batch-size", size, "--guidance", 2).status == 0
    for size in (3, 4):
        for damage in CLASSES:
            for number in (0, 1):
                difference = pixels(f"by {size}", damage, number) - pixels("by 1", damage, number)
                assert abs(difference).max() <= 1
    assert draw(run, "--out", "few", "--batch-size", 1, "--guidance", 2, "--classes", "good", "broken_small",
                "--per-class", 3).status == 0
    for damage in ("good", "broken_small"):
        for number in (0, 1):
            name = f"image/{damage}/{number:03d}.png"
            assert files("few")[name] == files("by 1")[name]
    assert draw(run, "--out", "other", "--seed", 43, "--guidance", 2).status == 0
    assert (pixels("other", "good", 0) != pixels("by 1", "good", 0)).any()


@pytest.mark.parametrize("flags", [("--sampler", "ddpm"), ("--sampler", "dpm++"),
                                   ("--sampler", "dpm++linspace"), ("--eta", 1)])
def test_samplers_draw_by_number_too(flags: tuple, run: Path) -> None:
    assert draw(run, *flags, "--batch-size", 1, "--classes", "good").status == 0
    assert draw(run, *flags, "--batch-size", 3, "--out", "other").status == 0
    assert abs(pixels("generated", "good", 1) - pixels("other", "good", 1)).max() <= 1
    assert draw(run, "--classes", "good", "--out", "plain").status == 0
    assert (pixels("generated", "good", 1) != pixels("plain", "good", 1)).any()


def test_adding_classes_and_images(run: Path) -> None:
    assert draw(run, "--classes", "good").status == 0
    before = files()
    outcome = draw(run, "--per-class", 3)
    assert outcome.status == 0 and "10 images to draw, 2 there already" in outcome.err
    after = files()
    assert len(after) == 15 and all(after[name] == before[name] for name in before if "image" in name)
    assert len({row["file"] for row in rows(Path("generated/samples.jsonl"))}) == 12
    again = draw(run, "--per-class", 3)
    assert again.status == 0 and "0 images to draw" in again.err and files() == after


def test_other_settings_are_refused_with_the_difference(run: Path, place: Place) -> None:
    assert draw(run, "--classes", "good").status == 0
    before = files()
    assert draw(run, "--seed", 1).failed_with("seed was 42, is 1", "samples.jsonl")
    assert draw(run, "--steps", 5, "--guidance", 3).failed_with("steps was 4, is 5", "guidance was 1.0, is")
    assert draw(rewritten(run, "other.safetensors", step=9)).failed_with("weights than --ckpt has now")
    assert files() == before


def test_images_of_others_are_never_overwritten(run: Path) -> None:
    assert draw(run, "--classes", "good").status == 0
    theirs = Path("generated/image/contamination/001.png")
    theirs.parent.mkdir(parents=True)
    theirs.write_text("a photo")
    assert draw(run).failed_with(str(theirs))
    assert draw(run, "--classes", "good").status == 0  # nothing in the way of these
    assert draw(run).failed_with(str(theirs)) and theirs.read_text() == "a photo"
    theirs.unlink()
    assert draw(run).status == 0
    Path("elsewhere").mkdir()
    Path("elsewhere/grid.png").write_text("a picture")
    assert draw(run, "--out", "elsewhere").failed_with("elsewhere/grid.png")


def test_a_dataset_is_no_place_for_generated_images(run: Path, place: Place) -> None:
    """Neither the training data, nor a folder within it, nor any other dataset; nothing is written there."""
    before = sorted(place.data.rglob("*"))
    for out in (place.data, place.data / "generated", place.data / "image/good"):
        assert draw(run, "--out", out).failed_with(f"--out {out}", str(place.data), "another --out")
    assert draw(run, "--out", "/", "--layout", "mvtec").failed_with("--out /", "root of a disk")
    assert sorted(place.data.rglob("*")) == before
    make_product(Path("other"), count=1)
    make_product(Path("several/bottle"), count=1)
    before = sorted(Path().rglob("*"))
    assert draw(run, "--out", "other").failed_with("--out other", "other/image", "dataset")
    several = rewritten(run, "two.safetensors", classes=["bottle/a", "bottle/good", "cap/b", "cap/good"])
    assert draw(several, "--out", "several").failed_with("--out several", "bottle/image")
    several.unlink()
    assert sorted(Path().rglob("*")) == before


OLD_ROW = ('{"file": "image/good/000.png", "class": "good", "number": 0, "seed": 42, "steps": 4, "sampler": '
           '"ddim", "eta": 0.0, "guidance": 1.0, "precision": "fp32", "checkpoint": "%s", "base": "%s", '
           '"resolution": 64}')


def test_a_folder_of_an_older_version_goes_on(run: Path) -> None:
    """A setting that its rows lack had its default; another value is refused."""
    assert draw(run, "--out", "new").status == 0
    row = OLD_ROW % (sha256(run / "adapter.safetensors"), rows(Path("new/samples.jsonl"))[0]["base"])
    Path("generated/image/good").mkdir(parents=True)
    shutil.copy("new/image/good/000.png", "generated/image/good/000.png")
    Path("generated/samples.jsonl").write_text(row + "\n")
    for flags, said in {("--lora-scale", 0.5): "lora_scale was 1.0, is 0.5",
                        ("--layout", "coco"): "layout was ds",
                        ("--guidance-interval", 0, 5): "guidance_interval was [0, 999]"}.items():
        assert draw(run, *flags).failed_with(said)
    assert draw(run).status == 0
    assert files()["samples.jsonl"].decode().splitlines()[0] == row and len(files()) == 11
    assert files()["image/good/001.png"] == files("new")["image/good/001.png"]


def test_without_lora_no_lora_format_is_read(run: Path, place: Place) -> None:
    """Nor imported; and the checkpoint is read once."""
    script = ("import sys; import checkpoints.loading as loading, sample;"
              "read, seen = loading.read_adapter, [];"
              "loading.read_adapter = lambda path: seen.append(path) or read(path);"
              f"sys.argv = ['sample.py', '--ckpt', {str(run)!r}, '--base', {str(place.base)!r},"
              "'--steps', '1', '--per-class', '1'];"
              "sample.main(); assert len(seen) == 1;"
              "print([name for name in sys.modules if 'external_lora' in name or 'lora_' in name])")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert outcome.stdout.splitlines()[-1] == "[]", outcome


def test_a_damaged_image_is_named(run: Path) -> None:
    """It counts as drawn, but can be neither shown nor annotated."""
    assert draw(run, "--classes", "good", "--layout", "coco").status == 0
    spoil(Path("generated/image/good/001.png"), 0.5)
    assert draw(run, "--classes", "good", "--layout", "coco").failed_with("good/001.png", "cannot be read")
    Path("generated/image/good/001.png").unlink()
    assert draw(run, "--classes", "good", "--layout", "coco").status == 0


def test_interrupted_at_any_point_it_goes_on(run: Path) -> None:
    assert draw(run, "--batch-size", 1, "--out", "whole").status == 0
    assert draw(run, "--batch-size", 1).status == 0
    journal = Path("generated/samples.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:4]) + lines[4][:30])  # killed amid the fifth row
    for name in ("good/001", "good/000", "contamination/001", "contamination/000", "broken_small/001"):
        Path(f"generated/image/{name}.png").unlink()  # and after the fourth row, before its image
    assert draw(run, "--batch-size", 1).status == 0 and files() == files("whole")
    journal.write_text("".join([*lines[:2], "oops\n", *lines[2:]]))
    assert draw(run).failed_with("samples.jsonl", "line 3")


def test_killed_while_it_draws(run: Path, place: Place, forked: ForkedCommands) -> None:
    flags = ["--ckpt", run, "--steps", 4, "--per-class", 40, "--batch-size", 1, "--base", place.base]
    pid = forked.start("sample", Path.cwd(), *flags)
    until = time.monotonic() + 600
    while len(list(Path("generated").rglob("*.png"))) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert forked.wait(pid).status == -signal.SIGKILL
    there = {name: content for name, content in files().items() if name.endswith(".png") and "/." not in name}
    assert command(sample.main, *flags[:5], 3, *flags[6:]).status == 0
    after = files()
    assert all(after[name] == content for name, content in there.items())
    assert not [name for name in after if "/." in name]  # what was being written is gone


def test_ctrl_c(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(sample, "sample_images", interrupted)
    status, _, said = draw(run)
    first, which, how, last = said.splitlines()
    assert (status, first, last) == (130, "generated: 8 images to draw, 0 there already", "interrupted")
    assert which == f"{run / 'adapter.safetensors'}: the weights of step 6"
    assert how.startswith("drawn plainly")


def test_which_weights_are_taken(run: Path) -> None:
    """The last ones, although the run has those of its best preview; either file can be named."""
    both = Path(shutil.copytree(run, "both"))
    tensors, header = adapter.read_adapter(both / "adapter.safetensors")
    other = {key: -tensor if key.startswith("class") else tensor for key, tensor in tensors.items()}
    adapter.save_adapter(both / "best.safetensors", other, dataclasses.replace(header, step=3))
    outcome = draw(both, "--out", "last")
    assert outcome.status == 0 and f"--ckpt {both / 'best.safetensors'}" in outcome.err
    assert f"{both / 'adapter.safetensors'}: the weights of step 6, the last: previews are" in outcome.err
    named = draw(both / "best.safetensors", "--out", "best")
    assert f"{both / 'best.safetensors'}: the weights of step 3\n" in named.err
    assert draw(both / "adapter.safetensors", "--out", "again").status == 0
    last, best, again = (pixels(out, "good", 0) for out in ("last", "best", "again"))
    assert (last == again).all() and (last != best).any()


def test_strength_zero_is_the_base_alone(run: Path) -> None:
    """At 0 another adapter of the same embedding changes nothing; at 1 it does."""
    tensors, header = adapter.read_adapter(run / "adapter.safetensors")
    other = {key: tensor * 3 if "lora_B" in key else tensor for key, tensor in tensors.items()}
    adapter.save_adapter(Path("other.safetensors"), other, header)
    for scale in (0, 1):
        for name, file in (("a", run), ("b", Path("other.safetensors"))):
            flags = ("--lora-scale", scale, "--out", f"{name}{scale}", "--classes", "good")
            assert draw(file, *flags).status == 0
    assert (pixels("a0", "good", 0) == pixels("b0", "good", 0)).all()
    assert (pixels("a1", "good", 0) != pixels("b1", "good", 0)).any()
    assert (pixels("a1", "good", 0) != pixels("a0", "good", 0)).any()


def test_guidance_starts_from_the_null_class(run: Path) -> None:
    """At 0 the class's embedding does not matter, at 4 it does."""
    tensors, header = adapter.read_adapter(run / "adapter.safetensors")
    tensors["class_embedding.weight"] = tensors["class_embedding.weight"].flip(0)
    adapter.save_adapter(Path("other.safetensors"), tensors, header)
    for guidance, same in ((0, True), (4, False)):
        for name, file in (("one", run), ("two", Path("other.safetensors"))):
            flags = ("--guidance", guidance, "--out", f"{name} at {guidance}", "--classes", "good")
            assert draw(file, *flags).status == 0
        one, two = (pixels(f"{name} at {guidance}", "good", 0) for name in ("one", "two"))
        assert (abs(one - two).max() <= 1) == same  # one level of 255: eps - (eps - eps_null) rounds
    assert (pixels("one at 0", "good", 0) != pixels("one at 4", "good", 0)).any()


def test_guidance_only_in_an_interval(run: Path) -> None:
    """Over all timesteps it is guidance, over none of them it is none, and amid them something else."""
    for name, flags in {"all": ("--guidance", 4), "whole": ("--guidance", 4, "--guidance-interval", 0, 999),
                        "none": (), "outside": ("--guidance", 4, "--guidance-interval", 998, 999),
                        "amid": ("--guidance", 4, "--guidance-interval", 300, 600)}.items():
        assert draw(run, "--out", name, "--classes", "good", *flags).status == 0
    seen = {name: pixels(name, "good", 0) for name in ("all", "whole", "none", "outside", "amid")}
    assert (seen["all"] == seen["whole"]).all() and np.abs(seen["none"] - seen["outside"]).max() <= 1
    assert (seen["amid"] != seen["all"]).any() and (seen["amid"] != seen["none"]).any()
    for wrong in ((5,), (600, 300), (1, 2, 3)):
        assert draw(run, "--guidance-interval", *wrong).failed_with("--guidance-interval", "200 800")


def test_bf16_on_the_cpu(run: Path) -> None:
    for precision in ("bf16", "fp32"):
        assert draw(run, "--precision", precision, "--out", precision, "--guidance", 2).status == 0
    assert rows(Path("bf16/samples.jsonl"))[0]["precision"] == "bf16"
    difference = pixels("bf16", "good", 0) - pixels("fp32", "good", 0)
    assert 0 < abs(difference).mean() < 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_network_is_the_fp32_one_rounded_once(dtype: torch.dtype, run: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Though only what the LoRA is added to is ever there in fp32."""
    def weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return our_checkpoint(run, dtype=dtype).unet.state_dict()

    expected, found = weights(torch.float32), []
    merge = loading.lora.merge
    monkeypatch.setattr(loading.lora, "merge", lambda unet: (found.extend(
        name for name, weight in unet.state_dict().items() if weight.dtype == torch.float32), merge(unet)))
    for name, weight in weights(dtype).items():
        assert torch.equal(weight, expected[name].to(dtype)), name
    assert found and all(".to_" in name for name in found)


def test_what_overflows_in_fp16_is_decoded_in_fp32() -> None:
    vae = loading.load_vae("tiny", device="cpu", dtype=torch.float32)
    z_0 = torch.stack([torch.full((4, 8, 8), 1e6), torch.ones(4, 8, 8)])
    with torch.no_grad():
        half, full = (generation.decoded(vae, z_0, dtype) for dtype in (torch.float16, torch.float32))
    assert torch.equal(half[0], full[0]) and 0 < (half[1] - full[1]).abs().max() < 0.01


def test_a_moved_base(run: Path, place: Place, tmp_path: Path) -> None:
    lost = rewritten(run, "lost.safetensors", base=str(tmp_path / "gone"))
    assert draw(lost).failed_with("lost.safetensors", "gone", "--base")
    assert draw(lost, "--base", place.base).status == 0
    other = write_base(tmp_path / "other base", seed=1)
    assert draw(run, "--base", other, "--out", "x").failed_with("other weights", "other base")
    assert draw(run, "--base", tmp_path / "nowhere", "--out", "x").failed_with("nowhere")
    assert not Path("x").exists()


def test_checkpoints_that_are_none(run: Path, place: Place) -> None:
    file = shutil.copy(run / "adapter.safetensors", "cut.safetensors")
    spoil(Path(file), 0.9)
    assert draw(Path(file)).failed_with("cut.safetensors", "cut short")
    assert draw(place.base / "unet/diffusion_pytorch_model.safetensors").failed_with("no checkpoint of this")
    assert draw(run / "resume.safetensors").failed_with("no checkpoint of this project")
    assert draw(Path("nothing")).failed_with("nothing")
    assert draw(run.with_name("rum")).failed_with(f"did you mean --ckpt {run}?")
    Path("empty").mkdir()
    assert draw(Path("empty")).failed_with("empty/adapter.safetensors")
    Path("text.safetensors").write_text("hello")
    assert draw(Path("text.safetensors")).failed_with("text.safetensors")
    assert draw(rewritten(run, "a.safetensors", kind="video")).failed_with("kind 'video'")
    assert draw(rewritten(run, "b.safetensors", colour="red")).failed_with("b.safetensors", "another version")
    assert draw(rewritten(run, "c.safetensors", classes=["../../x"] * 4)).failed_with("c.safetensors")
    assert draw(rewritten(run, "d.safetensors", rank=3)).failed_with("d.safetensors", "does not fit")
    assert not Path("generated").exists()


MISTAKES = {
    "no images": (["--per-class", 0], "--per-class"),
    "no such class": (["--classes", "good", "hole"], "--classes hole: the checkpoint knows broken_large"),
    "too many steps": (["--steps", 1001], "--steps"),
    "eta without DDIM": (["--eta", 0.5, "--sampler", "dpm++"], "--eta"),
    "steps beyond the solver": (["--steps", 1000, "--sampler", "dpm++linspace"], "--steps 1000"),
    "fp16 on a CPU": (["--precision", "fp16", "--device", "cpu"], "fp16"),
    "no such device": (["--device", "cuda:9"], "cuda:9"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, run: Path) -> None:
    flags, expected = MISTAKES[name]
    assert draw(run, *flags).failed_with(expected)
    assert not Path("generated").exists()


def test_guidance_needs_a_null_class(run: Path) -> None:
    without = rewritten(run, "without.safetensors", class_dropout=0.0)
    assert draw(without, "--guidance", 3).failed_with("--guidance 3", "--class-dropout")
    assert draw(without).status == 0


def test_several_products(run: Path) -> None:
    """product/damage becomes <product>/image/<damage>, which data.py reads as several products."""
    file = rewritten(run, "two.safetensors", classes=["a/crack", "a/good", "b/crack", "b/good"])
    assert draw(file).status == 0
    assert len(list(Path("generated").glob("[ab]/image/*/*.png"))) == 8


def test_a_full_disk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full answers every write as a full disk does."""
    Path("generated").mkdir()
    Path("generated/samples.jsonl").symlink_to("/dev/full")
    for name in ("read_rows", "cut_back"):
        monkeypatch.setattr(journal if name == "read_rows" else sample_folder, name, lambda path: [])
    assert draw(run).failed_with("samples.jsonl", "No space left")


def test_drawing_leaves_the_global_generator_alone(run: Path, place: Place) -> None:
    loaded = our_checkpoint(run)
    before = torch.get_rng_state()
    our_images(loaded, [("good", 0)], generation.SamplingConfig(steps=2, sampler="ddpm"))
    assert torch.equal(torch.get_rng_state(), before)
