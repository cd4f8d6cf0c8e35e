"""The stand-in for torchair's extension module: graphs that torchair lowers are executed by the host engine.

The real `torchair.core._torchair` binds GE, the part of CANN that compiles and runs graphs. All other parts of torchair are Python
and stay as they are. What needs GE itself (an .air file, tuning, dumping or printing from the device) raises `NeedsCann`.
"""

from __future__ import annotations

import ctypes
import enum
import math
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moe_graph.foundation import marks, survey
from moe_graph.simulator.graph_mode.ir_definitions import ir_definition
from moe_graph.simulator.graph_mode.source_lines import source_lines
from moe_graph.simulator.runtime.tensors import cpu_view, is_npu, to_npu

_NAME = "torchair.core._torchair"


class NeedsCann(RuntimeError):
    """A part of torchair that only works on CANN was asked for on the simulated device."""

    def __init__(self, what: str) -> None:
        super().__init__(f"simulated device: {what} needs CANN's graph engine")


# Numbers of the enum that the extension module exports, by torch's own order of scalar types.
class TorchDataType(enum.IntEnum):
    """The dtypes that `as_torch_tensors` names."""

    UINT8 = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    FLOAT16 = 5
    FLOAT32 = 6
    FLOAT64 = 7
    COMPLEX64 = 9
    COMPLEX128 = 10
    BOOL = 11
    BF16 = 15
    UINT16 = 27
    UINT32 = 28
    UINT64 = 29


_OF_TORCH = {
    TorchDataType.UINT8: torch.uint8,
    TorchDataType.INT8: torch.int8,
    TorchDataType.INT16: torch.int16,
    TorchDataType.INT32: torch.int32,
    TorchDataType.INT64: torch.int64,
    TorchDataType.FLOAT16: torch.float16,
    TorchDataType.FLOAT32: torch.float32,
    TorchDataType.FLOAT64: torch.float64,
    TorchDataType.COMPLEX64: torch.complex64,
    TorchDataType.COMPLEX128: torch.complex128,
    TorchDataType.BOOL: torch.bool,
    TorchDataType.BF16: torch.bfloat16,
}


class TorchNpuGraphBase:
    """A graph between its lowering and its results. torchair derives `TorchNpuGraph` from it."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._serialized: bytes | None = None
        self._program: Any = None
        self._fx_shapes: list[tuple[int, ...]] | None = None
        self._lock = threading.Lock()

    def load(
        self,
        serialized: bytes,
        options: dict[str, str],
        input_placements: Any,
        output_dtypes: Any,
        executor_type: int,
    ) -> None:
        """Take the serialized ModelDef. Options of GE have no effect on the host.

        Raises the engine's GraphError, naming the node, if the graph cannot be executed on the host.
        """
        from moe_graph.engine import load_model

        program = load_model(bytes(serialized), _source_lines_of_caller())
        with self._lock:
            self._serialized = serialized
            self._program = program

    def set_hint_shape(self, inputs_shape: Any, outputs_shape: Any) -> None:
        """The shapes of the FX graph's inputs and outputs (-1: not known before the run)."""
        self._fx_shapes = [tuple(shape) for shape in outputs_shape]

    def compile(self) -> None:
        """The graph was planned when it was loaded. Raises RuntimeError if its outputs are not those of the FX graph.

        Here the shapes that the graph describes are compared; those that its kernels give are compared when it runs.
        """
        shapes = self._loaded("compile").output_shapes
        if self._fx_shapes is not None and len(shapes) != len(self._fx_shapes):
            raise RuntimeError(
                f"simulated device: the graph has {len(shapes)} outputs, the FX graph has {len(self._fx_shapes)}"
            )
        for position, (shape, fx) in enumerate(zip(shapes, self._fx_shapes or ())):
            if len(shape) != len(fx) or any(-1 not in sizes and sizes[0] != sizes[1] for sizes in zip(shape, fx)):
                raise RuntimeError(
                    f"simulated device: output {position} of the graph has shape {list(shape)}, in the FX graph it is {list(fx)}"
                )

    def run(self, call: tuple[list[Tensor], list[Tensor | None], int | None]) -> list[Tensor]:
        """Run on (inputs, assigned outputs, stream); return the outputs, on the device of the inputs.

        An input on the simulated device is read in place. Where an assigned output is given, the result is written into it, and it
        is what is returned. Raises RuntimeError if the graph was not loaded, if an input is not a tensor, or if an assigned output
        has another shape or dtype or is neither a tensor nor None.
        """
        if survey.is_on():
            return marks.computed(lambda: self._run(call), *call[0])
        return self._run(call)

    def _run(self, call: tuple[list[Tensor], list[Tensor | None], int | None]) -> list[Tensor]:
        inputs, assigned, _stream = call
        _check_tensors(inputs)
        _check_tensors(assigned, optional=True)
        program = self._loaded("run")
        devices = [tensor.device for tensor in inputs if is_npu(tensor)]
        if devices:
            # Launches that wait in torch_npu's queue come first. A wait for the device would wait for messages, too.
            torch.npu.current_stream(devices[0]).synchronize()
        host_inputs = [cpu_view(tensor) if is_npu(tensor) else tensor.detach() for tensor in inputs]
        results = program.run(host_inputs)
        device = _output_device(devices)
        if device.type == "cpu":
            results = _apart_from(results, host_inputs)
        targets = list(assigned or [])
        targets += [None] * (len(results) - len(targets))
        results = _read_before_written(results, targets)
        return [
            _hand_out(result, target, device, position)
            for position, (result, target) in enumerate(zip(results, targets))
        ]

    def auto_tune(self, call: Any) -> None:
        """Not modelled: there is no operator compiler to tune. Raises RuntimeError for inputs that `run` would not take."""
        _check_tensors(call[0])
        raise NeedsCann("auto tune (config.aoe_config)")

    def _loaded(self, step: str) -> Any:
        with self._lock:
            program = self._program
        if program is None:
            raise RuntimeError(f"simulated device: graph {self._name!r} cannot {step} before it is loaded")
        return program


