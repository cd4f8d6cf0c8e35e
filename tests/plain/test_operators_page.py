"""The page of served operators has what is declared."""

import operators_page as page

from moe_graph import operators
from moe_graph.operators import not_served
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.normalization import rms_norm


def test_the_page_has_every_operator():
    text = page.PAGE.read_text()
    assert page.between_markers(text) == page.page(), "run python tests/operators_page.py"
    for operator in operators.every().values():
        assert f"`{operator.name}`" in text or f"`{operator.qualname}`" in text


def test_what_is_not_served_is_not_declared():
    names = [name for _, listed in not_served.by_reason() for name in listed]
    assert len(names) == len(set(names))
    assert not {operator.name.partition(".")[0] for operator in operators.every().values()} & set(names)
    assert not_served.why("npu::npu_ciou_backward") == not_served.why("npu::npu_ciou") != not_served.why("npu::npu_gru")
    assert not_served.why("npu::npu_conv2d.out") and not_served.why("npu::npu_rms_norm") is None


def test_a_row():
    (of_rms_norm,) = (o for o in operators.every().values() if o.name == "npu_rms_norm")
    made = page.tables([of_rms_norm, of_torch_npu("npu_of_mine", rms_norm.rms_norm)])
    assert "## Normalization" in made
    assert "| `npu_of_mine`, `npu_rms_norm` | RmsNorm | y = x / sqrt(mean(x^2) + epsilon) * gamma" in made
