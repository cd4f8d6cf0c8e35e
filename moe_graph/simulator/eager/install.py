"""Eager operators on NPU tensors, by the CPU's kernels.

Every operator that torch_npu registers for its device is served: those of aten by the CPU's kernel, torch_npu's own by the functions
of `moe_graph.operators`. A kernel is made at the first call of its operator, the start only puts its name down. What stays
torch_npu's own, and other exceptions: `eager_operators`. Operators that torch_npu does not register go on the way they go on an NPU:
composed of others, or by torch_npu's own fallback to the CPU, with its warning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch._guards import detect_fake_mode

from moe_graph.foundation import compat, survey, transforms
from moe_graph.operators import not_served
from moe_graph.simulator.eager import packed_sequences, plain_calls, quantized, record, sparse, stand_in
from moe_graph.simulator.eager.call import Operator, with_tensors
from moe_graph.simulator.eager.exceptions import (
    COMPOSED,
    COMPOSED_BUT_TRACED,
    KEPT,
    LAUNCHED_BY_TORCH_NPU,
    LIKE_THE_INDEX,
    VIEWS_IN_PLACE,
)
from moe_graph.simulator.runtime import captured, launches, native

_KEY = "PrivateUse1"
_AUTOGRAD_KEY = "AutogradPrivateUse1"
_COMPUTED = ("CPU", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")
_CUSTOM = ("npu", "atb")
Queued = Optional[Callable[[], bool]]
"""May launches wait in torch_npu's task queue: None if never."""

_libraries: list[torch.library.Library] = []
_registered: list[str] = []


def install() -> None:
    """Register kernels for NPU tensors over torch_npu's own, as the module says. Idempotent."""
    if _libraries:
        return
    spaces = {space: torch.library.Library(space, "IMPL") for space in ("aten", *_CUSTOM)}
    _libraries.extend(spaces.values())
    queued = native.may_wait_in_queue()
    _registered.extend(torch._C._dispatch_get_registrations_for_dispatch_key(_KEY))
    for qualified in _registered:
        space = qualified.partition("::")[0]
        if space not in spaces or qualified in KEPT or qualified in packed_sequences.FUNCTIONS:
            continue
        make = _server(qualified, queued)
        if make is not None:
            # Library.impl looks every name up again; that is most of the time that 1,800 names would take.
            spaces[space].m.impl(qualified.partition("::")[2], _KEY, _lazily(make, queued))
    captured.before_first.append(_note_launches_of_torch_npu)
    for qualified in COMPOSED:
        spaces["aten"].m.impl(qualified.partition("::")[2], _AUTOGRAD_KEY, _composed(qualified))
    for qualified, function in packed_sequences.FUNCTIONS.items():
        for key in (_AUTOGRAD_KEY, _KEY):  # in inference mode the first is passed by
            spaces["aten"].m.impl(qualified.partition("::")[2], key, compat.untraced(function))
    quantized.install(spaces["aten"])
    sparse.install(spaces["aten"])


def _note_launches_of_torch_npu() -> None:
    """A program that captures nothing does not pay for it."""
    library = torch.library.Library("npu", "IMPL")
    _libraries.append(library)
    for qualified in LAUNCHED_BY_TORCH_NPU:
        own = native.kernel_below(qualified, _KEY)
        if own is not None:
            library.impl(qualified.partition("::")[2], _noted(qualified, own), _KEY, with_keyset=True)


