"""Draw labelled images from any checkpoint, in the dataset's own layout or another program's."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from checkpoints.loading import LoadedCheckpoint, load_checkpoint, read_checkpoint, weights_taken
from checkpoints.metadata import Header
from checkpoints.presets import DRAWING, PRESETS
from checkpoints.prompts import contexts_for
from checkpoints.strategies import STRATEGIES
from dataset.layouts import LAYOUTS
from dataset.placement import JITTER
from evaluation.networks import CLASSIFIERS, LITE
from runtime import distributed, errors
from runtime.cli import flag, parse
from runtime.device import DTYPES, PRECISIONS, choose_device, choose_precision
from runtime.distributed import together
from runtime.errors import UserError
from runtime.suggestions import did_you_mean, same
from runtime.trusted_paths import remember
from sampling.batches import batches_of, draw_all
from sampling.drawings import Sample
from sampling.finished import finish
from sampling.generation import SamplingConfig, inpaint_images, reconstruct, sample_images
from sampling.inputs import Input, Inputs, Seams, stacked_views
from sampling.opening import control_settings, folders_read, open_folder, open_inputs
from sampling.placement_sheet import show_placements
from sampling.presets import drawing_settings
from sampling.sample_folder import SampleFolder
from sampling.selection import LEVELS, OFF, TRIES, open_selection, told, yields
from sd.compilation import check_compiler
from sd.guidance import ALL_TIMESTEPS
from sd.samplers import SAMPLERS

EXAMPLE = """examples:
  python sample.py --ckpt runs/bottle-class --out generated/bottle --classes broken_small --per-class 100
  python sample.py --ckpt runs/bottle-class --out styled --lora style.safetensors=0.6
  python sample.py --ckpt runs/bottle-inpaint --images DS-MVTec/bottle/image/good --out painted --layout coco
  python sample.py --ckpt runs/bottle-inpaint --images DS-MVTec/bottle/image/good --placement-only
  python sample.py --ckpt runs/bottle-control --masks my/masks --out controlled --per-class 100
