"""The flags that every training run has beside those of its data, and the learning rate of each epoch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from checkpoints.presets import PRESETS
from data import DataConfig
from dataset.layouts import product_root
from evaluation.networks import NetworkConfig
from runtime.cli import changed, flag
from runtime.errors import UserError

BEST = ("dca", "fid", "kid")
PROMPT = "a photo of a {product} with {damage}"


@dataclass
class RunConfig(DataConfig, NetworkConfig):
    """The flags of every training run. A default is the recipe's unless its help says otherwise."""

    out: str = flag("", "run folder (default: runs/<name of the data>-<strategy>)", group="run",
                    common=True)
    base: str = flag("stable-diffusion-v1-5/stable-diffusion-v1-5",
                     "hub id, diffusers folder, single .safetensors file, or tiny", group="run", common=True)
    preset: str = flag("recipe", "a row of flags, over which those given win: recipe (the defaults), better "
                       "(what docs/recipe.md measured), tiny (for the embedded base; the default with "
                       "--base tiny)", group="quality", choices=tuple(PRESETS), common=True)
    restart: bool = flag(False, "delete the run in the folder and start over", group="run", common=True)
    tensorboard: bool = flag(False, "also write losses, rates and previews to tensorboard/ in the run "
                                    "folder; needs the package tensorboard", group="run")
    preview_every: int = flag(25, "epochs between previews; 0 for none", group="run", minimum=0, common=True)
    save_every: int = flag(5, "epochs between saves of the checkpoint and the resume state", group="run",
                           minimum=1)
    preview_steps: int = flag(50, "DDIM steps of a preview", group="run", minimum=1, maximum=1000)
    preview_guidance: float = flag(1.0, "guidance scale of previews; above 1 needs --class-dropout or "
                                   "--context prompt", group="run", minimum=1)
    validate: bool = flag(True, "measure DCA, FID and KID of each preview against the training images",
                          group="networks")
    best: str = flag("dca", "best.safetensors keeps the weights whose preview had the highest DCA (of equal "
                     "ones, the lowest FID), the lowest FID, or the lowest KID", group="networks",
                     choices=BEST)
    epochs: int = flag(250, "passes over the data", group="quality", minimum=1, maximum=10**6, common=True)
    max_steps: int | None = flag(None, "stop after this many optimizer steps (default: after --epochs)",
                                 group="quality", minimum=1)
    batch_size: int = flag(4, "images in memory at once", group="quality", minimum=1, maximum=10**4,
                           common=True)
    accumulate: int = flag(1, "batches per optimizer step", group="quality", minimum=1, maximum=10**6)
    lr: float = flag(1e-4, "learning rate of AdamW", group="quality", above=0)
    lr_decay: list[str] = flag(["100=0.5", "175=0.2"], "EPOCH=FACTOR on --lr from that epoch on; 0=1 for "
                               "none", group="quality")
    weight_decay: float = flag(0.01, "weight decay of AdamW", group="experiments", minimum=0)
    clip: float = flag(0.0, "clip the gradient norm to this value; 0 for no clipping", group="experiments",
                       minimum=0)
    ema: float = flag(0.0, "decay per step of a moving average of the weights, which is saved in their "
                      "place; 0 for none", group="quality", minimum=0, maximum=0.99999)
    min_snr_gamma: float = flag(0.0, "weight each timestep's loss by min(SNR, this) / SNR; the paper's scale "
                                "is 5; 0 for none (the recipe)", group="experiments", minimum=0,
                                maximum=10**6)
    class_dropout: float = flag(0.0, "share of images trained without class, 0 to 0.9, for guidance",
                                group="quality", minimum=0, maximum=0.9, common=True)
    precision: str = flag("auto", "auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU",
                          group="speed", choices=("auto", "fp32", "bf16", "fp16"))
    checkpointing: str = flag("auto", "activations to recompute in the backward pass: none, lean (the cheap "
                              "ones), full (whole blocks: least memory, a third more work); auto: the first "
                              "of these that fits into the free memory", group="speed",
                              choices=("auto", "none", "lean", "full"))
    fast: bool = flag(True, "exact shortcuts that save time and memory; --no-fast computes each layer as "
                            "written, under autocast, for comparison", group="experiments")
    compile: bool = flag(False, "compile blocks of the UNet by torch.compile: slow first steps, other "
                                "rounding; see docs/performance.md", group="speed")
    latent_variants: int = flag(25, "encode this many augmented variants of each image once and cache "
                                    "them in latents/ beside the run; epoch e trains on variant e mod N; "
                                    "0: encode at every step, with no variant repeated", group="speed",
                                minimum=0, maximum=10**6)
    plan: str | None = flag(None, "only print the memory and time that this training takes, here or on a "
                                  "named GPU (--plan T4); nothing is loaded or trained", group="speed",
                            bare="here", common=True)
    json: bool = flag(False, "print the --plan as one JSON object", group="speed")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="speed")
    workers: int = flag(0, "processes that prepare images; 0: a thread, two batches ahead", group="speed",
                        minimum=0, maximum=256)

    def __post_init__(self) -> None:
        """Raises UserError for flags that contradict each other."""
        rate_factor(self, epoch=0)
        if not self.normalize_to_neg1_pos1:
            raise UserError("--no-normalize-to-neg1-pos1: the VAE takes images in [-1,1]; omit the flag (it "
                            "is for other users of the data loader)")
        if self.json and self.plan is None:
            raise UserError("--json: only with --plan; a run's own numbers are in metrics.jsonl")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise UserError("--tensorboard: not installed; pip install tensorboard, or omit the flag "
                            "(metrics.jsonl has the same numbers)")
        if self.checkpointing == "lean" and not self.fast:
            raise UserError("--checkpointing lean: one of the shortcuts that --no-fast turns off; give none "
                            "or full")

    def check_guidance(self, has_null: bool) -> None:
        """Raises UserError where previews are guided but there is no null context."""
        if self.preview_guidance != 1 and not has_null:
            raise UserError(f"--preview-guidance {self.preview_guidance:g}, given or of --preset "
                            f"{self.preset}: without --class-dropout (such as 0.1) there is no null class to "
                            "guide from; use 1")


