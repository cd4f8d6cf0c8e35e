"""One rank of two or three, of which the last is killed, or never comes. Writes what the others see, and after how long.

Arguments: the file of the rendezvous, the folder for the results, what happens ("wait", "future", "ddp", "late").
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def attempt(way):
    tensor = torch.ones(1 << 16).npu()
    if way == "future":
        return dist.all_reduce(tensor, async_op=True).get_future().wait()
    if way == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4).npu())
        return model(torch.ones(2, 4).npu()).sum().backward()
    return dist.all_reduce(tensor)


def main():
    way = sys.argv[3]
    torch.npu.set_device(RANK)
    timeout = timedelta(seconds=5 if way == "late" else 600)
    dist.init_process_group("hccl", init_method=f"file://{sys.argv[1]}", rank=RANK, world_size=SIZE, timeout=timeout)
    dist.barrier()
    if RANK == SIZE - 1:
        if way == "late":
            time.sleep(15)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        for _ in range(3):
            attempt(way)
        seen = None
    except Exception as error:
        seen = [type(error).__name__, isinstance(error, RuntimeError), str(error)]
    Path(sys.argv[2], f"{RANK}.json").write_text(json.dumps({"seen": seen, "seconds": time.monotonic() - start}))
    os._exit(0)


if __name__ == "__main__":
    main()
