# -*- coding: utf-8 -*-
from torch import tensor
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import get_default_ge_graph

arg0_1_0 = ge.Data(index=0, dtype=0, shape=[16, 4], placement="NPU", node_name="arg0_1")
arg1_1_0 = ge.Data(index=1, dtype=9, shape=[], placement="CPU", node_name="arg1_1")
arg2_1_0 = ge.Data(index=2, dtype=0, shape=[-1, 4], placement="NPU", node_name="arg2_1")
arg3_1_0 = ge.Data(index=3, dtype=3, shape=[2, 3], placement="NPU", node_name="arg3_1")
arg4_1_0 = ge.Data(index=4, dtype=0, shape=[-1], placement="NPU", node_name="arg4_1")

# File "model.py", line 17, in forward    tokens = (x @ weight.t()).to(torch.float16) * 2                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
## FX Code: t: torch.float32[4, 16]npu:0 = torch.ops.aten.t.default(arg0_1: torch.float32[16, 4]npu:0)

# File "model.py", line 17, in forward    tokens = (x @ weight.t()).to(torch.float16) * 2              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
## FX Code: matmul: torch.float32[s60, 16]npu:0 = torch.ops.aten.matmul.default(arg2_1: torch.float32[s60, 4]npu:0, t: torch.float32[4, 16]npu:0)
Transpose_0 = ge.Transpose(arg0_1_0, [1, 0], node_name="Transpose")
MatMul_0 = ge.MatMul(arg2_1_0, Transpose_0, None, node_name="MatMul")

# File "model.py", line 17, in forward    tokens = (x @ weight.t()).to(torch.float16) * 2             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
## FX Code: _to_copy: torch.float16[s60, 16]npu:0 = torch.ops.aten._to_copy.default(matmul: torch.float32[s60, 16]npu:0, dtype=torch.float16)
Cast_0 = ge.Cast(MatMul_0, dst_type=1, node_name="Cast")
## FX Code: mul_4: torch.float16[s60, 16]npu:0 = torch.ops.aten.mul.Tensor(_to_copy: torch.float16[s60, 16]npu:0, 2)
Muls_0 = ge.Muls(Cast_0, value=2, node_name="Muls")
Cast_1_0 = ge.Cast(Muls_0, dst_type=1, node_name="Cast_1")

# File "model.py", line 18, in forward    routed = torch_npu.npu_moe_re_routing(             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
## FX Code: npu_moe_re_routing = torch.ops.npu.npu_moe_re_routing.default(mul_4: torch.float16[s60, 16]npu:0, arg3_1: torch.int32[2, 3]npu:0, per_token_scales=arg4_1: torch.float32[s60]npu:0)
[MoeReRouting_0, MoeReRouting_1, MoeReRouting_2, MoeReRouting_3] = ge.MoeReRouting(Cast_1_0, arg3_1_0, arg4_1_0, expert_token_num_type=1, idx_type=0)
## FX Code: getitem: torch.float16[s60, 16]npu:0 = operator.getitem(npu_moe_re_routing, 0)
## FX Code: getitem_1: torch.float32[s60]npu:0 = operator.getitem(npu_moe_re_routing, 1)
## FX Code: getitem_3: torch.int32[3]npu:0 = operator.getitem(npu_moe_re_routing, 3)

# File "model.py", line 25, in forward    halves = routed[0].view(-1, 2, 8).float()             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
## FX Code: view: torch.float16[s60, 2, 8]npu:0 = torch.ops.aten.reshape.default(getitem: torch.float16[s60, 16]npu:0, [-1, 2, 8])
Reshape_0 = ge.Reshape(MoeReRouting_0, ge.Const([-1, 2, 8], dtype=9), node_name="Reshape")
## FX Code: _to_copy_1: torch.float32[s60, 2, 8]npu:0 = torch.ops.aten._to_copy.default(view: torch.float16[s60, 2, 8]npu:0, dtype=torch.float32)
Cast_2_0 = ge.Cast(Reshape_0, dst_type=0, node_name="Cast_2")

# File "model.py", line 26, in forward    return halves + 1, routed[1], routed[3].cumsum(0)           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
## FX Code: add_24: torch.float32[s60, 2, 8]npu:0 = torch.ops.aten.add.Tensor(_to_copy_1: torch.float32[s60, 2, 8]npu:0, 1)
Add_0 = ge.Add(Cast_2_0, ge.Const(1, dtype=0), node_name="Add")

# File "model.py", line 26, in forward    return halves + 1, routed[1], routed[3].cumsum(0)                                  ^^^^^^^^^^^^^^^^^^^
## FX Code: cumsum: torch.int64[3]npu:0 = torch.ops.aten.cumsum.default(getitem_3: torch.int32[3]npu:0, 0)
Cast_3_0 = ge.Cast(MoeReRouting_3, dst_type=9, node_name="Cast_3")
Cumsum_0 = ge.Cumsum(Cast_3_0, 0, node_name="Cumsum")

_ = ge.NetOutput([Add_0, MoeReRouting_1, Cumsum_0], dependencies=[])
