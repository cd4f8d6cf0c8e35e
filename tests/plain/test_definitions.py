"""Definitions of GE types: read from REG_OP text and from op_host's C++, declared, and found in torchair's text."""

from __future__ import annotations

import pytest

from moe_graph import plugins
from moe_graph.definitions import known, op_def, reg_op
from moe_graph.definitions.definition import Attribute, Definition, Port

TEXT = """
// a comment, REG_OP(Not)
REG_OP(Rows)
    .INPUT(x, TensorType({DT_FLOAT32, DT_BFLOAT16}))  /* .INPUT(no, "T") */
    .OPTIONAL_INPUT(scale, TensorType::ALL())
    .DYNAMIC_INPUT(others, "T")
    .OUTPUT(y, TensorType({DT_FLOAT}))
    .DYNAMIC_OUTPUT(z, TensorType({DT_FLOAT}))
    .REQUIRED_ATTR(axis, Int)
    .ATTR(sizes, ListInt, {1, 2})
    .ATTR(mode, String, "a, (b")
    .OP_END_FACTORY_REG(Rows)
REG_OP(Other).OUTPUT(y, TensorType({DT_INT32})).OP_END_FACTORY_REG(Other)
"""
ROWS = Definition(
    "Rows",
    (Port("x", "required", ("DT_FLOAT", "DT_BF16")), Port("scale", "optional"), Port("others", "dynamic")),
    (Port("y", "required", ("DT_FLOAT",)), Port("z", "dynamic", ("DT_FLOAT",))),
    (Attribute("axis", "Int"), Attribute("sizes", "ListInt", "{1, 2}"), Attribute("mode", "String", '"a, (b"')),
)
CLASS = """
class Rows : public OpDef {
 public:
  explicit Rows(const char* name) : OpDef(name) {
    this->Input("x").ParamType(REQUIRED).DataType({ge::DT_FLOAT, ge::DT_BF16}).Format({ge::FORMAT_ND, ge::FORMAT_ND});
    this->Input("scale").ParamType(OPTIONAL).DataType({});
    this->Input("others").ParamType(DYNAMIC).DataType({});
    this->Output("y").ParamType(REQUIRED).DataType({ge::DT_FLOAT});
    this->Output("z").ParamType(DYNAMIC).DataType({ge::DT_FLOAT});
    this->Attr("axis").AttrType(REQUIRED).Int();
    this->Attr("sizes").AttrType(OPTIONAL).ListInt({1, 2});
    this->Attr("mode").AttrType(OPTIONAL).String("a, (b");
    OpAICoreConfig config;
    config.Input("never").ParamType(REQUIRED);
  }
};
"""


def test_reg_op_text():
    assert reg_op.parse(TEXT) == [ROWS, Definition("Other", (), (Port("y", "required", ("DT_INT32",)),))]


def test_op_host_class():
    (found,) = op_def.parse(CLASS)
    assert found.inputs == ROWS.inputs and found.outputs == ROWS.outputs
    assert [(a.name, a.kind, a.required) for a in found.attributes] == [
        (a.name, a.kind, a.required) for a in ROWS.attributes
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("REG_OP(A).INPUT(x)", r"REG_OP\(A\): .INPUT\(x\) needs a name and a type"),
        ("REG_OP(A).INPTU(x, T)", r"REG_OP\(A\): .INPTU is not known; known: INPUT"),
        ("REG_OP(A).ATTR(x, Complex, 1)", r"REG_OP\(A\): attribute x: kind must be one of Int, .*got 'Complex'"),
        (
            'class A : public OpDef { this->Input("x").ParamType(SOME); }',
            "A: input x: ParamType must be one of REQUIRED",
        ),
        ("nothing", "the text holds neither REG_OP"),
    ],
)
def test_what_cannot_be_read_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        plugins.define(text)


def test_a_file_is_declared_once(tmp_path):
    path = tmp_path / "rows_proto.h"
    path.write_text(TEXT.replace("Rows", "DeclaredRows").replace("Other", "DeclaredOther"))
    assert plugins.define(path) == ("DeclaredRows", "DeclaredOther") == plugins.define(path)
    assert known.find("DeclaredRows").inputs == ROWS.inputs
    with pytest.raises(ValueError, match="GE type DeclaredOther is declared already, with another definition"):
        plugins.define("REG_OP(DeclaredMore).OUTPUT(y, T) REG_OP(DeclaredOther).OUTPUT(z, T)")
    assert known.find("DeclaredMore") is None, "nothing is taken of a text with an error"


def test_every_definition_of_torchair_is_read():
    names = known._texts()
    if not names:
        pytest.skip("torch_npu is not installed")
    assert len(names) > 1700
    for name in names:
        definition = known.find(name)
        assert definition.type == name, name
    assert [port.name for port in known.find("MoeReRouting").inputs] == [
        "tokens",
        "expert_token_num_per_rank",
        "per_token_scales",
    ]
    assert known.find("Cast").attributes == (Attribute("dst_type", "Int"),)
    assert known.find("NoSuchType") is None
