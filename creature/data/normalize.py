"""From pixels to a network's input, on the device. B batch, H W pixels."""

import torch
from torch import nn


class Normalize(nn.Module):
    """uint8 (B, 3, H, W) on any device -> float, scaled to [0, 1], minus the mean, over the deviation."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], channels_last: bool = True):
        super().__init__()
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(3, 1, 1)))
        self.register_buffer("shift", torch.tensor(mean).view(3, 1, 1) / torch.tensor(std).view(3, 1, 1))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalized pixels, in the memory layout that the backbone prefers."""
        return (pixels.float() * self.scale - self.shift).contiguous(memory_format=self.layout)
