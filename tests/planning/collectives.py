"""A program with every collective, and which operands of the process group's methods hold what is given and received."""

import torch
import torch.distributed as dist

METHODS = {
    "allreduce": "all_reduce",
    "all_gather_single": "all_gather_into_tensor",
    "_allgather_base": "all_gather_into_tensor",
    "reduce_scatter_single": "reduce_scatter_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "all_to_all_single": "all_to_all_single_npu",
    "alltoall_base": "all_to_all_single_npu",
    "alltoallvc": "all_to_all_single_npu",
}
"""Method of the process group -> the operator of the graph that calls it."""


def operands(method, args):
    """(bytes received, bytes given) of a call of the process group's method."""
    first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
    if method == "allreduce":
        return first.nbytes, first.nbytes
    return first.nbytes, args[1].nbytes


def program(x):
    ranks = dist.get_world_size()
    x = x + 1
    dist.all_reduce(x)
    gathered = x.new_empty((ranks * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(gathered, x)
    part = x.new_empty((x.shape[0] // ranks, *x.shape[1:]))
    dist.reduce_scatter_tensor(part, x * 2)
    exchanged = torch.empty_like(x)
    dist.all_to_all_single(exchanged, x)
    dist.all_reduce(part)
    return gathered, part, exchanged
