"""--context prompt: damage types as learned words in a prompt that CLIP's frozen text encoder reads.

Textual inversion (Gal et al. 2022, arXiv 2208.01618), trained together with the LoRA, one placeholder a
damage type. `python lora.py convert` writes the words as embedding files that other programs read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints.class_embedding import NULL, ClassEmbedding
from checkpoints.metadata import Header
from runtime.errors import UserError
from runtime.seeds import torch_rng
from sd.guidance import Contexts
from sd.pretrained.text_encoder import TextEncoder, placeholder
from sd.pretrained.weights import load_text_encoder


class PromptContext(nn.Module):
    """Class ids -> the text encoder's last states of their prompts; for NULL, those of the empty prompt.

    Only the placeholders' vectors, `tokens` a class, are trained and saved.
    """

    ids: Tensor  # (classes, N)
    null: Tensor  # (N, dim)

    def __init__(self, text: TextEncoder, prompts: list[str], classes: list[str], tokens: int) -> None:
        super().__init__()
        places = [placeholder(name) for name in classes]
        if known := [place for place in places if text.knows(place)]:
            raise UserError(f"--context prompt: the base's tokenizer has a word {known[0]} of its own; "
                            "rename the damage type")
        ids = [text.prompt_ids(prompt, place, range(i * tokens, (i + 1) * tokens))
               for i, (prompt, place) in enumerate(zip(prompts, places, strict=True))]
        self.encode = text.encode  # a method, so that the frozen encoder is no submodule
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


DamageContext = ClassEmbedding | PromptContext


def start_vectors(text: TextEncoder, name: str, tokens: int) -> Tensor:
    """(tokens, dim): the vectors of the name's own words, repeated; noise where the tokenizer finds none."""
    ids = text.ids(re.sub(r"[\W_]+", " ", name.split("/")[-1].lower()))
    words = text.table.weight.detach().float()
    if not ids:
        noise = torch.randn(tokens, words.shape[1], generator=torch_rng(0, name))
        return noise.to(words.device) * words.std()
    return words[[ids[i % len(ids)] for i in range(tokens)]]


@torch.no_grad()
def contexts_for(context: DamageContext, class_ids: list[int]) -> Contexts:
    """The contexts that sampling images of these classes needs, both (B, N, dim)."""
    class_id = torch.tensor(class_ids, device=context.null.device)
    return Contexts(*context(torch.cat([class_id, torch.full_like(class_id, NULL)])).chunk(2))


def prompts_for(template: str, classes: list[str], product: str) -> list[str]:
    """The prompt of each class: {damage} becomes its placeholder, {product} its product's name.

    template: --prompt. product: the name where the class does not say product/damage. Raises UserError where
    {damage} is not in the template once, or where the classes do not give different placeholders.
    """
    around = template.split("{damage}")
    if len(around) != 2 or re.search("[{}]", "".join(around).replace("{product}", "")):
        raise UserError(f"--prompt {template!r}: must hold {{damage}} once, may hold {{product}}, and "
                        "no other braces")
    prompts, words = [], [placeholder(name) for name in classes]
    for name, word in zip(classes, words, strict=True):
        if word == "<>":
            raise UserError(f"--context prompt: the damage type {name!r} has no letter or digit to make a "
                            "placeholder from; rename it")
        if words.count(word) > 1:
            raise UserError(f"--context prompt: several damage types would be {word}; rename one")
        before, after = (part.replace("{product}", name.rpartition("/")[0] or product) for part in around)
        if word in before + after:
            raise UserError(f"--prompt {template!r}: holds {word}, the placeholder of {name}, beside "
                            "{damage}; remove it")
        prompts.append(before + word + after)
    return prompts


def make_context(header: Header, base: str, dim: int, device: torch.device, init_std: float = 0.02,
                 seed: int = 0, loras: Sequence[tuple[Path, float]] = ()) -> DamageContext:
    """The untrained context of a checkpoint with this header.

    base: the model whose text encoder a prompt needs. loras: LoRA files to add to it, with their strengths.
    """
    if loras:
        from checkpoints import external_lora  # with all LoRA formats, which are rarely needed
    if not header.prompts:
        for file, _ in loras:
            external_lora.warn_unused(file)
        return ClassEmbedding(len(header.classes), dim, header.tokens_per_class, init_std, seed).to(device)
    text = load_text_encoder(base, dim=dim, device=device)
    for file, strength in loras:
        external_lora.add(text.clip, "text_encoder", file, strength)
    return PromptContext(text, header.prompts, header.classes, header.tokens_per_class)
