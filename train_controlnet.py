"""Strategy B2: a ControlNet learns where the damage is; LoRA and damage types of strategy A stay frozen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import errors
from adapter import find_adapter, read_adapter
from batches import Batch
from config import flag, parse
from control import new_control, to_condition, trained_control
from data import DefectDataset, load_dataset
from draws import Draws
from errors import UserError
from files import sha256
from generation import Drawing, Generator, base_of, draw, load_generator
from guidance import Control
from header import ControlHeader, Header
from latents import posterior, with_latents
from learner import plain_autocast, settle, settle_checkpointing
from machine import DTYPES, autocast
from named import asked
from pictures import grid, outline, tensor_to_image
from previews import Preview
from processes import together
from prompts import DamageContext
from recipe import RunConfig
from sd.controlnet import ControlNet
from sd.diffusion import Diffusion
from sd.layers import set_fast
from sd.unet import UNet
from sd.vae import VAE
from sd.weights import fingerprint
from training import make_optimizer, train
from validation import validation

PREVIEWS = 4  # masks a class
DIFFUSION = Diffusion()

EXAMPLE = """example:
  python train_controlnet.py --data DS-MVTec/bottle --class-ckpt runs/bottle-class
  python train_controlnet.py --data DS-MVTec/bottle --class-ckpt runs/bottle-class \\
      --init lllyasviel/control_v11p_sd15_seg --control-rank 0
Then: python sample.py --ckpt runs/bottle-control --out generated/bottle
Low-rank updates are the default: from few photos they obeyed masks better than a whole ControlNet, on the
embedded base, and take a fraction of its memory. Else the defaults are those of the literature (Zhang et al.
2023 and their training notes): a learning rate of 1e-5 for a whole ControlNet, and large effective batches by
accumulation rather than many small steps.
The same command goes on where it was interrupted.
"""


@dataclass
class Config(RunConfig):
    """The flags of every training run, some with other defaults, and the ControlNet's."""

    resolution: int | None = flag(None, "side of the training images (default: --class-ckpt's)", group="data",
                                  minimum=64, maximum=4096)
    base: str | None = flag(None, "where the base lies now (default: what --class-ckpt was trained on, "
                            "unless that is a path out of this folder)", group="run")
    preview_every: int = flag(50, "epochs between preview pictures, 0 for none", group="run", minimum=0)
    save_every: int = flag(25, "epochs between saves; of a whole SD 1.5 ControlNet they write 5.8 GB",
                           group="run", minimum=1)
    epochs: int = flag(1000, "passes over the data", group="training", minimum=1, maximum=10**6)
    accumulate: int = flag(8, "batches an optimizer step", group="training", minimum=1, maximum=10**6)
    lr: float | None = flag(None, "learning rate of AdamW (default: 1e-4, and 1e-5 with --control-rank 0)",
                            group="training", above=0)
    lr_decay: list[str] = flag(["0=1"], "EPOCH=FACTOR of --lr from that epoch on; 0=1 for none",
                               group="training")
    class_dropout: float | None = flag(None, "share of images trained without class, for guidance (default: "
                                       "as --class-ckpt was trained)", group="training", minimum=0,
                                       maximum=0.9)
    class_ckpt: str = flag(..., "run folder of train_class.py, or its adapter.safetensors", group="control")
    init: str | None = flag(None, "published ControlNet to begin with: hub id, diffusers folder or single "
                            ".safetensors file (default: a copy of the UNet's encoder)", group="control")
    control_rank: int = flag(16, "rank of the updates that the encoder's weights learn; 0: all weights learn",
                             group="control", minimum=0, maximum=1280)
    mask_dropout: float = flag(0.1, "share of images trained with an empty mask, for --mask-guidance",
                               group="control", minimum=0, maximum=0.9)
    class_channels: bool = flag(False, "a channel of the condition for each damage type, with all regions of "
                                "a photo that shows several", group="control")

    def __post_init__(self) -> None:
        self.lr = self.lr or (1e-4 if self.control_rank else 1e-5)
        super().__post_init__()


def take_over(config: Config, path: Path, header: Header) -> None:
    """Fill in what the class checkpoint decides. Raises UserError where the command line says otherwise."""
    if header.kind != "class":
        raise UserError(f"--class-ckpt {path}: is of kind {header.kind!r}; give one that train_class.py made")
    if config.resolution not in (None, header.resolution):
        raise UserError(f"--resolution {config.resolution}: {path} was trained at {header.resolution}; leave "
                        "the flag away, or train that anew")
    if config.class_dropout and not header.has_null:
        raise UserError(f"--class-dropout {config.class_dropout:g}: {path} was trained without, so it has no "
                        "null class; train it with --class-dropout 0.1, or leave the flag away")
    if config.class_dropout is None:
        config.class_dropout = header.class_dropout
    config.resolution, config.base = header.resolution, config.base or base_of(path, header)
    config.load_masks = True
    RunConfig.__post_init__(config)  # again, with what was not known before


def load_photos(config: Config, path: Path, header: Header) -> DefectDataset:
    """The data. Raises UserError where its classes are not those of the class checkpoint."""
    dataset = load_dataset(config, masks_by_class=config.class_channels)
    if dataset.classes != header.classes:
        raise UserError(f"--data: its classes are {', '.join(dataset.classes)}; {path} was trained on "
                        f"{', '.join(header.classes)}: give the same, in the same order")
    print(dataset.summary())
    return dataset


