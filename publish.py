"""A model card beside an exported adapter, and both on the Hugging Face hub."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from errors import UserError
from files import write_atomic
from sd.text import placeholder

SETTINGS = {"resolution": "resolution", "rank": "LoRA rank", "alpha": "LoRA alpha", "epochs": "epochs",
            "batch_size": "batch size", "lr": "learning rate", "class_dropout": "class dropout",
            "tokens_per_class": "tokens a class", "seed": "seed"}
DRAW = {"diffusers": 'pipe.load_lora_weights("{repo}")',
        "peft": 'pipe.unet = peft.PeftModel.from_pretrained(pipe.unet, "{repo}")',
        "kohya": 'pipe.load_lora_weights("{repo}", weight_name="{name}.safetensors")'}
TABLE = """types = load_file("damage_types.safetensors")
row = types["class_embedding.weight"][{classes}.index("{first}")]
image = pipe(prompt_embeds=row.view(1, {tokens}, -1), guidance_scale=1).images[0]"""
NOTHING = "not given"


@dataclass(frozen=True)
class Card:
    """What only its owner knows of an adapter. None: it was not given, and the card says so."""

    data_licence: str | None = None
    samples: Path | None = None  # a folder of sample.py: its grid.png is shown
    numbers: Path | None = None  # evaluate.py's metrics.json


def model_card(about: dict[str, Any], layout: str, name: str, repo: str | None, card: Card) -> str:
    """README.md of an adapter with header `about`, exported as `name` in `layout`: YAML, then markdown.

    Raises UserError where what `card` names is not there.
    """
    if card.samples is not None and not (card.samples / "grid.png").is_file():
        raise UserError(f"--samples {card.samples}: holds no grid.png; give a folder that sample.py wrote")
    numbers = f"Numbers: {NOTHING}." if card.numbers is None else _numbers(card.numbers)
    base, config = about["base"], about["config"]
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base)
    prompts = about.get("prompts") or [""] * len(about["classes"])
    lines = ["---", *([f"base_model: {base}", "base_model_relation: adapter"] if hub_id else []),
             *(["license: creativeml-openrail-m"] if "stable-diffusion-v1-5" in base else []),
             f"library_name: {'peft' if layout == 'peft' else 'diffusers'}", "pipeline_tag: text-to-image",
             "tags: [lora, stable-diffusion, industrial-defects, few-shot]", "---", f"# {name}", "",
             f"A LoRA for {base if hub_id else 'a base of its own'}, trained on photos of these damages:",
             "", *(f"- {damage}" + f": `{prompt}`" * bool(prompt)
                   for damage, prompt in zip(about["classes"], prompts, strict=True))]
    if card.samples is not None:
        lines += ["", "![samples, one row a damage type](samples.png)"]
    lines += ["", "## Use", "", "```python", *_use(about, layout, repo or name, name), "```",
              "", "## Training", "", "| setting | value |", "|---|---|",
              *(f"| {title} | {config[key]} |" for key, title in SETTINGS.items() if key in config),
              f"| steps | {about['step']} |", "",
              f"Data: {', '.join(Path(data).name for data in config['data'])}; licence: "
              f"{card.data_licence or NOTHING}. It binds what is drawn as well.",
              "", "## Evaluation", "", numbers, ""]
    return "\n".join(lines)


def write_card(out: Path, text: str, card: Card) -> list[Path]:
    """README.md, and samples.png where there are samples, in the folder `out`."""
    files = {out / "README.md": lambda temporary: temporary.write_text(text, encoding="utf-8")}
    if card.samples is not None:
        files[out / "samples.png"] = partial(shutil.copyfile, card.samples / "grid.png")
    for file, write in files.items():
        write_atomic(file, write)
    return list(files)


def _use(about: dict[str, Any], layout: str, repo: str, name: str) -> list[str]:
    """How to draw with it in diffusers."""
    lines = [f'pipe = StableDiffusionPipeline.from_pretrained("{about["base"]}")',
             DRAW[layout].format(repo=repo, name=name)]
    first = about["classes"][0]
    if not about.get("prompts"):
        table = TABLE.format(classes=about["classes"], first=first, tokens=about["tokens_per_class"])
        return [*lines, *table.splitlines()]
    word = placeholder(first).strip("<>")
    return [*lines, f'pipe.load_textual_inversion("{repo}", weight_name="embeddings/{word}.safetensors")',
            f'image = pipe("{about["prompts"][0]}").images[0]']


def _numbers(file: Path) -> str:
    """evaluate.py's numbers over all damage types, a row for each kind of image, with 95 % intervals."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["numbers"]
        found = {row: groups["all"] for row, groups in rows.items() if "all" in groups}
        names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
        table = [["", *names]] + [[row, *(_cell(numbers.get(name)) for name in names)]
                                  for row, numbers in found.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--numbers {file}: not evaluate.py's metrics.json ({error})") from error
    table.insert(1, ["---"] * len(table[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def _cell(number: dict[str, Any] | None) -> str:
    if number is None or number["value"] is None:
        return "-"
    low, high = number.get("low"), number.get("high")
    return f"{number['value']:.4g}" + ("" if low is None else f" [{low:.4g}, {high:.4g}]")


def push(folder: Path, repo: str, public: bool) -> str:
    """Upload `folder` to the model `repo`, made if it is not there; returns its address. Raises UserError."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    try:
        api = HfApi()
        url = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="An adapter and its card")
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repo}: not a name that the hub takes; give OWNER/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "log in with `hf auth login`, and check the owner" if status in (401, 403) else "try again"
        raise UserError(f"--push-to-hub {repo}: {constants.ENDPOINT} answered HTTP {status}; {advice}. The "
                        f"files are in {folder}") from error
    except Exception as error:  # the client's transport has errors of its own
        raise UserError(f"--push-to-hub {repo}: {constants.ENDPOINT} could not be reached "
                        f"({type(error).__name__}); the files are in {folder}") from error
    return str(url)
