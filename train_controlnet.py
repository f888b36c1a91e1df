"""Strategy B2: a ControlNet learns where the damage is; LoRA and embedding of strategy A stay frozen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.controlnet import new_control, to_condition, trained_control
from checkpoints.loading import base_of, load_checkpoint, read_checkpoint
from checkpoints.metadata import ControlHeader, Header, trained_with
from checkpoints.prompts import contexts_for
from data import DataConfig, DefectDataset, load_dataset
from dataset.padding import cut
from lora import divide
from runtime import errors
from runtime.cli import changed, flag, parse
from runtime.device import DTYPES, autocast
from runtime.distributed import together
from runtime.errors import UserError
from runtime.files import sha256
from runtime.pictures import outline, tensor_to_image
from sampling.generation import SamplingConfig, sample_images
from sd.controlnet import ControlNet
from sd.exact_shortcuts import set_fast
from sd.guidance import ControlCondition
from sd.pretrained.weights import DEFAULT_BASE, fingerprint
from sd.unet import UNet
from training.batches import Batch
from training.config import RunConfig
from training.diffusion import add_noise, per_image_loss
from training.latents import Latents, posterior
from training.loop import train
from training.presets import drawing_of, preset_row
from training.previews import PREVIEWS, Row
from training.resume_state import Trainable
from training.setup import announce, announce_end, make_optimizer, resolve_run, set_up_blocks
from training.step_noise import StepNoise

EXAMPLE = """example:
  python train_controlnet.py --data DS-MVTec/bottle --class-ckpt runs/bottle-class
  python train_controlnet.py --data DS-MVTec/bottle --class-ckpt runs/bottle-class \\
      --init lllyasviel/control_v11p_sd15_seg --control-rank 0
Then: python sample.py --ckpt runs/bottle-control --out generated/bottle
Low-rank updates are the default: from few photos, on the embedded base, they followed masks better than a
whole ControlNet, in a fraction of the memory. The other defaults are those of the literature (Zhang et al.
2023 and their training notes): a learning rate of 1e-5 for a whole ControlNet, and large effective batches by
accumulation rather than many small steps.
The same command resumes a run that was interrupted.
"""


@dataclass
class Config(RunConfig):
    """The flags of every training run, some with other defaults, and the ControlNet's."""

    resolution: int = changed(RunConfig, "resolution", 0, help="side of the training images in pixels "
                              "(default: --class-ckpt's)")
    base: str = changed(RunConfig, "base", "", help="where the base is now (default: the one that "
                        "--class-ckpt was trained on, unless that is a path out of this folder)")
    preview_every: int = changed(RunConfig, "preview_every", 50)
    save_every: int = changed(RunConfig, "save_every", 25, help="epochs between saves; a whole SD 1.5 "
                              "ControlNet with its resume state takes 5.8 GB")
    epochs: int = changed(RunConfig, "epochs", 1000)
    accumulate: int = changed(RunConfig, "accumulate", 8)
    lr: float = changed(RunConfig, "lr", 0.0, help="learning rate of AdamW (default: 1e-4, and 1e-5 with "
                        "--control-rank 0)")
    lr_decay: list[str] = changed(RunConfig, "lr_decay", ["0=1"])
    class_dropout: float = changed(RunConfig, "class_dropout", -1.0, help="share of images trained without "
                                   "class, for guidance (default: --class-ckpt's)")
    class_ckpt: str = flag("", "run folder of train_class.py, or its adapter.safetensors; only --plan does "
                           "without (default: none)", group="data", common=True)
    init: str | None = flag(None, "published ControlNet to begin with: hub id, diffusers folder or single "
                            ".safetensors file (default: a copy of the UNet's encoder)", group="quality")
    control_rank: int = flag(16, "rank of the updates of the encoder's weights; 0 trains all weights (on "
                             "the embedded base with --lr 2e-4)",
                             group="quality", minimum=0, maximum=1280, common=True)
    mask_dropout: float = flag(0.1, "share of images trained with an empty mask, for --mask-guidance",
                               group="quality", minimum=0, maximum=0.9)
    class_channels: bool = flag(False, "one channel of the condition for each damage type, with all regions "
                                "of a photo that shows several", group="quality")

    def __post_init__(self) -> None:
        self.lr = self.lr or (1e-4 if self.control_rank else 1e-5)
        super().__post_init__()


def take_over(config: Config, path: Path, header: Header) -> None:
    """Fill in what the class checkpoint decides. Raises UserError where the command line contradicts it."""
    if header.kind != "class":
        raise UserError(f"--class-ckpt {path}: is of kind {header.kind!r}; give one that train_class.py made")
    if config.resolution not in (0, header.resolution):
        raise UserError(f"--resolution {config.resolution}: {path} was trained at {header.resolution}; omit "
                        "the flag, or retrain that checkpoint")
    trained = trained_with(header, DataConfig)
    if trained.view not in (config.view, "mixed"):
        raise UserError(f"--view {config.view}: {path} was trained with --view {trained.view}, at which "
                        f"scale it draws; give --view {trained.view}")
    if trained.fit != config.fit:
        raise UserError(f"--fit {config.fit}: {path} was trained with --fit {trained.fit}; give that")
    if config.class_dropout > 0 and not header.has_null:
        raise UserError(f"--class-dropout {config.class_dropout:g}: {path} was trained without, so it has no "
                        "null class; retrain it with --class-dropout 0.1, or omit the flag")
    if config.class_dropout < 0:
        config.class_dropout = header.class_dropout
    config.check_guidance(config.class_dropout > 0 or bool(header.prompts))
    config.resolution, config.base = header.resolution, config.base or base_of(path, header)
    config.load_masks = True


