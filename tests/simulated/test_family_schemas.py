"""The schemas that this package defines where torch_npu is not loaded are torch_npu's own."""

import pytest
import torch

from moe_graph import compat, registration


@pytest.mark.parametrize("operator", registration.OPERATORS, ids=lambda operator: operator.name)
def test_schema_is_torch_npus(operator):
    theirs = compat.schema_of(operator.qualname)
    assert theirs is not None, "torch_npu does not define it"
    ours = torch._C.parse_schema(f"{operator.qualname.partition('::')[0]}::{operator.schema}")
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("operator", registration.OPERATORS, ids=lambda operator: operator.name)
def test_fake_and_fallback_are_ours(operator):
    for key in ("Meta", "CompositeExplicitAutograd"):
        lines = torch._C._dispatch_dump(operator.qualname).splitlines()
        assert next(line for line in lines if line.startswith(key)).count("moe_graph/registration.py") == 1
