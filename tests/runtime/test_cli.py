"""The command line: flags filled into a dataclass, mistakes in one line, and defaults that are the recipe."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from bases import command
from flag_example import Example, example

import sample
import train_class
from data import DataConfig
from runtime.cli import flag, parse
from runtime.errors import UserError
from training.config import RunConfig, TrainConfig, rate_factor, run_folder
from training.setup import make_optimizer


def test_defaults() -> None:
    assert example("--needed", "x") == Example("x", 3, 0.5, None, ["a", "b"], True, "up")
    first, second = example("--needed", "x"), example("--needed", "x")
    first.names.append("c")
    assert second.names == ["a", "b"]


def test_every_kind_of_flag() -> None:
    given = example("--needed", "", "--count", "9", "--rate", "1e-3", "--limit", "2", "--names", "c",
                    "--no-quick", "--way-to", "down")
    assert given == Example("", 9, 1e-3, 2, ["c"], False, "down")


MISTAKES = {
    "not given": ([], "required: --needed"),
    "unknown": (["--needed", "x", "--zzz", "1"], "unrecognized arguments: --zzz 1 (see"),
    "like a flag by its dashes": (["--needed", "x", "--cn", "1"], "unrecognized arguments: --cn 1 (see"),
    "abbreviated": (["--need", "x"], "unrecognized arguments: --need x; did you mean --needed?"),
    "misspelt": (["--needed", "x", "--cuont=2"], "--cuont=2; did you mean --count?"),
    "in other words": (["--needed", "x", "--perhaps-a-number", "2"], "did you mean --limit?"),
    "beginning with a dash": (["--needed", "x", "--names", "a", "-b"],
                              "-b; a value that begins with a dash is given as --flag=-value"),
    "without its flag": (["x"], "unrecognized arguments: x; did you mean --needed x?"),
    "no number": (["--needed", "x", "--count", "two"], "'two' is not a whole number"),
    "a fraction": (["--needed", "x", "--count", "1.5"], "whole number"),
    "too small": (["--needed", "x", "--count", "0"], "--count: 0 is too small: at least 1"),
    "negative": (["--needed", "x", "--count", "-1"], "too small"),
    "too large": (["--needed", "x", "--count", "10"], "at most 9"),
    "far too large": (["--needed", "x", "--count", "1" + "0" * 400], "at most 9"),
    "not above": (["--needed", "x", "--rate", "0"], "more than 0"),
    "not finite": (["--needed", "x", "--rate", "nan"], "finite"),
    "infinite": (["--needed", "x", "--rate", "inf"], "finite"),
    "no choice": (["--needed", "x", "--way-to", "left"], "--way-to"),
    "no value": (["--needed", "x", "--names"], "--names"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    argv, expected = MISTAKES[name]
    assert command(lambda: example(*argv)).failed_with(expected, "--help")


def test_help_of_every_kind_of_flag() -> None:
    out = command(lambda: example("--help")).out
    for text in ("a number of 100 % of things (default: 3)", "a switch (default: on)", "{up,down}",
                 "must be given\n", "perhaps a number (default: none)", "some names (default: a b)"):
        assert text in out


def test_words_without_a_flag() -> None:
    @dataclass
    class Words:
        """Two words and a flag that is called as a word of Python's."""

        action: str = flag(..., "what", choices=("go", "stop"), positional=True)
        place: str = flag(..., "where", positional=True)
        from_: str = flag("here", "whence")

    assert parse(Words, "", argv=["go", "there", "--from", "home"]) == Words("go", "there", "home")
    outcome = command(lambda: parse(Words, "", argv=["--help"]))
    assert outcome.out.startswith("usage: python script.py go|stop PLACE [flags]\n")
    assert command(lambda: parse(Words, "", argv=["run", "there"])).failed_with("'run'", "go")
    assert command(lambda: parse(Words, "", argv=["go"])).failed_with("PLACE")


def test_the_defaults_are_the_seeds_recipe() -> None:
    """data_config, training_config and its scheduler, number by number."""
    config = parse(train_class.Config, "", argv=["--data", "DS-MVTec/bottle"])
    assert config.resolution == 512 and config.normalize_to_neg1_pos1 and config.augment and config.seed == 42
    assert not config.load_masks and config.max_samples_per_damage_type is None
    assert config.dataset_sources == config.product_classes == config.damage_type_to_class_id == []
    assert (config.epochs, config.batch_size, config.accumulate, config.lr) == (250, 4, 1, 1e-4)
    assert config.embedding_lr is None and config.weight_decay == 0.01 and config.clip == config.ema == 0
    assert (config.rank, config.alpha, config.dropout, config.init_std) == (16, 32, 0.1, 0.02)
    assert (config.tokens_per_class, config.class_dropout, config.preview_steps) == (1, 0, 50)
    assert config.base == "stable-diffusion-v1-5/stable-diffusion-v1-5" and config.max_steps is None
    assert str(run_folder(config.out, config.data, "class")) == "runs/bottle-class"
    optimizer = make_optimizer(config, ([torch.nn.Parameter(torch.ones(1))], config.lr))
    assert all(group["betas"] == (0.9, 0.999) and group["weight_decay"] == 0.01 and group["lr"] == 1e-4
               for group in optimizer.param_groups)
    assert sample.Config("run").steps == 50 and sample.Config("run").sampler == "ddim"


def test_learning_rates_at_the_edges_of_the_recipe() -> None:
    config = TrainConfig(["x"])
    for epochs, rate in ((range(100), 1e-4), (range(100, 175), 5e-5), (range(175, 251), 2e-5)):
        assert {config.lr * rate_factor(config, epoch) for epoch in epochs} == {rate}


def test_other_learning_rates() -> None:
    config = TrainConfig(["x"], lr_decay=["9=0.1", "3=0.5", "20=0"])
    assert [rate_factor(config, epoch) for epoch in (0, 2, 3, 8, 9, 20)] == [1, 1, 0.5, 0.5, 0.1, 0]


@pytest.mark.parametrize("text", ["100", "100=", "=0.5", "100=x", "1.5=1", "-1=1", "1=-1", "1=nan", "1=inf",
                                  "1=2=3"])
def test_learning_rates_that_make_no_sense(text: str) -> None:
    with pytest.raises(UserError, match="EPOCH=FACTOR"):
        TrainConfig(["x"], lr_decay=[text])


@pytest.mark.parametrize(("flags", "expected"), [
    ({"prompt": "{damage}"}, "--prompt: nothing reads it without --context prompt"),
    ({"json": True}, "--json: only with --plan"), ({"lr": 0.0}, "--lr 0: nothing would be trained")])
def test_flags_that_would_do_nothing(flags: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        TrainConfig(["x"], **flags)


def test_every_data_flag_is_a_training_flag() -> None:
    assert issubclass(RunConfig, DataConfig) and issubclass(train_class.Config, RunConfig)
