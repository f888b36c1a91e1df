"""The model card: what stands in it, and that its scripts, run as they stand, draw what sample.py draws."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from bases import UNET, command
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image
from pipelines import our_checkpoint, our_images, picture_of_card, pipeline
from published import UNET_JSON
from runs import convert, paint
from safetensors.torch import load_file

import sample
import train_controlnet
import train_inpaint
from checkpoints.adapter import read_adapter, save_adapter
from checkpoints.model_card import Card, Place, model_card

NUMBERS = {"fid": "FID-torchvision", "numbers": {
    "generated": {"all": {"dca": {"value": 0.5, "low": 0.25, "high": 0.75}, "fid": {"value": 12.5},
                          "n": {"value": 8}}},
    "held-out real": {"all": {"dca": {"value": 1.0, "low": None, "high": None}}}}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_stands_in_it(run: Path) -> None:
    assert command(sample.main, "--ckpt", run, "--steps", 2, "--per-class", 1).status == 0
    Path("metrics.json").write_text(json.dumps(NUMBERS))
    assert convert(run, "bottle", "--to", "diffusers", "--samples", "generated", "--numbers", ".",
                   "--data-licence", "CC BY-NC-SA 4.0").status == 0
    _, head, text = Path("bottle/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["tags"][0] == "lora" and yaml.safe_load(head)["library_name"] == "diffusers"
    for part in ("# bottle", "- contamination", "![samples", "| LoRA rank | 4 |", "licence: CC BY-NC-SA 4.0",
                 "with 95 % intervals",
                 "|  | generated | held-out real |", "| dca | 0.5 [0.25, 0.75] | 1 |",
                 "| FID-torchvision | 12.5 | - |", "| n | 8 | - |"):
        assert part in text
    assert Path("bottle/samples.png").read_bytes() == Path("generated/grid.png").read_bytes()
    _, header = read_adapter(run / "adapter.safetensors")
    assert str(run) not in text and header.base not in text  # no paths of this machine


def test_the_sheet_of_every_layout(inpaint_run: Path, photos: Path) -> None:
    """That of MVTec AD's layout lies beside its folder, another's there is not taken for it."""
    for layout in ("ds", "mvtec", "coco"):
        assert paint(inpaint_run, photos, "--layout", layout, "--out", layout, "--classes",
                     "good").status == 0
    Path("ds-grid.png").write_text("of something else")
    for layout, sheet in (("ds", "ds/grid.png"), ("mvtec", "mvtec-grid.png"), ("coco", "coco/grid.png")):
        assert convert(inpaint_run, f"of {layout}", "--to", "kohya", "--samples", layout).status == 0
        assert Path(f"of {layout}/samples.png").read_bytes() == Path(sheet).read_bytes()
    Path("mvtec-grid.png").unlink()
    assert convert(inpaint_run, "out", "--to", "kohya", "--samples", "mvtec").failed_with("mvtec-grid.png")


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "peft"])
def test_its_script_draws_our_picture(layout: str, run: Path, place: object,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Guided, for the run has a null class; with guidance 2, as the card says and DRAWING does."""
    assert convert(run, "bottle", "--to", layout).status == 0
    ours = our_images(our_checkpoint(run), [("broken_large", 0)])[0]
    theirs = picture_of_card(Path("bottle/README.md"), pipeline(place.base), "broken_large", monkeypatch)
    assert (ours - theirs).abs().max() < 1e-3


