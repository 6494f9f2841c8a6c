"""Chat templates: known renderings, what becomes of a conversation, and templates that attack.

`../shared/data/chat_templates` has two files. `chat_golden_renderings.json`: what Hugging Face
transformers renders with 13 templates. `chat_oracle_gemma_mistral.json`: what llama.cpp asserts of
its own renderings, and what strict Jinja2 makes of the same.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from llama_cpp import Llama
from llama_index.core.base.llms.types import ChatMessage
from tiny_gguf import TinyModel

from rag.catalogue import LLM_MODELS, ChatFamily
from rag.errors import ModelError
from rag.llm.local.jinja import Template
from rag.llm.local.template import FAMILY_TEMPLATES, ChatTemplate, template_source
from rag.llm.local.tokens import Tokens

FOLDER = SHARED / "chat_templates"
GOLDEN_GEMMA = "google-gemma-2-2b-it"
GOLDEN_MISTRAL = "Mistral-7B-Instruct-v0.1/v0.2 (original)"
NO_DATA = [pytest.param({}, id="no shared data")]


def known(file: str) -> dict[str, Any]:
    path = FOLDER / file
    return json.loads(path.read_text()) if path.exists() else {"templates": {}, "cases": []}


GOLDEN = known("chat_golden_renderings.json")
ORACLE = known("chat_oracle_gemma_mistral.json")
CASES = [
    pytest.param(
        case,
        id=f"{case['template_name']} {case['case']} {'asks' * case['add_generation_prompt']}",
    )
    for case in GOLDEN["cases"]
]
each_template = pytest.mark.parametrize(
    "source",
    [pytest.param(source, id=name) for name, source in GOLDEN["templates"].items()]
    or [pytest.param("", id="no shared data")],
)


def rendered(template: str | Template, messages: list[dict[str, str]], **options: Any) -> str:
    template = Template(template) if isinstance(template, str) else template
    return template.render(messages, **{"bos": "<s>", "eos": "</s>", **options})


HI = [{"role": "user", "content": "hi"}]

# --- what transformers renders ---


def test_all_the_known_renderings_are_there(shared_data: Path) -> None:
    assert len(GOLDEN["templates"]) == 13
    assert len(CASES) == 156
    assert sum(case["error"] is not None for case in GOLDEN["cases"]) == 14
    assert len(ORACLE["cases"]) == 6


@pytest.mark.parametrize("case", CASES or NO_DATA)
def test_a_rendering_is_transformers_own(shared_data: Path, case: dict[str, Any]) -> None:
    source = GOLDEN["templates"][case["template_name"]]
    options = {key: case[key] for key in ("bos", "eos", "add_generation_prompt")}
    if case["error"] is None:
        assert rendered(source, case["messages"], **options) == case["expected"]
        return
    with pytest.raises(ModelError) as refused:
        rendered(source, case["messages"], **options)
    assert f"refuses the conversation: {case['error'].rstrip('.')}." in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 1 == 1 != 2 }}{{ 2 >= 2 }}{{ 2 <= 1 }}",
        "{{ 'a' in 'abc' }}{{ 'a' not in ['b', 'c'] }}{{ 'role' in messages[0] }}",
        "{{ 'a' ~ 1 ~ none ~ nowhere ~ [1, 'b'] }}{{ 'a' + 'b' * 3 }}{{ 7 // 2 - 7 % 4 / 2 }}",
        "{{ messages[1:] }}{{ messages[::-1][0].content }}{{ 'abcdef'[1:4:2] }}{{ 'abc'[-1] }}",
        "{{ (1, 'a') }}{{ [1, ['b']] }}{{ {'a': {'b': 1}, 2: [none, true]} }}{{ () }}{{ {} }}",
        "{% for key, value in {'a': 1}.items() %}{{ key }}={{ value }}{% endfor %}",
        "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
        "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}",
        "{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() }}{% endmacro %}{% call m(1) %}z{% endcall %}",
        "{% filter upper %}a{{ messages | length }}{% endfilter %}{% set x %}b{% endset %}{{ x }}",
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% else %}none{% endfor %}",
        "{% for m in messages * 3 %}{% if loop.index == 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
        "{{ ['b', 'a', 'b'] | sort | join(', ') }}{{ 'x\ny' | indent(2, true) }}",
        "{{ 'abab' | replace('a', 'c', 1) }}{{ 'abab'.replace('a', '') }}{{ ' x '.strip() }}",
        "{{ 'a,b'.split(',')[-1] }}{{ {'a': 1}.get('b', 2) }}{{ {'b': 1, 'a': 2} | dictsort }}",
        "{{ messages is sequence }}{{ messages[0].name is defined }}{{ 3 is odd }}",
        "{{ 'x' if messages[0]['role'] == 'user' else 'y' }}{{ nothing | default('d', true) }}",
    ],
)
def test_a_counted_rendering_is_jinja2s_own(source: str) -> None:
    jinja2 = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    assert rendered(source, HI) == jinja2.from_string(source).render(messages=HI)


def test_json_is_not_escaped_for_html() -> None:
    json_of = "{{ {'q': '<b> & ü', 'a': [1]} | tojson%s }}"
    assert rendered(json_of % "", HI) == '{"q": "<b> & ü", "a": [1]}'
    assert rendered(json_of % "(indent=1)", HI) == '{\n "q": "<b> & ü",\n "a": [\n  1\n ]\n}'
    assert rendered("{{ [1] | tojson | safe + '<b>' }}", HI) == "[1]<b>"


def test_the_mark_of_generated_text_writes_nothing() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert rendered(source, HI) == "hi"


def test_the_date_is_todays_and_the_time_of_day_is_not_told(shared_data: Path) -> None:
    source = GOLDEN["templates"]["meta-llama-Llama-3.2-3B-Instruct"]
    assert "Today Date: 02 Jan 2026\n" in rendered(source, HI, today=date(2026, 1, 2))
    assert "Today Date: 26 Jul 2024\n" in rendered(source, HI), "its own, where nobody tells it"
    clock = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"
    assert rendered(clock, HI, today=date(2026, 1, 2)) == "2026-01-02 00:00:00"


# --- what becomes of a conversation ---

MARKERS = (
    "<start_of_turn> <end_of_turn> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> "
    "<|eot_id|> <|user|> <|assistant|> <|system|> <|end|> <|turn> <turn|> <|channel> <channel|> "
    "[INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]"
).split()
TEXTS = [
    ("system", "Answer from the table."),
    ("user", "What is an orc afraid of?"),
    ("assistant", "Of the sun."),
    ("user", "And a wolf?"),
    ("assistant", "Of fire."),
    ("user", "And you?"),
    ("assistant", "Of nothing."),
    ("user", "Really?"),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokens]:
    """A real vocabulary: bytes, and each family's markers as control tokens."""
    model = TinyModel([*MARKERS, "▁"], {}, types=dict.fromkeys(MARKERS, 3))
    llama = Llama(
        str(model.write(tmp_path_factory.mktemp("vocabulary") / "markers.gguf")),
        n_ctx=64,
        verbose=False,
    )
    yield Tokens(llama)
    llama.close()


