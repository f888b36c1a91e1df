"""The images as the VAE encodes them: once, kept on disk, or again at every step.

The VAE costs two thirds of a LoRA step and does not learn. With `--latent-variants K` epoch e trains on the
augmentation of epoch e mod K, so each image has K variants, each encoded once, when an epoch first needs it.
The cache holds mean and standard deviation of the posterior, so each step still draws a new sample. With K at
least the number of epochs, or without augmentation, the training is that of encoding at every step; with
fewer, variants repeat, with other noise. K = 0 encodes at every step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from data import DataConfig, DefectDataset
from dataset.mask_files import content_of
from runtime import distributed
from runtime.device import in_precision
from runtime.errors import UserError
from runtime.files import remove_leftovers
from runtime.tensor_files import read_own, save_tensors
from sd.vae import VAE
from training.batches import Batch, EpochOrder, ahead, load_batches
from training.config import RunConfig

Encode = Callable[[Batch], dict[str, Tensor]]


@torch.no_grad()
def posterior(vae: VAE, image: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """image (B,3,R,R) in [-1,1] -> mean and standard deviation (B,4,R/8,R/8) of its latents, fp32.

    In half precision training the encoder runs in half precision too, because in fp32 it would take most of
    a step: in fp16 on a GPU, for its longer mantissa; in bf16 on a CPU, where fp16 is slow. Images are
    encoded one by one: on a CPU that is as fast, and at 512 px each further image would take 0.6 GiB.
    """
    device = vae.quant_conv.weight.device
    half = torch.bfloat16 if device.type == "cpu" else torch.float16
    dtype = torch.float32 if precision == "fp32" else half
    image = image.to(device, memory_format=torch.channels_last)

    def moments(one: Tensor) -> Tensor:
        return in_precision(lambda: torch.stack(vae.posterior(one)), device, dtype)

    mean, std = torch.cat([moments(one) for one in image.split(1)], dim=1)
    return mean, std


class Latents:
    """`dataset` with each image encoded: once in each variant, read from files, or when a step needs it.

    encode: a batch of examples (image, and mask if loaded) -> named tensors, batch axis first. It may depend
    on the batch, the VAE, the data flags, the precision and `kind`, the strategy, but on nothing else.
    digests: the hashes of each item's image file and mask file.
    """

    def __init__(self, config: RunConfig, kind: str, dataset: DefectDataset, vae: VAE,
                 encode: Encode) -> None:
        self.items, self.classes, self.dataset = dataset.items, dataset.classes, dataset
        self.vae, self.encode, self.device = vae, encode, vae.quant_conv.weight.device
        self.workers, self.digests = config.workers, file_digests(dataset)
        self.files: list[Path] = []  # one a variant; none: encoded at every step
        self._there: set[int] = set()  # variants that are on disk, and whole
        self._said, self._open = False, dict[Path, Any]()
        if config.latent_variants:
            folder = Path(config.out).parent / "latents" / cache_key(config, kind, dataset, vae, self.digests)
            if distributed.first():
                remove_leftovers(folder)  # outside the run folder, so its lock does not
            variants = config.latent_variants if dataset.varies else 1
            self.files = [folder / f"{variant:04d}.safetensors" for variant in range(variants)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """The cached example of (epoch, index): class_id and the encoded tensors, without a batch axis."""
        epoch, index = key
        file = self.files[epoch % len(self.files)]
        if file not in self._open:
            self._open[file] = safe_open(file, "pt")
        tensors = self._open[file]
        encoded = {name: tensors.get_slice(name)[index] for name in tensors.keys()}  # noqa: SIM118 (no dict)
        return {"class_id": self.items[index].class_id, **encoded}

    def digest(self, *, masks: bool) -> str:
        """16 hex digits that tell other images, or with `masks` other masks, wherever they are stored."""
        files = [image + (mask if masks else b"") for image, mask in self.digests]
        return hashlib.blake2b(b"".join(files), digest_size=8).hexdigest()

    def steps(self, order: EpochOrder, steps: range) -> Iterator[list[Batch]]:
        """The batches of each step, this process's share."""
        keys = (keys for step in steps for keys in order.batches(step))
        if self.files:  # reading them is fast and needs no workers
            self.vae.to("cpu")
            batches = load_batches(self, keys, 0)
        else:
            batches = self._examples(keys)
        for step in steps:
            if self.files and (step == steps.start or step % order.steps_per_epoch == 0):
                self._begin(step // order.steps_per_epoch)
            yield [next(batches) for _ in order.batches(step)]

    def _examples(self, keys: Iterable[list[tuple[int, int]]]) -> Iterator[Batch]:
        """Batches of the images and masks themselves."""
        if self.workers:
            self.dataset.preload()
            return load_batches(self.dataset, keys, self.workers)
        return ahead(load_batches(self.dataset, keys, 0))

    def encoded(self, batch: Batch) -> Batch:
        """class_id and the encoded tensors, on the VAE's device."""
        if not self.files:
            batch = {"class_id": batch["class_id"], **self._encoded(batch)}
        return {name: values.to(self.device) for name, values in batch.items()}

    def _encoded(self, batch: Batch) -> dict[str, Tensor]:
        """What the strategy encodes, and with --fit pad which of its cells are the photos' own."""
        return self.encode(batch) | ({"own": batch["own"]} if "own" in batch else {})

    @contextlib.contextmanager
    def vae_on_device(self) -> Iterator[None]:
        """While the block runs, the VAE is on its device. With a cache, it is then moved off."""
        self.vae.to(self.device)
        yield
        if self.files:
            self.vae.to("cpu")

    def _begin(self, epoch: int) -> None:
        """Encode the variant of `epoch` if it is not on disk; each other process encodes one of the next."""
        variants = [(epoch + i) % len(self.files) for i in range(distributed.count())]
        if variants[0] in self._there:
            return
        own = variants[distributed.rank()]
        # With more processes than variants some have the same one; the first of them encodes it.
        if variants.index(own) == distributed.rank() and not _whole(self.files[own]):
            self._encode(own)
        distributed.wait()
        self._there.update(variants)

    def _encode(self, variant: int) -> None:
        """Write the file of a variant, whole or not at all."""
        if not self._said:
            print(f"{self.files[0].parent}: encoding {len(self)} images, once in each of {len(self.files)} "
                  "variants, when an epoch first needs it (--latent-variants)", file=sys.stderr)
            self._said = True
        examples = self._examples([(variant, i)] for i in range(len(self)))
        bar = tqdm(examples, total=len(self), unit="image", desc="encoding", leave=False, disable=None)
        with self.vae_on_device():
            encoded = [{k: tensor.cpu() for k, tensor in self._encoded(example).items()} for example in bar]
        save_tensors(self.files[variant], {k: torch.cat([one[k] for one in encoded]) for k in encoded[0]},
                     "latents", {"variant": variant})


def _whole(file: Path) -> bool:
    """Whether the file exists and its checksum is right; otherwise it is written again."""
    try:
        read_own(file, "latents")
        return True
    except (UserError, OSError):
        return False


def file_digests(dataset: DefectDataset) -> list[tuple[bytes, bytes]]:
    """For each item the hashes of its image and mask files; of an absent mask, the hash of nothing."""
    files = {file for item in dataset.items for file in (item.image, item.mask)}
    digest = {file: hashlib.blake2b(content_of(file)).digest() for file in files}
    return [(digest[item.image], digest[item.mask]) for item in dataset.items]


def cache_key(config: RunConfig, kind: str, dataset: DefectDataset, vae: VAE,
              digests: list[tuple[bytes, bytes]]) -> str:
    """16 hex digits of all that the latents depend on; not of its place, nor of the number of variants."""
    digest = hashlib.blake2b(digest_size=8)
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(DataConfig)
             if field.name != "data"}
    digest.update(json.dumps([kind, config.precision == "fp32", flags]).encode())
    for item, (image, mask) in zip(dataset.items, digests, strict=True):
        digest.update(image + mask + str(item.mask_value).encode())
    # The augmentation's code counts too, by what it makes of one image and its mask.
    for tensor in filter(torch.is_tensor, dataset.example(0, epoch=0).values()):
        digest.update(tensor.numpy().tobytes())
    for module in (vae.encoder, vae.quant_conv):
        for weight in module.state_dict().values():
            digest.update(weight.cpu().contiguous().numpy())
    return digest.hexdigest()
