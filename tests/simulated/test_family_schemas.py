"""The schemas that this package defines where torch_npu is not loaded are torch_npu's own."""

import pytest
import torch

from moe_graph.foundation import compat
from moe_graph.registration import register as registration
from versions import need_torch


@pytest.mark.parametrize("operator", registration.OPERATORS, ids=lambda operator: operator.name)
def test_schema_is_torch_npus(operator):
    theirs = compat.schema_of(operator.qualname)
    assert theirs is not None, "torch_npu does not define it"
    ours = torch._C.parse_schema(f"{operator.qualname.partition('::')[0]}::{operator.schema}")
    if compat.TORCH >= (2, 13):
        assert str(ours) == str(theirs)
        return
    # An older torch_npu has fewer of the arguments, those in our order.
    names = iter([argument.name for argument in ours.arguments])
    assert all(argument.name in names for argument in theirs.arguments), f"{theirs} is no part of {ours}"


@pytest.mark.parametrize("operator", registration.OPERATORS, ids=lambda operator: operator.name)
def test_what_torch_npu_has_is_torch_npus(operator):
    need_torch(2, 9)  # the dispatcher names no files before
    lines = torch._C._dispatch_dump(operator.qualname).splitlines()
    fake = next(line for line in lines if line.startswith("Meta"))
    fallback = next(line for line in lines if line.startswith("CompositeExplicitAutograd"))
    ours = "moe_graph/registration/register.py"
    assert ours in fallback
    assert (ours in fake) == (operator is registration.RE_ROUTING or operator.refined_fake is not None), fake
    assert ours in fake or "op_plugin/meta" in fake
