"""The Python snippets of the README."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def snippets(on_device: bool) -> list[str]:
    """The snippets that import torch_npu or the simulator, or those that do not."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if bool(re.search("torch_npu$|simulator", block, re.MULTILINE)) == on_device]
