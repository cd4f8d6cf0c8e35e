"""Random numbers. The operators are stateless: equal seeds and offsets give equal numbers.

The numbers come from the CPU's generator of torch, started from the seeds and offsets that the operator is given. They differ from
those the device's generator draws from the same seeds; distribution, shape and dtype are the same.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from moe_graph.engine.dtypes import GeType
from moe_graph.engine.registry import kernel

_FLOAT, _INT64 = 0, 9  # GE's numbers of DT_FLOAT and DT_INT64
_MASK_BITS = 128  # a mask of bits is filled up to a multiple of these


def _generator(*numbers: Tensor | None) -> torch.Generator:
    """A generator whose stream depends on these numbers only.

    They are hashed: torch's generator takes 32 bits of its seed, and neighbouring offsets must not give related streams.
    """
    words = [number for tensor in numbers if tensor is not None for number in tensor.reshape(-1).tolist()]
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _seeded(seed: Tensor, offset: Tensor) -> torch.Generator:
    """The generator of a seed and an offset; seed -1 with offset 0 asks for a stream that no other run repeats."""
    if seed.item() == -1 and offset.item() == 0:
        generator = torch.Generator()
        generator.seed()
        return generator
    return _generator(seed, offset)


def _bernoulli(shape: Tensor, prob: Tensor, generator: torch.Generator) -> Tensor:
    return torch.bernoulli(prob.double().expand(shape.tolist()), generator=generator)


@kernel("StatelessRandomUniformV2")
def stateless_random_uniform_v2(
    shape: Tensor, key: Tensor, counter: Tensor, alg: Tensor, *, dtype: GeType = _FLOAT
) -> Tensor:
    """GE StatelessRandomUniformV2: numbers evenly from [0, 1). alg names the device's generator, the host has one for all."""
    return torch.rand(shape.tolist(), generator=_generator(key, counter), dtype=dtype.torch)


@kernel("StatelessRandomNormalV2")
def stateless_random_normal_v2(
    shape: Tensor, key: Tensor, counter: Tensor, alg: Tensor, *, dtype: GeType = _FLOAT
) -> Tensor:
    """GE StatelessRandomNormalV2: normal numbers of mean 0 and deviation 1. alg names the device's generator, the host has one."""
    return torch.randn(shape.tolist(), generator=_generator(key, counter), dtype=dtype.torch)


@kernel("StatelessBernoulli")
def stateless_bernoulli(shape: Tensor, prob: Tensor, seed: Tensor, offset: Tensor, *, dtype: GeType = _FLOAT) -> Tensor:
    """GE StatelessBernoulli: 1 with probability prob (of one element, or one for each), else 0."""
    return _bernoulli(shape, prob, _seeded(seed, offset)).to(dtype.torch)


@kernel("StatelessRandperm")
def stateless_randperm(n: Tensor, seed: Tensor, offset: Tensor, *, layout: int = 0, dtype: GeType = _INT64) -> Tensor:
    """GE StatelessRandperm: 0 to n - 1 in random order. layout is torch's strided layout, whatever its number."""
    return torch.randperm(int(n), generator=_seeded(seed, offset), dtype=dtype.torch)


@kernel("MultinomialWithReplacement")
def multinomial_with_replacement(
    x: Tensor, seed: Tensor, offset: Tensor, *, numsamples: int, replacement: bool = False
) -> Tensor:
    """GE MultinomialWithReplacement: numsamples places of each row of the weights x, [numsamples] or [rows, numsamples].

    In spite of its name a place is drawn again only with the attribute replacement, as the definition says.
    """
    weights = x.float() if x.dtype == torch.float16 else x  # up to torch 2.2 the CPU has no kernel for float16
    return torch.multinomial(weights, numsamples, replacement, generator=_seeded(seed, offset))


@kernel("StatelessDropOutGenMask")
def stateless_drop_out_gen_mask(
    shape: Tensor, prob: Tensor, seed: Tensor, seed1: Tensor, offset: Tensor | None = None
) -> Tensor:
    """GE StatelessDropOutGenMask: a bit for each element, 1 with probability prob, eight to a byte from the lowest on, filled up
    with zeros to a multiple of 128 bits: uint8 [bytes]."""
    count = math.prod(shape.tolist())
    bits = torch.zeros(-(-count // _MASK_BITS) * _MASK_BITS, dtype=torch.uint8)
    bits[:count] = _bernoulli(torch.tensor([count]), prob.reshape(()), _generator(seed, seed1, offset)).to(torch.uint8)
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


@kernel("DropOutDoMask")
def drop_out_do_mask(x: Tensor, mask: Tensor, keep_prob: Tensor) -> Tensor:
    """GE DropOutDoMask: x / keep_prob where the mask of StatelessDropOutGenMask has a 1, else 0; all 0 if keep_prob is 0."""
    bits = (mask.reshape(-1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    if bits.numel() < x.numel():
        raise ValueError(f"mask must have a bit for each of {x.numel()} elements, got {bits.numel()}")
    kept = bits.view(-1)[: x.numel()].view(x.shape).bool()
    probability = keep_prob.reshape(()).to(x.dtype)
    return torch.where(kept & (probability != 0), x / probability, torch.zeros((), dtype=x.dtype))
