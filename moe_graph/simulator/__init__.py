"""A simulated Ascend device: the real torch_npu and the real torchair on a machine with no NPU and no CANN.

Importing this module starts it:

    import moe_graph.simulator
    tensor.npu()   # torch_npu's own code, on a device of host memory

Which device: MOE_GRAPH_SIM_SOC = A2 (default), A3 or 950; how many: MOE_GRAPH_SIM_DEVICES (default 1, under torchrun as many as it
has workers); how large each is: MOE_GRAPH_SIM_MEMORY_GB (default 64).
Where CANN is installed it says so and stays off.

    device          starting it
    runtime/        what stands where CANN's libraries would, in C, and its build; `aclnnMoeReRouting` is executed and recorded there
    graph_mode/     the stand-in for torchair's extension module: graphs run on the host engine
    eager/          eager operators on NPU tensors, by the CPU's kernels and by `moe_graph.operators`
    communication/  the backend hccl of torch.distributed, by gloo on the same memory
    inherit/        starting the device in the child processes of the launcher
    faults          errors on purpose: out of memory, failing kernels, errors that surface later, slow streams
    report          operators used, copies and waits by line of the program

What computes or communicates and is not modelled raises an error that names the function; it never succeeds silently.
"""

from moe_graph.simulator.device import is_active, soc, start
from moe_graph.simulator.runtime.calls import KernelCall, Operand, kernel_calls
from moe_graph.simulator.runtime.errors import SimulatorError

__all__ = ["KernelCall", "Operand", "SimulatorError", "is_active", "kernel_calls", "soc", "start"]

start()