def conversation(*texts: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=text) for role, text in texts]


def spelled(tokens: Tokens, encoded: list[int]) -> str:
    """Return the text of a prompt, control tokens included."""
    pieces = [tokens.text(t).encode() if tokens.is_control(t) else tokens.bytes(t) for t in encoded]
    return b"".join(pieces).decode()


@each_template
def test_every_message_is_there_once_and_in_order(
    shared_data: Path, tokens: Tokens, source: str
) -> None:
    encoded = ChatTemplate(source, tokens).encode(conversation(*TEXTS[:4]))
    text = spelled(tokens, encoded)
    assert [text.count(said) for _, said in TEXTS[:4]] == [1] * 4
    places = [text.index(said) for _, said in TEXTS[:4]]
    assert places == sorted(places)
    assert encoded.count(tokens.bos) == 1
    assert encoded[0] == tokens.bos, "the vocabulary asks for it where the template does not"


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.values[0]["case"] == "single_user" and case.values[0]["add_generation_prompt"]
    ]
    or NO_DATA,
)
def test_a_prompt_ends_where_the_answer_begins(
    shared_data: Path, tokens: Tokens, case: dict[str, Any]
) -> None:
    template = ChatTemplate(GOLDEN["templates"][case["template_name"]], tokens)
    (message,) = case["messages"]
    asked = spelled(tokens, template.encode(conversation(("user", message["content"]))))
    ending = case["expected"].rpartition(message["content"])[2]
    assert asked.rpartition(message["content"])[2] == ending != ""


