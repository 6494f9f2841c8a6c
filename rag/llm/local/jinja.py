"""A chat template rendered as Hugging Face transformers and llama.cpp render it.

A template is a program that came with a model file, so it is hostile input: `sandbox` runs it, and
whatever it does ends in a text or in one sentence. Knows no model, no tokens and no rules of a
conversation (`template` does).

Where the two differ this follows transformers, which is what the authors of templates try: strict
Jinja2, `tools` defined and none. llama.cpp's own engine takes some messages that a template refuses
(a system message for Gemma); here `template` gives it none that it refuses.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from rag.errors import ModelError
from rag.llm.local.sandbox import Exhausted, Sandbox

_BUDGET = 1_000_000
_BUDGET_A_MESSAGE = 2_000
"""Work of one rendering: a line of Python, an element of a container, 16 characters are one each.
Source: measured 2026-11-23 with the 13 templates of tests/test_chat_templates.py: 1,400 to 12,000
for 10 questions and answers, at most 230,000 for 200; a million took 0.4 to 1 s."""
_MAX_SOURCE = 64_000
"""Characters of a template; the longest of the known ones has 12,045. To compile is not counted,
and takes Jinja2 the square of them: at most 4 s here for 64,000."""
_DATE_FORMAT = re.compile(r"(?:[^%]|%[-_#^]?[a-zA-Z%]){0,64}")
"""Without the widths of C's `strftime`: `%1000000000d` pads."""
_WAY_OUT = "Set RAG_LLM__MODEL to another GGUF."


class _Refusal(Exception):
    """The template called `raise_exception`."""


class Template:
    """A chat template, compiled."""

    def __init__(self, source: str) -> None:
        """Compile the template.

        Raises:
            ModelError: it is no Jinja2, or uses what no chat template needs.
        """
        if len(source) > _MAX_SOURCE:
            raise ModelError(
                f"The model's chat template has {len(source):,} characters; at most "
                f"{_MAX_SOURCE:,} are read. {_WAY_OUT}"
            )
        self._sandbox = Sandbox([_Generation, loopcontrols])
        self._sandbox.globals["raise_exception"] = _refuse
        with _translated():
            self._template = self._sandbox.from_string(source)

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        bos: str,
        eos: str,
        add_generation_prompt: bool = True,
        today: date | None = None,
    ) -> str:
        """Return the text of the prompt; may be called from any thread.

        Args:
            messages: Each with a `role` and a `content`.
            bos: What `bos_token` writes.
            eos: What `eos_token` writes.
            add_generation_prompt: Whether the text ends where the model's answer begins.
            today: What `strftime_now` tells, at midnight: with the time of day in it no two
                prompts would begin alike. None leaves the function out, and templates that look
                for it first write a date of their own.

        Raises:
            ModelError: the template refuses the messages, fails, or does not come to an end.
        """
        given: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,  # as transformers: defined, and none
            "documents": None,
        }
        if today is not None:
            given["strftime_now"] = functools.partial(_strftime, datetime.combine(today, time()))
        with _translated(), self._sandbox.counted(_BUDGET + _BUDGET_A_MESSAGE * len(messages)):
            return self._sandbox.concat(self._template.generate(given))


class _Generation(Extension):
    """`{% generation %}`, transformers' mark of what the assistant wrote: nothing here."""

    tags = {"generation"}  # noqa: RUF012 – Jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _strftime(midnight: datetime, text: str) -> str:
    if not _DATE_FORMAT.fullmatch(text):
        raise SecurityError(
            "no chat template needs a date's format of a width, or of more than 64 parts"
        )
    return midnight.strftime(text)


def _refuse(why: object) -> None:
    raise _Refusal(str(why))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn whatever a template does into one sentence."""
    try:
        yield
    except (Exhausted, RecursionError, MemoryError) as e:
        raise ModelError(
            "The model's chat template does not come to an end, or makes far more text than a "
            f"prompt can hold. {_WAY_OUT}"
        ) from e
    except _Refusal as e:
        raise ModelError(
            f"The model's chat template refuses the conversation: {_line(e)}. {_WAY_OUT}"
        ) from e
    except Exception as e:  # a stranger's program: what it raises is its own affair
        raise ModelError(
            f"The model's chat template cannot be used: {type(e).__name__}: {_line(e)}. {_WAY_OUT}"
        ) from e


def _line(error: Exception) -> str:
    words = " ".join(str(error)[:1000].split()).rstrip(".")
    return words if len(words) <= 200 else f"{words[:199]}…"