def _noted(qualified: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """torch_npu's own kernel. Where it is captured the graph learns which memory it uses."""
    name = str(_overload(qualified))

    @compat.untraced
    def launch(keys: Any, *args: Any, **kwargs: Any) -> Any:
        results = own(keys, *args, **kwargs)
        if captured.is_special():
            _, stream = record.stream_of(args, kwargs)
            if captured.state(stream) == captured.CAPTURED:
                captured.graph_of(stream).use(transforms.tensors(*args, *kwargs.values()), name)
        return results

    return launch


def _server(qualified: str, queued: Queued) -> Callable[[], Callable[..., Any]] | None:
    """What makes the kernel of an operator; None if torch_npu's own stays."""
    name, _, overload_name = qualified.partition(".")
    try:
        schema = torch._C._get_schema(name, overload_name)
    except RuntimeError:
        return None  # a kernel with no operator: torch_npu registers some under aten that are declared under npu
    if is_view(schema) or name in VIEWS_IN_PLACE:
        return None
    if _is_computed(qualified):
        return functools.partial(_by_cpu, qualified)
    own = native.kernel_below(qualified, _KEY)
    if own is None and _function(qualified) is None:
        return None  # this torch has no way to call torch_npu's own from another: it stays, and its error names CANN's operator
    return functools.partial(_custom, qualified, own, queued)


def _is_computed(qualified: str) -> bool:
    """Has an operator of aten a kernel for CPU tensors?"""
    return qualified.startswith("aten::") and any(
        torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key) for key in _COMPUTED
    )


def is_view(schema: torch._C.FunctionSchema) -> bool:
    """Does the operator return a view of an argument?"""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)


def _lazily(make: Callable[[], Callable[..., Any]], queued: Queued) -> Callable[..., Any]:
    """A kernel for the dispatcher that makes what it calls when it is called first."""
    operator: Callable[..., Any] | None = None

    @compat.untraced
    def simulated(*args: Any, **kwargs: Any) -> Any:
        nonlocal operator
        if queued is not None and queued():
            # With torch_npu's task queue on, launches may wait in it still; the memory is not ready. Their errors surface here.
            _empty_queue()
        if operator is None:
            operator = stand_in.marking(make()) if survey.is_on() else make()
            if queued is None and isinstance(operator, Operator):
                plain_calls.serve(operator, simulated)
        return operator(args, kwargs)

    return simulated


def _empty_queue() -> None:
    if captured.is_special():
        torch.npu.current_stream().npu_stream  # noqa: B018  asking for it empties the queue; the host may not wait for a captured stream
    else:
        torch.npu.current_stream().synchronize()