@each_template
def test_a_growing_conversation_is_read_once(
    shared_data: Path, tokens: Tokens, source: str
) -> None:
    template = ChatTemplate(source, tokens)
    prompts = [template.encode(conversation(*TEXTS[:n])) for n in (2, 4, 6, 8)]
    for asked, (earlier, later) in zip((1, 3, 5), itertools.pairwise(prompts), strict=True):
        said = TEXTS[asked][1]
        n = next(n for n in range(len(earlier)) if said in spelled(tokens, earlier[:n]))
        assert n > len(said)
        assert later[:n] == earlier[:n]


@pytest.mark.parametrize(
    ("name", "thought"),
    [
        ("Qwen-Qwen3-0.6B", "<think>\nhm\n</think>\n\n"),
        ("ggml-vocab-gemma-4", "<|channel>thought\nhm<channel|>"),
    ],
)
def test_an_earlier_answer_stays_as_it_was(
    shared_data: Path, tokens: Tokens, name: str, thought: str
) -> None:
    source = GOLDEN["templates"][name]
    texts = [("user", "hi"), ("assistant", f"{thought}Of the sun."), ("user", "so?")]
    plain = rendered(source, [{"role": role, "content": text} for role, text in texts])
    assert "hm" not in plain, "the template itself cuts it out"
    # and then the prompt would begin otherwise than what the model has read and written
    encoded = ChatTemplate(source, tokens).encode(conversation(*texts))
    assert f"{thought}Of the sun." in spelled(tokens, encoded)


LLAMA_CPP_DIFFERS = {
    # a single newline after folded system text, where we and Gemma 3's own template leave a line
    "mistralai/Mistral-7B-Instruct-v0.2 (NOTE: Old pre-v1 without a system prompt)": (
        "assistant\nHello",
        "assistant\n\nHello",
    ),
    "google/gemma-7b-it": ("assistant\nHello", "assistant\n\nHello"),
    # system text in the last user turn, where we and llama.cpp's C API leave it in the first
    "Mistral-Large-Instruct-2407 (mistralai 'v3' template; modified to have system prompt at start)": (
        "",
        "",
    ),
    "Mistral-Nemo-Instruct-2407 (mistralai 'v3-tekken' template; modified to have system prompt at start)": (
        "",
        "",
    ),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["name"]) for case in ORACLE["cases"]] or NO_DATA
)
def test_where_a_prompt_differs_from_llama_cpps(
    shared_data: Path, tokens: Tokens, case: dict[str, Any]
) -> None:
    template = ChatTemplate(case["template"].replace("\\n", "\n"), tokens)
    messages = [(m["role"], m["content"]) for m in case["messages"]]
    ours = spelled(tokens, template.encode(conversation(*messages))).removeprefix("<s>")
    # we trim every message, so an answer that the model began with a space is one text for all
    llama_cpps = case["expected"].replace("   I am an assistant   ", "I am an assistant")
    if case["name"] not in LLAMA_CPP_DIFFERS:
        assert ours == llama_cpps
        return
    assert ours != llama_cpps
    theirs, instead = LLAMA_CPP_DIFFERS[case["name"]]
    if theirs:
        assert case["strict_jinja2"].startswith("error"), "llama.cpp itself went round the template"
        assert ours == llama_cpps.replace(theirs, instead)
    else:
        c_api = case["expected_legacy_c_api"]
        assert ours == c_api.replace("   I am an assistant   ", "I am an assistant")


@pytest.mark.parametrize(("family", "name"), [("gemma", GOLDEN_GEMMA), ("mistral", GOLDEN_MISTRAL)])
def test_a_familys_template_is_the_known_one(
    shared_data: Path, family: ChatFamily, name: str
) -> None:
    cases = [c for c in GOLDEN["cases"] if c["template_name"] == name and not c["error"]]
    assert len(cases) >= 8
    for case in cases:
        options = {key: case[key] for key in ("bos", "eos", "add_generation_prompt")}
        assert rendered(FAMILY_TEMPLATES[family], case["messages"], **options) == case["expected"]


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_a_familys_template_takes_any_conversation(tokens: Tokens, family: ChatFamily) -> None:
    encoded = ChatTemplate(FAMILY_TEMPLATES[family], tokens).encode(conversation(*TEXTS))
    text = spelled(tokens, encoded)
    assert f"{TEXTS[0][1]}\n\n{TEXTS[1][1]}" in text
    assert [text.count(said) for _, said in TEXTS] == [1] * 8


