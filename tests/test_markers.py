from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.markers import Marker, Markers

PASSAGE = "array[2] holds the sizes [1, 2], see note [3]"


def parted(pieces: list[str], n_passages: int = 3) -> str:
    """Return the text with markers as `<1>` where they were taken out."""
    markers = Markers(lambda text: text.lower() in PASSAGE, n_passages)
    found = [p for piece in pieces for p in markers.feed(piece)] + list(markers.finish())
    return "".join(f"<{p.numbers}>" if isinstance(p, Marker) else p for p in found)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A spear [2].", "A spear<(2,)>."),
        ("A spear.[2] A lance", "A spear.<(2,)> A lance"),
        ("A spear[1][3] and", "A spear<(1,)><(3,)> and"),
        ("A spear [1, 3] and", "A spear<(1, 3)> and"),
        ("A spear [1-3].", "A spear<(1, 2, 3)>."),
        ("长矛【1】。", "长矛<(1,)>。"),
        ("A spear【2†source】.", "A spear<(2,)>."),
        ("A spear [Passage 2].", "A spear<(2,)>."),
        ("A spear [9] and", "A spear<(9,)> and"),
        ("A spear. [1]\nA lance [2]", "A spear.<(1,)>\nA lance<(2,)>"),
        ("One\n[1] Two", "One\n<(1,)>Two"),
        ("[1] Two", "<(1,)>Two"),
        # text that only looks like it
        ("It is array[2] here", "It is array[2] here"),
        ("It is list[7] here", "It is list[7] here"),
        ("The sizes [1, 2] fit", "The sizes [1, 2] fit"),
        ("See note [3] there", "See note [3] there"),
        ("A [silver] spear", "A [silver] spear"),
        ("A [2024] spear", "A [2024] spear"),
        ("open [", "open ["),
        ("open [1", "open [1"),
        ("[[1]]", "[<(1,)>]"),
        ("a  b \n\n c", "a  b \n\n c"),
    ],
)
def test_markers_are_told_from_text(text: str, expected: str, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert parted(pieces) == expected


@given(st.text("ab1 2[]【】,.\n", max_size=40), st.integers(1, 7))
def test_pieces_do_not_matter_and_text_without_markers_is_kept(text: str, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert parted(pieces) == parted([text])
    if "<" not in parted([text]):
        assert parted([text]) == text.rstrip() or text.endswith((" ", "\n"))
