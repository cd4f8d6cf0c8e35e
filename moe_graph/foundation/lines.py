"""Lines of a program in what is shown to its user."""

from __future__ import annotations

import os


def short(line: str) -> str:
    """A place, 'file:line in function' or 'File "file", line ...': files below the working directory by their relative name."""
    here = os.getcwd() + os.sep
    return line[len(here) :] if line.startswith(here) else line.replace(f'File "{here}', 'File "')
