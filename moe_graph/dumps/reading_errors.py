"""The error every reader raises."""

from __future__ import annotations


class DumpError(ValueError):
    """A file that cannot be read as a dump of a graph. The message is one line that says what is wrong, and where."""