@dataclass
class TrainConfig(RunConfig):
    """The flags of a run that trains LoRA and class embedding."""

    lr: float = changed(RunConfig, "lr", 1e-4, help="learning rate of AdamW; 0 leaves the LoRA without "
                        "effect, for --embedding-lr alone", above=None, minimum=0)
    rank: int = flag(16, "LoRA rank", group="quality", minimum=1, maximum=1280)
    alpha: float = flag(32.0, "LoRA alpha; the update is scaled by alpha / rank", group="quality", above=0)
    dropout: float = flag(0.1, "share of the LoRA's input that is dropped", group="quality", minimum=0,
                         maximum=0.99)
    init_lora: str | None = flag(None, "LoRA file to start from, as written by diffusers, peft or kohya, "
                                 "with layers that are trained here and at most --rank", group="experiments")
    context: str = flag("class", "what tells the UNet the damage type: a row of a trained table (the "
                        "recipe), or --prompt with a trained word in it, read by the base's text encoder",
                        group="experiments", choices=("class", "prompt"))
    prompt: str = flag(PROMPT, "text for --context prompt; {damage} becomes the trained word, {product} the "
                       "product's name", group="experiments")
    tokens_per_class: int = flag(1, "context tokens a class (with --context prompt: vectors a word); with "
                                 "1, the recipe's value, the LoRA of to_q and to_k in cross-attention has no "
                                 "effect",
                                 group="quality", minimum=1, maximum=77, common=True)
    init_std: float = flag(0.02, "standard deviation of the class table at the start", group="experiments",
                           above=0)
    embedding_lr: float | None = flag(None, "learning rate of the class embedding (default: --lr); 0 leaves "
                                            "it as it starts", group="quality", minimum=0)

    @property
    def embedding_rate(self) -> float:
        """The class embedding's learning rate before any decay."""
        return self.lr if self.embedding_lr is None else self.embedding_lr

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_guidance(self.class_dropout > 0 or self.context == "prompt")  # CLIP has its empty prompt
        if self.prompt != PROMPT and self.context != "prompt":
            raise UserError("--prompt: nothing reads it without --context prompt; give that too")
        if self.lr == self.embedding_rate == 0:
            raise UserError("--lr 0: nothing would be trained; give --embedding-lr as well")


def product_name(config: RunConfig) -> str:
    """The name of a single product: --product-classes, or the last part of --data."""
    return config.product_classes[0] if config.product_classes else _name(config.data[0])


def _name(data: str) -> str:
    """The last part of --data, or of .../bottle/image the part before."""
    folder = Path(data).expanduser().resolve()
    return product_root(str(folder)).name if folder.is_dir() else folder.name


def run_folder(out: str, data: list[str], strategy: str) -> Path:
    """--out, or runs/<last part of --data>-<strategy>."""
    return Path(out or f"runs/{_name(data[0])}-{strategy}")


def rate_factor(config: RunConfig, epoch: int) -> float:
    """The factor on all learning rates in `epoch` (from 0): by default 1, 0.5 from 100 on, 0.2 from 175 on.

    Raises UserError where --lr-decay is not EPOCH=FACTOR.
    """
    reached = [decay for decay in map(_decay, config.lr_decay) if decay[0] <= epoch]
    return max(reached)[1] if reached else 1.0


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
