"""Batch normalisation of few channels."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from msh.compat import is_transformed

VECTOR = 16  # 32-bit numbers per cache line, and per vector instruction
LEAST = 32_768  # numbers in a batch; with fewer, torch's single operation is as fast
MOST = 48  # channels; with more, torch's operation is as fast. On one thread no line is shared: MOST is VECTOR then


class NarrowBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that trains faster on a CPU when few channels lie last in memory.

    In that format torch's threads add up each channel's statistics in neighbouring numbers. When the channels do not
    fill whole cache lines, threads write to the same line, and vectors are partly empty. Here the channels of 16 pixels
    are one row, which always fills its vectors. Results are equal to within rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.BatchNorm2d`."""
        if not self.training or torch.compiler.is_compiling() or is_transformed() or not _pays(input):
            return super().forward(input)
        normalised, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)
        return cast(Tensor, normalised)


class _Normalise(Function):
    """Normalise images by their batch's statistics, then scale and shift them.

    Returns:
        The images; the channels' means and unbiased variances, each (channels,).
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels, normalised = images.shape[1], torch.empty_like(images)
        rows, pixels = _rows(images), images.numel() // channels
        mean = _total(rows, channels) / pixels
        centred = torch.sub(rows, mean.repeat(VECTOR), out=_rows(normalised))
        variance = _total(centred.square(), channels) / pixels
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(images, weight, mean, scale)
        ctx.eps = eps
        centred *= (scale if weight is None else scale * weight).repeat(VECTOR)
        if bias is not None:
            centred += bias.repeat(VECTOR)
        unbiased = variance * (pixels / (pixels - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return normalised, mean, unbiased

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        images, weight, mean, scale = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # for gradients of gradients
            of_torch = torch.ops.aten.native_batch_norm_backward
            return *of_torch(gradient, images, weight, None, None, mean, scale, True, ctx.eps, needed), None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_images = torch.empty_like(images)
        rows, channels = _rows(gradient), len(mean)
        pixels = images.numel() // channels
        centred = torch.sub(_rows(images), mean.repeat(VECTOR), out=_rows(of_images))
        of_bias, of_weight = _total(rows, channels), _total(rows * centred, channels) * scale
        factor = scale if weight is None else scale * weight
        centred *= (factor * scale * of_weight / -pixels).repeat(VECTOR)
        centred += (factor * of_bias / -pixels).repeat(VECTOR)
        centred.addcmul_(rows, factor.repeat(VECTOR))
        return of_images, of_weight if needed[1] else None, of_bias if needed[2] else None, None


def _pays(input: Tensor) -> bool:
    """Return True for images, 32-bit floats, of few channels that lie last in memory and fill no whole vectors."""
    if input.dim() != 4 or input.device.type != "cpu" or input.dtype != torch.float32 or input.numel() < LEAST:
        return False
    channels, most = input.shape[1], MOST if torch.get_num_threads() > 1 else VECTOR
    if channels > most or channels % VECTOR == 0 or input.numel() // channels % VECTOR:
        return False
    return input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()


def _rows(images: Tensor) -> Tensor:
    """View images (batch, channels, height, width), channels last, as rows (pixels / 16, 16 x channels)."""
    return images.permute(0, 2, 3, 1).view(-1, VECTOR * images.shape[1])


def _total(rows: Tensor, channels: int) -> Tensor:
    """Add up rows over all pixels: (channels,)."""
    return rows.sum(0).view(VECTOR, channels).sum(0)
