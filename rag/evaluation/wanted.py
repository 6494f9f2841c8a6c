"""The least that a figure must be: what `--fail-under` takes.

Knows the names of the figures; measures nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rag.errors import SettingsError, nearest
from rag.evaluation.metrics import Estimate
from rag.evaluation.results import LOWER_IS_BETTER, RETRIEVAL

_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")


@dataclass(frozen=True)
class Wanted:
    """A figure, and how good it must be at least."""

    name: str
    bound: float

    def missed(self, measured: Mapping[str, Estimate | None]) -> str | None:
        """Return the sentence that names what was measured and wanted; None where it is met."""
        estimate = measured[self.name]
        if estimate is None:
            return f"{self.name} was not measured: no question tells it; wanted {self.bound:g}."
        is_lower_better = self.name in LOWER_IS_BETTER
        shown = f"{self.name} is {estimate.value:.4g}"
        if is_lower_better and estimate.value > self.bound:
            return f"{shown}; wanted at most {self.bound:g}."
        if not is_lower_better and estimate.value < self.bound:
            return f"{shown}; wanted at least {self.bound:g}."
        return None


def parse_wanted(text: str, names: Sequence[str], *, mode: str) -> Wanted:
    """Read `recall@5=0.9`, or `vector.recall@5=0.9` for another mode than the settings'.

    Args:
        text: As typed.
        names: Of the figures that will be reported.
        mode: The mode meant where none is named.

    Raises:
        SettingsError: no such figure, or no number.
    """
    name, _, bound = (part.strip() for part in text.partition("="))
    full = f"{mode}.{name}" if name in RETRIEVAL else name
    if full not in names:
        close = nearest(name, [*RETRIEVAL, *names])
        hint = f" Did you mean {close!r}?" if close else ""
        raise SettingsError(
            f"--fail-under names {name!r}, which is no figure reported here; those are "
            f"{', '.join(names)}.{hint}"
        )
    if not _NUMBER.fullmatch(bound) or math.isinf(float(bound)):
        raise SettingsError(
            f"--fail-under is {text!r}; write a figure and a number, such as recall@5=0.9."
        )
    return Wanted(full, float(bound))
