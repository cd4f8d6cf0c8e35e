"""Paths of files that a command is to write: refused before the work is done, not after it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def output_path(text: str) -> Path:
    """The path, for `type=` of an argument. Raises ArgumentTypeError, which ends the command, if no file can be written there."""
    path = Path(text)
    folder = path.parent
    if not text:
        problem = "a file needs a name"
    elif path.is_dir():
        problem = f"{path} is a folder"
    elif not folder.is_dir():
        problem = f"there is no folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        problem = f"{path} cannot be written"
    else:
        return path
    raise argparse.ArgumentTypeError(problem)


def output_path_or_stdout(text: str) -> str:
    """As `output_path`; "-", which stands for a standard stream, stays as it is."""
    return text if text == "-" else str(output_path(text))
