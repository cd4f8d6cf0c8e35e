"""GE types whose definition in torchair's text is not the kernel's: names and kinds as the kernels' own definitions have them.

Source: `op_host/*_def.cpp` of ops-nn. They are what torchair's converters write, too.
"""

REG_OPS = """
REG_OP(ForeachAcos).DYNAMIC_INPUT(x, TensorType::ALL()).DYNAMIC_OUTPUT(y, TensorType::ALL())
REG_OP(ForeachAsin).DYNAMIC_INPUT(x, TensorType::ALL()).DYNAMIC_OUTPUT(y, TensorType::ALL())
REG_OP(ForeachAtan).DYNAMIC_INPUT(x, TensorType::ALL()).DYNAMIC_OUTPUT(y, TensorType::ALL())
REG_OP(ForeachNorm)
    .DYNAMIC_INPUT(x, TensorType({DT_FLOAT16, DT_FLOAT, DT_BF16}))
    .INPUT(scalar, TensorType({DT_FLOAT, DT_INT64}))
    .DYNAMIC_OUTPUT(y, TensorType({DT_FLOAT16, DT_FLOAT, DT_BF16}))
REG_OP(ForeachLerpList)
    .DYNAMIC_INPUT(x1, TensorType::ALL())
    .DYNAMIC_INPUT(x2, TensorType::ALL())
    .DYNAMIC_INPUT(weight, TensorType::ALL())
    .DYNAMIC_OUTPUT(y, TensorType::ALL())
REG_OP(ForeachAddcdivScalarList)
    .DYNAMIC_INPUT(x1, TensorType({DT_FLOAT16, DT_FLOAT, DT_BF16}))
    .DYNAMIC_INPUT(x2, TensorType({DT_FLOAT16, DT_FLOAT, DT_BF16}))
    .DYNAMIC_INPUT(x3, TensorType({DT_FLOAT16, DT_FLOAT, DT_BF16}))
    .INPUT(scalars, TensorType({DT_FLOAT16, DT_FLOAT, DT_BF16}))
    .DYNAMIC_OUTPUT(y, TensorType({DT_FLOAT16, DT_FLOAT, DT_BF16}))
REG_OP(ForeachAddcmulScalarList)
    .DYNAMIC_INPUT(x1, TensorType({DT_FLOAT16, DT_FLOAT, DT_INT32, DT_BF16}))
    .DYNAMIC_INPUT(x2, TensorType({DT_FLOAT16, DT_FLOAT, DT_INT32, DT_BF16}))
    .DYNAMIC_INPUT(x3, TensorType({DT_FLOAT16, DT_FLOAT, DT_INT32, DT_BF16}))
    .INPUT(scalars, TensorType({DT_FLOAT16, DT_FLOAT, DT_INT32, DT_BF16}))
    .DYNAMIC_OUTPUT(y, TensorType({DT_FLOAT16, DT_FLOAT, DT_INT32, DT_BF16}))
"""
