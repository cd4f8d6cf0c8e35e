"""The page of served operators has what is declared."""

import operators_page as page

from moe_graph import operators
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.normalization import rms_norm


def test_the_page_has_every_operator():
    text = page.PAGE.read_text()
    assert page.between_markers(text) == page.tables(operators.every().values()), "run python tests/operators_page.py"
    for operator in operators.every().values():
        assert f"`{operator.name}`" in text or f"`{operator.qualname}`" in text


def test_a_row():
    (of_rms_norm,) = (o for o in operators.every().values() if o.name == "npu_rms_norm")
    made = page.tables([of_rms_norm, of_torch_npu("npu_of_mine", rms_norm.rms_norm)])
    assert "## Normalization" in made
    assert "| `npu_of_mine`, `npu_rms_norm` | RmsNorm | y = x / sqrt(mean(x^2) + epsilon) * gamma" in made
