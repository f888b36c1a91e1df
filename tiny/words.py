"""The words of the embedded base: its text encoder, and its tokenizer in the format of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sd.guidance import Contexts
from tiny.procedural import VOCABULARY

TEXT = CLIPTextConfig(vocab_size=len(VOCABULARY), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                      num_attention_heads=4, max_position_embeddings=12, projection_dim=128, bos_token_id=0,
                      eos_token_id=1, pad_token_id=1)


class Words(nn.Module):
    """Words -> context (B, 12, 128): the last hidden states of a small CLIP text model."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPTextModel(TEXT)
        self.index = {word: i for i, word in enumerate(VOCABULARY)}

    def ids(self, words: list[tuple[str, ...]]) -> Tensor:
        """Token ids (B, 12): start, the words, end, padding by end. An empty tuple is the null condition."""
        rows = [[0, *(self.index[w] for w in ws)] for ws in words]
        return torch.tensor([row + [1] * (TEXT.max_position_embeddings - len(row)) for row in rows])

    def forward(self, ids: Tensor) -> Tensor:
        return self.clip(input_ids=ids).last_hidden_state

    def contexts(self, words: list[tuple[str, ...]]) -> Contexts:
        """The contexts of images with these words, and the null contexts."""
        null: list[tuple[str, ...]] = [()] * len(words)
        return Contexts(*(self(self.ids(part).to(self.clip.device)) for part in (words, null)))


def write_tokenizer(folder: Path, length: int) -> None:
    """A tokenizer of the vocabulary's words, numbered in their order. It skips any other word.

    length: the largest number of tokens. CLIP's own tokenizer needs an id for each byte and word part, more
    than the 58 words here.
    """
    start, end, *words = VOCABULARY
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=end))
    tokenizer.normalizer = Lowercase()
    known = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    tokenizer.pre_tokenizer = Split(Regex(rf"(?<![\w-])(?:{known})(?![\w-])"), "removed", invert=True)
    tokenizer.post_processor = TemplateProcessing(f"{start} $A {end}", special_tokens=[(start, 0), (end, 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "bos_token": start,
         "eos_token": end, "pad_token": end, "unk_token": end}, indent=2) + "\n")
