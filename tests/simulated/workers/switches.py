"""Turns each switch of torch_npu that a program may turn after the import, and does some work after each. Prints what fails or differs."""

import json
import os
import sys
import warnings

import torch
import torch_npu

warnings.simplefilter("ignore")

ENVIRONMENT = {
    "TASK_QUEUE_ENABLE": "2",
    "PER_STREAM_QUEUE": "1",
    "ACLNN_CACHE_LIMIT": "1",
    "COMBINED_ENABLE": "1",
    "MULTI_STREAM_MEMORY_REUSE": "2",
    "TORCH_NPU_LAZY_FUSION": "1",
    "TORCH_NPU_USE_COMPATIBLE_IMPL": "1",
    "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
    "TORCH_NPU_COMPACT_ERROR_OUTPUT": "1",
    "ACL_OP_INIT_MODE": "1",
    "STREAMS_PER_DEVICE": "8",
    "HCCL_DETERMINISTIC": "true",
    "ASCEND_LAUNCH_BLOCKING": "1",
}


def work():
    x = torch.arange(12.0).reshape(3, 4).npu().requires_grad_()
    loss = ((x @ x.t() + 1).softmax(0) * 3).sum()
    loss.backward()
    counts = torch.tensor([[2, 0, 3], [1, 4, 0]], dtype=torch.int32).npu()
    for _ in range(20):
        routed = torch_npu.npu_moe_re_routing(torch.arange(20, dtype=torch.int8).view(10, 2).npu(), counts)
        total = routed[3] + 0  # computed at once, behind a launch of torch_npu's
        assert total.tolist() == [3, 4, 3]
    return [
        value.detach().cpu() for value in (loss, x.grad, routed[2], torch_npu.npu_rms_norm(x, torch.ones(4).npu())[0])
    ]


def setting(owner, name, value):
    return lambda: setattr(owner, name, value)


npu = torch_npu.npu
SWITCHES = {
    "jit_compile on": lambda: npu.set_compile_mode(jit_compile=True),
    "jit_compile off": lambda: npu.set_compile_mode(jit_compile=False),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "not deterministic": lambda: torch.use_deterministic_algorithms(False),
    "internal formats": setting(npu.config, "allow_internal_format", True),
    "no internal formats": setting(npu.config, "allow_internal_format", False),
    "hf32 of matmul": setting(npu.matmul, "allow_hf32", True),
    "hf32 of convolution": setting(npu.conv, "allow_hf32", True),
    "set_mm_bmm_format_nd": lambda: npu.set_mm_bmm_format_nd(True),
    "set_option": lambda: npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"}),
    "dumps": lambda: (npu.init_dump(), npu.finalize_dump()),
    "set_sync_debug_mode": lambda: npu.set_sync_debug_mode(0),
    "cores of the device": lambda: npu.set_device_limit(0, 12, 12),
    "cores of a stream": lambda: npu.set_stream_limit(npu.current_stream(), 8, 8),
    "all cores": lambda: npu.reset_stream_limit(npu.current_stream()),
    **{name: lambda name=name: os.environ.update({name: ENVIRONMENT[name]}) for name in ENVIRONMENT},
}

if __name__ == "__main__":
    expected, failed = work(), {}
    for switch, turn in SWITCHES.items():
        try:
            turn()
            for found, value in zip(work(), expected):
                torch.testing.assert_close(found, value)
        except Exception as error:
            failed[switch] = f"{type(error).__name__}: {str(error)[:300]}"
    json.dump(failed, sys.stdout)
