"""`npu_batch_gather_matmul(self, x, weight_b, indices, weight_a=None, layer_idx=0, scale=1e-3, y_offset=0, y_slice_size=-1)`: LoRA.

    self [B, H3], x [B, H1] float16   weight_a [W, L, R, H1]   weight_b [W, L, H2, R]   indices [B] int32: the weights of each row
    y_slice_size = H2; -1: H3

    z = x[b] @ weight_a[indices[b], layer_idx]^T @ weight_b[indices[b], layer_idx]^T * scale     without weight_a: x[b] [R] itself
    self[b, y_offset : y_offset + y_slice_size] + z; other columns stay

The functional form returns a new tensor, npu_batch_gather_matmul_ changes `self`. Float32 inside, rounded once.

Sources: the document of aclnnAddLora (ops-math); op-plugin's test and C++ (by which the functional form's eager result on a device is
`self` itself; here it is the sum, as its name and the graph's AddLora have it). The test gives a row with index W no weights.
"""

from __future__ import annotations

from torch import Tensor

from moe_graph.operators.checks import Checks
from moe_graph.operators.declaration import of_torch_npu
from moe_graph.operators.ge import GeKernel, renamed

_check = Checks("npu_batch_gather_matmul")


def batch_gather_matmul(
    self: Tensor,
    x: Tensor,
    weight_b: Tensor,
    indices: Tensor,
    weight_a: Tensor | None = None,
    layer_idx: int = 0,
    scale: float = 1e-3,
    y_offset: int = 0,
    y_slice_size: int = -1,
) -> Tensor:
    """The sum, as the module's document says. Raises ValueError on arguments that it excludes."""
    _check.rank("self", self, (2,), "[B, H3]")
    _check.rank("x", x, (2,), "[B, H1]")
    _check.rank("weight_b", weight_b, (4,), "[W, L, H2, R]")
    if tuple(indices.shape) != (len(self),) or len(x) != len(self):
        _check.refuse("indices and x", f"of {len(self)} rows", f"shapes {tuple(indices.shape)} and {tuple(x.shape)}")
    sets, layers, width, rank = weight_b.shape
    size = self.shape[1] if y_slice_size == -1 else y_slice_size
    if size != width or not 0 <= y_offset <= self.shape[1] - size:
        allowed = f"the {width} rows of weight_b, which fit in self's {self.shape[1]} columns from y_offset on"
        _check.refuse("y_slice_size and y_offset", allowed, f"{y_slice_size} and {y_offset}")
    _check.value("layer_idx", layer_idx, range(layers))
    if weight_a is not None and tuple(weight_a.shape) != (sets, layers, rank, x.shape[1]):
        _check.refuse("weight_a", f"of shape {[sets, layers, rank, x.shape[1]]}", f"shape {tuple(weight_a.shape)}")
    if weight_a is None and x.shape[1] != rank:
        _check.refuse("x", f"of shape [B, {rank}] without weight_a", f"shape {tuple(x.shape)}")
    if bool(((indices < 0) | (indices > sets)).any()):
        _check.refuse("indices", f"from 0 to {sets}", indices.tolist())
    chosen = indices.long().clamp_max(sets - 1)
    z = x.float().unsqueeze(-1)
    if weight_a is not None:
        z = weight_a[chosen, layer_idx].float() @ z
    z = (weight_b[chosen, layer_idx].float() @ z).squeeze(-1) * scale
    y = self.float()  # a copy: self is float16
    y[:, y_offset : y_offset + size] += z.masked_fill((indices == sets).unsqueeze(1), 0)
    return y.to(self.dtype)


def batch_gather_matmul_(
    self: Tensor,
    x: Tensor,
    weight_b: Tensor,
    indices: Tensor,
    weight_a: Tensor | None = None,
    layer_idx: int = 0,
    scale: float = 1e-3,
    y_offset: int = 0,
    y_slice_size: int = -1,
) -> Tensor:
    """`self`, changed."""
    return self.copy_(
        batch_gather_matmul(self, x, weight_b, indices, weight_a, layer_idx, scale, y_offset, y_slice_size)
    )


OPERATOR = of_torch_npu(
    "npu_batch_gather_matmul",
    batch_gather_matmul,
    ge=[GeKernel("AddLora", renamed(batch_gather_matmul, y="self", weightB="weight_b", weightA="weight_a"))],
)
IN_PLACE_OPERATOR = of_torch_npu("npu_batch_gather_matmul_", batch_gather_matmul_)
