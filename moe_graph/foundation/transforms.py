"""What torch's transforms ask of an operator's kernels: gradients, tangents (forward-mode AD) and batches (vmap).

torch.func runs one level after the other, and each level asks for the kernel of its key: Autograd for grad and jvp, FuncTorchBatched
for vmap. A kernel there sees the tensors of its own level only, so what is written here is the same with and without torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree


def _key(name: str) -> torch._C.DispatchKey:
    """A dispatch key, of which not all are attributes of torch._C.DispatchKey."""
    found = torch._C._parse_dispatch_key(name)
    if found is None:
        raise ValueError(f"torch {torch.__version__} has no dispatch key {name}")
    return found


_VMAP_KEYS = torch._C.DispatchKeySet(_key("FuncTorchBatched")) | torch._C.DispatchKeySet(_key("FuncTorchVmapMode"))
_OLDER_KEYS = torch._C.DispatchKeySet(_key("VmapMode"))
_OLDER_BATCH = _key("Batched")


def tensors(*values: Any) -> Iterator[Tensor]:
    """The tensors among values, those in lists and tuples too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(*value)


def is_differentiated(*values: Any) -> bool:
    """Is there a tensor whose gradient is to be recorded, or that carries a tangent? For a kernel under Autograd.

    A tensor with a tangent need not require a gradient, and carries it where gradients are not recorded too.
    """
    given = list(tensors(*values))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return True
    return any(has_tangent(tensor) for tensor in given)


def has_tangent(tensor: Tensor) -> bool:
    """Does forward-mode AD carry a tangent with the tensor? There is one level of it, 0; those of torch.func are apart."""
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return differentiable and torch._VF._unpack_dual(tensor, level=0).tangent is not None


