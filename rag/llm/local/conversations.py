"""What the model has read of several conversations, so that none is read twice.

Knows states and how much memory they take; does not know what is in them. One thread at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from rag.llm.local.context import State, n_common


class Conversations:
    """States by conversation; the ones longest unused go first when memory runs out.

    Args:
        max_bytes: Memory for all of them.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._states: OrderedDict[str, State] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        """Memory they take."""
        return sum(state.n_bytes for state in self._states.values())

    def put(self, conversation: str, state: State) -> None:
        """Keep a conversation's state instead of its earlier one."""
        self._states.pop(conversation, None)
        if state.n_bytes > self._max_bytes:
            return
        self._states[conversation] = state
        while self.n_bytes > self._max_bytes:
            self._states.popitem(last=False)

    def best(self, prompt: Sequence[int], *, at_least: int) -> State | None:
        """Return the state that knows most of a prompt, if it knows that many tokens of it."""
        found, n_best = None, at_least - 1
        for conversation, state in self._states.items():
            n = n_common(state.tokens, prompt)
            if n > n_best:
                found, n_best = conversation, n
        if found is None:
            return None
        self._states.move_to_end(found)
        return self._states[found]

    def clear(self) -> None:
        """Forget them all."""
        self._states.clear()
