"""--context prompt: damage types as learned words in a prompt, for CLIP's frozen text encoder to read.

Textual inversion (Gal et al. 2022, arXiv 2208.01618), a placeholder a damage type, trained along with the
LoRA. Other programs read both: `python lora.py convert` writes the words as embedding files beside the LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import foreign
from adapter import NULL, ClassContext
from errors import UserError
from header import Header
from recipe import TrainConfig, product_name
from sd.text import TextEncoder, placeholder
from sd.weights import load_text_encoder
from seeds import torch_rng


class PromptContext(nn.Module):
    """Damage-type ids -> the text encoder's states of their prompts; no class: those of the empty prompt.

    Only the placeholders' vectors are trained, `tokens` a class, so only they are in the checkpoint.
    """

    def __init__(self, text: TextEncoder, prompts: list[str], classes: list[str], tokens: int) -> None:
        super().__init__()
        places = [placeholder(name) for name in classes]
        if known := [place for place in places if text.knows(place)]:
            raise UserError(f"--context prompt: the base's tokenizer has a word {known[0]} of its own; "
                            "rename the damage type")
        ids = [text.prompt_ids(prompt, place, range(i * tokens, (i + 1) * tokens))
               for i, (prompt, place) in enumerate(zip(prompts, places, strict=True))]
        self.encode = text.encode  # a method, so the frozen encoder becomes no part of this module
        device = text.table.weight.device
        self.register_buffer("ids", torch.stack(ids).to(device), persistent=False)
        with torch.no_grad():
            null = self.encode(text.prompt_ids("")[None].to(device))[0]
        self.register_buffer("null", null, persistent=False)
        start = torch.stack([start_vectors(text, name, tokens).flatten() for name in classes])
        self.embedding = nn.Embedding.from_pretrained(start, freeze=False)

    def forward(self, class_id: Tensor) -> Tensor:
        """class_id (B,) integers, NULL for no class -> context (B, N, dim)."""
        learned = self.embedding.weight.view(-1, self.null.shape[-1])
        states = self.encode(self.ids[class_id.clamp(min=0)], learned)
        return torch.where((class_id == NULL)[:, None, None], self.null.to(states.dtype), states)


DamageContext = ClassContext | PromptContext


def start_vectors(text: TextEncoder, name: str, tokens: int) -> Tensor:
    """(tokens, dim): the vectors of the name's own words, over and over; noise where none is known."""
    ids = text.ids(re.sub(r"[\W_]+", " ", name.split("/")[-1].lower()))
    words = text.table.weight.detach().float()
    if not ids:
        noise = torch.randn(tokens, words.shape[1], generator=torch_rng(0, name))
        return noise.to(words.device) * words.std()
    return words[[ids[i % len(ids)] for i in range(tokens)]]


def prompts_for(config: TrainConfig, classes: list[str]) -> list[str]:
    """--prompt for each class, [] for --context class.

    Raises UserError where {damage} is not in it once, or the classes give no words, each its own.
    """
    if config.context == "class":
        return []
    around = config.prompt.split("{damage}")
    if len(around) != 2 or re.search("[{}]", "".join(around).replace("{product}", "")):
        raise UserError(f"--prompt {config.prompt!r}: must hold {{damage}} once, may hold {{product}}, and "
                        "no other braces")
    prompts, words = [], [placeholder(name) for name in classes]
    for name, word in zip(classes, words, strict=True):
        if word == "<>":
            raise UserError(f"--context prompt: the damage type {name!r} has neither letters nor digits to "
                            "make a word of; rename it")
        if words.count(word) > 1:
            raise UserError(f"--context prompt: several damage types would be {word}; rename one")
        product = name.rpartition("/")[0] or product_name(config)
        before, after = (part.replace("{product}", product) for part in around)
        if word in before + after:
            raise UserError(f"--prompt {config.prompt!r}: holds {word}, the word for {name}, beside "
                            "{damage}; leave it out")
        prompts.append(before + word + after)
    return prompts


def make_context(header: Header, base: str, dim: int, device: torch.device, init_std: float = 0.02,
                 seed: int = 0, loras: Sequence[tuple[Path, float]] = ()) -> DamageContext:
    """The context that a checkpoint of this header is trained with, at its start.

    base: where the text encoder is. loras: LoRA files of others for it, each with its strength.
    """
    if not header.prompts:
        for file, _ in loras:
            foreign.say_unused(file)
        return ClassContext(len(header.classes), dim, header.tokens_per_class, init_std, seed).to(device)
    text = load_text_encoder(base, dim=dim, device=device)
    for file, strength in loras:
        foreign.add(text.clip, "text_encoder", file, strength)
    return PromptContext(text, header.prompts, header.classes, header.tokens_per_class)