def plain(tensor: Tensor) -> Tensor:
    """The tensor below all levels of torch.func: the values of every sample, without gradients."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor) or functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def record(function: Any, *args: Any) -> Any:
    """Apply a `compat.SingleLevelFunction` from a kernel under Autograd: torch.func, if it is at work, has set its level up already."""
    before = torch._C._functorch.get_single_level_autograd_function_allowed()
    torch._C._functorch.set_single_level_autograd_function_allowed(True)
    try:
        return function.apply(*args)
    finally:
        torch._C._functorch.set_single_level_autograd_function_allowed(before)


def with_modes(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` in the modes of now, for a recorded Function's forward: torch runs it with gradients and tangents switched off, and the
    levels of torch.func below this one have not recorded theirs yet."""
    gradients, tangents = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()

    def in_modes(*args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(gradients), forward_ad._set_fwd_grad_enabled(tangents):
            return call(*args, **kwargs)

    return in_modes


def seen_by_vmap() -> AbstractContextManager[Any]:
    """Inside, the older vmap's mode sees the calls again that come from below it: those of a Function's jvp, whose tangents are batched
    though what they belong to is not."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded - _OLDER_KEYS)


def below_autograd(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an operator from its kernel under Autograd, past that key."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args, **kwargs)


def finds_fallback(op: torch._ops.OpOverload, *given: Any) -> bool:
    """Is each tensor an ordinary one, with no mode, level of torch.func or kernel of somebody's own between it and the fallback?"""
    if torch._C._dispatch_tls_local_include_set().raw_repr() & _REDIRECTING:
        return False
    ordinary = all(is_ordinary(tensor) for tensor in tensors(*given))
    return ordinary and not torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CPU")


def is_ordinary(tensor: Tensor) -> bool:
    """Is it a tensor in host memory and nothing else: not sparse, wrapped, conjugated, fake or of a class that the dispatcher asks?"""
    return tensor.is_cpu and torch._C._dispatch_keys(tensor).raw_repr() in _ORDINARY


_REDIRECTING = 0
"""The dispatch keys that a thread has while a mode, a level of torch.func or a tracer sees its calls, as bits; some came with a torch."""
for _name in (
    *("Python", "PythonTLSSnapshot", "PythonDispatcher", "PreDispatch", "Functionalize", "Tracer", "DeferredInit"),
    *("FuncTorchDynamicLayerFrontMode", "FuncTorchDynamicLayerBackMode", "FuncTorchVmapMode", "VmapMode"),
    "TESTING_ONLY_GenericMode",
):
    if (_found := torch._C._parse_dispatch_key(_name)) is not None:
        _REDIRECTING |= torch._C.DispatchKeySet(_found).raw_repr()
with torch.inference_mode(False):
    _ORDINARY = {torch._C._dispatch_keys(torch.empty(0)).raw_repr()}
with torch.inference_mode():
    _ORDINARY.add(torch._C._dispatch_keys(torch.empty(0)).raw_repr())


def without_gradient(results: Any, inputs: Sequence[Any], why: Exception) -> Any:
    """Results of a call whose gradient is not served: they are there, and asking for their gradient is an error that says why.

    Raises NotImplementedError at once if an input carries a tangent, for that would be lost without a word.
    """
    message = f"this call has no gradient: {why}"
    if any(has_tangent(tensor) for tensor in tensors(*inputs)):
        raise NotImplementedError(message) from why
    leaves, spec = pytree.tree_flatten(results)
    marked = torch._C._functions.DelayedError(message.encode(), 1)
    delayed = [
        marked(leaf.detach().requires_grad_()) if leaf.is_floating_point() or leaf.is_complex() else leaf
        for leaf in leaves
    ]
    return pytree.tree_unflatten(delayed, spec)


@dataclass(frozen=True)
class Batch:
    """The batch of one level of vmap: its size, and which of the call's tensors have it, as their dimension 0."""

    size: int
    members: frozenset[int]

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self.members

    def has(self, *values: Any) -> bool:
        """Is one of the tensors among values in the batch?"""
        return any(tensor in self for tensor in tensors(*values))

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor with the batch as its dimension 0, repeated if it is the same for all."""
        return tensor if tensor in self else tensor.expand(self.size, *tensor.shape)


Rule = Callable[..., tuple[Any, Any]]
"""rule(batch, *args, **kwargs) -> results, and of each result whether it has the batch as its dimension 0 (in the results' structure)."""


def vmap_kernels(schema: str, op: Callable[[], Callable[..., Any]], rule: Rule) -> dict[str, Callable[..., Any]]:
    """Dispatch key -> kernel, of an operator that `rule` takes through vmap. `op()` is the operator now in force.

    FuncTorchBatched is torch.vmap's key. The dispatcher does not look into optional lists of tensors, so a batch that is there alone
    is found under FuncTorchVmapMode, which holds whatever is given. Batched and VmapMode are the same of the older vmap, by which
    torch.autograd.grad with is_grads_batched and the vectorized functions of torch.autograd.functional still work.
    """
    kernels = {"FuncTorchBatched": _kernel(op, rule, _Level), "Batched": _kernel(op, rule, _OlderLevel)}
    if "Tensor[]?" in schema:
        kernels.update({"FuncTorchVmapMode": kernels["FuncTorchBatched"], "VmapMode": kernels["Batched"]})
    return kernels


def _kernel(op: Callable[[], Callable[..., Any]], rule: Rule, make_level: Callable[[], Any]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        level = make_level()
        leaves, spec = pytree.tree_flatten((args, kwargs))
        with level.below():
            found = [level.unwrap(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]
            plain = [leaf if inner is None else inner for leaf, inner in zip(leaves, found)]
            args, kwargs = pytree.tree_unflatten(plain, spec)
            members = [inner for inner in found if inner is not None]
            if not members:
                return op()(*args, **kwargs)
            size = members[0].shape[0]
            results, have_batch = rule(Batch(size, frozenset(map(id, members))), *args, **kwargs)
        results, spec = pytree.tree_flatten(results)
        flags = pytree.tree_flatten(have_batch)[0]
        return pytree.tree_unflatten([level.wrap(x) if flag else x for x, flag in zip(results, flags)], spec)

    return kernel


class _Level:
    """The level of torch.vmap that is at work."""

    def __init__(self) -> None:
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

        self._number = retrieve_current_functorch_interpreter().level()

    def below(self) -> AbstractContextManager[Any]:
        """Operators called inside go to the next level."""
        return torch._C._ExcludeDispatchKeyGuard(_VMAP_KEYS)

    def unwrap(self, tensor: Tensor) -> Tensor | None:
        """The tensor with the batch as its dimension 0; None if it has none of this level."""
        inner, dim = torch._C._functorch._unwrap_batched(tensor, self._number)
        return None if dim is None else inner.movedim(dim, 0)

    def wrap(self, tensor: Tensor) -> Tensor:
        """The way back."""
        return torch._C._functorch._add_batch_dim(tensor, 0, self._number)


class _OlderLevel:
    """The level of torch._vmap_internals that is at work."""

    def __init__(self) -> None:
        self._number = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()

    def below(self) -> AbstractContextManager[Any]:
        """As `_Level.below`."""
        return torch._C._ExcludeDispatchKeyGuard(_OLDER_KEYS)

    def unwrap(self, tensor: Tensor) -> Tensor | None:
        """As `_Level.unwrap`."""
        if not torch._C._dispatch_keys(tensor).has(_OLDER_BATCH):
            return None
        return torch._remove_batch_dim(tensor, self._number, 1, 0)

    def wrap(self, tensor: Tensor) -> Tensor:
        """As `_Level.wrap`. Tangents are laid out like what they belong to, which this vmap can do for whole samples in a row."""
        return torch._add_batch_dim(tensor.contiguous(), 0, self._number)


def each_sample(op: Callable[[], Callable[..., Any]]) -> Rule:
    """The rule of last resort: the operator on each sample, the results stacked."""

    def rule(batch: Batch, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        found = []
        for index in range(batch.size):
            sample = [leaf[index] if leaf in batch else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(sample, spec)
            found.append(pytree.tree_flatten(op()(*args, **kwargs)))
        stacked = [torch.stack(each) for each in zip(*(results for results, _ in found))]
        of_results = found[0][1]
        return pytree.tree_unflatten(stacked, of_results), pytree.tree_unflatten([True] * len(stacked), of_results)

    return rule
