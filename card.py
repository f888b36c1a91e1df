"""The model card of an exported adapter: what it draws, how, what it was trained on, what it is worth."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError
from files import write_atomic
from sample_folder import LAYOUTS, sheet_of
from sd.text import placeholder

SETTINGS = {"resolution": "resolution, pixels", "rank": "LoRA rank", "alpha": "LoRA alpha",
            "epochs": "epochs", "batch_size": "batch size", "lr": "learning rate",
            "class_dropout": "class dropout", "tokens_per_class": "tokens a class", "seed": "seed",
            "step": "steps"}
LOAD = {"diffusers": 'pipe.load_lora_weights("{place}")',
        "peft": 'pipe.unet = peft.PeftModel.from_pretrained(pipe.unet, "{place}")',
        "kohya": 'pipe.load_lora_weights("{place}", weight_name="{name}.safetensors")'}
BY_PROMPT = """
ComfyUI: `{name}.safetensors` goes into `models/loras`, what is in `embeddings` into `models/embeddings`;
prompt: `{comfy}`. A1111: `models/Lora` and `embeddings`; prompt: `{a1111} <lora:{name}:1>`. There a file's
name is its word in every prompt: rename the file of a word that you use otherwise."""
BY_TABLE = """
ComfyUI and A1111 have no place for the rows of `damage_types.safetensors`: by prompt alone this LoRA knows no
damage type there. One trained with `--context prompt` does."""
WIDENED = """
Its base had no inpainting UNet. The widened first layer, `unet.conv_in.weight` in `damage_types.safetensors`,
has to take that layer's place."""
STEERED = """
Its ControlNet is in `damage_types.safetensors` too; `export_controlnet.py` writes it as diffusers and ComfyUI
read it."""
INTERVALS = "By `evaluate.py`, with 95 % intervals, beside images that went through the same measurement.\n\n"
NOTHING = "not given"


@dataclass(frozen=True)
class Card:
    """What only its owner knows of an adapter. None: it was not given, and the card says so."""

    data_licence: str | None = None
    samples: Path | None = None  # a folder of sample.py: its contact sheet is shown
    numbers: Path | None = None  # evaluate.py's metrics.json


class Place(NamedTuple):
    """Where an export lies: its layout, its name, and its repository on the hub if it goes there."""

    layout: str
    name: str
    repo: str | None = None


def model_card(about: dict[str, Any], place: Place, card: Card, *, widened: bool = False) -> str:
    """README.md of an adapter with header `about`: YAML, then markdown.

    widened: the adapter comes with a first layer of its own. Raises UserError where what `card` names is not
    there.
    """
    if card.samples is not None:
        _sheet(card.samples)
    numbers = f"Numbers: {NOTHING}." if card.numbers is None else _numbers(card.numbers)
    base, _ = _hub_id(about["base"])
    published, settings = (base or "").startswith("stable-diffusion-v1-5/"), about["config"] | about
    prompts = about.get("prompts") or [""] * len(about["classes"])
    lines = ["---", *([f"base_model: {base}", "base_model_relation: adapter"] if base else []),
             *(["license: creativeml-openrail-m"] if published else []),
             f"library_name: {'peft' if place.layout == 'peft' else 'diffusers'}",
             f"pipeline_tag: {'image' if about['kind'] == 'inpaint' else 'text'}-to-image",
             "tags: [lora, stable-diffusion, industrial-defects, few-shot]", "---", f"# {place.name}", "",
             f"A LoRA for {base or 'a base of its own'}, trained on photos of these damages:", "",
             *(f"- {damage}" + f": `{prompt}`" * bool(prompt)
               for damage, prompt in zip(about["classes"], prompts, strict=True))]
    if card.samples is not None:
        lines += ["", "![samples, one row a damage type](samples.png)"]
    lines += ["", "## Use", "", "```python", *_use(about, place), "```", *_elsewhere(about, place),
              *(WIDENED.splitlines() if widened else []),
              *(STEERED.splitlines() if about["kind"] == "control" else []),
              "", "## Training", "", "| setting | value |", "|---|---|",
              *(f"| {title} | {settings[key]} |" for key, title in SETTINGS.items()), "",
              f"Data: {', '.join(Path(data).name or data for data in settings['data'])}; licence: "
              f"{card.data_licence or NOTHING}. It binds what is drawn as well.",
              "", "## Evaluation", "", numbers, ""]
    return "\n".join(lines)


def write_card(out: Path, text: str, card: Card) -> list[Path]:
    """README.md, and samples.png where there are samples, in the folder `out`."""
    files = {out / "README.md": lambda temporary: temporary.write_text(text, encoding="utf-8")}
    if card.samples is not None:
        files[out / "samples.png"] = partial(shutil.copyfile, _sheet(card.samples))
    for file, write in files.items():
        write_atomic(file, write)
    return list(files)