def test_its_script_draws_as_the_checkpoint_records(run: Path, place: object,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, header = read_adapter(run / "adapter.safetensors")
    better = dataclasses.replace(header, drawing={"guidance": 3.0, "eta": 1.0})
    save_adapter(Path("better.safetensors"), tensors, better)
    assert convert("better.safetensors", "bottle", "--to", "diffusers").status == 0
    card = Path("bottle/README.md").read_text()
    assert "guidance_scale=3," in card and ", eta=1)" in card and "DDIMScheduler.from_config" in card
    drawn = picture_of_card(Path("bottle/README.md"), pipeline(place.base), "broken_large", monkeypatch)
    assert drawn.shape == (3, 64, 64) and drawn.isfinite().all()


def test_its_script_paints(inpaint_run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By diffusers' inpainting pipeline, into photo.png where mask.png is white."""
    assert convert(inpaint_run, "bottle", "--to", "diffusers").status == 0
    base = Path(read_adapter(inpaint_run / "adapter.safetensors")[1].base)
    photos.joinpath("a.png").rename("photo.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    parts, config = pipeline(base), dataclasses.replace(UNET, in_channels=9)
    unet = UNet2DConditionModel.from_config({**UNET_JSON, **vars(config)}).eval()
    unet.load_state_dict(load_file(base / "unet_inpaint/diffusion_pytorch_model.safetensors"))
    pipe = StableDiffusionInpaintPipeline(parts.vae, None, None, unet, parts.scheduler, None, None,
                                          requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    drawn = picture_of_card(Path("bottle/README.md"), pipe, "broken_large", monkeypatch)
    assert drawn.shape == (3, 64, 64) and drawn.isfinite().all()
    assert "lora_A" in str(list(pipe.unet.state_dict()))


def test_of_a_widened_base_and_of_a_controlnet(run: Path, place: object) -> None:
    """What else has to be known of them; and they too come back as they were, to the last byte."""
    flags = ("--data", place.data, "--resolution", 64, "--preview-every", 0, "--max-steps", 1,
             "--latent-variants", 1)
    assert command(train_inpaint.main, *flags, "--base", place.base, "--out", "wide").status == 0
    assert command(train_controlnet.main, *flags, "--class-ckpt", run, "--control-rank", 2,
                   "--out", "control").status == 0
    for name, text in (("wide", "`unet.conv_in.weight` in `damage_types.safetensors`"),
                       ("control", "Its ControlNet is in `damage_types.safetensors`")):
        assert convert(name, f"{name} lora", "--to", "kohya").status == 0
        card = Path(f"{name} lora/README.md").read_text()
        assert text in card and "| LoRA rank | " in card
        assert convert(f"{name} lora", f"{name} back", "--from", "kohya").status == 0
        assert (Path(f"{name} back/adapter.safetensors").read_bytes()
                == Path(f"{name}/adapter.safetensors").read_bytes())


def test_it_says_what_was_not_given(run: Path) -> None:
    assert convert(run, "bottle", "--to", "kohya").status == 0
    text = Path("bottle/README.md").read_text()
    assert "licence: not given" in text and "Numbers: not given" in text and "![" not in text
    assert "by prompt alone this LoRA knows no\ndamage type there" in text


def test_a_base_on_the_hub(run: Path) -> None:
    """Its id and revision are said, and files come from the adapter's own repository."""
    _, header = read_adapter(run / "adapter.safetensors")
    about = dataclasses.asdict(header) | {"base": "stable-diffusion-v1-5/stable-diffusion-v1-5@main"}
    text = model_card(about, Place("diffusers", "bottle", "me/bottle"), Card())
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert head["license"] == "creativeml-openrail-m"
    assert 'from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", revision="main")' in text
    assert 'hf_hub_download("me/bottle", "damage_types.safetensors")' in text
    Path("mine/base").mkdir(parents=True)
    assert "mine" not in model_card(about | {"base": "mine/base"}, Place("peft", "bottle"), Card())


def test_a_name_with_quotes_is_quoted(run: Path) -> None:
    """The script is Python whatever the folder is called."""
    about = dataclasses.asdict(read_adapter(run / "adapter.safetensors")[1])
    for layout in ("diffusers", "kohya", "peft"):
        text = model_card(about, Place(layout, 'it\'s a "good" \\ one'), Card())
        script = ast.parse(text.split("```python\n")[1].split("```")[0])
        strings = {node.value for node in ast.walk(script) if isinstance(node, ast.Constant)}
        assert 'it\'s a "good" \\ one' in strings


def test_mistakes_leave_nothing(run: Path) -> None:
    Path("empty").mkdir()
    Path("list.json").write_text("[1]")
    for flags, expected in ((("--samples", "empty"), "--samples empty: no empty/grid.png"),
                            (("--numbers", "no.json"), "no.json"),
                            (("--numbers", "list.json"), "not evaluate.py's")):
        assert convert(run, "out", "--to", "kohya", *flags).failed_with(expected)
    assert convert(run, "out", "--to", "kohya", "--numbers", "empty").failed_with("empty", "not evaluate.py")
    assert convert(run, "lora", "--to", "kohya").status == 0
    for flag, value in (("--samples", "empty"), ("--data-licence", "MIT"), ("--push-to-hub", "me/x")):
        assert convert("lora", "out", "--from", "kohya", flag, value).failed_with(flag, "gets no card")
    Path("lora/damage_types.safetensors").unlink()
    outcome = convert("lora", "out", "--from", "kohya", "--to", "peft", "--data-licence", "MIT")
    assert outcome.failed_with("--data-licence", "no card can be written")
    assert not Path("out").exists()
