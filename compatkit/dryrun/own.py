"""Classes for models that no library has one for. Written from what their makers published of the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Squash(nn.Module):  # type: ignore[misc]
    """Brings latents softly into -3 … 3."""

    def forward(self, x: Any) -> Any:
        """Any shape."""
        return torch.tanh(x / 3) * 3


class Residual(nn.Module):  # type: ignore[misc]
    """Three convolutions around a shortcut; `pooled` adds a norm over the whole picture before them."""

    def __init__(self, width: int, pooled: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        wide = 4 * width
        self.pool = None
        if pooled:
            first, last = nn.Conv2d(width, wide, 1, bias=False), nn.Conv2d(wide, width, 1, bias=False)
            self.pool = nn.Sequential(first, nn.GroupNorm(4, wide), nn.ReLU(), last)

    def forward(self, x: Any) -> Any:
        """[batch, width, height, width of the picture]."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class TinyAutoencoder(nn.Module):  # type: ignore[misc]
    """The tiny autoencoders whose layers are two plain sequences, with or without pooled blocks in the middle.

    Source: github madebyollin/taesd (MIT), taesd.py. Pictures are -1 … 1 on the outside.
    """

    def __init__(
        self, latent_channels: int, encoder: bool = True, decoder: bool = True, pooled: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        if encoder:
            self.taesd_encoder = nn.Sequential(*_down(latent_channels, width, pooled))
        if decoder:
            self.taesd_decoder = nn.Sequential(*_up(latent_channels, width, pooled))

    def encode(self, x: Any) -> Any:
        """[1, 3, 8 h, 8 w] -> [1, latent_channels, h, w]."""
        return self.taesd_encoder(x / 2 + 0.5)

    def decode(self, z: Any) -> Any:
        """[1, latent_channels, h, w] -> [1, 3, 8 h, 8 w]."""
        return self.taesd_decoder(z) * 2 - 1


def _down(latent: int, width: int, pooled: bool) -> list[nn.Module]:
    out: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Residual(width)]
    for stage in range(3):
        out.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        out += [Residual(width, pooled and stage == 2) for _ in range(3)]
    return [*out, nn.Conv2d(width, latent, 3, padding=1)]


def _up(latent: int, width: int, pooled: bool) -> list[nn.Module]:
    out: list[nn.Module] = [Squash(), nn.Conv2d(latent, width, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        out += [Residual(width, pooled and stage == 0) for _ in range(3)]
        out += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return [*out, Residual(width), nn.Conv2d(width, 3, 3, padding=1)]
