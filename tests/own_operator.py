"""Packages with an operator of their own, as if they were installed: what a plugin test starts its processes with."""

from __future__ import annotations

import os
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_operator"


def environment(package: str, folder: Path, site: Path) -> dict[str, str]:
    """The environment of a process in which the package in `folder` is installed; its metadata is written into `site`."""
    metadata = site / f"{package}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[moe_graph.plugins]\n{package} = {package}.simulated\n")
    path = os.pathsep.join(filter(None, (str(site), str(folder), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}
