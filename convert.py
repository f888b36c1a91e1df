"""LoRA checkpoints in the layouts that other programs read, and back; a model card; the Hugging Face hub.

OUT holds the LoRA, README.md (the card, which says how to draw with it), damage_types.safetensors (all else
that the checkpoint holds, so that nothing is lost on the way back) and, of a run with --context prompt, a
textual-inversion file a damage type in embeddings/.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from card import Card, Place, model_card, write_card
from config import flag, parse
from errors import UserError
from export import write_lora
from formats import LAYOUTS, LoRAFile, read_lora
from publish import log_in, push

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
    samples: str | None = flag(None, "sample.py's folder, whose contact sheet the card is to show",
                               group="card")
    numbers: str | None = flag(None, "evaluate.py's metrics.json, for the card", group="card")
    data_licence: str | None = flag(None, "licence of the training images, for the card", group="card")
    push_to_hub: str | None = flag(None, "OWNER/NAME of a model on the hub to upload OUT to; its "
                                   "damage_types.safetensors holds the run's whole command line, names of "
                                   "folders included", group="hub")
    public: bool = flag(False, "let everyone see it, if --push-to-hub makes it", group="hub")


def check(config: Convert, file: LoRAFile) -> None:
    """Raises UserError for flags that contradict the file or each other."""
    if file.layout != config.from_:
        raise UserError(f"{config.source}: is in the layout {file.layout}; say --from {file.layout}")
    if config.public and config.push_to_hub is None:
        raise UserError("--public: nothing is uploaded without --push-to-hub; give that too")
    unused = [f"--{name.replace('_', '-')}" for name in ("samples", "numbers", "data_licence", "push_to_hub")
              if getattr(config, name) is not None]
    if unused and config.to == "checkpoint":
        raise UserError(f"{unused[0]}: a checkpoint gets no card; use --to diffusers, peft or kohya")
    if unused and file.about is None:
        raise UserError(f"{unused[0]}: no card can be written, for {config.source} does not come from a "
                        "checkpoint of this project; leave it out")


def main() -> None:
    """The command: one LoRA file in another layout, its card, and to the hub if asked."""
    config = parse(Convert, __doc__, EXAMPLE)
    if config.from_ == config.to:
        raise UserError(f"--from {config.from_} --to {config.to}: nothing to convert; give another layout to "
                        "one of them")
    file = read_lora(Path(config.source))
    check(config, file)
    out, with_card = Path(config.out), file.about is not None and config.to != "checkpoint"
    card = Card(config.data_licence, config.samples and Path(config.samples),
                config.numbers and Path(config.numbers))
    if with_card:  # its text first: a mistake there should leave nothing half done
        place = Place(config.to, out.resolve().name, config.push_to_hub)
        text = model_card(file.about, place, card, widened=file.widened)
    if config.push_to_hub is not None:
        log_in(config.push_to_hub)
    written = write_lora(file, out, config.to)
    if with_card:
        written += write_card(out, text, card)
    print(f"{len(file.layers)} layers from {config.from_} to {config.to}", file=sys.stderr)
    url = None if config.push_to_hub is None else push(out, config.push_to_hub, public=config.public)
    if url:
        print(f"uploaded to {url}", file=sys.stderr)
    if config.json:
        print(json.dumps({"files": list(map(str, written)), "layers": len(file.layers), "url": url}))
    else:
        print(*written, sep="\n")