def encode(config: Config, vae: VAE, batch: Batch) -> dict[str, Tensor]:
    """What the diffusion step needs of the images; masks as bytes, which they are."""
    mean, std = posterior(vae, batch["image"], config.precision)
    return {"mean": mean, "std": std, "mask": batch["mask"].to(torch.uint8)}


def diffusion_loss(config: Config, unet: UNet, control: ControlNet, context: DamageContext,
                   batch: Batch) -> Tensor:
    """The diffusion step: ||eps - eps_hat(z_t, t, class, mask)||^2, one mean an image (B,).

    ControlNet (arXiv 2302.05543), equation 5. Gradients pass the UNet's decoder; its encoder keeps nothing.
    """
    device = context.null.device
    draws = Draws(config, batch, device)
    z_0 = draws.latents(batch["mean"], batch["std"])
    eps, t, class_id = draws.noise(), draws.timesteps(), draws.class_ids()
    mask = batch["mask"] * ~draws.chosen(config.mask_dropout)[:, None, None, None]
    condition = to_condition(mask.to(device), control.config.conditioning_channels)
    z_t, tokens = DIFFUSION.add_noise(z_0, eps, t), context(class_id)
    with autocast(device, DTYPES[config.precision]):  # its weights are trained, so they are fp32
        residuals = control(z_t, t, tokens, condition)
    with plain_autocast(config, device):
        eps_hat = unet(z_t, t, tokens, residuals)
    return (eps_hat.float() - eps).square().mean(dim=(1, 2, 3))


def preview(config: Config, frozen: Generator, control: ControlNet, dataset: DefectDataset) -> Preview:
    """One row a class: always the same masks, outlined on what is drawn into them from the same noise."""
    device = frozen.context.null.device
    drawing = Drawing(seed=config.seed, steps=config.preview_steps, guidance=config.preview_guidance)
    rows, drawn, class_ids = [], [], []
    control.eval()
    frozen.vae.to(device)
    for class_id, name in enumerate(dataset.classes):
        items = [i for i, item in enumerate(dataset.items) if item.class_id == class_id][:PREVIEWS]
        masks = torch.stack([dataset.example(i, epoch=0)["mask"] for i in items])
        condition = to_condition(masks, control.config.conditioning_channels).to(device)
        with autocast(device, DTYPES[config.precision]):
            images = draw(frozen.unet, frozen.vae, frozen.context, [(name, class_id, i) for i in items],
                          drawing, config.resolution, Control(control, frozen.context, condition))
        rows.append([outline(tensor_to_image(image), mask.amax(0).numpy())
                     for image, mask in zip(images, masks, strict=True)])
        drawn.append(images)
        class_ids += [class_id] * len(items)
    control.train()
    if config.latent_variants:  # nothing needs it before the next preview
        frozen.vae.to("cpu")
    return Preview(grid(rows, dataset.classes), torch.cat(drawn), class_ids)


@together
def main() -> None:
    """The command: class checkpoint, data, models, then the training loop."""
    config = parse(Config, __doc__, EXAMPLE)
    path = find_adapter(Path(config.class_ckpt))
    class_tensors, header = read_adapter(path)
    take_over(config, path, header)
    if config.plan:
        from plan import print_plan  # slow to import
        tokens = 77 if header.prompts else header.tokens_per_class
        return print_plan(config, tokens=tokens, control_rank=config.control_rank)
    device, folder = settle(config, "control")
    dataset = load_photos(config, path, header)

    frozen = load_generator(path, base=config.base, strength=1.0, device=device,
                            dtype=DTYPES[config.precision])
    about = ControlHeader(
        class_ckpt=sha256(path), init=config.init, fingerprint="", rank=config.control_rank,
        channels=len(dataset.classes) if config.class_channels else 3,
        class_channels=config.class_channels, mask_dropout=config.mask_dropout)
    control = new_control(about, frozen.unet, config.seed)
    if config.control_rank:
        about = dataclasses.replace(about, fingerprint=fingerprint(control))
    header = dataclasses.replace(header, kind="control", base=config.base, control=about, step=0,
                                 class_dropout=config.class_dropout, config=dataclasses.asdict(config))
    for net in (control, frozen.unet):
        set_fast(net, config.fast)
    trained = trained_control(control)
    weights = [weight for weight in control.parameters() if weight.requires_grad]
    print(f"{sum(weight.numel() for weight in weights):,} parameters to train")
    settle_checkpointing(config, frozen.unet, weights, control)
    control.train()

    optimizer = make_optimizer(config, (weights, config.lr))
    photos, loss_fn = with_latents(config, f"control{dataset.channels}", dataset, frozen.vae,
                                   partial(encode, config, frozen.vae),
                                   partial(diffusion_loss, config, frozen.unet, control, frozen.context))
    train(config, folder, photos, loss_fn, optimizer, {**class_tensors, **trained}, header,
          partial(preview, config, frozen, control, dataset),
          validation(config, folder, dataset, device))
    print(f"done: {folder}/adapter.safetensors; draw with: python sample.py --ckpt {folder}"
          f"{asked('--base', config.base)}{asked('--masks', config.data[0])} --out generated")


if __name__ == "__main__":
    errors.run(main)
