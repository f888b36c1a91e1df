"""LoRA files in the layouts of others: lossless there and back, and read by diffusers and peft themselves."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import peft
import pytest
import torch
from bases import Place, command
from diffusers import StableDiffusionPipeline
from pipelines import our_checkpoint, our_images, pipeline, their_picture
from runs import convert, train_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

import lora
import sample
import train_class
from checkpoints import adapter, external_lora
from checkpoints.lora_formats import FORMATS, read_lora
from checkpoints.lora_keys import layers, read_name
from runtime.files import sha256
from sd.pretrained.weights import load_unet

LAYOUTS = ["diffusers", "peft", "kohya"]
DAMAGE = "contamination"


@pytest.fixture(scope="module")
def uneven(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """alpha / rank is 1.75: folding it into B rounds."""
    return train_lora(place, tmp_path_factory.mktemp("runs") / "uneven", "--alpha", 7)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def converted(run: Path, layout: str, out: str = "exported") -> Path:
    outcome = convert(run, out, "--to", layout)
    assert outcome.status == 0, outcome
    return Path(outcome.out.splitlines()[0])


def their_unet(base: Path) -> torch.nn.Module:
    return pipeline(base).unet


def noise_for(unet: torch.nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    width = unet.config.cross_attention_dim
    return (torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([7, 600]),
            torch.randn(2, 5, width, generator=rng))


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> None:
    """Within `tolerance` of images in [-1, 1] or of noise of unit size, far below what the LoRA changes."""
    assert (ours - theirs).abs().max() < tolerance


# ------------------------------------------------------------------------------------ there and back

@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_bit_equal(layout: str, run: Path) -> None:
    converted(run, layout)
    assert convert("exported", "back", "--from", layout).status == 0
    (before, header), (after, header_after) = (adapter.read_adapter(folder / "adapter.safetensors")
                                               for folder in (run, Path("back")))
    assert header_after == header
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert command(sample.main, "--ckpt", "back", "--steps", 2, "--per-class", 1).status == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_with_an_uneven_scale(layout: str, uneven: Path) -> None:
    """Bit-equal where alpha has a place of its own; in diffusers' layout B is rounded, A and the rest not."""
    converted(uneven, layout)
    assert convert("exported", "back", "--from", layout).status == 0
    before, after = (load_file(folder / "adapter.safetensors") for folder in (uneven, Path("back")))
    for name, tensor in before.items():
        if layout == "diffusers" and "lora_B" in name:
            torch.testing.assert_close(after[name], tensor, rtol=3e-7, atol=0)
        else:
            assert torch.equal(after[name], tensor)


def test_what_it_says(run: Path) -> None:
    """The files on stdout, a line each or as JSON; the rest on stderr."""
    outcome = convert(run, "lines", "--to", "kohya")
    assert outcome.out.splitlines() == ["lines/lines.safetensors", "lines/damage_types.safetensors",
                                        "lines/README.md"]
    no_prompts, layers = outcome.err.splitlines()
    assert "by prompt alone" in no_prompts and "--context prompt" in no_prompts and "to kohya" in layers
    said = json.loads(convert(run, "object", "--to", "peft", "--json").out)
    assert said["layers"] == len(read_lora(run).layers) and said["url"] is None
    assert all(Path(file).is_file() for file in said["files"]) and len(said["files"]) == 4


