from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rag.citation import find_support
from rag.question import is_followup, standalone
from rag.words import content_words, language, sentence_ends, sentences, stems

PASSAGE = (
    "For hunting a werewolf that stalks a village you should use a wolfsbane tincture to weaken it, "
    "a silvered spear for 25 gold to pierce its hide, and ankle bells that ring when it circles"
)
OTHER = (
    "For crossing a swamp you should use stilts, a lantern of marsh gas and a frog that guides you"
)


def test_content_words_say_where_they_stand() -> None:
    text = "Don't take the Wolves' 25 spears!"
    assert [text[w.start : w.end] for w in content_words(text)] == [
        "Don't",
        "Wolves",
        "25",
        "spears",
    ]


def test_forms_of_a_word_share_a_stem() -> None:
    assert stems("striking spears") == stems("strikes a spear")


def test_a_short_word_loses_the_s_of_its_plural_and_no_other() -> None:
    assert stems("a cross") == stems("crossing") == stems("crosses")
    assert stems("bells") == stems("bell")
    assert stems("pass") != stems("pas")


def test_codes_that_differ_in_their_end_are_two_words() -> None:
    assert stems("XK12347") == {"xk12347"}
    assert not stems("XK12347") & stems("XK12331")
    assert stems("the XK12347's hinge") == stems("XK12347 hinges")


def test_scripts_without_spaces_have_words() -> None:
    assert stems("狼人") == {"狼人"}
    assert stems("对付狼人") == {"对付", "付狼", "狼人"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three", ["One.", "Two!", "Three"]),
        ('He said "go." Then left', ['He said "go."', "Then left"]),
        ("狼。人", ["狼。", "人"]),
        ("他说：“去。”好", ["他说：“去。”", "好"]),
        ("1.5 gold pieces", ["1.5 gold pieces"]),
        ("line\nline", ["line", "line"]),
        ("1. Take this.\n2. And that.", ["1. Take this.", "2. And that."]),
        ("Dr. Weber leads, e.g. the office. Yes", ["Dr. Weber leads, e.g. the office.", "Yes"]),
        (" \n \n", []),
    ],
)
def test_sentences_end_where_they_end(text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == found


@given(st.text(st.sampled_from("aB1.!。” \n"), max_size=40))
def test_an_end_stays_when_more_text_comes(text: str) -> None:
    ends = list(sentence_ends(text))
    for n in range(len(text)):
        before = [end for end, _ in sentence_ends(text[:n])]
        assert before == [end for end, _ in ends][: len(before)]


@pytest.mark.parametrize(
    ("sentence", "span"),
    [
        ("Take a wolfsbane tincture.", "wolfsbane tincture"),
        ("A silvered spear pierces its hide.", "silvered spear for 25 gold to pierce its hide"),
        ("The silvered spear costs 25 gold", "silvered spear for 25 gold"),
    ],
)
def test_a_supported_sentence_points_at_its_words(sentence: str, span: str) -> None:
    support = find_support(sentence, [OTHER, PASSAGE])
    assert support is not None
    assert support.index == 1
    assert PASSAGE[support.start : support.end] == span


@pytest.mark.parametrize(
    "sentence",
    [
        "Paris is the capital of France.",
        "The silvered spear costs 30 gold.",  # a number that is not there
        "Yes.",
        "",
    ],
)
def test_an_unsupported_sentence_is_not_cited(sentence: str) -> None:
    assert find_support(sentence, [OTHER, PASSAGE]) is None


@pytest.mark.parametrize(
    ("question", "followup"),
    [
        ("And for the swamp?", True),
        ("What about two of them?", True),
        ("Why?", True),
        ("Is there a cheaper one?", True),
        ("And how do I keep my feet dry there?", True),
        ("What do I need against a werewolf?", False),
        ("And how do I sail past the sirens at night?", False),
        ("Who are you?", False),
        ("Werewolf?", False),
        ("How do I cross a haunted swamp without getting lost in the dark?", False),
    ],
)
def test_a_followup_is_recognised(question: str, followup: bool) -> None:
    assert is_followup(question) is followup


def test_a_followup_carries_what_was_asked() -> None:
    first = "What do I need against a werewolf?"
    assert standalone("And in winter?", [first]) == f"{first} And in winter?"
    assert standalone("And at night?", [first, "And in winter?"]) == f"{first} And at night?"
    assert standalone(first, ["How do I cross a swamp?"]) == first
    assert standalone("And in winter?", []) == "And in winter?"
    assert len(standalone("And in winter?", ["wolf " * 500])) < 400


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("What do I need against a werewolf?", "en"),
        ("How do I sail past the sirens?", "en"),
        ("The Gasthaus Müller has 12 rooms.", "en"),
        ("Who sang in Die Zauberflöte?", "en"),
        ("Which teams play in Los Angeles, Las Vegas and La Paz?", "en"),
        ("Was brauche ich gegen einen Werwolf?", "de"),
        ("WAS BRAUCHE ICH GEGEN EINEN WERWOLF?", "de"),
        ("Wie komme ich an den Sirenen vorbei?", "de"),
        ("Was kostet das Zelt für zwei Personen?", "de"),
        ("Was kostet das Zelt fu\u0308r zwei Personen?", "de"),
        ("Wie viele Zimmer hat das Gasthaus Müller?", "de"),
        ("Das Gasthaus Müller hat 12 Zimmer.", "de"),
        ("Wer war Charles de Gaulle?", "de"),
        ("¿Qué necesito contra un vampiro?", "es"),
        ("que necesito contra un vampiro", "es"),
        ("¿Cuánto cuesta la tienda de campaña para dos personas?", "es"),
        ("Que faut-il contre un vampire ?", "fr"),
        ("Que faut-il contre un loup-garou ?", "fr"),
        ("Qu’est-ce que l’amour ?", "fr"),
        ("Cosa serve contro un vampiro?", "it"),
        ("O que preciso contra um vampiro?", "pt"),
        ("Wat heb ik nodig tegen een vampier?", "nl"),
        ("Hvad skal jeg bruge mod en vampyr?", None),
        ("Var ligger den bästa restaurangen i Stockholm?", None),
        ("Co potrzebuję przeciwko wampirowi?", None),
        ("Bir vampire karşı neye ihtiyacım var?", None),
        ("Müller", None),
        ("ink pot, 3 l, %s of %d", None),
        ("XK12347", None),
        ("", None),
    ],
)
def test_a_language_is_told_by_few_words_or_not_at_all(text: str, told: str | None) -> None:
    assert language(text) == told


@pytest.mark.parametrize("lang", ["en", "de", "es"])
def test_the_language_of_real_questions_and_paragraphs_is_told(
    lang: str, shared_data: Path
) -> None:
    def told(file: str, column: str) -> list[str | None]:
        texts = pl.read_parquet(shared_data / f"xquad/{file}.parquet")
        return [language(t) for t in texts.filter(pl.col("lang") == lang)[column]]

    for found in (told("questions", "question"), told("passages", "text")):
        assert found.count(lang) >= 0.97 * len(found)
        assert len(found) - found.count(lang) - found.count(None) <= 0.005 * len(found)


def test_no_question_to_the_demo_is_told_wrongly() -> None:
    questions = Path(__file__).parent / "data" / "demo_questions.yaml"
    asked = [q["question"] for q in yaml.safe_load(questions.read_text(encoding="utf-8"))]
    assert {language(question) for question in asked} == {"en"}
