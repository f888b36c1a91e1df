"""The model card of an exported LoRA: what it generates, how to use it, its training data and its numbers."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.strategies import STRATEGIES
from runtime.errors import UserError
from runtime.files import save_text, write_atomic
from sd.pretrained.text_encoder import placeholder

SETTINGS = {"resolution": "resolution, pixels", "rank": "LoRA rank", "alpha": "LoRA alpha",
            "epochs": "epochs", "batch_size": "batch size", "lr": "learning rate",
            "class_dropout": "class dropout", "tokens_per_class": "tokens a class", "seed": "seed",
            "step": "steps"}
LOAD = {"diffusers": "pipe.load_lora_weights({place})",
        "peft": "pipe.unet = peft.PeftModel.from_pretrained(pipe.unet, {place})",
        "kohya": "pipe.load_lora_weights({place}, weight_name={file})"}
BY_PROMPT = """
ComfyUI: put `{name}.safetensors` into `models/loras` and the files of `embeddings` into `models/embeddings`;
prompt: `{comfy}`. A1111: into `models/Lora` and `embeddings`; prompt: `{a1111} <lora:{name}:1>`. There the
name of a file is its word in every prompt: rename the file of a word that you use for something else."""
BY_TABLE = """
ComfyUI and A1111 cannot load the rows of `damage_types.safetensors`: by prompt alone this LoRA knows no
damage type there. One trained with `--context prompt` does."""
WIDENED = """
Its base had no inpainting UNet. The widened first layer, `unet.conv_in.weight` in `damage_types.safetensors`,
has to replace that of the base."""
CONTROL = """
Its ControlNet is in `damage_types.safetensors` too; `python -m checkpoints.controlnet_export` writes it for
diffusers and ComfyUI."""
INTERVALS = "By `evaluate.py`, with 95 % intervals, beside images measured in the same way.\n\n"
NOTHING = "not given"


@dataclass(frozen=True)
class Card:
    """What only the owner of an adapter knows. None: not given, and the card says so."""

    data_licence: str | None = None
    samples: str | None = None  # a folder of sample.py, for its contact sheet
    numbers: str | None = None  # evaluate.py's metrics.json


class Place(NamedTuple):
    """An export's layout and name, and its repository where it goes to the hub."""

    layout: str
    name: str
    repo: str | None = None

    def file(self, name: str) -> str:
        """A Python expression for the path of one of its files."""
        return (_quoted(f"{self.name}/{name}") if self.repo is None else
                f"hf_hub_download({_quoted(self.repo)}, {_quoted(name)})")


def model_card(about: dict[str, Any], place: Place, card: Card, *, widened: bool = False) -> str:
    """README.md of an adapter with header `about`: YAML, then markdown.

    widened: it comes with a first layer of its own. Raises UserError where a file of `card` is missing.
    """
    if card.samples is not None:
        _sheet(card.samples)
    numbers = f"Numbers: {NOTHING}." if card.numbers is None else _numbers(Path(card.numbers))
    base, _ = _hub_id(about["base"])
    published, settings = (base or "").startswith("stable-diffusion-v1-5/"), about["config"] | about
    prompts = about.get("prompts") or [""] * len(about["classes"])
    lines = ["---", *([f"base_model: {base}", "base_model_relation: adapter"] if base else []),
             *(["license: creativeml-openrail-m"] if published else []),
             f"library_name: {'peft' if place.layout == 'peft' else 'diffusers'}",
             f"pipeline_tag: {'image' if STRATEGIES[about['kind']].inpaints else 'text'}-to-image",
             "tags: [lora, stable-diffusion, industrial-defects, few-shot]", "---", f"# {place.name}", "",
             f"A LoRA for {base or 'a base of its own'}, trained on photos of these damage types:", "",
             *(f"- {damage}" + f": `{prompt}`" * bool(prompt)
               for damage, prompt in zip(about["classes"], prompts, strict=True))]
    if card.samples is not None:
        lines += ["", "![samples, one row a damage type](samples.png)"]
    lines += ["", "## Use", "", "```python", *_script(about, place), "```", *_other_programs(about, place),
              *(WIDENED.splitlines() if widened else []),
              *(CONTROL.splitlines() if STRATEGIES[about["kind"]].controls else []),
              "", "## Training", "", "| setting | value |", "|---|---|",
              *(f"| {title} | {settings[key]} |" for key, title in SETTINGS.items()), "",
              f"Data: {', '.join(Path(data).name or data for data in settings['data'])}; licence: "
              f"{card.data_licence or NOTHING}. It applies to generated images too.",
              "", "## Evaluation", "", numbers, ""]
    return "\n".join(lines)