def test_a_models_own_template_goes_first() -> None:
    assert template_source({"tokenizer.chat_template": "own"}, "gemma") == "own"
    assert template_source({}, "gemma") == FAMILY_TEMPLATES["gemma"]
    assert template_source({}, None) is None
    chats = [model for model in LLM_MODELS.values() if model.prompt_format == "chat"]
    assert all(model.chat_template for model in chats)


# --- templates that attack ---

GROW = "{% set ns = namespace(x='x', l=['a']) %}{% for i in range(60) %}"
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "silent loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "loops that pay back": "{% for i in range(9999) %}{{ 'x' | indent(-99999999) }}"
    "{{ [i] | tojson(indent=-99999999) }}{{ 'x' * -99999999 }}{% endfor %}" * 20,
    "a macro that calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "a block that contains itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a loop that contains itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "nested parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested conditions": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "callers": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + ("{% call m() %}" * 30 + "x" + "{% endcall %}" * 30),
    "a multiplied text": "{{ 'x' * 1000000000 }}",
    "a multiplied text in a condition": "{% if 'x' * 1000000000 == 'y' %}{% endif %}",
    "a multiplied list": "{{ ([1] * 1000000000) | length }}",
    "texts joined by ~": GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "texts joined by +": GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "texts joined by a filter": GROW + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "texts joined by a method": GROW + "{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    "texts joined by a block": GROW
    + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "replacing": GROW + "{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
    "replacing by a method": GROW + "{% set ns.x = ns.x.replace('x', ns.x ~ 'x') %}{% endfor %}",
    "replacing nothing": "{{ ('x' * 100000) | replace('', 'x' * 100000) }}",
    "texts joined out of a generator": "{{ ('x' * 100000).join(range(10000) | map('string')) }}",
    "characters joined": "{{ ('x' * 100000).join('y' * 10000) }}",
    "characters joined by a filter": "{{ ('y' * 10000) | join('x' * 100000) }}",
    "numbers joined": "{{ range(10000) | join('x' * 100000) }}",
    "replacing, arguments by name": "{{ ('x' * 10000) | replace(new='y' * 100000, old='x') }}",
    "indenting": "{{ 'x\ny' | indent(1000000000) }}",
    "indenting, arguments by name": "{{ 'x\ny' | indent(first=true, width=1000000000) }}",
    "characters, listed": "{{ ('一' * 3000000) | list | length }}",
    "characters, sorted": "{{ ('一' * 3000000) | sort | length }}",
    "words, listed": "{{ ('一 ' * 1500000).split() | length }}",
    "lines, listed": "{{ ('一\n' * 1500000).splitlines() | length }}",
    "words, by a filter": "{{ ('一 ' * 1500000) | title | length }}",
    "the parts of an attribute": "{{ [1] | map(attribute='一.' * 2000000) | list }}",
    "a search from the end": "{{ ('a' * 400000).rfind('ab' ~ 'a' * 200000) }}",
    "a split from the end": "{{ ('a' * 400000).rsplit('ab' ~ 'a' * 200000) | length }}",
    "stripping": "{{ ('一' * 300000).strip('丁' * 300000 ~ '一') }}",
    "stripping by a filter": "{{ ('一' * 300000) | trim('丁' * 300000 ~ '一') }}",
    "a range, searched": "{% set r = range(99999) %}"
    "{% for i in range(9999) %}{% if 1.5 in r %}{% endif %}{% endfor %}",
    "a range, searched by a method": "{% set r = range(99999) %}"
    "{% for i in range(9999) %}{{ r.count(1.5) }}{% endfor %}",
    "indented JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "separated JSON": "{{ range(9999) | list | tojson(separators=('x' * 9999, ':')) }}",
    "one text, many times": "{% set x = 'x' * 999999 %}"
    "{% for i in range(99999) %}{{ x }}{% endfor %}",
    "one text, searched": "{% set x = 'x' * 999999 %}"
    "{% for i in range(99999) %}{% if 'y' in x %}{% endif %}{% endfor %}",
    "one text, copied": "{% set x = 'x' * 999999 %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(99999) %}{% set ns.l = [ns.l, x[1:]] %}{% endfor %}",
    "many lists": "{% set ns = namespace(l=[]) %}"
    "{% for i in range(9999) %}{% set ns.l = [ns.l, range(99999) | list] %}{% endfor %}",
    "lists of lists, written": GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "lists of lists, joined": GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l ~ '' }}",
    "lists of lists, as JSON": GROW
    + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
    "lists of lists, compared": GROW
    + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l == ns.l | reverse | list }}",
    "tuples of tuples, as a key": GROW + "{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ {ns.l: 1} }}",
}
REFUSED = {
    "a wide date": ("{{ strftime_now('%1000000000d') }}", "a date's format of a width"),
    "a wide date with a flag": ("{{ strftime_now('%_-09d') }}", "a date's format of a width"),
    "a long date": ("{{ strftime_now('%c' * 65) }}", "of more than 64 parts"),
    "equal hashes in a list": (
        "{{ range(0, 20000 * 2305843009213693951, 2305843009213693951) | list }}",
        "number of 61 bits",
    ),
    "equal hashes written out": ("{{ {0x1fffffffffffffff: 0, 0: 0} }}", "number of 61 bits"),
    "equal hashes by a filter": ("{{ '2305843009213693951' | int }}", "number of 61 bits"),
    "equal hashes of tuples": ("{{ [(1, 2)] | unique | list }}", "No filter named 'unique'"),
    "equal hashes in a set": ("{{ {1: 2}.items() - [] }}", "difference of two sets"),
    "equal hashes in a namespace": ("{{ namespace([[(1, 2), 3]]) }}", "a namespace is made of"),
    "arguments out of a list": (
        "{% macro m() %}{% endmacro %}{{ m(*('x' * 1000)) }}",
        "arguments out of a list",
    ),
    "comparisons in comparisons": (
        "{{ " + "1<(" * 30 + "1" + ")<1" * 30 + " }}",
        "between the two",
    ),
    "escaped text": ("{% autoescape true %}{{ '&' }}{% endautoescape %}", "escapes HTML"),
    "powers": ("{{ 10 ** 10 ** 10 }}", r"operator '\*\*'"),
    "large numbers": (
        "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "number of .* bits",
    ),
    "padding": ("{{ 'x'.ljust(1000000000) }}", "method 'ljust'"),
    "padding by a filter": ("{{ 'x' | center(1000000000) }}", "No filter named 'center'"),
    "padding by a format": ("{{ '{:1000000000}'.format(1) }}", "method 'format'"),
    "padding by an operator": ("{{ '%1000000000s' % 1 }}", "operator '%'"),
    "padding of bytes": ("{{ (5).to_bytes(1000000000, 'big') }}", "method 'to_bytes'"),
    "dice": ("{{ [1, 2] | random }}", "No filter named 'random'"),
    "an error": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "an unknown name": ("{{ a.b.c }}", "'a' is undefined"),
    "unlike things": ("{{ 'a' + 1 }}", "TypeError"),
    "no syntax": ("{% if %}", "TemplateSyntaxError"),
    "another file": ("{% include 'x' %}", "no loader"),
    "a text of its own": ("{{ raise_exception('no ' * 9999) }}", "refuses the .*: no no .*…"),
    "length": ("x" * 64_001, "64,001 characters"),
    "classes": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "functions": ("{{ raise_exception.__globals__.sys }}", "unsafe"),
    "classes by a format": ("{{ '{0.__class__}'.format('') }}", "method 'format'"),
    "classes by a filter": ("{{ '' | attr('__class__') }}", "No filter named 'attr'"),
    "a change of the messages": ("{{ messages.append(1) }}", "unsafe"),
    "a callable namespace": ("{% set ns = namespace(__call__=1) %}", "'__call__'"),
    "a marked namespace": (
        "{% set ns = namespace() %}{% set ns.jinja_pass_arg = 1 %}",
        "'jinja_pass_arg'",
    ),
}


