"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020) from transformers: prompts -> context.

A placeholder in a prompt stands for learned vectors: textual inversion (Gal et al. 2022, arXiv 2208.01618).
transformers is imported inside the functions: it is slow, and runs without prompts do not need it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import UserError


@dataclass(frozen=True)
class TextConfig:
    """The defaults are SD 1.5's. Names as in text_encoder/config.json."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77


def clip_text_model(config: TextConfig) -> nn.Module:
    """transformers' model of this shape, with its default activation x * sigmoid(1.702 x)."""
    from transformers import CLIPTextConfig, CLIPTextModel
    # Start and end are the last entries of the vocabulary; transformers warns about ids beyond it.
    ends = {"bos_token_id": config.vocab_size - 2, "eos_token_id": config.vocab_size - 1}
    return CLIPTextModel(CLIPTextConfig(**dataclasses.asdict(config), **ends))


def text_name(name: str) -> str | None:
    """Published key -> module's key; None for the list of positions 0, 1, 2, ... in some files."""
    return None if name.endswith("position_ids") else name.removeprefix("text_model.")


def placeholder(name: str) -> str:
    """The placeholder of a name: Broken large -> <broken_large>. CLIP's tokenizer is lower case."""
    return "<" + re.sub(r"[\W_]+", "_", name.lower()).strip("_") + ">"


class TokenTable(nn.Module):
    """The vocabulary's vectors, followed by the learned ones: their ids follow the vocabulary's."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.weight = words.weight
        self.learned: Tensor | None = None  # (M, dim), set before each call; may require gradients

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> vectors (B, N, dim)."""
        words = len(self.weight)
        vectors = F.embedding(ids.clamp(max=words - 1), self.weight)
        if self.learned is None:
            return vectors
        return torch.where((ids >= words)[..., None], F.embedding((ids - words).clamp(min=0), self.learned),
                           vectors)


class TextEncoder:
    """A base's frozen text encoder and its tokenizer. Not a module: it is never trained or saved."""

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        self.clip, self.tokenizer = clip, tokenizer
        self.table = TokenTable(clip.get_input_embeddings())
        clip.set_input_embeddings(self.table)
        self.words = len(self.table.weight)
        self.length = clip.config.max_position_embeddings

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without start and end."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def knows(self, word: str) -> bool:
        """Whether the vocabulary has the whole word as one token."""
        return word in self.tokenizer.get_vocab()

    def prompt_ids(self, prompt: str, placeholder: str = "", learned: range = range(0)) -> Tensor:
        """(N,) ids: start, prompt, end, padding. The placeholder becomes the ids of learned rows `learned`.

        Raises UserError for a prompt longer than N, 77 in SD 1.5.
        """
        before, _, after = prompt.partition(placeholder) if placeholder else (prompt, "", "")
        inner = [*self.ids(before), *(self.words + row for row in learned), *self.ids(after)]
        row = [self.tokenizer.bos_token_id, *inner, self.tokenizer.eos_token_id]
        if len(row) > self.length:
            raise UserError(f"--prompt: {prompt!r} is {len(row)} tokens with start and end, the text encoder "
                            f"takes {self.length}; use fewer words or fewer --tokens-per-class")
        return torch.tensor(row + [self.tokenizer.pad_token_id] * (self.length - len(row)))

    def encode(self, ids: Tensor, learned: Tensor | None = None) -> Tensor:
        """ids (B, N), learned (M, dim) -> context (B, N, dim): the last layer's states, normalised."""
        self.table.learned = learned
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return self.clip(input_ids=ids, position_ids=positions).last_hidden_state


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model's tokenizer/ folder. Raises UserError."""
    from transformers import AutoTokenizer
    try:
        # Without trust_remote_code=False it would offer to run code from the folder.
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and json each raise their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{folder}: its tokenizer cannot be read ({reason[0]}); fetch it again") from error