def kernel(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """The kernel of one operator for NPU tensors: what the operator is on the CPU, on the same memory."""
    return _lazily(lambda: _operator(overload, None), native.may_wait_in_queue())


def kernel_of(qualified: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of an operator that may not be defined yet, by a function on CPU tensors."""
    return _lazily(lambda: Operator(_overload(qualified), function), native.may_wait_in_queue())


def coverage() -> dict[str, str]:
    """Who serves each operator that torch_npu registers for its device: "cpu", "function" (of ours), "torch_npu" or "" (nobody).

    "torch_npu": its own kernels of memory and views, which need no computation. Left out: names that the dispatcher has no operator
    of, and communication.
    """
    found = {}
    for qualified in _registered:
        name, _, overload_name = qualified.partition(".")
        try:
            schema = torch._C._get_schema(name, overload_name)
        except RuntimeError:
            continue
        if qualified.partition("::")[0] not in ("aten", *_CUSTOM):
            continue
        if qualified in KEPT or is_view(schema) or name in VIEWS_IN_PLACE:
            found[qualified] = "torch_npu"
        elif _function(qualified) is not None:
            found[qualified] = "function"
        else:
            found[qualified] = "cpu" if _is_computed(qualified) else ""
    return found


def _overload(qualified: str) -> torch._ops.OpOverload:
    space, _, name = qualified.partition("::")
    packet, _, overload_name = name.partition(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload_name or "default")


def _by_cpu(qualified: str) -> Operator:
    from moe_graph.simulator.eager import aten_operators, dtypes

    overload = _overload(qualified)
    return _operator(overload, dtypes.adapted(overload, aten_operators.FUNCTIONS.get(qualified)))


def _operator(overload: torch._ops.OpOverload, function: Callable[..., Any] | None) -> Operator:
    if survey.is_on():
        function = stand_in.surveyed(overload, with_tensors(overload) if function is None else function)
    return Operator(overload, function)


def _custom(qualified: str, own: Callable[..., Any] | None, queued: Queued) -> Callable[..., Any]:
    """The kernel of an operator that the CPU lacks: our function, or torch_npu's own with an error that names the operator."""
    from moe_graph.simulator.eager import dtypes

    overload = _overload(qualified)
    function = _function(qualified)
    if function is None:
        return _Missing(overload, own, queued)
    return _operator(overload, dtypes.adapted(overload, function))


def _function(qualified: str) -> Callable[..., Any] | None:
    """Our function on CPU tensors of an operator."""
    from moe_graph import operators
    from moe_graph.simulator.eager import aten_operators

    declared = operators.every().get(qualified)
    return declared.reference if declared is not None else aten_operators.FUNCTIONS.get(qualified)


class _Missing:
    """torch_npu's own kernel: its checks are real, and some of its kernels are made of other operators.

    Raises NotImplementedError, which names the operator, when the kernel asks for what the simulated device lacks.
    """

    def __init__(self, overload: torch._ops.OpOverload, own: Callable[..., Any], queued: Queued) -> None:
        self.overload = overload
        self._own = own
        self._queued = queued

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        for observe in launches.observers:
            observe(self.overload, args, kwargs)
        try:
            result = self._own(_DEVICE_KEYS, *args, **kwargs)
            if self._queued is not None and self._queued():
                torch.npu.current_stream().synchronize()  # the error comes here, where the operator's name is known, not out of a later one
            return result
        except RuntimeError as error:
            reason = next((line.strip() for line in str(error).splitlines() if "is not modelled" in line), None)
            if reason is None:
                raise
            for observe in launches.missing_observers:
                observe(str(self.overload))
            if survey.is_on():
                return self._answer(args, kwargs)
            why = not_served.why(self.overload.name())
            raise NotImplementedError(
                f"{self.overload} has no kernel on the simulated device: {reason}{f' ({why})' if why else ''}. It runs on an NPU; "
                f"moe_graph.operators.every() lists the operators of npu that run here. {_how_to_add(self.overload)}"
            ) from error

    def _answer(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Note it, and stand in for it."""
        tensors = transforms.tensors(*args, *kwargs.values())
        form = ", ".join(f"{str(tensor.dtype)[6:]} {list(tensor.shape)}" for tensor in tensors)
        survey.found(survey.OPERATOR, self.overload.name(), form, launches.user_line())
        return Operator(self.overload, stand_in.missing(self.overload))(args, kwargs)


def _how_to_add(overload: torch._ops.OpOverload) -> str:
    """The lines that add a kernel. Its tensors are on npu, where operators of aten compute."""
    namespace, _, name = overload.name().partition("::")
    return (
        "To add one, in your program:\n"
        f'    library = torch.library.Library("{namespace}", "IMPL")\n'
        "    def kernel(*args, **kwargs): ...  # its schema's arguments; compose it of operators of torch\n"
        f'    library.impl("{name}", kernel, "PrivateUse1", allow_override=True)'
    )


_DEVICE_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)


def _one_hot(index: torch.Tensor, num_classes: int = -1) -> torch.Tensor | None:
    """What aclnnOneHot gives, with no look at the values, for which the host would wait; None where the classes must be counted."""
    if num_classes < 1:
        return None
    return (index.unsqueeze(-1) == torch.arange(num_classes, dtype=index.dtype, device=index.device)).to(index.dtype)


WITHOUT_WAITING = {"aten::one_hot": _one_hot}
"""Where a stream is captured: torch's composition looks at values, the kernel of a device does not."""


def _composed(qualified: str) -> Callable[..., Any]:
    own = compat.kernel_below(qualified, _AUTOGRAD_KEY) if qualified in COMPOSED_BUT_TRACED else None

    @compat.untraced
    def composed(*args: Any, **kwargs: Any) -> Any:
        if own is not None and detect_fake_mode((args, kwargs)) is not None:
            return own(_DEVICE_KEYS, *args, **kwargs)
        if (
            captured.is_special()
            and qualified in WITHOUT_WAITING
            and (result := WITHOUT_WAITING[qualified](*args, **kwargs)) is not None
        ):
            return result
        if qualified in LIKE_THE_INDEX and args[0].dtype == torch.int32:
            return _overload(qualified).decompose(args[0].long(), *args[1:], **kwargs).to(torch.int32)
        return _overload(qualified).decompose(*args, **kwargs)

    return composed
