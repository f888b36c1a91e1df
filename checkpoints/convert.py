"""Convert LoRA checkpoints to the layouts of other programs, and back; with a model card, and to the hub.

OUT holds the LoRA, README.md (the card, which says how to use it), damage_types.safetensors (the rest of the
checkpoint, for the way back) and, of a run with --context prompt, embeddings/ with one textual-inversion
file a damage type.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from checkpoints.adapter import WIDE
from checkpoints.lora_export import write_lora
from checkpoints.lora_formats import FORMATS, LoRAFile, read_lora
from checkpoints.model_card import Card, Place, model_card, write_card
from checkpoints.publish import log_in, push, without_folders
from runtime.cli import flag, parse
from runtime.errors import UserError
from runtime.locks import new_folder

EXAMPLE = """examples:
  python lora.py convert runs/bottle-class bottle-lora --to kohya      # for ComfyUI and A1111
  python lora.py convert runs/bottle-class bottle-lora --to diffusers  # for pipe.load_lora_weights
  python lora.py convert bottle-lora runs/back --from diffusers        # a checkpoint for sample.py again
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
    from_: str = flag("checkpoint", "layout of SOURCE; checkpoint is this project's", choices=tuple(FORMATS),
                      group="what")
    to: str = flag("checkpoint", "layout of OUT", choices=tuple(FORMATS), group="what")
    json: bool = flag(False, "print one JSON object instead of a line a file", group="what")
    samples: str | None = flag(None, "folder of sample.py, whose contact sheet the card shows",
                               group="card")
    numbers: str | None = flag(None, "evaluate.py's metrics.json, or its folder, for the card", group="card")
    data_licence: str | None = flag(None, "licence of the training images, for the card", group="card")
    push_to_hub: str | None = flag(None, "OWNER/NAME of a model on the hub to upload OUT to; what it says of "
                                   "the run then names none of its folders", group="hub")
    public: bool = flag(False, "make the model that --push-to-hub creates public", group="hub")


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
        raise UserError(f"{unused[0]}: no card can be written, because {config.source} does not come from a "
                        "checkpoint of this project; omit the flag")


def main() -> None:
    """The command: convert one LoRA file, write its card, upload both if asked."""
    config = parse(Convert, __doc__, EXAMPLE)
    if config.from_ == config.to:
        raise UserError(f"--from {config.from_} --to {config.to}: nothing to convert; give another layout to "
                        "one of them")
    file, out = read_lora(Path(config.source)), Path(config.out)
    check(config, file)
    if file.about is not None and file.about.get("control"):
        print(f"{config.source}: a LoRA file cannot hold its ControlNet, which is left out; write that with: "
              f"python -m checkpoints.controlnet_export --ckpt {shlex.quote(config.source)} --out NET",
              file=sys.stderr)
    if file.about is not None and config.to == "kohya" and not file.about.get("prompts"):
        print("ComfyUI and A1111 cannot load damage_types.safetensors, so by prompt alone this LoRA knows no "
              "damage type there; for them train with --context prompt", file=sys.stderr)
    if file.about is not None and config.push_to_hub is not None:
        file = dataclasses.replace(file, about=without_folders(file.about))
    name, text = out.resolve().name, ""
    card = Card(config.data_licence, config.samples, config.numbers)
    if file.about is not None and config.to != "checkpoint":
        place = Place(config.to, name, config.push_to_hub)
        text = model_card(file.about, place, card, widened=WIDE in file.rest)
    if config.push_to_hub is not None:
        log_in(config.push_to_hub)
    with new_folder(out) as private:
        written = write_lora(file, private, config.to, name)
        if text:
            written += write_card(private, text, card)
        written = [out / path.relative_to(private) for path in written]
    print(f"{len(file.layers)} layers from {config.from_} to {config.to}", file=sys.stderr)
    url = None if config.push_to_hub is None else push(out, config.push_to_hub, public=config.public)
    if url:
        print(f"uploaded to {url}", file=sys.stderr)
    if config.json:
        print(json.dumps({"files": list(map(str, written)), "layers": len(file.layers), "url": url}))
    else:
        print(*written, sep="\n")
