from __future__ import annotations

from pathlib import Path

import pytest

import rag
from rag.errors import SettingsError
from rag.settings import Settings, leaves, variable


def test_arguments_win_over_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rag.toml").write_text(
        '[table]\nuri = "file"\ntemplate = "{file}"\n[retrieval]\ntop_k = 7\n'
    )
    monkeypatch.setenv("RAG_TABLE__URI", "environment")
    monkeypatch.setenv("RAG_TABLE__TEMPLATE", "{environment}")
    settings = Settings(table={"uri": "argument"})
    assert settings.table.uri == "argument"
    assert settings.table.template == "{environment}"
    assert settings.retrieval.top_k == 7
    assert settings.llm.model == "gemma-3-270m"


@pytest.mark.parametrize(
    ("text", "key"),
    [("id", ("id",)), ("id, lang", ("id", "lang")), ('["a, b"]', ("a, b",)), ("[]", ())],
)
def test_a_key_is_a_name_a_list_or_json(
    monkeypatch: pytest.MonkeyPatch, text: str, key: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RAG_TABLE__KEY", text)
    assert Settings().table.key == key


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RAG_TABLE__URII", "RAG_TABLE__URI"),
        ("RAG_TABEL__URI", "RAG_TABLE__URI"),
        ("rag_llm__modle", "RAG_LLM__MODEL"),
    ],
)
def test_a_mistyped_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError, match=f"{name}.*Did you mean '{nearest}'"):
        Settings()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[table]\nury = "x"\n', "'table.ury', which is no setting. Did you mean 'table.uri'"),
        ('[tabel]\nuri = "x"\n', "'tabel', which is no setting. Did you mean 'table'"),
        ("[retrieval]\ntop_k = 0\n", "'retrieval.top_k' is 0: input should be greater"),
        ("[retrieval\n", "The file rag.toml cannot be read"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(toml: str, message: str) -> None:
    Path("rag.toml").write_text(toml)
    with pytest.raises(SettingsError, match=message.replace("(", r"\(")):
        Settings()


def test_a_value_that_does_not_parse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_TABLE__STORAGE_OPTIONS", "{not json")
    with pytest.raises(SettingsError, match="table.*as JSON"):
        Settings()


def test_storage_options_are_never_shown() -> None:
    settings = Settings(table={"storage_options": {"AWS_SECRET": "hunter2"}})
    assert "hunter2" not in repr(settings)
    with pytest.raises(SettingsError) as failure:
        Settings(table={"storage_options": {"AWS_SECRET": ["hunter2"]}})
    assert "hunter2" not in str(failure.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().table.uri = "x"  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    found = list(leaves())
    assert len(found) > 20
    for group, name, _, description in found:
        assert description.endswith("."), variable(group, name)


def test_the_front_door_is_complete_and_sorted() -> None:
    assert rag.__all__ == sorted(rag.__all__)
    for name in rag.__all__:
        assert getattr(rag, name) is not None