@pytest.mark.parametrize("source", [pytest.param(s, id=name) for name, s in ENDLESS.items()])
def test_a_template_without_end_is_one_sentence(source: str) -> None:
    with pytest.raises(ModelError, match=r"does not come to an end.*\. Set RAG_LLM__MODEL to"):
        rendered(source, HI)


@pytest.mark.parametrize(
    "name",
    [
        "a multiplied list",
        "texts joined by ~",
        "texts joined out of a generator",
        "characters joined",
        "replacing, arguments by name",
        "indenting, arguments by name",
        "characters joined by a filter",
        "numbers joined",
        "characters, listed",
        "characters, sorted",
        "words, listed",
        "lines, listed",
        "words, by a filter",
        "the parts of an attribute",
        "one text, copied",
        "many lists",
        "indented JSON",
    ],
)
def test_a_template_takes_little_memory(name: str) -> None:
    template = Template(ENDLESS[name])
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            rendered(template, HI)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("source", "why"), [pytest.param(*case, id=name) for name, case in REFUSED.items()]
)
def test_a_template_that_fails_is_one_sentence(source: str, why: str) -> None:
    with pytest.raises(ModelError, match=why) as failed:
        rendered(source, HI, today=date(2026, 1, 2))
    assert "\n" not in str(failed.value)
    assert str(failed.value).endswith("Set RAG_LLM__MODEL to another GGUF.")
    assert len(str(failed.value)) < 400


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__ }}", "{{ messages.__len__ }}", "{{ raise_exception.__globals__ }}"]
)
def test_what_is_private_is_nothing(source: str) -> None:
    assert rendered(source, HI) == ""


