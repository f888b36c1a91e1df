"""--context prompt through the commands, against diffusers' own prompts, textual inversion and LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from bases import Outcome, Place, command, write_base, write_text
from pipelines import our_checkpoint, our_images, picture_of_card, pipeline, their_picture
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoTokenizer, CLIPTextModel

import lora
import sample
import train_class
from checkpoints import adapter
from sd.pretrained.text_encoder import placeholder
from sd.pretrained.weights import load_text_encoder
from tiny.demo import write_demo

PROMPT = "a photo of a {product} with {damage}, close"
DAMAGES = ["broken_large", "broken_small", "contamination", "good"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    write_demo(root / "bottle", 2, 0, size=64)
    return Place(write_text(write_base(root / "base")), root / "bottle")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(place: Place, folder: Path, *flags: object, steps: int = 4) -> Outcome:
    return command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                   "--preview-every", 0, "--max-steps", steps, "--lr", 0.02, "--embedding-lr", 0.5,
                   "--rank", 4, "--context", "prompt", "--prompt", PROMPT, "--out", folder, *flags)


@pytest.fixture(scope="module", params=[1, 3], ids=["one vector", "three vectors"])
def run(place: Place, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    outcome = train(place, folder, "--tokens-per-class", request.param, "--alpha", 8)
    assert outcome.status == 0, outcome
    return folder


def test_the_text_encoder_is_transformers_own(place: Place) -> None:
    text = load_text_encoder(str(place.base), dim=16, device="cpu")
    theirs = CLIPTextModel.from_pretrained(place.base / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(place.base / "tokenizer")
    for prompt in ("", "a photo of a bottle"):
        padded = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        ids = text.prompt_ids(prompt)[None]
        assert torch.equal(ids, padded)
        with torch.no_grad():
            assert_close(text.encode(ids), theirs(padded).last_hidden_state)


def test_what_the_checkpoint_holds(run: Path) -> None:
    tensors, header = adapter.read_adapter(run / "adapter.safetensors")
    assert header.prompts == [PROMPT.format(product="bottle", damage=f"<{name}>") for name in DAMAGES]
    others = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith("unet.")}
    assert others == {"class_embedding.weight": (4, 16 * header.tokens_per_class)}


def test_only_the_words_learn(place: Place, run: Path) -> None:
    """Each word moves away from its start, the vectors of its own name, and the encoder stays the base's."""
    _, header = adapter.read_adapter(run / "adapter.safetensors")
    flags = ("--tokens-per-class", header.tokens_per_class, "--alpha", 8)
    assert train(place, Path("start"), *flags, "--lr-decay", "0=0", steps=1).status == 0
    start = load_file("start/adapter.safetensors")["class_embedding.weight"]
    end = load_file(run / "adapter.safetensors")["class_embedding.weight"]
    assert ((start - end).abs().amax(dim=1) > 0.1).all()
    text = load_text_encoder(str(place.base), dim=16, device="cpu")
    first = text.table.weight[text.ids("broken large")[0]]
    assert_close(start[0, :16], first, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_draws_it_by_prompt(layout: str, run: Path, place: Place) -> None:
    """LoRA and textual-inversion file through diffusers' pipeline, guided from its own empty prompt."""
    ours = our_images(our_checkpoint(run), [("contamination", 0)])[0]
    outcome = command(lora.main, "convert", run, "exported", "--to", layout)
    file = Path(outcome.out.splitlines()[0])
    assert outcome.status == 0 and "exported/embeddings/contamination.safetensors\n" in outcome.out
    tokenizer = AutoTokenizer.from_pretrained(place.base / "tokenizer")
    pipe = pipeline(place.base, tokenizer, CLIPTextModel.from_pretrained(place.base / "text_encoder"))
    for damage in DAMAGES:
        pipe.load_textual_inversion(f"exported/embeddings/{damage}.safetensors")
    prompt = PROMPT.format(product="bottle", damage="<contamination>")
    bare = their_picture(pipe, "contamination", prompt=prompt)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    theirs = their_picture(pipe, "contamination", prompt=prompt)
    other = their_picture(pipe, "contamination", prompt=prompt.replace("contamination", "broken_small"))
    assert (ours - theirs).abs().max() < 2e-4
    assert (bare - theirs).abs().max() > 0.02 and (other - theirs).abs().max() > 0.005


def test_the_cards_script_draws_it(run: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its lines for ComfyUI and A1111 hold the same prompt in their spelling."""
    assert command(lora.main, "convert", run, "bottle lora", "--to", "kohya").status == 0
    tokenizer = AutoTokenizer.from_pretrained(place.base / "tokenizer")
    pipe = pipeline(place.base, tokenizer, CLIPTextModel.from_pretrained(place.base / "text_encoder"))
    theirs = picture_of_card(Path("bottle lora/README.md"), pipe, "broken_large", monkeypatch)
    ours = our_images(our_checkpoint(run), [("broken_large", 0)])[0]
    assert (ours - theirs).abs().max() < 1e-3
    text = Path("bottle lora/README.md").read_text()
    assert "prompt: `a photo of a bottle with embedding:broken_large, close`" in text
    assert "prompt: `a photo of a bottle with broken_large, close <lora:bottle lora:1>`" in text


def test_names_in_any_script(place: Place) -> None:
    """Damage types and products as people name them; the words are files, and diffusers reads them."""
    names = {"broken_large": "Kratzer groß", "broken_small": "划痕", "good": "good"}
    for part in ("image", "mask"):
        for old, new in names.items():
            if (place.data / part / old).exists():
                shutil.copytree(place.data / part / old, Path("Flasche {a} 瓶", part, new))
    assert train(place._replace(data=Path("Flasche {a} 瓶")), Path("run"), "--alpha", 8).status == 0
    _, header = adapter.read_adapter(Path("run/adapter.safetensors"))
    words = [placeholder(name) for name in header.classes]
    assert set(words) == {"<kratzer_groß>", "<划痕>", "<good>"}
    assert header.prompts == [PROMPT.format(product="Flasche {a} 瓶", damage=word) for word in words]
    ours = our_images(our_checkpoint(Path("run")), [("划痕", 0)])[0]
    assert command(lora.main, "convert", "run", "out", "--to", "diffusers").status == 0
    tokenizer = AutoTokenizer.from_pretrained(place.base / "tokenizer")
    pipe = pipeline(place.base, tokenizer, CLIPTextModel.from_pretrained(place.base / "text_encoder"))
    for word in words:
        pipe.load_textual_inversion(f"out/embeddings/{word.strip('<>')}.safetensors")
    pipe.load_lora_weights("out")
    theirs = their_picture(pipe, "划痕", prompt=header.prompts[header.classes.index("划痕")])
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize(("classes", "expected"), [
    (["Crack-1", "crack_1"], "several damage types would be <crack_1>"),
    (["!!!", "good"], "'!!!' has no letter or digit"),
    (["known", "good"], "tokenizer has a word <known> of its own")])
def test_damage_types_that_give_no_words(classes: list[str], expected: str, place: Place) -> None:
    for name in classes:
        shutil.copytree(place.data / "image/good", Path("data/image", name))
    base = Path(shutil.copytree(place.base, "base"))
    tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
    tokenizer.add_tokens("<known>")
    tokenizer.save_pretrained(base / "tokenizer")
    outcome = train(Place(base, Path("data")), Path("run"))
    assert outcome.failed_with("--context prompt", expected), outcome
    assert not Path("run").exists()


def test_a1111s_reading_of_the_word_files(run: Path) -> None:
    """It takes the only tensor of the file as (vectors, dim), and the file's name as the word."""
    assert command(lora.main, "convert", run, "exported", "--to", "kohya").status == 0
    files = sorted(Path("exported/embeddings").iterdir())
    assert [file.stem for file in files] == DAMAGES
    for file in files:
        (tensor,) = load_file(file).values()
        assert tensor.ndim == 2 and tensor.shape[1] == 16


def test_there_and_back(run: Path) -> None:
    for layout in ("diffusers", "peft", "kohya"):
        assert command(lora.main, "convert", run, layout, "--to", layout).status == 0
        assert command(lora.main, "convert", layout, f"{layout} back", "--from", layout).status == 0
        before, after = (load_file(folder / "adapter.safetensors")
                         for folder in (run, Path(f"{layout} back")))
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
    assert command(sample.main, "--ckpt", "kohya back", "--steps", 2, "--per-class", 1).status == 0


def test_resume_is_exact(place: Place) -> None:
    assert train(place, Path("whole")).status == 0
    assert train(place, Path("parts"), steps=2).status == 0
    assert train(place, Path("parts")).status == 0
    whole, parts = load_file("whole/adapter.safetensors"), load_file("parts/adapter.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_guidance_needs_no_class_dropout(run: Path, place: Place) -> None:
    """The empty prompt is the base's own null condition."""
    flags = ("--ckpt", run, "--steps", 2, "--per-class", 1, "--classes", "good")
    assert command(sample.main, *flags, "--guidance", 3).status == 0
    assert train(place, Path("previews"), "--preview-guidance", 2, "--preview-every", 1, "--preview-steps", 2,
                 steps=1).status == 0
    assert len(list(Path("previews/previews").iterdir())) == 1


def test_a_stacked_lora_reaches_the_text_encoder_too(run: Path, place: Place) -> None:
    """Its formula beside diffusers' UNet (diffusers 0.42 itself skips a kohya file's text-encoder layers)."""
    rng, tensors = torch.Generator().manual_seed(0), {}
    for name, size in (("lora_te_text_model_encoder_layers_1_self_attn_v_proj", 16),
                       ("lora_te_text_model_encoder_layers_0_mlp_fc1", 32),
                       ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v", 32)):
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, 16, generator=rng)
        tensors[f"{name}.lora_up.weight"] = torch.randn(size, 2, generator=rng)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, "style.safetensors")
    ours = our_checkpoint(run, strength=0.0, loras=[(Path("style.safetensors"), 1.0)])
    picture = our_images(ours, [("good", 0)])[0]
    tokenizer = AutoTokenizer.from_pretrained(place.base / "tokenizer")
    pipe = pipeline(place.base, tokenizer, CLIPTextModel.from_pretrained(place.base / "text_encoder"))
    assert command(lora.main, "convert", run, "exported", "--to", "kohya").status == 0
    pipe.load_textual_inversion("exported/embeddings/good.safetensors")
    pipe.load_lora_weights({name: x for name, x in tensors.items() if "unet" in name})
    layers = pipe.text_encoder.encoder.layers
    with torch.no_grad():
        for name, weight in (("1_self_attn_v_proj", layers[1].self_attn.v_proj.weight),
                             ("0_mlp_fc1", layers[0].mlp.fc1.weight)):
            name = f"lora_te_text_model_encoder_layers_{name}"
            weight += tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"] / 2
    theirs = their_picture(pipe, "good", prompt=PROMPT.format(product="bottle", damage="<good>"))
    assert (picture - theirs).abs().max() < 1e-3
    plain = our_images(our_checkpoint(run, strength=0.0), [("good", 0)])[0]
    assert (picture - plain).abs().max() > 0.02


MISTAKES = {
    "no damage": (["--prompt", "a bottle"], "must hold {damage} once"),
    "damage twice": (["--prompt", "{damage} {damage}"], "must hold {damage} once"),
    "another field": (["--prompt", "{damage} {colour}"], "must hold {damage} once"),
    "a brace": (["--prompt", "{damage} {"], "must hold {damage} once"),
    "a format": (["--prompt", "{damage:>999999999}"], "must hold {damage} once"),
    "a word there already": (["--prompt", "{damage}, not <good>"], "holds <good>"),
    "too long": (["--prompt", "word " * 80 + "{damage}"], "use fewer words"),
    "too many vectors": (["--tokens-per-class", 77], "--tokens-per-class"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, place: Place) -> None:
    flags, expected = MISTAKES[name]
    outcome = train(place, Path("run"), *flags)
    assert outcome.failed_with(expected) and not Path("run").exists()


def test_a_base_without_a_good_tokenizer_or_encoder(place: Place) -> None:
    for file, content, expected in (("tokenizer/vocab.json", "{", "fetch it again"),
                                    ("text_encoder/config.json", '{"hidden_size": 24}', "16 is needed")):
        base = Path(shutil.copytree(place.base, f"base {file[:4]}"))
        (base / file).write_text(content)
        outcome = train(place._replace(base=base), Path("run"))
        assert outcome.failed_with(file.split("/")[0].replace("_", " "), expected)
    config = json.loads((place.base / "text_encoder/config.json").read_text())
    (base / "text_encoder/config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert train(place._replace(base=base), Path("run")).failed_with("hidden_act", "quick_gelu")
