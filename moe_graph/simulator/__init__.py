"""A simulated Ascend device: the real torch_npu and the real torchair on a machine with no NPU and no CANN.

Importing this module starts it:

    import moe_graph.simulator
    tensor.npu()   # torch_npu's own code, on a device of host memory

Which device: MOE_GRAPH_SIM_SOC = A2 (default), A3 or 950; how many: MOE_GRAPH_SIM_DEVICES (default 1); how large each is:
MOE_GRAPH_SIM_MEMORY_GB (default 64).
Where CANN is installed it says so and stays off.

    device          starting it                           build, symbols  compiling its libraries for the installed wheel
    *.c             what stands where CANN's libraries would; `aclnnMoeReRouting` is executed and recorded there
    torchair_core   the stand-in for torchair's extension module: graphs run on the host engine
    eager           eager operators on NPU tensors, by the CPU's kernels
    communication   the backend hccl of torch.distributed, by gloo on the same memory
    inherit/        starting the device in the child processes of the launcher
    faults          errors on purpose: out of memory, failing kernels, errors that surface later, slow streams
    report          operators used, copies and waits by line of the program

What computes or communicates and is not modelled raises an error that names the function; it never succeeds silently.
"""

from moe_graph.simulator.calls import KernelCall, Operand
from moe_graph.simulator.device import is_active, kernel_calls, soc, start
from moe_graph.simulator.errors import SimulatorError

__all__ = ["KernelCall", "Operand", "SimulatorError", "is_active", "kernel_calls", "soc", "start"]

start()