def _sheet(samples: Path) -> Path:
    """The contact sheet of a folder that sample.py wrote, in whichever layout. Raises UserError."""
    sheets = [sheet_of(samples, layout) for layout in LAYOUTS]
    found = next((sheet for sheet in sheets if sheet.is_file()), None)
    if found is None:
        raise UserError(f"--samples {samples}: no {' nor '.join(map(str, dict.fromkeys(sheets)))}; give a "
                        "folder that sample.py wrote")
    return found


def _hub_id(base: str) -> tuple[str | None, str]:
    """The hub id and revision that --base was; None for a path, of which a card says nothing."""
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", base)
    return (None, "") if found is None or Path(base).exists() else (found[1], found[2] or "")


def _use(about: dict[str, Any], place: Place) -> list[str]:
    """A script that draws the first damage type in diffusers."""
    paints, (base, revision) = about["kind"] == "inpaint", _hub_id(about["base"])
    pipeline = "StableDiffusionInpaintPipeline" if paints else "StableDiffusionPipeline"
    source = f'"{base or "PATH OF ITS BASE"}"' + (f', revision="{revision}"' if revision else "")
    imports, condition, arguments = _condition(about, place)
    if place.layout == "peft":
        imports.append("import peft")
    if paints:
        imports.insert(0, "from diffusers.utils import load_image")
        arguments.append('image=load_image("photo.png"), mask_image=load_image("mask.png")')
    arguments.append(f"height={about['resolution']}, width={about['resolution']}")
    return [f"from diffusers import {pipeline}", *imports, "",
            f"pipe = {pipeline}.from_pretrained({source})",
            LOAD[place.layout].format(place=place.repo or place.name, name=place.name), *condition,
            f"image = pipe({', '.join(arguments)}).images[0]"]


def _condition(about: dict[str, Any], place: Place) -> tuple[list[str], list[str], list[str]]:
    """How the first damage type is said there: imports, lines, and arguments of the pipeline."""
    first, tokens = about["classes"][0], about["tokens_per_class"]
    if about.get("prompts"):
        file = f"embeddings/{placeholder(first).strip('<>')}.safetensors"
        return [], [f'pipe.load_textual_inversion("{place.repo or place.name}", weight_name="{file}")'], [
            json.dumps(about["prompts"][0], ensure_ascii=False), "guidance_scale=2"]
    imports, file = ["from safetensors.torch import load_file"], f'"{place.name}/damage_types.safetensors"'
    if place.repo:
        imports.append("from huggingface_hub import hf_hub_download")
        file = f'hf_hub_download("{place.repo}", "damage_types.safetensors")'
    arguments = [f"prompt_embeds=row.view(1, {tokens}, -1)", "guidance_scale=1"]
    if about["class_dropout"]:
        arguments[1:] = [f'negative_prompt_embeds=types["class_null"].view(1, {tokens}, -1)',
                         "guidance_scale=2"]
    return imports, [f"types = load_file({file})",
                     f'row = types["class_embedding.weight"][{about["classes"]}.index({first!r})]'], arguments


def _elsewhere(about: dict[str, Any], place: Place) -> list[str]:
    """The same in ComfyUI and A1111, whose layout kohya's is."""
    if place.layout != "kohya":
        return []
    if not about.get("prompts"):
        return BY_TABLE.splitlines()
    prompt, word = about["prompts"][0], placeholder(about["classes"][0])
    return BY_PROMPT.format(name=place.name, comfy=prompt.replace(word, f"embedding:{word.strip('<>')}"),
                            a1111=prompt.replace(word, word.strip("<>"))).splitlines()


def _numbers(file: Path) -> str:
    """evaluate.py's numbers over all damage types, a column for each kind of image, with 95 % intervals."""
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        found = {row: groups["all"] for row, groups in metrics["numbers"].items() if "all" in groups}
        table = [["", *found], ["---"] * (len(found) + 1)]
        for name in dict.fromkeys(name for numbers in found.values() for name in numbers):
            cells = [_cell(numbers.get(name)) for numbers in found.values()]
            table.append([name.replace("fid", metrics["fid"]), *cells])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--numbers {file}: not evaluate.py's metrics.json ({error})") from error
    return INTERVALS + "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def _cell(number: dict[str, Any] | None) -> str:
    if number is None or number["value"] is None:
        return "-"
    low, high = number.get("low"), number.get("high")
    return f"{number['value']:.4g}" + ("" if low is None else f" [{low:.4g}, {high:.4g}]")
