"""The calls that a converter is checked with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

OpOverload = torch._ops.OpOverload


@dataclass(frozen=True)
class Sample:
    """One call of the operator, with tensors of the CPU.

    Attributes:
        args: its positional arguments
        kwargs: its named arguments
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def on(self, device: str) -> Sample:
        """The same with copies of its tensors on another device."""
        moved = tree_map(
            lambda value: value.clone().to(device) if isinstance(value, Tensor) else value, (self.args, self.kwargs)
        )
        return Sample(*moved)

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors, in order, those in lists too."""
        return [leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, Tensor)]

    def call_with_tensors(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the call's tensors alone, all else as in the call, whose own tensors it does not hold: Dynamo would see them."""
        leaves, spec = tree_flatten((self.args, self.kwargs))
        places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def call(*tensors: Tensor) -> Any:
            given = list(others)
            for at, tensor in zip(places, tensors):
                given[at] = tensor
            args, kwargs = tree_unflatten(given, spec)
            return function(*args, **kwargs)

        return call

    @property
    def form(self) -> str:
        """Equal for samples that differ in the sizes and values of their tensors alone: one dynamic graph serves them."""
        described = tree_map(
            lambda value: (value.dtype, value.dim()) if isinstance(value, Tensor) else value, (self.args, self.kwargs)
        )
        return repr(described)

    def __str__(self) -> str:
        """As a call is written: "(float16[4, 8], scale=float32[4])"."""
        given = [_word(value) for value in self.args]
        given += [f"{name}={_word(value)}" for name, value in self.kwargs.items()]
        return f"({', '.join(given)})"


def as_samples(samples: Iterable[Any]) -> list[Sample]:
    """Samples from `Sample`s or tuples of positional arguments. Raises ValueError if there is none, TypeError for anything else."""
    made = []
    for position, sample in enumerate(samples):
        if isinstance(sample, Sample):
            made.append(sample)
        elif isinstance(sample, (tuple, list)):
            made.append(Sample(tuple(sample)))
        else:
            raise TypeError(
                f"samples: number {position} must be a Sample or a tuple of arguments, got {type(sample).__name__}"
            )
    if not made:
        raise ValueError("samples: at least one call is needed")
    return made


def never_given(operator: OpOverload, samples: Sequence[Sample]) -> list[str]:
    """The arguments with a default that no sample gives another value."""
    arguments = operator._schema.arguments
    given: set[str] = set()
    for sample in samples:
        values = {**{argument.name: value for argument, value in zip(arguments, sample.args)}, **sample.kwargs}
        for argument in arguments:
            value = values.get(argument.name, argument.default_value)
            if isinstance(value, (Tensor, list, tuple)) or value != argument.default_value:
                given.add(argument.name)
    return [one.name for one in arguments if one.has_default_value() and one.name not in given]


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_word, value))}]"
    return repr(value)
