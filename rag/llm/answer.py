"""From the bytes of generated tokens to the text a reader sees; knows no model.

What has been shown cannot be taken back, so everything that may still turn out to be part of a
stop string, an unfinished character or trailing whitespace is held until it is decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class AnswerText:
    """The text of one answer as it grows.

    Leading and trailing whitespace is dropped: it belongs to the prompt's layout.
    """

    def __init__(self, stop_strings: Iterable[str] = ()) -> None:
        self._stop_strings = tuple(s for s in stop_strings if s)
        # bytes that are no UTF-8 (a small model can emit them) are left out, never shown as U+FFFD
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._held = ""
        self.text = ""
        """Everything released so far."""
        self.is_stopped = False
        """Whether a stop string has come; nothing is released after it."""

    def add(self, data: bytes) -> str:
        """Take a token's bytes and return the text that is now certain, often the empty string."""
        if self.is_stopped:
            return ""
        self._held += self._decoder.decode(data)
        found = [at for stop in self._stop_strings if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = self._held[: min(found)]
            return self.end()
        return self._release(len(self._held) - self._n_undecided())

    def end(self) -> str:
        """Return what was held back; an unfinished character is dropped."""
        return self._release(len(self._held))

    def _n_undecided(self) -> int:
        """Count the last characters that a stop string may begin with."""
        longest = max((len(stop) - 1 for stop in self._stop_strings), default=0)
        for n in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-n:]
            if any(stop.startswith(tail) for stop in self._stop_strings):
                return n
        return 0

    def _release(self, end: int) -> str:
        end = len(self._held[:end].rstrip())
        out, self._held = self._held[:end], self._held[end:]
        if not self.text:
            out = out.lstrip()
        self.text += out
        return out
