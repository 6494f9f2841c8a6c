"""Charts for `/stats`: the table by its choices, how relevant and how fast recent answers were.

Knows Plotly; does not know Chainlit, nor where answers are kept. Values are plain lists: of NumPy's
arrays Plotly makes base64, which the Plotly.js in Chainlit's page is too old to read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they take a second to load; the port opens before that
    from plotly.graph_objects import Figure

    from rag.table import ColumnFacts

MOST_COLUMNS = 4
"""Choices that get a chart, the first ones of the table."""

_N_BARS = 10
_LABEL_CHARS = 32
_HEIGHT = 320
_N_BINS = 20
_ANSWERED, _REFUSED = "#c2762f", "#6f8fb3"
"""Told apart in both themes, and by those who do not see red or green."""
_INK, _GRID = "#808080", "rgba(128, 128, 128, 0.25)"
"""A grey with a contrast of 4 to 1 on white and on Chainlit's dark page alike."""
_CLEAR = "rgba(0, 0, 0, 0)"


def figures(
    answers: Sequence[Mapping[str, Any]], facts: Sequence[ColumnFacts] = ()
) -> list[Figure]:
    """Return the charts that there is something to draw for.

    Args:
        answers: Metadata of the messages of recent answers, in any order; what lacks a value
            is left out of the chart of that value.
        facts: Columns of the table; those that are choices are drawn.
    """
    choices = [column for column in facts if column.kind == "choice"][:MOST_COLUMNS]
    drawn = [
        *map(_rows_per_choice, choices),
        _relevance(answers),
        _latency(answers),
    ]
    return [figure for figure in drawn if figure is not None]


def _rows_per_choice(column: ColumnFacts) -> Figure | None:
    if not column.counts:
        return None
    shown = list(zip(column.choices, column.counts, strict=True))[:_N_BARS]
    n_more = len(column.choices) - len(shown)
    title = f"Rows per {_cut(column.name)}" + (f" (without {n_more} more)" if n_more else "")
    shown.reverse()  # Plotly draws the first bar lowest
    trace = {
        "type": "bar",
        "orientation": "h",
        # by position: two labels that were cut to the same text are two bars
        "y": list(range(len(shown))),
        "x": [n for _, n in shown],
        "marker": {"color": _ANSWERED},
        "hovertemplate": "%{x:,} rows<extra></extra>",
    }
    labels = [_cut(name) for name, _ in shown]
    ticks = {
        "tickmode": "array",
        "tickvals": trace["y"],
        "ticktext": labels,
        "showgrid": False,
        "zeroline": False,
    }
    return _figure([trace], title, x="rows", yaxis=ticks)


def _relevance(answers: Sequence[Mapping[str, Any]]) -> Figure | None:
    given: dict[bool, list[float]] = {False: [], True: []}
    for answer in answers:
        if (relevance := _number(answer.get("relevance"))) is not None:
            given[bool(answer.get("refused"))].append(min(relevance, 1.0))
    traces = [
        {
            "type": "histogram",
            "name": f"{name} ({len(given[is_refused])})",
            "x": given[is_refused],
            "xbins": {"start": 0, "end": 1 + 1 / _N_BINS, "size": 1 / _N_BINS},
            "marker": {"color": color},
            "hovertemplate": "%{y} questions at %{x}<extra></extra>",
        }
        for is_refused, name, color in ((False, "answered", _ANSWERED), (True, "refused", _REFUSED))
        if given[is_refused]
    ]
    if not traces:
        return None
    n = sum(map(len, given.values()))
    xaxis = {"range": [0, 1 + 1 / _N_BINS]}
    yaxis = {"dtick": 1} if n <= _N_BARS else {}  # there is no half question
    title = f"Relevance of the best row ({_counted(n)})"
    return _figure(
        traces,
        title,
        x="relevance",
        y="questions",
        xaxis=xaxis,
        yaxis=yaxis,
        barmode="stack",
        bargap=0.1,
    )


def _latency(answers: Sequence[Mapping[str, Any]]) -> Figure | None:
    traces: list[dict[str, Any]] = []
    n = 0
    for key, name, color in (
        ("first_token_s", "first word", _ANSWERED),
        ("total_s", "whole answer", _REFUSED),
    ):
        seconds = [s for a in answers if (s := _number(_timings(a).get(key))) is not None]
        n = max(n, len(seconds))
        if seconds:
            traces.append(
                {
                    "type": "box",
                    "orientation": "h",
                    "name": name,
                    "x": seconds,
                    "marker": {"color": color, "size": 4},
                    "boxpoints": "all",
                    "jitter": 0.5,
                    "hovertemplate": "%{x:.2f} s<extra></extra>",
                }
            )
    if not traces:
        return None
    xaxis = {"rangemode": "tozero", "ticksuffix": " s"}
    return _figure(
        traces,
        f"Time to the answer ({_counted(n)})",
        xaxis=xaxis,
        yaxis={"showgrid": False},
        showlegend=False,
    )


def _figure(
    traces: list[dict[str, Any]],
    title: str,
    *,
    x: str = "",
    y: str = "",
    **layout: Any,
) -> Figure:
    """Compose a figure that reads on a light and on a dark page: it has no ground of its own."""
    # here because it takes most of a second, and only admins look at charts
    from plotly.graph_objects import Figure

    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True, "fixedrange": True}
    xaxis = {**axis, "title": {"text": x, "font": {"size": 13}}, **layout.pop("xaxis", {})}
    yaxis = {**axis, "title": {"text": y, "font": {"size": 13}}, **layout.pop("yaxis", {})}
    return Figure(
        data=traces,
        layout={
            "title": {"text": _cut(title, 80), "font": {"size": 15}},
            "height": _HEIGHT,
            "margin": {"l": 20, "r": 20, "t": 48, "b": 40},
            "paper_bgcolor": _CLEAR,
            "plot_bgcolor": _CLEAR,
            "font": {"color": _INK, "family": "system-ui, sans-serif", "size": 13},
            "xaxis": xaxis,
            "yaxis": yaxis,
            "legend": {
                "orientation": "h",
                "y": 1.02,
                "yanchor": "bottom",
                "x": 1,
                "xanchor": "right",
            },
            "dragmode": False,
            "template": None,
            **layout,
        },
    )


def _cut(text: str, most: int = _LABEL_CHARS) -> str:
    """Return a text as Plotly shows it: it reads some HTML, so that signs are written as such."""
    line = " ".join(text.split())
    line = line if len(line) <= most else line[: most - 1].rstrip() + "…"
    return (
        line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
    )


def _timings(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    timings = answer.get("timings")
    return timings if isinstance(timings, Mapping) else {}


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _counted(n: int) -> str:
    return "1 question" if n == 1 else f"{n:,} questions"
