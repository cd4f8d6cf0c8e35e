"""Random numbers. The state that a node is fed (key and counter, or seed and offset) decides them, so equal states repeat them.

They are drawn by PyTorch's CPU generator: distribution, shape and dtype are the device's, the numbers themselves are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.registry import kernel

_FLOAT, _INT64 = 0, 9  # of GE's enum
_MASK_ALIGNMENT = 128  # bits


def _generator(*state: Tensor | None) -> torch.Generator:
    seed = 0
    for number in (number for part in state if part is not None for number in part.reshape(-1).tolist()):
        seed = (seed * 0x9E3779B97F4A7C15 + int(number) + 1) & (2**63 - 1)
    return torch.Generator().manual_seed(seed)


@kernel("StatelessRandomUniformV2")
def stateless_random_uniform_v2(
    shape: Tensor, key: Tensor, counter: Tensor, alg: Tensor, *, dtype: GeType = _FLOAT
) -> Tensor:
    """GE StatelessRandomUniformV2: numbers from 0 (included) to 1, equally likely. alg names the device's algorithm."""
    return torch.rand(shape.tolist(), generator=_generator(key, counter), dtype=dtype.torch)


@kernel("StatelessRandomNormalV2")
def stateless_random_normal_v2(
    shape: Tensor, key: Tensor, counter: Tensor, alg: Tensor, *, dtype: GeType = _FLOAT
) -> Tensor:
    """GE StatelessRandomNormalV2: numbers of the standard normal distribution. alg names the device's algorithm."""
    return torch.randn(shape.tolist(), generator=_generator(key, counter), dtype=dtype.torch)


@kernel("StatelessBernoulli")
def stateless_bernoulli(shape: Tensor, prob: Tensor, seed: Tensor, offset: Tensor, *, dtype: GeType = _FLOAT) -> Tensor:
    """GE StatelessBernoulli: 1 with probability prob (one element, or one for each), else 0."""
    drawn = torch.rand(shape.tolist(), generator=_generator(seed, offset), dtype=torch.float64)
    return (drawn < prob.double()).to(dtype.torch)


@kernel("StatelessRandperm")
def stateless_randperm(n: Tensor, seed: Tensor, offset: Tensor, *, layout: int = 0, dtype: GeType = _INT64) -> Tensor:
    """GE StatelessRandperm: the numbers 0 to n - 1 in random order."""
    return torch.randperm(int(n), generator=_generator(seed, offset)).to(dtype.torch)


@kernel("MultinomialWithReplacement")
def multinomial_with_replacement(
    x: Tensor, seed: Tensor, offset: Tensor, *, numsamples: int, replacement: bool = False
) -> Tensor:
    """GE MultinomialWithReplacement: numsamples places of the last dimension, likely as the weights x say, with or without putting back."""
    return torch.multinomial(x.float(), numsamples, replacement, generator=_generator(seed, offset))


@kernel("StatelessDropOutGenMask")
def stateless_drop_out_gen_mask(
    shape: Tensor, prob: Tensor, seed: Tensor, seed1: Tensor, offset: Tensor | None = None
) -> Tensor:
    """GE StatelessDropOutGenMask: a bit for each element of shape, 1 with probability prob, packed low bit first into uint8.

    The bits are rounded up to a multiple of 128.
    """
    count = int(shape.prod()) if shape.numel() else 1
    bits = torch.zeros(-(-count // _MASK_ALIGNMENT) * _MASK_ALIGNMENT, dtype=torch.uint8)
    drawn = torch.rand(count, generator=_generator(seed, seed1, offset), dtype=torch.float64)
    bits[:count] = drawn < prob.double()
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


@kernel("DropOutDoMask")
def drop_out_do_mask(x: Tensor, mask: Tensor, keep_prob: Tensor) -> Tensor:
    """GE DropOutDoMask: x / keep_prob where the mask's bit is 1 (packed low bit first), else 0."""
    bits = (mask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    kept = bits.reshape(-1)[: x.numel()].view(x.shape).bool()
    return torch.where(kept, x / keep_prob.to(x.dtype), torch.zeros_like(x))
