"""Tells the text of the thinking stage from the text of the answer, whatever pieces it arrives in."""

from __future__ import annotations


def _held_back(text: str, marker: str) -> int:
    """Length of the longest end of text that may be the beginning of marker."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0


class ReasoningSplitter:
    """Splits the output of a request that thinks at the end marker; a start marker in front is dropped.

    The markers themselves are in neither text. Text that may turn out to be a marker is held back until it is known.
    """

    def __init__(self, start_marker: str, end_marker: str) -> None:
        """Start in the thinking stage; both markers are non-empty."""
        if not start_marker or not end_marker:
            raise ValueError("both markers of the thinking stage must be non-empty")
        self._start_marker = start_marker
        self._end_marker = end_marker
        self._pending = ""
        self._at_start = True
        self.thinking = True

    def push(self, text: str) -> tuple[str, str]:
        """Take new output text; return what is now known to be (thinking, answer)."""
        if not self.thinking:
            return "", text
        self._pending += text
        if self._at_start:
            begun = self._pending.lstrip()
            if begun.startswith(self._start_marker):
                self._pending = begun[len(self._start_marker) :]
            elif self._start_marker.startswith(begun):
                return "", ""
            self._at_start = False
        before, marker, after = self._pending.partition(self._end_marker)
        if marker:
            self.thinking = False
            self._pending = ""
            return before, after
        known = len(self._pending) - _held_back(self._pending, self._end_marker)
        thinking, self._pending = self._pending[:known], self._pending[known:]
        return thinking, ""

    def flush(self) -> tuple[str, str]:
        """Return what was held back, once the output has ended."""
        pending, self._pending = self._pending, ""
        return (pending, "") if self.thinking else ("", pending)