def load_photos(config: Config, path: Path, header: Header) -> DefectDataset:
    """The data with masks. Raises UserError where its classes are not those of the class checkpoint."""
    dataset = load_dataset(config, masks_by_class=config.class_channels)
    if dataset.classes != header.classes:
        raise UserError(f"--data: its classes are {', '.join(dataset.classes)}; {path} was trained on "
                        f"{', '.join(header.classes)}: give the same, in the same order")
    announce(dataset)
    return dataset


def add_control(config: Config, path: Path, header: Header, class_tensors: dict[str, Tensor],
                unet: UNet, channels: int) -> tuple[ControlNet, Trainable]:
    """A ControlNet for conditions of so many channels. Its checkpoint holds the class checkpoint as well."""
    about = ControlHeader(sha256(path), config.init, "", rank=config.control_rank, channels=channels,
                          class_channels=config.class_channels, mask_dropout=config.mask_dropout)
    control = new_control(about, unet, config.seed)
    if config.control_rank:
        about = dataclasses.replace(about, fingerprint=fingerprint(control))
    header = dataclasses.replace(header, kind="control", base=config.base, control=about, step=0,
                                 class_dropout=config.class_dropout, config=dataclasses.asdict(config),
                                 drawing=drawing_of(config, "control", empty_mask=config.mask_dropout > 0,
                                                    null=config.class_dropout > 0 or bool(header.prompts)))
    set_fast(control, config.fast)
    set_fast(unet, config.fast)
    weights = [weight for weight in control.parameters() if weight.requires_grad]
    print(f"{sum(weight.numel() for weight in weights):,} parameters to train")
    set_up_blocks(config, header, unet, weights, control)
    return control, Trainable(control.train(), {**class_tensors, **trained_control(control)},
                              make_optimizer(config, (weights, config.lr)), header)


def plan(config: Config, header: Header | None) -> None:
    """Print --plan, over a class checkpoint, or over one of the recipe."""
    from training.plan import print_plan  # slow to import
    if header is None:
        config.resolution, config.base = config.resolution or 512, config.base or DEFAULT_BASE
    print_plan(config, tokens=header.tokens_per_class if header else 1,
               prompts=bool(header and header.prompts), control_rank=config.control_rank)


@together
def main() -> None:
    """Class checkpoint, data and models; what a batch goes through; what a preview shows; the loop."""
    config = parse(Config, __doc__, EXAMPLE, row=preset_row("control"))
    if config.plan and not config.class_ckpt:
        return plan(config, None)
    if not config.class_ckpt:
        raise UserError("--class-ckpt: give the run folder of train_class.py that the ControlNet is for")
    class_file = read_checkpoint(config.class_ckpt, "--class-ckpt")
    path, class_tensors, header = class_file
    take_over(config, path, header)
    if config.plan:
        return plan(config, header)
    device, dtype = resolve_run(config, "control"), DTYPES[config.precision]
    dataset = load_photos(config, path, header)
    frozen = load_checkpoint(class_file, base=config.base, device=device, dtype=dtype)
    unet, vae, context = frozen.unet, frozen.vae, frozen.context
    channels = len(dataset.classes) if config.class_channels else 3
    control, trainable = add_control(config, path, header, class_tensors, unet, channels)

    def encode(batch: Batch) -> dict[str, Tensor]:
        """image (B,3,R,R), mask (B,1 or classes,R,R) -> the posterior of the latents; the mask as bytes."""
        mean, std = posterior(vae, batch["image"], config.precision)
        return {"mean": mean, "std": std, "mask": batch["mask"].to(torch.uint8)}

    def loss(batch: Batch, noise: StepNoise) -> Tensor:
        """The diffusion step: ||eps - eps_hat(z_t, t, class, mask)||^2, the mean of each image (B,).

        ControlNet (arXiv 2302.05543), equation 5. Gradients pass the UNet's decoder, not its encoder.
        """
        z_0 = batch["mean"] + batch["std"] * noise.normal()  # a posterior sample
        eps, t = noise.normal(), noise.timesteps()
        z_t, tokens = add_noise(z_0, eps, t), context(noise.drop_class(batch["class_id"]))
        mask = batch["mask"] * ~noise.chosen(config.mask_dropout)[:, None, None, None]
        condition = to_condition(mask, channels)
        divide(control)
        with autocast(device, dtype):  # the ControlNet's weights are trained, so they are fp32
            residuals = control(z_t, t, tokens, condition)
        eps_hat = unet(z_t, t, tokens, residuals)
        return per_image_loss(eps_hat, eps, t, config.min_snr_gamma, batch.get("own"), weight=1)

    def preview_row(class_id: int, name: str) -> Row:
        """Images of one class, in each preview from the same masks and noise; the masks are outlined."""
        items = [i for i, item in enumerate(dataset.items) if item.class_id == class_id][:PREVIEWS]
        masks = torch.stack([dataset.example(i, epoch=0)["mask"] for i in items])
        contexts = contexts_for(context, [class_id] * len(items))
        condition = ControlCondition(control, contexts, to_condition(masks, channels).to(device))
        wanted = [(name, number) for number in items]
        sampling = SamplingConfig(config.seed, config.preview_steps, guidance=config.preview_guidance)
        with autocast(device, dtype):
            images = sample_images(unet, vae, contexts, wanted, sampling, config.resolution, condition)
        images, masks = cut(images, dataset.shape), cut(masks, dataset.shape)
        return Row(images, [outline(tensor_to_image(image), mask.amax(0).numpy())
                            for image, mask in zip(images, masks, strict=True)])

    latents = Latents(config, f"control{dataset.channels}", dataset, vae, encode)
    train(config, trainable, latents, loss, preview_row)
    announce_end(config, masks=True)


if __name__ == "__main__":
    errors.run(main)