The same command resumes where it was interrupted; a larger --per-class or other --classes add images. Image i
of a class depends on the seed, the class and i alone. With another batch size its pixels may be rounded
differently: in fp32 by at most one level of 255.
"""


@dataclass
class Config:
    """The command line of sample.py."""

    ckpt: str = flag(..., "run folder, for its last weights, or a checkpoint file", group="data")
    out: str = flag("generated", "folder to write to", group="data", common=True)
    classes: list[str] = flag([], "damage types to draw (default: all of the checkpoint)", group="data",
                              common=True)
    per_class: int = flag(8, "images a class", group="data", minimum=1, maximum=10**6, common=True)
    seed: int = flag(42, "another seed draws other images", group="data", minimum=0, common=True)
    steps: int = flag(50, "sampling steps; for ddim and ddpm best a divisor of 1000", group="quality",
                      minimum=1, maximum=1000, common=True)
    sampler: str = flag("ddim", "sampler; dpm++ is DPM-Solver++(2M) with Karras' noise levels, dpm++linspace "
                        "with evenly spaced timesteps", group="quality", choices=tuple(SAMPLERS))
    preset: str | None = flag(None, "--eta, --guidance and --mask-guidance as this preset of the train "
                              "scripts draws; recipe: plainly (default: as the checkpoint records)",
                              group="quality", choices=tuple(PRESETS), common=True)
    eta: float | None = flag(None, "noise that DDIM adds: 0 none, 1 as much as DDPM (default: the preset's, "
                             "or 0)", group="quality", minimum=0, maximum=1)
    guidance: float | None = flag(None, "classifier-free guidance scale; not 1 needs a checkpoint trained "
                                  "with --class-dropout or --context prompt (default: the preset's, or 1)",
                                  group="quality", minimum=0, common=True)
    guidance_interval: list[int] = flag(
        list(ALL_TIMESTEPS), "first and last timestep (999 is pure noise) with guidance; a step outside "
        "costs half, and the images change", group="experiments", minimum=0, maximum=999)
    lora_scale: float = flag(1.0, "strength of the LoRA; 0 is the base alone", group="experiments", minimum=0)
    lora: list[str] = flag([], "external LoRA files to add, each as FILE or FILE=STRENGTH, in the layout "
                           "of diffusers, peft or kohya", group="quality")
    images: str | None = flag(None, "folder of undamaged photos to paint damage into; required for "
                              "checkpoints of train_inpaint.py and refused for others", group="quality",
                              common=True)
    masks: str | None = flag(None, "a dataset, whose masks are re-placed where their surroundings look "
                             "alike (default: the training data), or a folder of mask files, used as they "
                             "are", group="quality", common=True)
    mask_jitter: float = flag(JITTER, "share of its extent by which a re-placed mask is shifted, turned, "
                              "stretched and skewed at most, as far as its surroundings still agree",
                              group="experiments", minimum=0, maximum=0.5)
    placement_only: bool = flag(False, "only show where masks would go: write OUT-placement.png, in seconds, "
                                "without loading the model", group="quality", common=True)
    control: str | None = flag(None, "checkpoint of train_controlnet.py whose ControlNet is used with one of "
                               "train_inpaint.py", group="experiments")
    control_scale: float = flag(1.0, "strength of the ControlNet; 0 turns it off", group="experiments",
                                minimum=0)
    mask_guidance: float | None = flag(None, "guidance scale over the mask; not 1 needs a checkpoint "
                                       "trained with --mask-dropout (default: the preset's, or 1)",
                                       group="quality", minimum=0)
    view: str | None = flag(None, "square in which a mask is painted: whole (the largest) or close (around "
                            "the damage) (default: as the checkpoint was trained)", group="quality",
                            choices=("whole", "close"), common=True)
    damages_per_image: list[int] = flag([1, 1], "fewest and most damages painted into a photo; the further "
                                        "ones are of any of the checkpoint's types", group="quality",
                                        minimum=1, maximum=100)
    paste: bool = flag(True, "keep all pixels of the photo outside the mask and its seam",
                       group="quality")
    match_colour: bool = flag(False, "shift the painted colours to those of the photo around the mask",
                              group="experiments")
    strength: float = flag(1.0, "share of the sampling steps that are done; below 1 the first are skipped, "
                           "and some of the photo's own texture remains", group="experiments", above=0,
                           maximum=1)
    layout: str = flag("ds", "ds: image/<damage>/NNN.png, mask/<damage>/NNN_mask.png of class indices; "
                       "mvtec: test/ and ground_truth/ of 255; coco: as ds, and annotations.json",
                       group="data", choices=tuple(LAYOUTS), common=True)
    reject: str | None = flag(None, "list of images, saved by gallery.html: they move to rejected/, and "
                              "others are drawn", group="data", common=True)
    select: str = flag(OFF, "throw away and draw again copies, and what is recognised no better than the "
                       "worst 5 % (light) or 20 % (strict) of the real photos; draws one image at a time",
                       group="data", choices=(OFF, *LEVELS), common=True)
    tries: int = flag(TRIES, "images drawn for one with --select, at most; where none is good, none is kept",
                      group="data", minimum=1, maximum=100)
    select_network: str = flag(LITE, "network of --select; evaluate with another one", group="data",
                               choices=CLASSIFIERS)
    json: bool = flag(False, "print the result as one JSON object", group="data")
    base: str | None = flag(None, "where the base is now (default: the recorded base, if it is a hub id or "
                            "a path that you chose before)", group="quality", common=True)
    batch_size: int = flag(4, "images drawn at once", group="speed", minimum=1, maximum=10**4)
    precision: str = flag("auto", "auto: fp16 on a GPU, fp32 on a CPU", group="speed", choices=PRECISIONS)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="speed")
    compile: bool = flag(False, "compile the blocks of UNet and ControlNet by torch.compile: a slow first "
                                "batch, other rounding; see docs/performance.md", group="speed")
    fast: bool = flag(True, "use exact shortcuts; without them every layer is computed as written, to "
                            "compare with", group="experiments")


def check(config: Config, header: Header) -> None:
    """Raises UserError for what the checkpoint cannot draw."""
    for name in config.classes:
        if same(name, header.classes) is None:
            raise UserError(f"--classes {name}: the checkpoint knows {', '.join(header.classes)}"
                            + did_you_mean(name, header.classes))
    if config.guidance not in (None, 1) and not header.has_null:
        raise UserError(f"--guidance {config.guidance:g}: this checkpoint was trained without "
                        "--class-dropout, so it has no null class to guide from; use 1, or train with "
                        "--class-dropout 0.1")
    known = {name for strategy in STRATEGIES.values() for name in strategy.flags}
    for name in sorted(known - set(header.strategy.flags)):
        if getattr(config, name) != getattr(Config(""), name):
            raise UserError(f"--{name.replace('_', '-')}: a checkpoint of kind {header.kind!r} has no use "
                            f"for it; omit the flag, or give a checkpoint of another train script")


def external_loras(texts: list[str]) -> list[tuple[Path, float]]:
    """The files and strengths of --lora."""
    if not texts:
        return []
    from checkpoints.external_lora import given_files  # with all LoRA formats, which are rarely needed
    return given_files(texts)


def draw(loaded: LoadedCheckpoint, inputs: Inputs, sampling: SamplingConfig,
         prepared: list[Input]) -> list[Sample]:
    """Draw one batch. An image for which no mask fits is left out."""
    given = [each for each in prepared if each.fits]
    names, damages = [(each.damage, each.number) for each in given], [each.damage for each in given]
    contexts = contexts_for(loaded.context, [loaded.header.classes.index(damage) for damage in damages])
    control, images, before = None, torch.empty(0), torch.empty(0)
    if inputs.control and loaded.controlnet and given:
        regions = [each.region for each in given if each.region is not None]
        control = loaded.controlnet.control(regions, damages, inputs.control)
    if inputs.photos and given:
        image, hole = stacked_views(given)
        images = inpaint_images(loaded.unet, loaded.vae, contexts, names, image, hole, sampling, control)
        before = reconstruct(loaded.vae, image, loaded.unet.dtype)
    elif given:
        images = sample_images(loaded.unet, loaded.vae, contexts, names, sampling, loaded.header.resolution,
                               control)
    return inputs.samples(prepared, list(images), list(before))


def last_line(config: Config, folder: SampleFolder, classes: list[str], drawn: int, rejected: int) -> str:
    """What the command ends with: what there is now, and where to look. With --json, a JSON object."""
    done = {"out": config.out, "classes": classes, "per_class": config.per_class, "drawn": drawn,
            "rejected": rejected, "journal": str(folder.journal), "grid": str(folder.grid),
            "gallery": str(folder.gallery)}
    images = f"{config.per_class} images each of {', '.join(classes)}"
    if config.select != OFF:
        found = yields(folder, classes, config.per_class)
        done, images = {**done, "selected": found}, told(found)
    return (json.dumps(done) if config.json else
            f"{config.out}: {images}; see {folder.grid} and {folder.gallery}")


@together
def main() -> None:
    """The command: draw what is missing in the folder, then its grid.png."""
    config = parse(Config, __doc__, EXAMPLE)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device, drawing=True)
    if config.compile:
        check_compiler(device, fast=config.fast)
    file = read_checkpoint(config.ckpt)
    header = file.header
    check(config, header)
    control = read_checkpoint(config.control, "--control") if config.control else None
    drawing, how = drawing_settings({name: getattr(config, name) for name in DRAWING}, config.preset, header,
                                    control.header if control else None, config.sampler)
    named = [same(name, header.classes) or name for name in config.classes]
    classes = list(dict.fromkeys(named)) or header.classes
    loras = external_loras(config.lora)
    sampling = SamplingConfig(config.seed, config.steps, config.sampler, drawing["eta"],
                              drawing["guidance"], config.strength, config.guidance_interval)
    inputs = open_inputs(
        header, classes, config.seed, images=config.images, masks=config.masks,
        seams=Seams(config.paste, config.match_colour), view=config.view,
        control=control_settings(header, control, config.control_scale, drawing["mask_guidance"],
                                 drawing["guidance"]), jitter=config.mask_jitter,
        damages=config.damages_per_image)
    read = folders_read(header, config.images, config.masks)
    if config.placement_only:
        return show_placements(inputs, classes, config.per_class, Path(config.out), read, as_json=config.json)
    selection = open_selection(config.select, config.tries, config.select_network, file, inputs, device)
    folder = open_folder(Path(config.out), file, inputs, sampling, selection, lora_scale=config.lora_scale,
                         precision=precision, loras=loras, layout=config.layout, read=read)
    with folder.opened():
        rejected = folder.reject(Path(config.reject)) if config.reject else 0
        missing = folder.missing(classes, config.per_class)
        wanted = selection.wanted(folder, missing) if selection else missing
        inputs.check([folder.drawn_as(pair) for pair in wanted])
        if distributed.first():
            remember(config.base, config.images, config.masks)
            there = config.per_class * len(classes) - len(missing)
            print(f"{config.out}: {len(wanted)} images to draw, {there} there already"
                  + (f", {rejected} moved to rejected/" if rejected else ""), file=sys.stderr)
            print(weights_taken(config.ckpt, file), *filter(None, [how]), sep="\n", file=sys.stderr)
        if wanted:
            loaded = load_checkpoint(file, base=config.base, strength=config.lora_scale, device=device,
                                     dtype=DTYPES[precision], loras=loras, control=control, fast=config.fast)
            if config.fast:
                loaded.speed_up(compiled=config.compile)
            if selection:
                selection.calibrate(loaded.vae, folder)
            at_once = 1 if selection else inputs.at_once(config.batch_size)
            draw_all(batches_of(classes, config.per_class, at_once, wanted), inputs,
                     partial(draw, loaded, inputs, sampling), folder, set(wanted), selection)
        if distributed.first():
            finish(folder, header, classes, config.per_class)
    print(last_line(config, folder, classes, len(wanted), rejected))


if __name__ == "__main__":
    errors.run(main)
