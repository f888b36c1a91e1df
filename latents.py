"""What the VAE makes of the images: encoded once and kept on disk, or encoded anew at every step.

The VAE costs two thirds of a LoRA step and learns nothing. With `--latent-variants K` epoch e trains on the
augmentation of epoch e mod K, so each of these K variants of an image is encoded once, when an epoch first
needs it: training begins at once. Kept are the mean and deviation of the VAE's posterior, so a latent is
still drawn anew at every step. With K at least the number of epochs (or without augmentation) this is what
encoding at every step computes; with fewer the pictures are seen again, in other noise. 0 encodes at every
step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

import processes
from batches import Batch, load_batches
from data import DataConfig, DefectDataset
from errors import UserError
from files import read_own, save_tensors
from machine import in_precision
from recipe import RunConfig
from sd.vae import VAE

Encode = Callable[[Batch], dict[str, Tensor]]


@torch.no_grad()
def posterior(vae: VAE, image: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """image (B,3,R,R) on any device -> mean and deviation (B,4,R/8,R/8) of its latents, where the VAE is.

    In half precision training the encoder runs so too, for in fp32 it would take most of a step: in fp16 on
    a GPU, whose mantissa is the longer one; in bf16 on a CPU, which has nothing quick for fp16.
    One by one, which on a CPU is as quick: at 512 px each one more would take 0.6 GiB more.
    """
    device = vae.quant_conv.weight.device
    half = torch.bfloat16 if device.type == "cpu" else torch.float16
    dtype = torch.float32 if precision == "fp32" else half
    image = image.to(device, memory_format=torch.channels_last)
    moments = [in_precision(lambda one=one: torch.stack(vae.posterior(one)), device, dtype)
               for one in image.split(1)]
    mean, std = torch.cat(moments, dim=1)
    return mean, std


class LatentDataset(torch.utils.data.Dataset):
    """`dataset` encoded: the example of (epoch, index) comes from the file of variant epoch mod K."""

    def __init__(self, dataset: DefectDataset, vae: VAE, encode: Encode, files: list[Path]) -> None:
        self.items, self.classes = dataset.items, dataset.classes
        self.dataset, self.vae, self.encode, self.files = dataset, vae, encode, files
        self.device, self.workers = vae.quant_conv.weight.device, 0
        self._there: set[int] = set()  # variants that are on disk, and whole
        self._said = False
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """class_id, and what `encode` made of the image, without its batch axis."""
        epoch, index = key
        file = self.files[epoch % len(self.files)]
        if file not in self._open:
            self._open[file] = safe_open(file, "pt")
        tensors = self._open[file]
        encoded = {name: tensors.get_slice(name)[index] for name in tensors.keys()}  # noqa: SIM118 (no dict)
        return {"class_id": self.items[index].class_id, **encoded}

    def prepare(self, workers: int) -> int:
        """Until there is something to encode the VAE leaves the GPU. What is encoded is read in no time."""
        self.workers = workers
        self.vae.to("cpu")
        return 0

    def begin(self, epoch: int) -> None:
        """Encode the variant of `epoch`, if it is not on disk. Of several processes each encodes another,
        for the epochs to come."""
        variants = [(epoch + i) % len(self.files) for i in range(processes.count())]
        if variants[0] in self._there:
            return
        own = variants[processes.rank()]
        # With more processes than variants two have the same, of which the first one's is enough.
        if variants.index(own) == processes.rank() and not _whole(self.files[own]):
            self._encode(own)
        processes.wait()
        self._there.update(variants)

    def _encode(self, variant: int) -> None:
        """Write the file of a variant, whole or not at all."""
        if not self._said:
            print(f"{self.files[0].parent}: encoding {len(self)} images, once in each of {len(self.files)} "
                  "variants, when an epoch first needs it (--latent-variants)", file=sys.stderr)
            self._said = True
        self.dataset.prepare(self.workers)
        examples = load_batches(self.dataset, [[(variant, i)] for i in range(len(self))], self.workers)
        bar = tqdm(examples, total=len(self), unit="image", desc="encoding", leave=False, disable=None)
        self.vae.to(self.device)
        encoded = [{k: tensor.cpu() for k, tensor in self.encode(example).items()} for example in bar]
        self.vae.to("cpu")
        save_tensors(self.files[variant], {k: torch.cat([one[k] for one in encoded]) for k in encoded[0]},
                     "latents", {"variant": variant})


def _whole(file: Path) -> bool:
    """Whether the file is there and its checksum right; else it is made anew."""
    try:
        read_own(file, "latents")
        return True
    except (UserError, OSError):
        return False


def with_latents(config: RunConfig, kind: str, dataset: DefectDataset, vae: VAE, encode: Encode,
                 loss_fn: Callable[[Batch], Tensor],
                 ) -> tuple[DefectDataset | LatentDataset, Callable[[Batch], Tensor]]:
    """Dataset and loss for `train`, such that loss_fn finds in its batch the tensors that `encode` returns.

    encode: a batch of examples (image, and mask if loaded) -> named tensors, the batch axis first. They
    depend on nothing but the batch, the VAE, the flags about data, the precision and `kind`, the strategy.
    """
    if not config.latent_variants:
        return dataset, lambda batch: loss_fn({**batch, **encode(batch)})
    folder = Path(config.out).parent / "latents" / cache_key(config, kind, dataset, vae)
    variants = config.latent_variants if dataset.varies else 1
    files = [folder / f"{variant:04d}.safetensors" for variant in range(variants)]
    return LatentDataset(dataset, vae, encode, files), loss_fn


def cache_key(config: RunConfig, kind: str, dataset: DefectDataset, vae: VAE) -> str:
    """16 hex digits of all that the latents depend on; not of where it lies, nor of how many variants."""
    digest = hashlib.blake2b(digest_size=8)
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(DataConfig)
             if field.name != "data"}
    digest.update(json.dumps([kind, config.precision == "fp32", flags]).encode())
    for item in dataset.items:
        for file in (item.image, item.mask):
            digest.update(hashlib.blake2b(file.read_bytes() if file else b"").digest())
        digest.update(str(item.mask_value).encode())
    # How augmentation is done counts as well: by what it makes of one picture, and of its mask.
    for tensor in filter(torch.is_tensor, dataset.example(0, epoch=0).values()):
        digest.update(tensor.numpy())
    for module in (vae.encoder, vae.quant_conv):
        for weight in module.state_dict().values():
            digest.update(weight.cpu().contiguous().numpy())
    return digest.hexdigest()
