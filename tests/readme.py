"""The Python snippets of the README and of the pages in docs/."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def snippets(on_device: bool) -> dict[str, str]:
    """{document and number: code} of those that import torch_npu or the simulator, or of those that do not."""
    found = {}
    for document in DOCUMENTS:
        blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        for number, block in enumerate(blocks):
            if bool(re.search("torch_npu$|simulator", block, re.MULTILINE)) == on_device:
                found[f"{document.name} {number}"] = block
    return found
