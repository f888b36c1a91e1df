"""What a user perhaps meant: the nearest of the known names."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], similarity: float = 0.65) -> str | None:
    """The known name most like `name`, at least `similarity` in [0,1] (difflib's ratio); None if none is.

    Upper and lower case count as equal.
    """
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=similarity)
    return folded[close[0]] if close else None


def same(name: str, known: Iterable[str]) -> str | None:
    """`name` if it is known, or else the only known name that differs from it in case alone; None without.

    A letter with its accent as one character or as two, as macOS may write it, is one letter.
    """
    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    known = list(known)
    found = [other for other in known if other == name] or [other for other in known
                                                            if plain(other) == plain(name)]
    return found[0] if len(found) == 1 else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """"; did you mean X?", or "" where nothing known is like `name`."""
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else ""
