"""Train the embedded feature network: `python -m tiny.train_features`, about ten minutes on one core.

It learns to name the product and the damage in procedural pictures, from these alone. It stands in for
Inception and ResNet in the demo and in tests; distances in its features are comparable with nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import trange

from networks import TINY as WEIGHTS
from networks import SmallNet
from seeds import torch_rng
from tiny.common import HELD_OUT, draw_images
from tiny.damages import DAMAGES
from tiny.products import FAMILIES

PRODUCTS, STATES = tuple(FAMILIES), ("good", *DAMAGES)
FIRST_SEED = 9_000_000_000  # below HELD_OUT, above what the other two are trained on


def pictures(seeds: range) -> tuple[Tensor, Tensor]:
    """(B, 3, 128, 128) uint8 and labels (B, 2): the product's and the damage's index."""
    image, words, _ = draw_images(seeds)
    labels = [(next(PRODUCTS.index(w) for w in row if w in PRODUCTS),
               next(STATES.index(w) for w in row if w in STATES)) for row in words]
    return ((image + 1) * 127.5).round().byte(), torch.tensor(labels)


def turned(image: Tensor, rng: torch.Generator) -> Tensor:
    """A batch in [-1, 1], flipped and turned, a little lighter or darker."""
    image = image.float() / 127.5 - 1
    if torch.rand((), generator=rng) < 0.5:
        image = image.flip(3)
    image = image.rot90(int(torch.randint(4, (), generator=rng)), (2, 3))
    gain = 1 + 0.1 * torch.randn(len(image), 1, 1, 1, generator=rng)
    return (image * gain + 0.02 * torch.randn(image.shape, generator=rng)).clamp(-1, 1)


def loss_of(net: SmallNet, image: Tensor, label: Tensor) -> Tensor:
    """Sum of the two cross-entropies."""
    features = net(image)
    return sum(F.cross_entropy(head(features), label[:, i]) for i, head in enumerate(net.heads))


@torch.no_grad()
def accuracies(net: SmallNet, count: int) -> dict[str, float]:
    """Shares of held-out pictures whose product and damage are named rightly."""
    image, label = pictures(range(HELD_OUT, HELD_OUT + count))
    features = torch.cat([net(part.float() / 127.5 - 1) for part in image.split(64)])
    right = [(head(features).argmax(1) == label[:, i]).float().mean() for i, head in enumerate(net.heads)]
    return {name: round(float(share), 4) for name, share in zip(("product", "damage"), right, strict=True)}


def train(images: int, epochs: int, batch: int = 32, peak: float = 6e-3) -> SmallNet:
    """The network, trained on `images` pictures."""
    rng = torch_rng("features")
    torch.manual_seed(0)
    parts = [pictures(range(FIRST_SEED + first, FIRST_SEED + first + batch))
             for first in trange(0, images, batch, desc="drawing", disable=None)]
    image, label = (torch.cat(column) for column in zip(*parts, strict=True))
    net, steps = SmallNet(), epochs * (len(image) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps)
    for step in trange(steps, desc="training", disable=None):
        place = step % (len(image) // batch)
        if place == 0:
            order = torch.randperm(len(image), generator=rng)
        chosen = order[place * batch:(place + 1) * batch]
        loss = loss_of(net, turned(image[chosen], rng), label[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return net.eval()


def main() -> None:
    """The command: draw pictures, train, write the weights and what they reach."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    net = train(arguments.images, arguments.epochs)
    numbers = accuracies(net, arguments.held_out)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.half() if tensor.is_floating_point() else tensor
               for key, tensor in net.state_dict().items()}, arguments.out)
    arguments.out.with_name("numbers.json").write_text(json.dumps(numbers) + "\n")
    print(numbers)


if __name__ == "__main__":
    main()
