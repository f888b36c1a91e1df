"""The recipe: all flags of a training run beside the data's, and the learning rate of each epoch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from config import flag
from data import DataConfig
from errors import UserError
from networks import NetworkConfig

BEST = ("dca", "fid", "kid")
PROMPT = "a photo of a {product} with {damage}"


@dataclass
class RunConfig(DataConfig, NetworkConfig):
    """The flags of every training run. Each default is the seed's own unless its help says otherwise."""

    out: str = flag("", "run folder (default: runs/<name of the data>-<strategy>)", group="run")
    base: str = flag("stable-diffusion-v1-5/stable-diffusion-v1-5",
                     "hub id, diffusers folder, single .safetensors file, or tiny", group="run")
    restart: bool = flag(False, "throw away the run that the folder holds, and start anew", group="run")
    tensorboard: bool = flag(False, "also write loss, rates and previews to tensorboard/ in the run folder; "
                                    "needs the package of that name", group="run")
    preview_every: int = flag(25, "epochs between preview pictures, 0 for none", group="run", minimum=0)
    save_every: int = flag(5, "epochs between saves of the checkpoint and the resume state", group="run",
                           minimum=1)
    preview_steps: int = flag(50, "DDIM steps of a preview", group="run", minimum=1, maximum=1000)
    preview_guidance: float = flag(1.0, "guidance scale of previews; above 1 needs --class-dropout or "
                                   "--context prompt", group="run", minimum=1)
    validate: bool = flag(True, "measure DCA, FID and KID of each preview against the training images",
                          group="networks")
    best: str = flag("dca", "best.safetensors holds the weights whose preview had the highest DCA (among "
                     "equals the lowest FID), the lowest FID, or the lowest KID", group="networks",
                     choices=BEST)
    epochs: int = flag(250, "passes over the data", group="training", minimum=1, maximum=10**6)
    max_steps: int | None = flag(None, "stop after so many optimizer steps (default: when --epochs are "
                                  "done)", group="training", minimum=1)
    batch_size: int = flag(4, "images in memory at once", group="training", minimum=1, maximum=10**4)
    accumulate: int = flag(1, "batches an optimizer step", group="training", minimum=1, maximum=10**6)
    lr: float = flag(1e-4, "learning rate of AdamW", group="training", above=0)
    lr_decay: list[str] = flag(["100=0.5", "175=0.2"], "EPOCH=FACTOR of --lr from that epoch on; 0=1 for "
                               "none", group="training")
    weight_decay: float = flag(0.01, "weight decay of AdamW", group="training", minimum=0)
    clip: float = flag(0.0, "clip the gradient's norm to this; 0 does not clip", group="training",
                       minimum=0)
    ema: float = flag(0.0, "decay a step of an average of the weights, saved in their place; 0 for none",
                      group="training", minimum=0, maximum=0.99999)
    class_dropout: float = flag(0.0, "share of images trained without class, 0 to 0.9, for guidance",
                                group="training", minimum=0, maximum=0.9)
    precision: str = flag("auto", "auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU",
                          group="machine", choices=("auto", "fp32", "bf16", "fp16"))
    checkpointing: str = flag("auto", "what is computed again rather than kept: none, lean (what is cheap), "
                              "full (whole blocks: least memory, a third more work); auto: the first "
                              "of these that fits into the free memory", group="machine",
                              choices=("auto", "none", "lean", "full"))
    fast: bool = flag(True, "exact shortcuts: what need not be computed or kept is not; without them every "
                            "layer is computed as it is written, under autocast: to compare with",
                      group="machine")
    latent_variants: int = flag(25, "encode so many augmented variants of each image once, epoch e taking "
                                    "variant e mod N, and keep them in latents/ beside the run; 0: encode at "
                                    "every step, never repeating one", group="machine", minimum=0,
                                maximum=10**6)
    plan: str | None = flag(None, "only say what memory and time this takes, here or on a named GPU (--plan "
                                  "T4); nothing is loaded or trained", group="machine", bare="here")
    json: bool = flag(False, "the --plan as one JSON object; a run's own numbers are in metrics.jsonl",
                      group="machine")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="machine")
    workers: int = flag(0, "processes that load data beside the training", group="machine", minimum=0,
                        maximum=256)

    def __post_init__(self) -> None:
        """Raises UserError for flags that contradict each other."""
        rate_factor(self, epoch=0)
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise UserError("--tensorboard: not installed; pip install tensorboard, or leave the flag out "
                            "(metrics.jsonl has the same numbers)")
        if self.checkpointing == "lean" and not self.fast:
            raise UserError("--checkpointing lean: one of the shortcuts that --no-fast leaves out; give none "
                            "or full")
        if self.preview_guidance != 1 and not self.has_null:
            raise UserError(f"--preview-guidance {self.preview_guidance:g}: without --class-dropout (such as "
                            "0.1) there is no null class to guide from")

    @property
    def has_null(self) -> bool:
        """Whether there is a null condition to guide from."""
        return self.class_dropout != 0  # None: not known yet