def write_card(out: Path, text: str, card: Card) -> list[Path]:
    """Write README.md and, where `card` has samples, samples.png. Returns the files."""
    files = [out / "README.md"]
    save_text(files[0], text)
    if card.samples is not None:
        files.append(out / "samples.png")
        write_atomic(files[1], partial(shutil.copyfile, _sheet(card.samples)))
    return files


def _sheet(samples: str) -> Path:
    """The contact sheet of a folder that sample.py wrote: in it, or in MVTec AD's layout beside it."""
    folder = Path(samples).resolve()
    for sheet in (folder / "grid.png", folder.with_name(f"{folder.name}-grid.png")):
        if sheet.is_file():
            return sheet
    raise UserError(f"--samples {samples}: no {Path(samples, 'grid.png')} and no {folder.name}-grid.png "
                    "beside it; give a folder that sample.py wrote")


def _hub_id(base: str) -> tuple[str | None, str]:
    """The hub id and revision that --base was; None for a path, which the card does not show."""
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", base)
    return (None, "") if found is None or Path(base).exists() else (found[1], found[2] or "")


def _quoted(text: str) -> str:
    """A Python string literal."""
    return json.dumps(text, ensure_ascii=False)


def _script(about: dict[str, Any], place: Place) -> list[str]:
    """A script that generates the first damage type with diffusers."""
    inpaints, (base, revision) = STRATEGIES[about["kind"]].inpaints, _hub_id(about["base"])
    pipeline = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
    source = _quoted(base or "PATH OF ITS BASE") + (f", revision={_quoted(revision)}" if revision else "")
    imports, condition, arguments = _condition(about, place)
    if place.layout == "peft":
        imports.append("import peft")
    if inpaints:
        imports.insert(0, "from diffusers.utils import load_image")
        arguments.append('image=load_image("photo.png"), mask_image=load_image("mask.png")')
    arguments.append(f"height={about['resolution']}, width={about['resolution']}")
    if eta := about.get("drawing", {}).get("eta"):  # which other schedulers ignore
        imports.insert(0, "from diffusers import DDIMScheduler")
        condition.append("pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)")
        arguments.append(f"eta={eta:g}")
    load = LOAD[place.layout].format(place=_quoted(place.repo or place.name),
                                     file=_quoted(f"{place.name}.safetensors"))
    return [f"from diffusers import {pipeline}", *imports, "", f"pipe = {pipeline}.from_pretrained({source})",
            load, *condition, f"image = pipe({', '.join(arguments)}).images[0]"]


def _condition(about: dict[str, Any], place: Place) -> tuple[list[str], list[str], list[str]]:
    """How the script says the first damage type: imports, lines, and arguments of the pipeline."""
    first, tokens = about["classes"][0], about["tokens_per_class"]
    if about.get("prompts"):
        source, file = place.repo or place.name, f"embeddings/{placeholder(first).strip('<>')}.safetensors"
        load = f"pipe.load_textual_inversion({_quoted(source)}, weight_name={_quoted(file)})"
        return [], [load], [_quoted(about["prompts"][0]), _guided(about)]
    imports = ["from safetensors.torch import load_file"]
    if place.repo:
        imports.append("from huggingface_hub import hf_hub_download")
    arguments = [f"prompt_embeds=row.view(1, {tokens}, -1)", "guidance_scale=1"]
    if about["class_dropout"]:
        arguments[1:] = [f'negative_prompt_embeds=types["class_null"].view(1, {tokens}, -1)',
                         _guided(about)]
    return imports, [f"types = load_file({place.file('damage_types.safetensors')})",
                     f'row = types["class_embedding.weight"][{about["classes"]}.index({first!r})]'], arguments


def _guided(about: dict[str, Any]) -> str:
    """The pipeline's argument for the guidance that the checkpoint records, 2 where it records none."""
    return f"guidance_scale={about.get('drawing', {}).get('guidance', 2):g}"


def _other_programs(about: dict[str, Any], place: Place) -> list[str]:
    """How to use it in ComfyUI and A1111, which read kohya's layout."""
    if place.layout != "kohya":
        return []
    if not about.get("prompts"):
        return BY_TABLE.splitlines()
    prompt, word = about["prompts"][0], placeholder(about["classes"][0])
    return BY_PROMPT.format(name=place.name, comfy=prompt.replace(word, f"embedding:{word.strip('<>')}"),
                            a1111=prompt.replace(word, word.strip("<>"))).splitlines()


def _numbers(file: Path) -> str:
    """evaluate.py's numbers over all damage types, one column a set of images, with 95 % intervals."""
    file = file / "metrics.json" if file.is_dir() else file
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
