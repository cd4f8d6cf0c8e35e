"""An operator of torch_npu in each way it runs: eager on NPU tensors, as a fake, in static and dynamic graphs: all equal the reference."""

from __future__ import annotations

import torch
import torchair
from torch._subclasses.fake_tensor import FakeTensorMode


def moved(values, device):
    return torch.utils._pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, values)


def tensors_of(results):
    return [x for x in torch.utils._pytree.tree_leaves(results) if isinstance(x, torch.Tensor)]


def assert_everywhere(operator, reference, arguments, *, graph=None, faked=True):
    """`arguments` by name, on the CPU. `graph`: the function to compile, `operator` by default. Returns the outputs."""
    expected = tensors_of(reference(**arguments))
    on_npu = moved(arguments, "npu")
    assert_equal(operator(**on_npu), expected)
    if faked:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = tensors_of(
                operator(
                    **torch.utils._pytree.tree_map(
                        lambda x: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x, on_npu
                    )
                )
            )
        assert [(x.shape, x.dtype) for x in fakes] == [(x.shape, x.dtype) for x in expected]
    names = [name for name, value in arguments.items() if tensors_of(value)]
    others = {name: value for name, value in arguments.items() if name not in names}

    def call(*tensors):
        return (graph or operator)(**dict(zip(names, tensors)), **others)

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(call, backend=torchair.get_npu_backend(), dynamic=dynamic, fullgraph=True)
        with torch.no_grad():
            assert_equal(compiled(*(on_npu[name] for name in names)), expected)
    return expected


def assert_equal(found, expected):
    found = tensors_of(found)
    assert len(found) == len(expected) and all(x.device.type == "npu" for x in found)
    for x, y in zip(found, expected):
        torch.testing.assert_close(x.cpu(), y, rtol=0, atol=0, equal_nan=True)
