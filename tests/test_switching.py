"""Another language model without a restart, with real models; `test_web` has the rules of it."""

from __future__ import annotations

import weakref
from pathlib import Path

import psutil
import pytest
from chainlit.chat_context import chat_contexts
from chainlit.context import init_ws_context
from chainlit.user_session import user_sessions
from fakes import smollm2_file
from test_web import Page, counted, engine_of

from rag.progress import Progress
from rag.settings import Settings
from rag.web.conversations import MakeEngine
from rag.web.core import Core
from rag.web.models import Models
from rag.wiring import parts
from rag.wiring.answering import with_llm


def test_models_on_this_machine_can_be_chosen(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    found = Core(Settings(llm={"model": str(own)})).known_models()
    assert found[0] == "gemma-3-270m"
    assert found[-1] == str(own)
    assert "multilingual-e5-small" not in found
    assert "nowhere.gguf" not in Core(Settings(llm={"model": "nowhere.gguf"})).known_models()


def rss() -> int:
    """Return the memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


@pytest.mark.model
async def test_the_old_model_is_freed_before_the_new_one_is_loaded(in_shop: Path) -> None:
    local = str(smollm2_file())
    # the seed makes it another model than one that another test may still hold
    settings = Settings(llm={"model": local, "seed": 17})
    first = with_llm(settings, "gemma-3-270m")
    during: list[tuple[bool, int]] = []

    def watched(name: str, wanted: str, progress: Progress) -> MakeEngine:
        def told(what: str, n_done: int, n_total: int) -> None:
            during.append((old() is None, rss()))
            progress(what, n_done, n_total)

        return core.switch(name, wanted, told)

    core = Core(first)
    page = Page(core.load)
    page.models = Models(
        "gemma-3-270m",
        known=Core(settings).known_models,
        switch=watched,
        preparation=page.preparation,
        conversations=page.conversations,
    )
    page.register()
    init_ws_context(page.session)
    await page.open()
    await page.ask("What do I need against a werewolf?")
    assert counted(page)["rag_prompt_tokens_reused_total"] > 100, "the examples are read before"
    old = weakref.ref(parts.load_llm(first))
    before = rss()
    assert [i["value"] for i in page.offered()["items"]] == ["gemma-3-270m", Path(local).name]
    await page.choose(Path(local).name)
    # it takes some 350 MB, files that are mapped into memory included
    is_gone, left = during[0]
    assert is_gone
    assert before - left > 100_000_000, (before, left)
    await page.ask("And against a vampire?")
    assert not page.errors()
    assert parts.load_llm(settings).metadata.model_name == local
    assert len((await engine_of(page)).chat_history) == 4
    user_sessions.pop(page.session.id)
    chat_contexts.pop(page.session.id, None)
