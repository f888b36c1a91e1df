"""A small model in the published layout, for the tests that load one."""

from __future__ import annotations

from pathlib import Path

import published
import pytest
from published import SMALL_UNET, SMALL_VAE, config_of

from sd.pretrained import weights
from sd.pretrained.components import AUTOENCODER, UNET
from sd.unet import UNetConfig
from sd.vae import VAEConfig


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write_model(tmp_path_factory.mktemp("base"))


@pytest.fixture()
def small_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Original files have no config.json and are taken for SD 1.5: here, for the small models."""
    monkeypatch.setattr(weights, "UNET", UNET._replace(config=config_of(UNetConfig, SMALL_UNET)))
    monkeypatch.setattr(weights, "AUTOENCODER", AUTOENCODER._replace(config=config_of(VAEConfig, SMALL_VAE)))
