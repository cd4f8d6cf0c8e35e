"""Generated parts of pages, between two markers."""

from __future__ import annotations


def between(text: str, begin: str, end: str) -> str | None:
    """What stands between the markers of a page, None if they are missing."""
    _, found, rest = text.partition(begin)
    inside, also_found, _ = rest.partition(end)
    return inside.strip() if found and also_found else None


def written(text: str, begin: str, end: str, part: str, page: str) -> str:
    """The page with this part between its markers; `page` names it in the error for missing ones."""
    if between(text, begin, end) is None:
        raise SystemExit(f"{page} must have the markers {begin} and {end}")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"
