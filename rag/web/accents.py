"""One colour of the settings becomes the accent of both themes, readable in each.

Knows colours and the two style sheets that use one; does not know the settings.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

_PUBLIC = Path(__file__).parent / "public"
_READABLE = 6.0
"""Contrast of text in the accent; WCAG asks 4.5, the rest is for the tint behind a chip."""
_GROUNDS = {"light": (0xFB, 0xF8, 0xF3), "dark": (0x1B, 0x16, 0x13)}
"""Backgrounds of theme.json; a button's text has about the same colour."""
_NAMES = ("--primary", "--ring", "--sidebar-primary", "--sidebar-ring")


def accent_css(accent: str) -> str:
    """Return the rules that give both themes of the chat an accent.

    Args:
        accent: `#rrggbb`; each theme has it as near as stays readable there.
    """
    light, dark = readable(accent, "light"), readable(accent, "dark")
    # important, because Chainlit writes the theme's own onto the element
    return "".join(
        f"{selector} {{ {' '.join(f'{name}: {value} !important;' for name in _NAMES)} }}\n"
        for selector, value in ((":root", light), (":root.dark", dark))
    )


def styles(accent: str) -> dict[str, str]:
    """Return the style sheets of `public/` that have an accent, with this one, by name."""
    light, dark = readable(accent, "light"), readable(accent, "dark")
    page = (
        f":root {{ --primary: {light}; }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ --primary: {dark}; }} }}\n"
    )
    return {
        name: f"{(_PUBLIC / name).read_text(encoding='utf-8')}\n{rules}"
        for name, rules in (("app.css", accent_css(accent)), ("row.css", page))
    }


def readable(accent: str, theme: str) -> str:
    """Return the accent as `H S% L%`, made darker or lighter until the theme's page shows it.

    Args:
        accent: `#rrggbb`.
        theme: `light` or `dark`.
    """
    hue, lightness, saturation = colorsys.rgb_to_hls(
        *(int(accent[i : i + 2], 16) / 255 for i in (1, 3, 5))
    )
    ground = [c / 255 for c in _GROUNDS[theme]]
    step = -0.01 if theme == "light" else 0.01
    while (
        0 < lightness + step < 1
        and contrast(colorsys.hls_to_rgb(hue, lightness, saturation), ground) < _READABLE
    ):
        lightness += step
    return f"{hue * 360:.0f} {saturation:.0%} {lightness:.0%}"


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the contrast of two colours, 1 to 21. Source: WCAG 2.2, contrast ratio."""
    faint, bright = sorted((_luminance(one), _luminance(other)))
    return (bright + 0.05) / (faint + 0.05)


def _luminance(rgb: Sequence[float]) -> float:
    """Return how bright a colour looks. Source: WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
