"""What a reader sees of a text, and how texts are compared by their looks.

Knows Unicode only.
"""

from __future__ import annotations

import re
import unicodedata

_JOINED = (
    "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc"
)
"""Scripts whose letters a joiner or a non-joiner changes: Arabic, Indic, Khmer, Mongolian, …"""
_EMOJI = "\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff"
"""Where emoji are, generously: these may carry a variation selector, and join."""
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"  # controls that are no white space
    "|[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e]"
    "|[\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3]"
    "|[\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # with tags and variation selectors 17–256
    f"|(?<![{_JOINED}])\u200c"
    f"|(?<![{_JOINED}\ufe0f{_EMOJI}])\u200d|(?<![{_JOINED}])\u200d(?![{_EMOJI}])"
    f"|(?<![{_EMOJI}#*0-9])[\ufe0e\ufe0f]"
    "|[\ufdd0-\ufdef\ud800-\udfff]"
    f"|[{''.join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))}]"
)
_LOOKALIKES = str.maketrans("аеорсухіѕјԁһԛԝАВЕКМНОРСТХІЅЈ", "aeopcyxisjdhqwABEKMHOPCTXISJ")
"""Cyrillic letters that pass for Latin ones."""


def visible(text: str) -> str:
    """Return the text without the characters that a model may read and no reader sees.

    Tags, variation selectors, zero-width and bidirectional controls, other controls and
    noncharacters go; white space, emoji sequences and the joiners that a script needs stay.
    Sources: Unicode 16, `Default_Ignorable_Code_Point`; UTS #51 on emoji sequences.
    """
    return _INVISIBLE.sub("", text)


def folded(text: str) -> tuple[str, list[int]]:
    """Return the text as it looks, in plain letters, and where each character came from."""
    shown: list[str] = []
    at: list[int] = []
    for i, ch in enumerate(text):
        plain = ch
        if not ch.isascii():
            if unicodedata.category(ch) in ("Cf", "Mn"):
                continue
            plain = unicodedata.normalize("NFKC", ch)
        if _INVISIBLE.match(plain):
            continue
        shown.append(plain)
        at.extend([i] * len(plain))
    return "".join(shown).translate(_LOOKALIKES), at


def squeezed(text: str) -> str:
    """Return the letters and digits of a text, in lower case."""
    return re.sub(r"[\W_]+", "", folded(text)[0].casefold())


def spaced(letters: str) -> re.Pattern[str]:
    """Return a pattern that finds squeezed letters in a folded, lower-case text.

    However they are spaced and punctuated, as words of their own.
    """
    run = r"[\W_]*".join(map(re.escape, letters))
    return re.compile(rf"(?<![^\W_]){run}(?![^\W_])")
