"""Mutations of converters: `moe_graph.testing.check_converter` must find them, and nothing in the converters as they are.

    python -m moe_graph run -q tests/converter_mutations.py [OPERATOR ...]    prints the table; it takes some minutes

Each operator's converter is wrapped: what it returns, or the nodes that it has made, is changed in one place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_npu  # noqa: F401
import torchair  # noqa: F401
from torchair._ge_concrete_graph import ge_apis as ge
from torchair._ge_concrete_graph.fx2ge_converter import _get_converter
from torchair.ge._ge_graph import DataType, get_default_ge_graph, torch_type_to_ge_type

from moe_graph.definitions import known
from moe_graph.testing import ConverterReport, Sample, check_converter

aten, npu = torch.ops.aten, torch.ops.npu


def _randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _index(count: int, below: int) -> torch.Tensor:
    return torch.arange(count * 3)[::3] % below


def _both(make: Callable[[int], tuple]) -> list[Sample]:
    """A call with 4 rows and one with 7."""
    return [Sample(make(rows)) for rows in (4, 7)]


SAMPLES: dict[Any, list[Sample]] = {
    aten.add.Tensor: [Sample(s.args, {"alpha": 2}) for s in _both(lambda n: (_randn(n, 6), _randn(n, 1)))],
    aten.sub.Tensor: _both(lambda n: (_randn(n, 6), _randn(n, 1))),
    aten.div.Tensor: _both(lambda n: (_randn(n, 6), _randn(n, 6).abs() + 1)),
    aten.pow.Tensor_Tensor: _both(lambda n: (_randn(n, 6).abs(), _randn(n, 6))),
    aten.mm.default: _both(lambda n: (_randn(n, 5), _randn(5, 5))),
    aten.addmm.default: [
        Sample(s.args, {"beta": 0.5, "alpha": 2.0}) for s in _both(lambda n: (_randn(6), _randn(n, 5), _randn(5, 6)))
    ],
    aten._softmax.default: _both(lambda n: (_randn(n, 6), 1, False)),
    aten.sum.dim_IntList: _both(lambda n: (_randn(n, 6), [1], True)),
    aten.mean.dim: _both(lambda n: (_randn(n, 6), [1], True)),
    aten.max.dim: _both(lambda n: (_randn(n, 6), 1, True)),
    aten.gather.default: _both(lambda n: (_randn(n, 6), 1, _index(n, 6)[:, None])),
    aten.where.self: _both(lambda n: (_randn(n, 6) > 0, _randn(n, 6), _randn(n, 6) + 1)),
    aten.native_layer_norm.default: _both(lambda n: (_randn(n, 6), [6], _randn(6), _randn(6) + 1, 1e-3)),
    aten.topk.default: _both(lambda n: (_randn(n, 6), 3, 1, False)),
    aten.sort.default: _both(lambda n: (_randn(n, 6), 1, True)),
    aten.cumsum.default: _both(lambda n: (_randn(n, 6), 1)),
    aten.masked_fill.Scalar: _both(lambda n: (_randn(n, 6), _randn(n, 6) > 0, 2.0)),
    aten.embedding.default: _both(lambda n: (_randn(9, 5), _index(n, 9))),
    aten.scatter.src: _both(lambda n: (_randn(n, 6), 1, _index(n, 6)[:, None], _randn(n, 1))),
    aten.tril.default: _both(lambda n: (_randn(n, 6), 1)),
    aten.bmm.default: _both(lambda n: (_randn(n, 3, 3), _randn(n, 3, 3) + 1)),
    npu.npu_rms_norm.default: _both(lambda n: (_randn(n, 8), _randn(8), 1e-2)),
    npu.npu_swiglu.default: _both(lambda n: (_randn(n, 8), 1)),
    npu.npu_dynamic_quant.default: _both(lambda n: (_randn(n, 8, dtype=torch.float16),)),
    npu.npu_moe_gating_top_k_softmax.default: _both(lambda n: (_randn(n, 8), None, 2)),
    npu.npu_moe_re_routing.default: [
        Sample((_randn(n, 8, dtype=torch.float16), torch.tensor([[n - 3, 1], [0, 2]], dtype=torch.int32)), {"per_token_scales": _randn(n)})
        for n in (4, 7)
    ],
    npu.npu_grouped_matmul.default: [
        Sample(
            ([_randn(n, 8, dtype=torch.float16)], [_randn(2, 8, 8, dtype=torch.float16)]),
            {"group_list": torch.tensor([2, n]), "split_item": 3, "group_type": 0, "output_dtype": torch.float16},
        )
        for n in (4, 7)
    ],
}  # fmt: skip
OURS = ("npu.npu_moe_re_routing.default", "npu.npu_grouped_matmul.default")
# Changes one of the nodes that the converter has made, or its outputs. Returns the outputs, or None where there is nothing to change.
Mutation = Callable[[Any, list[Any]], Any]


def _tensors(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _in_place_of_first(outputs: Any, changed: Any) -> Any:
    return type(outputs)([changed, *outputs[1:]]) if isinstance(outputs, (list, tuple)) else changed


def other_dtype(outputs: Any, nodes: list[Any]) -> Any:
    """The first output has another type than it is described with."""
    first = _tensors(outputs)[0]
    other = DataType.DT_INT32 if _META[0].dtype == torch.float32 else DataType.DT_FLOAT
    return _in_place_of_first(outputs, ge.Cast(first, dst_type=other))


def attributes_swapped(outputs: Any, nodes: list[Any]) -> Any:
    """Two attributes of a node, of one kind and with different values, change places."""
    for node in nodes:
        names = sorted(name for name in node.attr if not name.startswith("_"))
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                first, second = node.attr[one], node.attr[other]
                if first.WhichOneof("value") == second.WhichOneof("value") != "t" and first != second:
                    kept = type(first)()
                    kept.CopyFrom(first)
                    first.CopyFrom(second)
                    second.CopyFrom(kept)
                    return outputs
    return None


def inputs_swapped(outputs: Any, nodes: list[Any]) -> Any:
    """The first two inputs of the last node with two change places."""
    for node in reversed(nodes):
        if len(node.input) > 1 and node.input[0] != node.input[1] and all(node.input[:2]):
            node.input[0], node.input[1] = node.input[1], node.input[0]
            return outputs
    return None


def input_dropped(outputs: Any, nodes: list[Any]) -> Any:
    """An optional input that is fed is not fed."""
    for node in nodes:
        definition = known.find(node.type)
        optional = {port.name for port in definition.inputs if port.kind == "optional"} if definition else set()
        for at, desc in enumerate(node.input_desc):
            if desc.name in optional and node.input[at]:
                node.input[at] = ""
                return outputs
    return None


def outputs_reordered(outputs: Any, nodes: list[Any]) -> Any:
    """The outputs come in reverse order."""
    several = _tensors(outputs)
    return type(outputs)(reversed(several)) if len(several) > 1 else None


def size_made_static(outputs: Any, nodes: list[Any]) -> Any:
    """The first output's sizes are those of the first call."""
    first = _tensors(outputs)[0]
    meta = _META[0]
    if not any(isinstance(size, torch.SymInt) for size in meta.shape):
        return None
    sizes = [size.node.hint if isinstance(size, torch.SymInt) else size for size in meta.shape]
    return _in_place_of_first(outputs, ge.Reshape(first, ge.Const(sizes, dtype=DataType.DT_INT64)))


