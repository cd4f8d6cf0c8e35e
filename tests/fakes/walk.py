"""Calls operators of npu on fake tensors, most of them on an NPU, and prints what each call gave.

    python walk.py [--before STATEMENTS] [--attempts N] [OPERATOR ...]

A script, so that it can run without this package.

A line of JSON for each operator: its name and a list of outcomes, a result's dtypes and shapes or the kind of exception. The calls are
drawn from the operator's schema, by a generator that starts anew for each operator: another process makes the same calls. Operators that
such calls do not satisfy have a call of their own in `calls.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import sys
import warnings

import torch
import torch_npu  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
DTYPES = (*FLOATS, torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
WORDS = ("BSH", "BNSD", "TND", "none", "sum", "mean", "pertoken", "SBH")
KEPT = 0.7  # how often an argument is as the call's first ones


def operators() -> list[str]:
    """The operators of npu with a fake implementation that is torch_npu's, "npu_rms_norm", "npu_grouped_matmul.List"."""
    found = []
    for schema in torch._C._jit_get_all_schemas():
        if not schema.name.startswith("npu::"):
            continue
        name = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        entry = torch._library.simple_registry.singleton.find(name)
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta") or entry.fake_impl.kernel is not None:
            found.append(name.partition("::")[2])
    return sorted(set(found))


def overload(name: str) -> torch._ops.OpOverload:
    packet, _, suffix = name.partition(".")
    return getattr(getattr(torch.ops.npu, packet), suffix or "default")


class Draw:
    """One call's arguments. Most of its tensors have one rank, size and dtype, so that they fit each other."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.rank = self.random.choice((1, 2, 2, 3, 3, 4))
        self.size = self.random.choice((1, 2, 8, 16, 64, 128))
        self.dtype = self.random.choice(DTYPES if self.random.random() < 0.5 else FLOATS)
        self.device = self.random.choice(("npu:0", "npu:0", "npu:0", "cpu", "meta"))
        self.requires_grad = self.random.random() < 0.3

    def arguments(self, schema: torch._C.FunctionSchema) -> tuple[list, dict]:
        args, kwargs = [], {}
        for argument in schema.arguments:
            given = not argument.has_default_value() or self.random.random() > KEPT
            value = self.value(argument.real_type, argument.N) if given else argument.default_value
            if argument.kwarg_only:
                if given:
                    kwargs[argument.name] = value
            else:
                args.append(value)
        return args, kwargs

    def value(self, kind, length=None):
        text = str(kind)
        if text.startswith("Optional["):
            return None if self.random.random() < 0.5 else self.value(kind.getElementType())
        if text.startswith("List["):
            count = length or self.random.choice((1, 1, 2, 3, 4))
            return [self.value(kind.getElementType()) for _ in range(count)]
        if text == "Tensor":
            return self.tensor()
        makers = {
            "int": lambda: self.random.choice((0, 1, 1, 2, 2, 3, 8, 16)),
            "SymInt": lambda: self.random.choice((0, 1, 1, 2, 2, 3, 8, 16)),
            "float": lambda: self.random.choice((0.5, 1.0)),
            "number": lambda: self.random.choice((1, 0.5)),
            "bool": lambda: self.random.random() < 0.5,
            "str": lambda: self.random.choice(WORDS),
            "ScalarType": lambda: self.random.choice(DTYPES),
            "Device": lambda: torch.device(self.device),
            "Layout": lambda: torch.strided,
            "Storage": lambda: None,
            "Generator": lambda: None,
        }
        return makers[text]()

    def tensor(self) -> torch.Tensor:
        rank = self.rank if self.random.random() < KEPT else self.random.choice((1, 2, 3, 4))
        size = [self.size if self.random.random() < 0.9 else self.random.choice((1, 2, 8, 16)) for _ in range(rank)]
        dtype = self.dtype if self.random.random() < KEPT else self.random.choice(DTYPES)
        tensor = torch.empty(size, dtype=dtype, device=self.device)
        return tensor.requires_grad_() if self.requires_grad and dtype in FLOATS else tensor


def described(value) -> object:
    if isinstance(value, torch.Tensor):
        return [str(value.dtype).removeprefix("torch."), *map(int, value.shape)]
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    return value if value is None or isinstance(value, (int, float, str)) else str(value)


def outcome(operator: torch._ops.OpOverload, args: list, kwargs: dict) -> object:
    """What the call gives: {"result": ...}, or {"raises": kind, "message": text}."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return {"result": described(operator(*args, **kwargs))}
    except Exception as error:
        return {"raises": type(error).__name__, "message": str(error)[:200]}


def walk(name: str, attempts: int) -> list:
    from calls import CALLS

    operator = overload(name)
    found = []
    for attempt in range(attempts):
        with FakeTensorMode():
            args, kwargs = Draw(f"{name}/{attempt}").arguments(operator._schema)
            found.append(outcome(operator, args, kwargs))
    for call in CALLS.get(name, ()):
        with FakeTensorMode():
            found.append(outcome(operator, *call()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", default="", help="statements that are executed first")
    parser.add_argument("--attempts", type=int, default=20)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()  # torch logs a stack for each call that a fake implementation refuses
    torch.npu.init()
    names = options.names or operators()
    exec(options.before, {})
    for name in names:
        print(json.dumps([name, walk(name, options.attempts)]), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/")[0])
    main()