def test_from_each_layout_to_each(run: Path) -> None:
    """Through all three in a row, then home: the alphas move in and out of B and nothing is lost."""
    converted(run, "kohya", "1")
    way = ["kohya", "peft", "diffusers", "kohya"]
    for step, (source, layout) in enumerate(itertools.pairwise(way), 1):
        assert convert(step, step + 1, "--from", source, "--to", layout).status == 0
    assert convert(4, 5, "--from", "kohya").status == 0
    before, after = load_file(run / "adapter.safetensors"), load_file("5/adapter.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before) and len(after) == len(before)


def test_metadata_of_others_is_kept(run: Path) -> None:
    file = converted(run, "kohya")
    save_file(load_file(file), "theirs.safetensors", {"ss_tag_frequency": "{}", "ss_network_module": "x"})
    assert convert("theirs.safetensors", "out", "--from", "kohya", "--to", "diffusers").status == 0
    with safe_open("out/pytorch_lora_weights.safetensors", "pt") as written:
        assert written.metadata()["ss_tag_frequency"] == "{}"
    assert not Path("out/damage_types.safetensors").exists()


# ------------------------------------------------------------------------------------ diffusers and peft

@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("name", ["run", "uneven"])
def test_diffusers_draws_our_picture(layout: str, name: str, request: pytest.FixtureRequest,
                                     place: Place) -> None:
    run = request.getfixturevalue(name)
    loaded = our_checkpoint(run)
    ours = our_images(loaded, [(DAMAGE, 0)])[0]
    file = converted(run, layout)
    types = load_file("exported/damage_types.safetensors")
    with safe_open("exported/damage_types.safetensors", "pt") as opened:
        names = json.loads(opened.metadata()["adapter"])["classes"]
    row = types["class_embedding.weight"][names.index(DAMAGE)]
    pipe = pipeline(place.base)
    context = {"prompt_embeds": row.view(1, 3, -1),
               "negative_prompt_embeds": types["class_null"].view(1, 3, -1)}
    bare = their_picture(pipe, DAMAGE, **context)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    theirs = their_picture(pipe, DAMAGE, **context)
    assert_close(ours, theirs)
    assert (bare - theirs).abs().max() > 0.05


def test_diffusers_without_the_metadata_computes_the_same(uneven: Path, place: Place) -> None:
    """A reader that knows no metadata, as ComfyUI, takes alpha = rank; so must the tensors say."""
    file = converted(uneven, "diffusers")
    save_file(load_file(file), "bare.safetensors")
    unet = load_unet(str(place.base), device="cpu", dtype=torch.float32)
    bare, full = read_lora(Path("bare.safetensors")).layers, read_lora(file).layers
    original = read_lora(uneven).layers
    for name, layer in original.items():
        assert bare[name].alpha == full[name].alpha == layer.rank
        torch.testing.assert_close(bare[name].delta(), layer.delta(), rtol=1e-5, atol=1e-6)
    external_lora.add(unet, "unet", Path("bare.safetensors"), 1.0)
    twin = their_unet(place.base)
    twin.load_lora_adapter(load_file("bare.safetensors"), prefix="unet")
    inputs = noise_for(twin)
    with torch.no_grad():
        assert_close(unet(*inputs), twin(*inputs).sample, 1e-4)


def test_peft_loads_ours(run: Path, place: Place) -> None:
    converted(run, "peft")
    model = peft.PeftModel.from_pretrained(their_unet(place.base), "exported")
    unet = our_checkpoint(run).unet
    inputs = noise_for(unet)
    with torch.no_grad():
        theirs = model(*inputs).sample
        assert_close(unet(*inputs), theirs, 1e-4)
        with model.disable_adapter():
            assert (model(*inputs).sample - theirs).abs().max() > 0.01


def peft_made(base: Path, folder: str, **options: object) -> tuple[tuple[Tensor, ...], Tensor]:
    """A LoRA made and saved by peft: inputs for the UNet that it adapts, and their output."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": list(lora.TARGETS),
                                "init_lora_weights": False, **options})
    torch.manual_seed(0)
    model = peft.get_peft_model(their_unet(base), config).eval()
    model.save_pretrained(folder)
    inputs = noise_for(model)
    with torch.no_grad():
        return inputs, model(*inputs).sample


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"rank_pattern": {"attn1.to_q": 5}, "alpha_pattern": {"attn2.to_v": 9}},
    {"target_modules": ["to_q", "ff.net.0.proj", "proj_in", "conv1"]}],
    ids=["plain", "rslora", "patterns", "convolutions"])
def test_we_load_pefts(options: dict, place: Place) -> None:
    """As it is, and through the other layouts."""
    inputs, theirs = peft_made(place.base, "theirs", **options)
    for layout in ("diffusers", "kohya"):
        assert convert("theirs", layout, "--from", "peft", "--to", layout).status == 0
    for source in ("theirs", "diffusers", "kohya"):
        unet = load_unet(str(place.base), device="cpu", dtype=torch.float32)
        external_lora.add(unet, "unet", Path(source), 1.0)
        with torch.no_grad():
            assert_close(unet(*inputs), theirs)


def test_diffusers_current_and_oldest_spellings(run: Path) -> None:
    """.lora.down (what save_lora_weights writes) and .processor.to_q_lora.down mean the same layer."""
    tensors = load_file(converted(run, "diffusers"))
    spellings = {
        "current": lambda name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
        "oldest": lambda name: name.replace(".to_out.0.", ".to_out.").replace(
            ".to_", ".processor.to_").replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up")}
    for spelling, rename in spellings.items():
        save_file({rename(name): tensor for name, tensor in tensors.items()}, f"{spelling}.safetensors")
        read = read_lora(Path(f"{spelling}.safetensors")).layers
        expected = read_lora(Path("exported")).layers
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name].B, expected[name].B) for name in read)


def test_half_precision_files_with_small_alphas(place: Place) -> None:
    """As they are on the hubs: fp16, alpha 1, some alphas missing, the text encoder adapted along."""
    rng, tensors = torch.Generator().manual_seed(0), {}
    unet = load_unet(str(place.base), device="cpu", dtype=torch.float32)
    shapes = {name: module.weight.shape for name, module in unet.named_modules() if hasattr(module, "to_q")
              for name, module in ((f"{name}.to_q", module.to_q), (f"{name}.to_out.0", module.to_out[0]))}
    for name, (c_out, c_in) in shapes.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = torch.randn(3, c_in, generator=rng).half()
        tensors[f"{key}.lora_up.weight"] = torch.randn(c_out, 3, generator=rng).half()
        if "to_q" in name:
            tensors[f"{key}.alpha"] = torch.tensor(1.0).half()
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    tensors |= {f"{text}.lora_down.weight": torch.ones(3, 8), f"{text}.lora_up.weight": torch.ones(8, 3)}
    save_file(tensors, "style.safetensors")
    external_lora.add(unet, "unet", Path("style.safetensors"), 1.0)
    assert convert("style.safetensors", "out", "--from", "kohya", "--to", "diffusers").status == 0
    pipe = pipeline(place.base)
    pipe.unet.load_lora_adapter(load_file("out/pytorch_lora_weights.safetensors"), prefix="unet")
    inputs = noise_for(pipe.unet)
    with torch.no_grad():
        assert_close(unet(*inputs), pipe.unet(*inputs).sample)
    assert convert("style.safetensors", "p", "--from", "kohya", "--to", "peft").failed_with("text encoder")
    assert not Path("p").exists()


def test_text_encoder_layers_as_diffusers_saves_them(place: Place) -> None:
    """Beside transformers 5 their names have no text_model; they mean the same layers as a kohya file's."""
    name, rng = "layers.0.self_attn.v_proj.lora_{}.weight", torch.Generator().manual_seed(0)
    tensors = {name.format(part): torch.randn(size, generator=rng)
               for part, size in (("A", (2, 16)), ("B", (16, 2)))}
    StableDiffusionPipeline.save_lora_weights(
        "theirs", text_encoder_lora_layers={f"encoder.{name}": tensor for name, tensor in tensors.items()})
    assert set(load_file("theirs/pytorch_lora_weights.safetensors")) == {
        f"text_encoder.encoder.{name}" for name in tensors}
    assert convert("theirs", "kohya", "--from", "diffusers", "--to", "kohya").status == 0
    assert set(load_file("kohya/kohya.safetensors")) == {
        f"lora_te_text_model_encoder_layers_0_self_attn_v_proj.{part}"
        for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert convert("kohya", "back", "--from", "kohya", "--to", "diffusers").status == 0
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=97, eos_token_id=98, pad_token_id=98)).eval()
    pipe, ids = pipeline(place.base, None, copy.deepcopy(clip)), torch.arange(9)[None]
    pipe.load_lora_weights("back")
    with torch.no_grad():
        bare = clip(ids).last_hidden_state
        external_lora.add(clip, "text_encoder", Path("theirs"), 1.0)
        ours = clip(ids).last_hidden_state
        assert_close(ours, pipe.text_encoder(ids).last_hidden_state, 1e-5)
    assert (ours - bare).abs().max() > 0.01