def host_constant(outputs: Any, nodes: list[Any]) -> Any:
    """A tensor of the call is a constant of the graph, made of values of the host."""
    constants = {node.name for node in get_default_ge_graph().op if node.type == "Const"}
    for node in nodes:
        for at, reference in enumerate(node.input):
            meta = _ARGUMENTS.get(reference)
            if meta is not None and reference.rpartition(":")[0] not in constants:
                sizes = [size.node.hint if isinstance(size, torch.SymInt) else size for size in meta.shape]
                value = torch.zeros(sizes, dtype=torch.float32).tolist()
                node.input[at] = ge.Const(value, dtype=torch_type_to_ge_type(meta.dtype)).tensor
                return outputs
    return None


MUTATIONS: tuple[Mutation, ...] = (
    other_dtype,
    attributes_swapped,
    inputs_swapped,
    input_dropped,
    outputs_reordered,
    size_made_static,
    host_constant,
)
# Mutations that change nothing: the operator does not depend on it.
EQUIVALENT = {
    ("aten.add.Tensor", "inputs_swapped"): "the sum is the same",
    ("aten.where.self", "inputs_swapped"): "of the Const that a default makes",
}
_META: list[Any] = []
_ARGUMENTS: dict[str, Any] = {}


@contextmanager
def mutated(operator: Any, mutation: Mutation) -> Iterator[list[bool]]:
    """Inside, the operator's converter is wrapped; the list says for each of its calls whether the mutation applied."""
    original = _get_converter(operator)
    applied: list[bool] = []

    def convert(*args: Any, **kwargs: Any) -> Any:
        meta = kwargs.get("meta_outputs")
        _META[:] = [torch.utils._pytree.tree_leaves(meta)[0]] if meta is not None else []
        graph = get_default_ge_graph()
        _ARGUMENTS.clear()
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, ge.Tensor) and isinstance(value.meta, torch.Tensor):
                _ARGUMENTS[value.tensor] = value.meta
        before = len(graph.op)
        outputs = original(*args, **kwargs)
        changed = mutation(outputs, list(graph.op)[before:]) if _META else None
        applied.append(changed is not None)
        return outputs if changed is None else changed

    for name, value in vars(original).items():
        setattr(convert, name, value)
    convert.require_meta = original.require_meta
    operator._ge_converter = convert
    try:
        yield applied
    finally:
        operator._ge_converter = original


def check(operator: Any) -> ConverterReport:
    """As it is."""
    return check_converter(operator, SAMPLES[operator], opcheck=False, captured=False, rtol=1e-3, atol=1e-3)


def is_clean(report: ConverterReport) -> bool:
    """Are there no faults but arguments that these samples leave at their defaults?"""
    return all(row.check == "arguments" and "no sample gives" in row.fault for row in report.faults)


def walk(operators: Any) -> tuple[list[str], list[str], int, int]:
    """Faults found in converters as they are; mutations that were not detected; detected, and how many there were."""
    false_alarms, missed, detected, total = [], [], 0, 0
    for operator in operators:
        report = check(operator)
        if not is_clean(report):
            false_alarms.append(str(report))
        for mutation in MUTATIONS:
            if (str(operator), mutation.__name__) in EQUIVALENT:
                continue
            with mutated(operator, mutation) as applied:
                report = check(operator)
            if not any(applied):
                continue
            total += 1
            print(f"{operator}: {mutation.__name__} {'missed' if is_clean(report) else 'found'}", flush=True)
            if is_clean(report):
                missed.append(f"{operator}: {mutation.__name__}")
            else:
                detected += 1
    return false_alarms, missed, detected, total


if __name__ == "__main__":
    chosen = [operator for operator in SAMPLES if not sys.argv[1:] or str(operator) in sys.argv[1:]]
    false_alarms, missed, detected, total = walk(chosen)
    print(*false_alarms, sep="\n")
    print(*(f"not detected: {line}" for line in missed), sep="\n")
    print(f"{len(chosen)} converters, {len(false_alarms)} false alarms; {detected} of {total} mutations detected")
