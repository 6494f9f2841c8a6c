"""Prompt lookup: the next tokens are guessed from what the prompt says after the same words.

The model checks a guess in one call instead of one call a token, so a sentence copied from a
passage comes in leaps; a wrong guess costs the longer call. Knows token ids and a ratio of costs;
runs no model. What it decides depends on the tokens alone, never on the clock, so that the same
question is answered by the same calls.

Source: prompt-lookup-decoding by A. Saxena, as llama-cpp-python has it; short drafts, because ten
tokens cost free answers 5 to 17 % and three gave them 1.5x (notes, measured on two models).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

N_DRAFT = 3
"""Tokens guessed at first."""
_N_LONGEST = 12
"""Tokens guessed while every guess was right."""
_N_GRAM = 2
"""Last tokens that must stand in the prompt alike; one, where two do not."""
_EXPECTED = 1.5
"""Right tokens of a guess, before there was any."""
_NEWEST = 0.3
"""Weight of the newest guess in the mean."""
_FORGETS = 0.05
"""How far the mean comes back to the expected with each token that was not guessed."""


class Lookup:
    """The guesses of one answer.

    Args:
        prompt: What the tokens are guessed from, with what is said.
        n_ctx: Tokens that prompt and answer can have.
        cost: What a call with `N_DRAFT` guessed tokens costs, in calls with none.
    """

    def __init__(self, prompt: Sequence[int], *, n_ctx: int, cost: float) -> None:
        self._seen = np.empty(n_ctx, dtype=np.intc)
        self._n_seen = len(prompt)
        self._seen[: self._n_seen] = prompt
        self._cost = cost
        self._n_right = _EXPECTED
        self._n_draft = N_DRAFT

    def said(self, token: int) -> None:
        """Take the next token of the answer."""
        self._seen[self._n_seen] = token
        self._n_seen += 1

    def draft(self, *, n_most: int) -> list[int]:
        """Return at most so many tokens that may come next; none where guessing does not pay."""
        n_draft = min(self._n_draft, n_most)
        if n_draft < 1 or 1 + self._n_right < self._cost:
            self._n_right += _FORGETS * (_EXPECTED - self._n_right)
            return []
        found = LlamaPromptLookupDecoding.find_candidate_pred_tokens(
            self._seen[: self._n_seen], _N_GRAM, n_draft
        )
        return [int(token) for token in found]

    def judge(self, n_drafted: int, n_right: int) -> None:
        """Learn how many tokens of a guess the model said too."""
        is_right = n_right == n_drafted
        self._n_draft = min(2 * self._n_draft, _N_LONGEST) if is_right else N_DRAFT
        self._n_right += _NEWEST * (min(n_right, N_DRAFT) - self._n_right)