# ------------------------------------------------------------------------------------ in our models

@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_starts_from_a_lora_of_others(layout: str, run: Path, place: Place) -> None:
    """Before the first step it computes what the file says, whatever the new rank and alpha are."""
    file, unets = converted(run, layout), []
    for start in (True, False):
        unet = load_unet(str(place.base), device="cpu", dtype=torch.float32)
        if start:
            lora.inject(unet, rank=6, alpha=3, dropout=0.0)
            external_lora.start_from(unet, file)
        else:
            external_lora.add(unet, "unet", file, 1.0)
        unets.append(unet)
    inputs = noise_for(unets[0])
    with torch.no_grad():
        assert_close(unets[0](*inputs), unets[1](*inputs), 1e-4)
    folder = train_lora(place, Path("second"), "--init-lora", file, "--rank", 6, "--alpha", 3, "--lr", 1e-9)
    first, second = our_checkpoint(run).unet, our_checkpoint(folder).unet
    with torch.no_grad():
        assert_close(first(*inputs), second(*inputs), 1e-3)


def test_stacking_at_sampling(run: Path, uneven: Path, place: Place) -> None:
    """Strength 0 changes nothing; our own LoRA added at 1 to itself at 0 is itself."""
    file = converted(run, "kohya")
    flags = ["--steps", 2, "--per-class", 1, "--classes", DAMAGE]
    for out, source, extra in (("plain", run, []), ("zero", run, ["--lora", f"{file}=0"]),
                               ("moved", run, ["--lora-scale", 0, "--lora", file]),
                               ("both", run, ["--lora", f"{file}=0.5"])):
        assert command(sample.main, "--ckpt", source, "--out", out, *flags, *extra).status == 0
    images = {out: Path(out, f"image/{DAMAGE}/000.png").read_bytes()
              for out in ("plain", "zero", "moved", "both")}
    assert images["plain"] == images["zero"] == images["moved"] != images["both"]
    row = json.loads(Path("both/samples.jsonl").read_text())
    assert row["loras"] == [[sha256(file), 0.5]]
    assert command(sample.main, "--ckpt", run, "--out", "both", *flags).failed_with("loras was")


