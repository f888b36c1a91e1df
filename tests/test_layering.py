"""Arrows point down only: which module may import which. The whole architecture, on one page."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

# From the leaves up; a module may import what stands to the right of its name, and nothing else of ours.
ALLOWED = {
    "errors": "", "seeds": "", "metrics": "", "processes": "errors", "locks": "errors files",
    "files": "errors", "config": "", "named": "errors", "header": "config errors", "pictures": "",
    "augmentation": "", "decode": "errors",
    "folders": "decode errors",
    "demo": "errors files tiny.shapes",
    "doctor": "augmentation decode errors files folders masks pictures",
    # demo and doctor only from its command line
    "data": "augmentation config decode demo doctor errors folders seeds",
    "masks": "", "foreground": "", "paste": "augmentation errors masks",
    "coco": "",
    "sample_folder": "coco decode errors files folders locks processes",
    "mask_bank": "data decode errors folders foreground header named seeds",
    "spellings": "sd.unet",
    "formats": "config errors files header spellings",
    "export": "errors files formats sd.text spellings",
    "card": "errors files sample_folder sd.text",
    "publish": "errors",
    "convert": "card config errors export formats publish",
    "lora": "convert errors seeds",  # convert only for its command line
    "foreign": "errors formats lora",
    "adapter": "errors files header lora seeds",
    "machine": "errors processes",
    "recipe": "config data errors networks",
    "board": "",
    "run_folder": "adapter board config data errors files header locks pictures processes",
    "batches": "data processes seeds",
    "previews": "batches processes recipe run_folder",
    "training": "batches data errors header machine previews processes recipe run_folder",
    "latents": "batches data errors files machine processes recipe sd.vae",
    "sd": "",
    "sd.lean": "", "sd.convolution": "", "sd.layers": "sd.convolution sd.lean", "sd.diffusion": "",
    "sd.unet": "sd.convolution sd.layers", "sd.vae": "sd.convolution sd.layers",
    "sd.controlnet": "sd.convolution sd.layers sd.unet",
    "sd.compvis": "", "sd.hub": "errors files",
    "sd.text": "errors",
    "sd.parts": "errors sd sd.compvis sd.controlnet sd.text sd.unet sd.vae",
    "sd.tensors": "errors sd.parts",
    "sd.weights": "errors sd.controlnet sd.hub sd.parts sd.tensors sd.text sd.unet sd.vae",
    "sd.inpainting": "sd.convolution sd.layers sd.unet sd.weights",
    "guidance": "adapter prompts sd.controlnet sd.diffusion sd.inpainting sd.layers sd.unet",
    "control": "errors files guidance header lora named prompts sd.controlnet sd.parts sd.unet sd.weights "
               "seeds",
    "prompts": "adapter errors foreign header recipe sd.text sd.weights seeds",
    "generation": "adapter control errors foreign guidance header lora machine masks named prompts "
                  "sd.convolution sd.diffusion sd.inpainting sd.layers sd.unet sd.vae sd.weights seeds",
    "steering": "adapter control errors files folders generation header mask_bank paste pictures "
                "sample_folder",
    "painting": "control decode errors folders generation header mask_bank masks paste pictures "
                "sample_folder",
    "networks": "config errors files sd.hub",
    "features": "augmentation decode errors files folders networks",
    "evaluation_data": "adapter data decode errors files folders header named",
    "controls": "augmentation decode errors evaluation_data features files folders paste seeds",
    "rendering": "evaluation_data features files folders pictures sd.vae sd.weights",
    "comparison": "metrics seeds",
    "judge": "errors features folders networks seeds",
    "probe": "features folders judge networks seeds",
    "memorisation": "comparison features folders metrics pictures",
    "fidelity": "comparison decode errors features files folders named",
    "measures": "comparison evaluation_data features fidelity folders judge memorisation metrics networks",
    "report": "comparison measures", "report_page": "measures report",
    "segmenter": "judge seeds",
    "downstream": "comparison evaluation_data features folders judge measures metrics networks seeds "
                  "segmenter",
    "footprint": "control header lora machine recipe sd.controlnet sd.convolution sd.layers sd.unet sd.vae "
                 "training",
    "plan": "batches data errors footprint machine recipe sd.parts sd.weights",
    "draws": "adapter batches lora recipe seeds",
    "holes": "augmentation data folders masks seeds",
    "learner": "adapter foreign header lora machine prompts recipe sd.controlnet sd.convolution sd.layers "
               "sd.unet sd.weights training",
    "validation": "comparison data features folders judge metrics networks pictures previews probe recipe",
    "train_class": "batches config data draws errors generation latents learner machine named pictures "
                   "plan previews processes prompts recipe sd.diffusion sd.unet sd.vae sd.weights training "
                   "validation",
    "train_inpaint": "batches config draws errors folders generation holes latents learner machine "
                     "masks named pictures plan previews processes prompts recipe sd.diffusion sd.inpainting "
                     "sd.unet sd.vae sd.weights training validation",
    "bench": "config demo errors files machine plan",
    "train_controlnet": "adapter batches config control data draws errors generation guidance header latents "
                        "learner machine named pictures plan previews processes prompts recipe sd.controlnet "
                        "sd.diffusion sd.layers sd.unet sd.vae sd.weights training files validation",
    "export_controlnet": "config control errors generation",
    "sample": "adapter config decode errors files formats generation header machine painting pictures "
              "processes sample_folder steering",
    "evaluate": "adapter augmentation config controls decode downstream errors evaluation_data features "
                "fidelity files folders locks machine measures memorisation networks pictures processes "
                "rendering report report_page",
}


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & known) or {node.module}
    return {name for name in found if name in known or name.split(".")[0] == "tiny"}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def test_arrows_point_down_only() -> None:
    files = [*ROOT.glob("*.py"), *ROOT.glob("sd/*.py")]
    known = {module_name(path) for path in files}
    assert known == set(ALLOWED), "a module is missing from, or too many in, the table above"
    wrong = {module_name(path): extra for path in files
             if (extra := imports(path, known) - set(ALLOWED[module_name(path)].split()))}
    assert not wrong, f"these imports are not in the table: {wrong}"


def test_the_table_has_no_cycle() -> None:
    seen: set[str] = set()
    while len(seen) < len(ALLOWED):
        free = {name for name, needs in ALLOWED.items()
                if name not in seen and {n for n in needs.split() if n in ALLOWED} <= seen}
        assert free, f"cycle among {set(ALLOWED) - seen}"
        seen |= free
