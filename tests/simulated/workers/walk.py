"""Calls operators of npu and atb on the simulated device with arguments made from their schemas, until one set of them reaches a kernel.

Arguments: "values" or "gradients" (tensors require one, and what is served goes backward), then the operators' names
("npu::npu_mish"). Writes a line of JSON before each operator and one with its outcome after it; what kills
the process is the operator that was begun last. Outcomes: "served"; "not simulated" (NotImplementedError); "refused": torch_npu's checks or
ours take none of the arguments. With the message of the last call.
"""

import itertools
import json
import sys
import warnings

import torch
import torch_npu  # noqa: F401

warnings.simplefilter("ignore")

GRADIENTS = sys.argv[1] == "gradients"
SHAPES = ((4, 8), (16, 16), (2, 4, 8), (4, 16, 16), (2, 16, 16, 16), (16,), (2, 2, 4, 4, 4), (4, 4), (64, 128))
DTYPES = (torch.int8, torch.int32, torch.bool, torch.complex64, torch.float32, torch.float16, torch.bfloat16)
# Tensors of integers, by what their names say.
INTEGERS = (
    "index",
    "indices",
    "idx",
    "seq",
    "len",
    "table",
    "slot",
    "group_list",
    "target",
    "label",
    "position",
    "expert_ids",
    "route",
    "batch_sizes",
)
WHOLE = {
    "num": 2,
    "head": 2,
    "size": 2,
    "dim": 0,
    "axis": 0,
    "dtype": 5,
    "format": 2,
    "groups": 1,
    "depth": 4,
    "k": 1,
    "seed": 1,
}
TEXTS = {
    "layout": ("BNSD", "BSH", "TND", "BSND"),
    "hcom": ("none",),
    "group": ("none",),
    "reduc": ("mean",),
    "approx": ("none",),
}


def tensor(shape, dtype):
    if dtype.is_floating_point or dtype.is_complex:
        return torch.rand(shape).to(dtype).npu().requires_grad_(GRADIENTS)
    return torch.ones(shape, dtype=dtype).npu()


def made(argument, shape, dtype, layout, results):
    """A value for one argument, by its type and name."""
    kind, name = str(argument.type), argument.name.lower()
    if argument.has_default_value() and argument.default_value is not None:
        return argument.default_value
    if kind.startswith("Optional"):
        return None
    if kind == "Tensor":
        if any(word in name for word in INTEGERS):
            return tensor(shape if layout & 2 else shape[:1], torch.int64 if layout & 1 else torch.int32)
        return tensor(shape, dtype)
    if kind == "List[Tensor]":
        return [tensor(shape, dtype)] * (results if argument.is_out else 1 + layout % 2)
    if kind.startswith("List[Optional"):
        return [tensor(shape, dtype)]
    if kind == "List[int]":
        return [1] * (argument.N or (len(shape) if layout % 2 else 2))
    if kind == "List[bool]":
        return [True] * (argument.N or 2)
    if kind == "List[float]":
        return [1.0] * (argument.N or 4)
    if kind == "bool":
        return False
    if kind == "int":
        return next((value for word, value in WHOLE.items() if word in name), 1)
    if kind == "float":
        return 0.5
    if kind == "number":
        return 1
    if kind == "str":
        return next((texts[layout % len(texts)] for word, texts in TEXTS.items() if word in name), "none")
    raise TypeError(f"no value for {kind} {argument.name}")


def sets(schema):
    """Sets of arguments: (positional, by keyword)."""
    for shape, dtype, layout in itertools.product(SHAPES, DTYPES, range(4)):
        values = [
            (argument, made(argument, shape, dtype, layout, len(schema.returns))) for argument in schema.arguments
        ]
        yield (
            [item for argument, item in values if not argument.kwarg_only],
            {argument.name: item for argument, item in values if argument.kwarg_only},
        )


def backward(results):
    results = results if isinstance(results, (list, tuple)) else (results,)
    values = [
        value
        for value in results
        if isinstance(value, torch.Tensor) and value.requires_grad and value.grad_fn is not None
    ]
    if values:
        sum(value.abs().sum() for value in values).backward()


def call(name):
    packet, _, overload = name.partition(".")
    space, _, packet = packet.partition("::")
    operator = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    text = ""
    for args, kwargs in sets(operator._schema):
        try:
            results = operator(*args, **kwargs)
            if GRADIENTS:
                backward(results)
            return "served", ""
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if "modelled" in text or "imulated device" in text:
                return ("not simulated" if isinstance(error, NotImplementedError) else "refused"), text
    return "refused", text


for name in sys.argv[2:]:
    print(json.dumps({"begun": name}), flush=True)
    outcome, text = call(name)
    print(json.dumps({"name": name, "outcome": outcome, "text": text}), flush=True)