@pytest.mark.parametrize("written", ["{{ ns }}", "{{ ns ~ '' }}", "{{ [ns] | join }}"])
def test_a_namespace_does_not_tell_what_is_in_it(written: str) -> None:
    assert rendered(GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}" + written, HI) == (
        "<Namespace>"
    )


@pytest.mark.parametrize("text", ["%d %b %Y", "%-d. %B, %H:%M:%S", "100 %% of %A", "Today: %x"])
def test_a_date_is_pythons_own(text: str) -> None:
    told = rendered("{{ strftime_now('" + text + "') }}", HI, today=date(2026, 1, 2))
    assert told == date(2026, 1, 2).strftime(text)


def test_an_endless_template_disturbs_no_other_thread() -> None:
    said: list[str] = []
    good = Template("{% for m in messages %}{{ m.content }}{% endfor %}")
    threads = [
        threading.Thread(target=lambda: said.append(rendered(good, HI * 1000))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    with pytest.raises(ModelError, match="does not come to an end"):
        rendered(ENDLESS["silent loops"], HI)
    for thread in threads:
        thread.join()
    assert said == ["hi" * 1000] * 3


def test_a_debugger_keeps_its_trace_function() -> None:
    def debugger(*_: object) -> None:
        return None

    outer = sys.gettrace()
    sys.settrace(debugger)
    try:
        kept = [sys.gettrace(), rendered("hi", HI) and sys.gettrace()]
        with pytest.raises(ModelError):
            rendered(ENDLESS["silent loops"], HI)
        kept.append(sys.gettrace())
    finally:
        sys.settrace(outer)
    assert kept == [debugger] * 3


@each_template
def test_a_long_conversation_is_within_the_budget(
    shared_data: Path, tokens: Tokens, source: str
) -> None:
    turns = conversation(*[TEXTS[1], TEXTS[2]] * 200, TEXTS[3])
    text = spelled(tokens, ChatTemplate(source, tokens).encode(turns))
    assert text.count(TEXTS[2][1]) == 200


@pytest.mark.parametrize("name", ["silent loops", "texts joined by ~"])
def test_a_model_whose_template_has_no_end_refuses_each_chat(tokens: Tokens, name: str) -> None:
    template = ChatTemplate(ENDLESS[name], tokens)
    for _ in range(2):
        with pytest.raises(ModelError, match="does not come to an end"):
            template.encode(conversation(TEXTS[1]))


def test_a_template_that_loses_the_question_says_so(tokens: Tokens) -> None:
    template = ChatTemplate("{{ bos_token }}hello", tokens)
    with pytest.raises(ModelError, match=r"leaves out the user message\. Set RAG_LLM__MODEL"):
        template.encode(conversation(TEXTS[1]))