def _check_tensors(values: Any, optional: bool = False) -> None:
    """In the words of the extension module."""
    if not isinstance(values, (list, tuple)):
        raise RuntimeError("not a list or tuple")
    for position, value in enumerate(values):
        if value is None and not optional:
            raise RuntimeError(f"element {position} is None")
        if value is not None and not isinstance(value, Tensor):
            raise RuntimeError(f"element {position} is not a Tensor")


def _source_lines_of_caller() -> dict[str, str]:
    """The user's program lines of the graph being loaded: torchair's `TorchNpuGraph.load` calls with the graph at hand in `ge_graph`.

    The serialized graph does not carry them; a graph that torchair has read back from its cache has none.
    """
    caller = sys._getframe(2).f_locals.get("ge_graph")
    return source_lines(getattr(caller, "python_code", ""))


def _output_device(devices: list[torch.device]) -> torch.device:
    """Where the inputs are; with none on a device, the current one, or the CPU where torch_npu is not loaded."""
    if devices:
        return devices[0]
    if "torch_npu" in sys.modules:
        return torch.device("npu", torch.npu.current_device())
    return torch.device("cpu")


def _apart_from(results: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """GE's outputs have memory of their own, also where the graph hands an input through."""
    taken = {tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.numel()}
    return [
        result.clone() if result.numel() and result.untyped_storage().data_ptr() in taken else result
        for result in results
    ]


def _read_before_written(results: list[Tensor], targets: list[Tensor | None]) -> list[Tensor]:
    """An output that is another one's target, handed through: it is what the input was before the run, as the graph says."""
    written = {target.data_ptr(): position for position, target in enumerate(targets) if target is not None}
    return [
        result.clone() if written.get(result.data_ptr(), position) != position else result
        for position, result in enumerate(results)
    ]


def _hand_out(result: Tensor, target: Tensor | None, device: torch.device, position: int) -> Tensor:
    if target is None:
        return to_npu(result, device) if device.type == "npu" else result
    if target.shape != result.shape or target.dtype != result.dtype:
        raise RuntimeError(
            f"simulated device: output {position} is {result.dtype} {tuple(result.shape)}, but the tensor assigned to it is "
            f"{target.dtype} {tuple(target.shape)}"
        )
    into = cpu_view(target) if is_npu(target) else target.detach()
    if into.data_ptr() != result.data_ptr() or into.stride() != result.stride():
        into.copy_(result)
    return target


# ---- the module's functions ----


def _initialize_graph_engine(options: dict[str, str]) -> None:
    """The host engine keeps no state over graphs; of GE's options one has an effect on it: a file that says what to dump."""
    if "ge_dump_with_acl_config" in options:
        _set_dump(options["ge_dump_with_acl_config"])


def _set_dump(path: str) -> None:
    from moe_graph.simulator.graph_mode import data_dump

    data_dump.set_dump(path)


def _finalize_graph_engine() -> None:
    """Nothing to release: a graph's memory goes with it."""


def _get_registered_ir_def(op_type: str) -> tuple:
    """What GE's registry says. Surveyed, a converter's node of a type that it has not may be made: the host engine notes and answers it."""
    definition = ir_definition(op_type)
    if definition.status != "SUCCESS" and survey.is_on():
        caller = sys._getframe(1)
        if caller.f_code.co_name == "custom_op" and caller.f_locals.get("inputs") is not None:
            return ("SUCCESS", [], [], [])
    return tuple(definition)


def _check_cann_compat(op_type: str, optional_inputs: Any, optional_attrs: Any) -> str:
    """What an older CANN would lack of an operator, in CANN's words; an empty text if nothing.

    "Has" means here: torchair's generated definitions have it, or the host engine a kernel of that name.
    """
    from moe_graph.engine import registry

    definition, kernel = ir_definition(op_type), registry.get(op_type)
    if definition.status != "SUCCESS" and kernel is None:
        return f"OperatorFactory find optype {op_type} failed, maybe you need upgrade cann version."
    known_inputs = {name for name, _ in definition.inputs} | {i.name for i in (kernel.inputs if kernel else ())}
    known_attrs = {name for name, _ in definition.attrs} | {a.name for a in (kernel.attributes if kernel else ())}
    inputs = [name for name in optional_inputs if name not in known_inputs]
    attrs = [name for name in optional_attrs if name not in known_attrs]
    if not inputs and not attrs:
        return ""
    return (
        f"optype {op_type} unsupported optional input [{', '.join(inputs)}], optional attr [{', '.join(attrs)}], "
        "please upgrade cann version."
    )


def _check_aclnn_available(name: str) -> bool:
    """Has CANN's library of operators, here the simulated one, a function of this name?"""
    return hasattr(ctypes.CDLL("libopapi.so"), name)


def _as_torch_tensors(shape: Sequence[int], data_type: int, addresses: Sequence[int]) -> tuple[int, list[torch.Tensor]]:
    """0 and a contiguous tensor of the current device over its memory at each address, which nothing keeps alive; 1 and none for an
    unsigned type of more than 8 bits, as in the extension module."""
    dtype = _OF_TORCH.get(TorchDataType(data_type))
    if dtype is None:
        return 1, []
    import torch_npu

    device, size = torch.device("npu", torch.npu.current_device()), math.prod(shape) * dtype.itemsize
    # torch_npu's own function, not torch's of this name: an NPU tensor's storage is larger than torch's, by its format.
    memory = [torch_npu._C._construct_storage_from_data_pointer(address, device, size) for address in addresses]
    return 0, [torch.empty(0, dtype=dtype, device=device).set_(block, 0, tuple(shape)) for block in memory]


def _stupid_repeat(word: str, times: int) -> str:
    return word * times


def _set_debug_log_path(path: str) -> None:
    """The path takes the log of the extension module's C++, of which there is none."""


def _init_device_stdout_channel(device: int) -> None:
    """The channel brings a device's prints to the host's standard error, where the host engine prints."""


def _get_soc_name() -> str:
    return torch.npu.get_device_name() if "torch_npu" in sys.modules else os.environ.get("MOE_GRAPH_SIM_SOC", "A2")


def _export(serialized: bytes, options: dict[str, str]) -> None:
    """Write the graph of `dynamo_export` as it is handed to GE, and say that the .air file, which GE itself writes, is missing."""
    name = options["export_name"]
    written = Path(options["export_path_dir"]) / f"{name.removesuffix('.air')}.modeldef"
    written.write_bytes(serialized)
    raise NeedsCann(
        f"{name} of dynamo_export (written: the graph for GE as a serialized ModelDef, {written}, "
        "beside torchair's dynamo.pbtxt and weights)"
    )


def _no_static_kernels(kind: int, path: str) -> None:
    """torchair asks for descriptions of the launches, to compile a kernel for each. There are none, and it compiles none."""
    warnings.warn(
        "simulated device: static kernels (aclnn_static_shape_kernel) are off, they need CANN's operator compiler; "
        "the launches run without them, to the same values",
        stacklevel=2,
    )


def _refuse(what: str):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NeedsCann(what)

    return refuse


def module() -> ModuleType:
    """A new module with the names that torchair uses of `torchair.core._torchair`."""
    made = ModuleType(_NAME, __doc__)
    made.TorchNpuGraphBase = TorchNpuGraphBase
    made.TorchDataType = TorchDataType
    made.InitializeGraphEngine = _initialize_graph_engine
    made.FinalizeGraphEngine = _finalize_graph_engine
    made.get_registered_ir_def = _get_registered_ir_def
    made.check_cann_compat = _check_cann_compat
    made.StupidRepeat = _stupid_repeat
    made.SetDebugLogPath = _set_debug_log_path
    made.GetSocName = _get_soc_name
    made.export = _export
    made.as_torch_tensors = _as_torch_tensors
    made.CheckAclnnAvaliable = _check_aclnn_available
    made.AclmdlSetDump = _set_dump
    made.AclopStartDumpArgs = _no_static_kernels
    made.AclopStopDumpArgs = lambda kind: None
    made.InitDeviceStdoutChannel = _init_device_stdout_channel
    return made


def _executor_module() -> ModuleType:
    made = ModuleType("torchair.core._npu_graph_executor")
    made.GetNpuStorageSizes = lambda tensor: list(
        tensor.shape
    )  # base formats only: storage and view have the same shape
    return made


def _utils_module() -> ModuleType:
    made = ModuleType("torchair.core._npu_utils")
    made.NpuFormatCastViaCpu = _refuse("an internal tensor format (npu_format_cast)")
    return made


def install() -> None:
    """Put the stand-ins where torchair imports its extension modules from. Idempotent; torchair must not have been imported yet."""
    for name, make in (
        (_NAME, module),
        ("torchair.core._npu_graph_executor", _executor_module),
        ("torchair.core._npu_utils", _utils_module),
    ):
        if name not in sys.modules:
            sys.modules[name] = make()
