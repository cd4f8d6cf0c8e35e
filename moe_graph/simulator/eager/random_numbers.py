"""Random numbers of NPU tensors: the NPU generator's seed and offset decide, a CPU generator draws."""

from __future__ import annotations

import threading
from typing import Any

import torch

_OFFSET_STEP = 4  # an NPU kernel moves the Philox offset on in multiples of 4
_default_generator_lock = threading.Lock()


def generator_position(overload: torch._ops.OpOverload) -> int | None:
    """Which argument is the generator; None if there is none."""
    for position, argument in enumerate(overload._schema.arguments):
        if argument.name == "generator":
            return position
    return None


def cpu_generator(given: torch.Generator | None, device: torch.device) -> torch.Generator:
    """A CPU generator for one call, seeded by the state of the NPU's, which moves on. A CPU generator is taken as it is."""
    source = given if given is not None else torch.npu.default_generators[device.index or 0]
    if source.device.type == "cpu":
        return source
    return seeded(*advance(source))


def advance(source: torch.Generator) -> tuple[int, int]:
    """(seed, Philox offset) of an NPU generator, which moves on. While its stream is captured the offset is the capture's, from 0 on."""
    state = source.get_state()
    seed, offset = state.view(torch.int64).tolist()
    state.view(torch.int64)[1] = offset + _OFFSET_STEP
    source.set_state(state)
    return seed, offset


def seeded(seed: int, offset: int) -> torch.Generator:
    """The CPU generator that stands for a seed and an offset of the NPU's."""
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + offset) & (2**63 - 1))


def draw(function, args: list, kwargs: dict[str, Any], position: int | None, generator: torch.Generator) -> Any:
    """Call the CPU's kernel with this generator, by argument or, where it has none (dropout), in place of the default one."""
    if position is None:
        with _default_generator_lock, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            return function(*args, **kwargs)
    if position < len(args):
        return function(*args[:position], generator, *args[position + 1 :], **kwargs)
    return function(*args, **{**kwargs, "generator": generator})
