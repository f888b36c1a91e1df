"""Fine-tunes as base: they may come without VAE, text encoder or tokenizer, in fp16, in either layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import published
import pytest
import torch
from bases import write_text
from forked_commands import ForkedCommands
from hub_server import HubServer
from published import FP16, FP32, components, without
from safetensors.torch import load_file

from runtime.errors import UserError
from sd.pretrained import weights
from sd.pretrained.components import TEXT
from sd.pretrained.text_encoder import TextConfig
from sd.pretrained.weights import DEFAULT_BASE, REVISIONS, load_text_encoder

WORDS = 514  # of write_text's tokenizer
SMALL_TEXT = TextConfig(vocab_size=WORDS, hidden_size=24, intermediate_size=48, num_hidden_layers=1,
                        num_attention_heads=2)
PROMPT = "a photo of a bottle"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model as published: text encoder with position_ids, in fp32 and fp16, and a tokenizer."""
    folder = published.write_model(tmp_path_factory.mktemp("models") / "base")
    tokenizer = write_text(tmp_path_factory.mktemp("words")) / "tokenizer"
    shutil.copytree(tokenizer, folder / "tokenizer")
    text = published.random_tensors(published.text_shapes(24, 48, 1, WORDS), 5)
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for name, dtype in (("model", torch.float32), ("model.fp16", torch.float16)):
        published.write(folder / "text_encoder" / f"{name}.safetensors", text, dtype)
    file = folder / "text_encoder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": WORDS}))
    return folder


def states(base: str) -> torch.Tensor:
    text = load_text_encoder(base, dim=24, device="cpu")
    with torch.no_grad():
        return text.encode(text.prompt_ids(PROMPT)[None])


def test_the_text_encoder_in_every_layout(base: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    expected = states(str(base))
    half = Path(shutil.copytree(base, tmp_path / "half"))
    (half / "text_encoder/model.safetensors").unlink()
    assert (states(str(half)) - expected).abs().max() < 0.02 * expected.abs().max()
    unet, vae = components(base)
    tensors = published.original_tensors(unet, vae)
    for name, tensor in load_file(base / "text_encoder/model.safetensors").items():
        tensors[f"cond_stage_model.transformer.{name}"] = tensor
    original = published.write(tmp_path / "v1-5.safetensors", tensors)
    monkeypatch.setattr(weights, "TEXT", TEXT._replace(config=SMALL_TEXT))
    monkeypatch.setattr(weights, "DEFAULT_BASE", str(base))  # for the tokenizer: the file can have none
    assert torch.equal(states(str(original)), expected)


def test_what_is_missing_is_the_base_models(base: Path, forked: ForkedCommands, tmp_path: Path) -> None:
    """And each thing is said on one line; what is there, in fp16 or not, is the fine-tune's own."""
    folder = tmp_path / "folder"
    (folder / "unet").mkdir(parents=True)
    for name in (FP16, "config.json"):
        shutil.copy(base / "unet" / name, folder / "unet")
    tensors = published.original_tensors(*components(base))
    for prefix in ("first_stage_model.", "cond_stage_model."):
        without(prefix)(tensors)
    file = published.write(tmp_path / "pruned.safetensors", tensors, torch.float16)
    code = """
for name in {names!r}:
    load_vae(name, **CPU)
    text = load_text_encoder(name, dim=24, device='cpu')
    print(float(text.encode(text.prompt_ids({prompt!r})[None]).detach().sum()))
load_unet({names[0]!r}, **CPU)
"""
    names = [str(folder), str(file)]
    with HubServer({DEFAULT_BASE: base}, commits=REVISIONS) as server:
        done = forked.python(code.format(names=names, prompt=PROMPT), server.environment(tmp_path / "cache"),
                             tmp_path)
    assert done.status == 0, done.err
    assert [line for line in done.err.splitlines() if "taking" in line] == [
        f"{name}: holds no {what}, taking that of {DEFAULT_BASE}"
        for name in names for what in ("VAE", "text encoder", "tokenizer")]
    assert [float(x) for x in done.out.split()] == pytest.approx([float(states(str(base)).sum())] * 2)


def test_what_is_half_there_is_not_replaced(base: Path, tmp_path: Path) -> None:
    """A folder with a VAE's config but pickled weights is a mistake to mend, not a model without a VAE."""
    folder = Path(shutil.copytree(base, tmp_path / "folder"))
    for name in (FP32, FP16):
        (folder / "vae" / name).rename(folder / "vae" / name.replace(".safetensors", ".bin"))
    with pytest.raises(UserError, match="pickles"):
        weights.load_vae(str(folder), device="cpu", dtype=torch.float32)


def test_a_text_encoder_of_another_width(base: Path) -> None:
    with pytest.raises(UserError, match="text encoder's hidden_size is 24, 768 is needed here"):
        load_text_encoder(str(base), dim=768, device="cpu")