def test_what_a_stacked_lora_cannot_do_is_said(run: Path) -> None:
    """Its text-encoder layers, where damage types are rows of a table; all else it has is added."""
    tensors = load_file(converted(run, "kohya"))
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    save_file(tensors | {f"{text}.lora_down.weight": torch.ones(1, 16),
                         f"{text}.lora_up.weight": torch.ones(32, 1)}, "both.safetensors")
    save_file(tensors, "unet.safetensors")
    flags = ["--steps", 1, "--per-class", 1, "--classes", DAMAGE]
    said = {name: command(sample.main, "--ckpt", run, "--out", name, *flags, "--lora", f"{name}.safetensors")
            for name in ("both", "unet")}
    assert all(outcome.status == 0 for outcome in said.values())
    assert "--lora both.safetensors: its 1 layers for the text encoder have no effect" in said["both"].err
    assert "no effect" not in said["unet"].err
    drawn = [Path(name, f"image/{DAMAGE}/000.png").read_bytes() for name in said]
    assert drawn[0] == drawn[1]


# ------------------------------------------------------------------------------------ failures

OTHERS = {
    "DoRA": "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_magnitude_vector",
    "DoRA ": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale",
    "LoHa": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.hada_w1_a",
    "LoKr": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lokr_w1",
    "full-weight": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.diff",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_adapter_kinds_are_refused_by_name(kind: str, run: Path) -> None:
    tensors = load_file(converted(run, "kohya")) | {OTHERS[kind]: torch.ones(4)}
    save_file(tensors, "other.safetensors")
    for outcome in (convert("other.safetensors", "out", "--from", "kohya", "--to", "peft"),
                    command(sample.main, "--ckpt", run, "--lora", "other.safetensors")):
        assert outcome.failed_with("other.safetensors", f"a {kind.strip()} adapter")
    assert not Path("out").exists()


@pytest.mark.parametrize(("settings", "kind"),
                         [({"peft_type": "LOHA"}, "LOHA"), ({"use_dora": True}, "DoRA")])
def test_other_kinds_in_pefts_settings(settings: dict, kind: str, run: Path) -> None:
    converted(run, "peft")
    file = Path("exported/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    assert convert("exported", "out", "--from", "peft").failed_with(str(file), f"a {kind} adapter")


def test_mistakes(run: Path, uneven: Path, place: Place) -> None:
    assert convert(run, "out").failed_with("nothing to convert")
    assert convert(run, "out", "--to", "zip").failed_with("--to")
    assert convert("nowhere", "out", "--to", "peft").failed_with("nowhere: no such file")
    assert convert(run, "out", "--from", "kohya").failed_with("in the layout checkpoint")
    file = converted(run, "kohya")
    assert convert(run, "exported", "--to", "peft").failed_with("exported", "not an empty folder")
    save_file(load_file(file), "theirs.safetensors")
    assert convert("theirs.safetensors", "out", "--from", "kohya").failed_with("has no damage types")
    tensors = load_file(file)
    first = next(name for name in tensors if "lora_up" in name)
    cases = {"half.safetensors": ({k: v for k, v in tensors.items() if k != first}, "only one of its two"),
             "odd.safetensors": (tensors | {first: torch.ones(2, 9)}, "do not fit each other"),
             "xl.safetensors": (tensors | {"lora_unet_input_blocks_9.alpha": torch.ones(1)}, "LoRA for SDXL"),
             "empty.safetensors": ({"x": torch.ones(1)}, "no plain LoRA for Stable")}
    for name, (content, expected) in cases.items():
        save_file(content, name)
        assert convert(name, "out", "--from", "kohya", "--to", "peft").failed_with(name, expected)
    Path("style.pt").write_bytes(b"x")
    assert convert("style.pt", "out", "--from", "kohya", "--to", "peft").failed_with("pickle")
    Path("cut.safetensors").write_bytes(file.read_bytes()[:-9])
    assert convert("cut.safetensors", "out", "--from", "kohya", "--to", "peft").failed_with("cut short")
    converted(run, "peft", "p")
    Path("p/adapter_config.json").unlink()
    assert convert("p", "out", "--from", "peft").failed_with("p/adapter_config.json: missing")
    assert not Path("out").exists()


NO_LORA = {
    "nan": ("lora_up.weight", lambda up: up * float("nan"), "not finite"),
    "infinite": ("lora_down.weight", lambda down: down / 0, "not finite"),
    "whole numbers": ("lora_up.weight", lambda up: up.int(), "do not fit each other"),
    "rank 0": ("lora_up.weight", lambda up: up[:, :0], "do not fit each other"),
    "no dimension": ("lora_up.weight", lambda up: up[0, 0], "do not fit each other"),
    "several alphas": ("alpha", lambda alpha: torch.ones(3), "the alpha of unet."),
    "no alpha in it": ("alpha", lambda alpha: torch.ones(0), "the alpha of unet."),
    "alpha nan": ("alpha", lambda alpha: alpha * float("nan"), "it is nan"),
    "alpha infinite": ("alpha", lambda alpha: alpha / 0, "it is inf")}


@pytest.mark.parametrize("name", NO_LORA)
def test_tensors_that_are_no_loras(name: str, run: Path, place: Place) -> None:
    """In the three commands that read the files of others."""
    part, change, expected = NO_LORA[name]
    tensors = load_file(converted(run, "kohya"))
    first = next(key for key in sorted(tensors) if key.endswith(part))
    save_file(tensors | {first: change(tensors[first]).contiguous()}, "theirs.safetensors")
    train = ["--data", place.data, "--base", place.base, "--resolution", 64, "--rank", 4, "--out", "run"]
    for outcome in (convert("theirs.safetensors", "out", "--from", "kohya", "--to", "peft"),
                    command(sample.main, "--ckpt", run, "--lora", "theirs.safetensors", "--out", "images"),
                    command(train_class.main, *train, "--init-lora", "theirs.safetensors")):
        assert outcome.failed_with("theirs.safetensors", expected), outcome
    assert not any(Path(folder).exists() for folder in ("out", "run")) and not list(Path().rglob("*.png"))


@pytest.mark.parametrize("settings", [
    {"lora_alpha": None}, {"lora_alpha": [1]}, {"lora_alpha": float("nan")}, {"lora_alpha": 10**400},
    {"alpha_pattern": [1]}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": {"to_q": "x"}},
    b"\xff{}", b"[]", b"{"], ids=lambda settings: str(settings)[:40])
def test_pefts_settings_that_cannot_be_read(settings: dict | bytes, run: Path) -> None:
    converted(run, "peft")
    place = Path("exported/adapter_config.json")
    place.write_bytes(settings if isinstance(settings, bytes) else
                      json.dumps(json.loads(place.read_text()) | settings).encode())
    outcome = convert("exported", "out", "--from", "peft", "--to", "kohya")
    assert outcome.failed_with("exported/adapter_", "cannot be read"), outcome
    assert not Path("out").exists()


def test_a_lora_that_does_not_fit_the_base(run: Path, place: Place) -> None:
    rank = ["--data", place.data, "--base", place.base, "--resolution", 64, "--init-lora", run]
    assert command(train_class.main, *rank, "--rank", 2).failed_with("rank 4", "--rank 4 or more")
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"
    tensors = {f"{name}.lora_down.weight": torch.ones(1, 5), f"{name}.lora_up.weight": torch.ones(9, 1)}
    save_file(tensors, "ff.safetensors")
    assert command(train_class.main, *rank[:-1], "ff.safetensors").failed_with("(9, 5)", "another base")
    assert command(sample.main, "--ckpt", run, "--lora", "ff.safetensors").failed_with("ff.net.2", "(9, 5)")
    for strength in ("much", "", "nan", "inf"):
        flags = ["--ckpt", run, "--lora", f"ff.safetensors={strength}"]
        assert command(sample.main, *flags).failed_with("FILE=STRENGTH")


def test_names_are_those_of_the_full_model() -> None:
    to_kohya = FORMATS["kohya"].key
    for name, expected in (
            ("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
             "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0"),
            ("text_encoder.text_model.encoder.layers.11.mlp.fc2",
             "lora_te_text_model_encoder_layers_11_mlp_fc2"),
            ("unet.time_embedding.linear_1", "lora_unet_time_embedding_linear_1")):
        assert name in layers().values() and to_kohya(name) == expected
        assert read_name(f"{expected}.lora_down.weight") == (name, "A")
