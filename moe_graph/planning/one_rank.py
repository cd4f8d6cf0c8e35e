"""`run --world N --rank R`: a program of torch.distributed as one rank of N, alone, with tensors that have a shape and no values.

Numbers that follow from numbers of the program are known (counts in small whole-number tensors, made by hand and by what computes on
them), and so are counts of tokens, by the distribution that is given: what the routing of this rank's tokens counts, and what an AlltoAll
of such counts brings. Any other value is an error that names what was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from moe_graph.planning import communication, fakes, lowering, routing, traffic
from moe_graph.simulator.communication import lone_rank
from moe_graph.simulator.runtime import launches

MOST = 1 << 16  # elements of a tensor whose numbers are kept
_READS = "aten::_local_scalar_dense"


class ValueUnknown(RuntimeError):
    """A value was read that no rank alone can know."""


class Counts:
    """Numbers of a small tensor on this rank; of counts of tokens also what the other ranks have in their place."""

    def __init__(self, mine: Tensor, every: Tensor | None = None) -> None:
        self.mine, self.every = mine, every


# Of these every rank's result follows from every rank's operand: they have no argument that could differ from rank to rank.
_SAME_ON_ALL = frozenset(
    "view reshape _unsafe_view clone _to_copy to contiguous alias detach squeeze unsqueeze flatten sum cumsum".split()
)


class Alone(TorchDispatchMode):
    """Above the fake mode: keeps the numbers that are known, and answers reads of them."""

    def __init__(self, tokens: str) -> None:
        super().__init__()
        self._tokens = tokens
        self._known: Any = WeakIdKeyDictionary()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Dynamo compiles under it: it changes no result."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name == _READS and TracingContext.try_get() is None:
            return self._read(args[0])
        result = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload) and TracingContext.try_get() is None:
            self._keep(func, args, kwargs, result)
        return result

    def _read(self, tensor: Tensor) -> Any:
        known = self._known.get(tensor)
        if known is None:
            raise ValueUnknown(
                f"{launches.user_line()} reads a value of a tensor {tensor.dtype} {tuple(tensor.shape)}: one rank of many runs with shapes "
                "only. Known are numbers that the program makes itself, and counts of tokens by the distribution (--tokens)"
            )
        with unset_fake_temporarily():
            return known.mine.item()

    def _keep(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        for value in traffic.written_to(func, args, kwargs):
            self._overwritten(value)
        name = func._schema.name.partition("::")[2]
        routed = communication.routed(func, args, kwargs, result)
        if routed:
            self._keep_counts(routed[0], result)
        else:
            self._compute(func, name, args, kwargs, result)

    def _overwritten(self, value: Tensor) -> None:
        """Forget a tensor and all that lie in its memory."""
        memory = value.untyped_storage()._cdata
        for other in [other for other in self._known if other.untyped_storage()._cdata == memory]:
            del self._known[other]

    def _keep_counts(self, one: communication.Routed, result: Any) -> None:
        counts = routing.distribution(self._tokens, one.ranks, one.experts, one.tokens, one.top_k)
        for tensor in traffic.tensors(result):
            if tuple(tensor.shape) == (one.experts,) and not tensor.dtype.is_floating_point:
                with unset_fake_temporarily():
                    every = torch.from_numpy(counts).to(tensor.dtype)
                    self._known[tensor] = Counts(every[dist.get_rank()] if one.ranks > 1 else every[0], every)

    def exchanged(self, group: dist.ProcessGroup, output: Tensor, given: Tensor, uneven: bool) -> None:
        """Equal parts of counts, among all ranks: part r comes from rank r."""
        known = self._known.get(given)
        self._overwritten(output)
        size, rank = dist.get_world_size(), dist.get_rank()
        if (
            known is None
            or known.every is None
            or uneven
            or group.size() != size
            or output.numel() != known.mine.numel()
        ):
            return
        with unset_fake_temporarily():
            parts = known.every.reshape(size, size, -1)  # [from, to, part]
            every = parts.transpose(0, 1).reshape(size, *output.shape)
            self._known[output] = Counts(every[rank], every)

    def _compute(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        results = traffic.tensors(result)
        operands = traffic.tensors((args, kwargs))
        small = all(value.numel() <= MOST for value in (*results, *operands))
        known = all(value in self._known or not isinstance(value, FakeTensor) for value in operands)
        if not results or not small or not known or torch.Tag.nondeterministic_seeded in func.tags:
            return
        if name.startswith(("empty", "new_empty")) or (not operands and results[0].dtype.is_floating_point):
            return
        with unset_fake_temporarily(), _disable_current_modes():
            mine = self._call(func, args, kwargs, lambda known: known.mine)
            every: list[Any] = [None] * len(mine)
            followed = [getattr(self._known.get(value), "every", None) for value in operands]
            if operands and name in _SAME_ON_ALL and all(one is not None for one in followed):
                ranks = range(len(followed[0]))
                calls = [self._call(func, args, kwargs, lambda known, at=at: known.every[at]) for at in ranks]
                every = [torch.stack(values) for values in zip(*calls)]
        for made, own, others in zip(results, mine, every):
            self._known[made] = Counts(own, others)

    def _call(self, func: Any, args: Any, kwargs: Any, pick: Any) -> list[Tensor]:
        def real(value: Any) -> Any:
            if isinstance(value, FakeTensor):
                return pick(self._known[value])
            return torch.device("cpu") if isinstance(value, torch.device) else value

        return traffic.tensors(func(*tree_map(real, args), **tree_map(real, kwargs)))


@contextmanager
def alone(
    world: int, rank: int, tokens: str = routing.UNIFORM, dump: str | None = None
) -> Iterator[list[lowering.LoweredGraph]]:
    """Inside the block the program is `rank` of `world`, and every tensor that it makes has a shape and no values.

    Gives the graphs that torchair lowers. `tokens`: the distribution of tokens over experts (`moe_graph.planning.routing`).
    """
    graphs: list[lowering.LoweredGraph] = []
    mode = fakes.fake_mode()
    numbers = Alone(tokens)
    lone_rank.exchange_observers.append(numbers.exchanged)
    try:
        with lone_rank.alone(world, rank), lowering.recorded(graphs, dump), mode, numbers:
            yield graphs
    finally:
        lone_rank.exchange_observers.remove(numbers.exchanged)
