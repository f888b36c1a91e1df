"""The embedded base's tokenizer, in the form that transformers and diffusers open: tiny/tokenizer/."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from tiny.procedural import VOCABULARY


def write_tokenizer(folder: Path, length: int) -> None:
    """The vocabulary's words, numbered in its order; any other word is passed over. `length`: tokens at most.

    CLIP's own tokenizer puts words together from parts, each with an id; 58 words leave no room for those.
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
