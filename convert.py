"""LoRA checkpoints in the layouts that other programs read, with a model card, and back.

`lora.py convert` runs this. Nothing is lost on the way there and back: beside the LoRA lies
damage_types.safetensors with all else that the checkpoint holds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from config import flag, parse
from errors import UserError
from export import write_lora
from formats import LAYOUTS, read_lora
from publish import Card, model_card, push, write_card

EXAMPLE = """examples:
  python lora.py convert runs/bottle-class bottle-lora --to kohya      # for ComfyUI and A1111
  python lora.py convert runs/bottle-class bottle-lora --to diffusers  # for pipe.load_lora_weights
  python lora.py convert bottle-lora runs/back --from diffusers        # again a checkpoint for sample.py
  python lora.py convert runs/bottle-class bottle-lora --to diffusers --samples generated/bottle \\
      --data-licence "CC BY-NC-SA 4.0" --push-to-hub me/bottle-defects
"""


@dataclass
class Convert:
    """The command line of lora.py."""

    command: str = flag(..., "what to do", choices=("convert",), positional=True, group="what")
    source: str = flag(..., "run folder, LoRA file, or the folder that holds one", positional=True,
                       group="what")
    out: str = flag(..., "folder to write, new or empty", positional=True, group="what")
    from_: str = flag("checkpoint", "layout of SOURCE; checkpoint is this project's", choices=LAYOUTS,
                      group="what")
    to: str = flag("checkpoint", "layout of OUT", choices=LAYOUTS, group="what")
    json: bool = flag(False, "say what was written as one JSON object instead of a line a file", group="what")
    samples: str | None = flag(None, "sample.py's folder, for its grid.png in OUT/README.md", group="card")
    numbers: str | None = flag(None, "evaluate.py's metrics.json, for the card", group="card")
    data_licence: str | None = flag(None, "licence of the training images, for the card", group="card")
    push_to_hub: str | None = flag(None, "OWNER/NAME of a model on the hub to upload OUT to", group="hub")
    public: bool = flag(False, "let everyone see it, if it is not there yet", group="hub")


def main() -> None:
    """The command: one LoRA file in another layout, its card, and to the hub if asked."""
    config = parse(Convert, __doc__, EXAMPLE)
    if config.from_ == config.to:
        raise UserError(f"--from {config.from_} --to {config.to}: nothing to convert; give another layout to "
                        "one of them")
    file = read_lora(Path(config.source))
    if file.layout != config.from_:
        raise UserError(f"{config.source}: is in the layout {file.layout}; say --from {file.layout}")
    out, with_card = Path(config.out), file.about is not None and config.to != "checkpoint"
    card = Card(config.data_licence, config.samples and Path(config.samples),
                config.numbers and Path(config.numbers))
    if with_card:  # its text first: a mistake there should leave nothing half done
        text = model_card(file.about, config.to, out.resolve().name, config.push_to_hub, card)
    written = write_lora(file, out, config.to)
    if with_card:
        written += write_card(out, text, card)
    print(f"{len(file.layers)} layers from {config.from_} to {config.to}", file=sys.stderr)
    url = push(out, config.push_to_hub, config.public) if config.push_to_hub else None
    if url:
        print(f"uploaded to {url}", file=sys.stderr)
    if config.json:
        print(json.dumps({"files": list(map(str, written)), "layers": len(file.layers), "url": url}))
    else:
        print(*written, sep="\n")