@dataclass
class TrainConfig(RunConfig):
    """The flags of a run that trains LoRA and class embedding, with the seed's own values."""

    lr: float = flag(1e-4, "learning rate of AdamW; 0 leaves the LoRA without effect, for --embedding-lr "
                           "alone", group="training", minimum=0)
    rank: int = flag(16, "LoRA rank", group="adapter", minimum=1, maximum=1280)
    alpha: float = flag(32.0, "LoRA alpha; the update is scaled by alpha / rank", group="adapter", above=0)
    dropout: float = flag(0.1, "share of the LoRA's input that is dropped", group="adapter", minimum=0,
                         maximum=0.99)
    init_lora: str | None = flag(None, "LoRA file to start from, as diffusers, peft or kohya write it: of "
                                 "layers that are trained here, and of --rank at most", group="adapter")
    context: str = flag("class", "what tells the UNet the damage type: a row of a trained table (the "
                        "recipe), or --prompt with a trained word in it, read by the base's text encoder",
                        group="adapter", choices=("class", "prompt"))
    prompt: str = flag(PROMPT, "what --context prompt reads: {damage} "
                       "becomes the trained word, {product} the product's name", group="adapter")
    tokens_per_class: int = flag(1, "context tokens a class, with --context prompt vectors a word; 1 is the "
                                 "recipe, which leaves part of the LoRA idle (README)", group="adapter",
                                 minimum=1, maximum=77)
    init_std: float = flag(0.02, "standard deviation of the class table's start", group="adapter", above=0)
    embedding_lr: float | None = flag(None, "learning rate of the class embedding (default: --lr); 0 leaves "
                                            "it as it starts", group="adapter", minimum=0)

    @property
    def context_length(self) -> int:
        """Tokens of the UNet's context; a prompt is padded to 77."""
        return 77 if self.context == "prompt" else self.tokens_per_class

    @property
    def embedding_rate(self) -> float:
        """The class embedding's learning rate before any decay."""
        return self.lr if self.embedding_lr is None else self.embedding_lr

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.json and self.plan is None:
            raise UserError("--json: only with --plan; a run's own numbers are in metrics.jsonl")
        if self.prompt != PROMPT and self.context != "prompt":
            raise UserError("--prompt: nothing reads it without --context prompt; give that too")
        if self.lr == self.embedding_rate == 0:
            raise UserError("--lr 0: nothing would be trained; give --embedding-lr as well")

    @property
    def has_null(self) -> bool:
        """Whether there is a null condition to guide from; the text encoder brings its own."""
        return self.class_dropout > 0 or self.context == "prompt"


def product_name(config: RunConfig) -> str:
    """What a single product is called: --product-classes, or the last part of --data."""
    return config.product_classes[0] if config.product_classes else Path(config.data[0]).resolve().name


def out_folder(config: RunConfig, strategy: str) -> Path:
    """--out, or runs/<last part of --data>-<strategy>."""
    return Path(config.out or f"runs/{Path(config.data[0]).resolve().name}-{strategy}")


def rate_factor(config: RunConfig, epoch: int) -> float:
    """What all learning rates are multiplied by in `epoch`, counted from 0: by default 1, from epoch 100 on
    0.5, from 175 on 0.2. Raises UserError where --lr-decay is not EPOCH=FACTOR.
    """
    factor = 1.0
    for _, value in sorted(decay for decay in map(_decay, config.lr_decay) if decay[0] <= epoch):
        factor = value
    return factor


def _decay(text: str) -> tuple[int, float]:
    """"100=0.5" -> (100, 0.5)."""
    epoch, _, factor = text.partition("=")
    try:
        start, value = int(epoch), float(factor)
        if start < 0 or not 0 <= value < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(f"--lr-decay {text}: expected EPOCH=FACTOR, such as 100=0.5") from None
    return start, value
