"""Any OpenAI-compatible server as the model: what it answers, and all that it does wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from blockbuster import BlockBuster
from fake_llm_server import FakeLlmServer, Handler
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from processes import eventually, run_alone

from rag.errors import ModelError
from rag.llm.call import Caller
from rag.llm.remote.connection import Connection
from rag.llm.remote.content import JOINER, defused, estimated_tokens
from rag.llm.remote.server import ServerLLM

HI = [ChatMessage(role=MessageRole.USER, content="Hi")]
SECRET = "sk-the-key-of-this-test"


@contextlib.contextmanager
def connected(server: FakeLlmServer, **options: Any) -> Iterator[ServerLLM]:
    """A ServerLLM on a running fake, closed at the end."""
    llm = ServerLLM(server.url, **{"model": "only", "timeout_s": 5, **options})
    try:
        yield llm
    finally:
        llm.close()


def answered(answer: Callable[[Handler], None], **options: Any) -> list[Any]:
    """Every response to one message."""
    with FakeLlmServer(answer) as server, connected(server, **options) as llm:
        return list(llm.stream_chat(HI))


# --- answers ---


def test_an_answer_streams_and_ends_with_what_it_cost() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        handler.delta(" The")
        handler.delta(" fox")
        handler.delta("", "stop")
        usage = {
            "prompt_tokens": 30,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 25},
        }
        handler.event({"choices": [], "usage": usage})
        handler.event("[DONE]")
        handler.raw(b"")

    *grown, last = answered(answer)
    assert [r.delta for r in grown] == ["The", " fox"]
    assert [r.raw for r in grown] == [None, None]
    assert last.message.content == "The fox"
    assert (last.raw["finish_reason"], last.raw["n_prompt_tokens"], last.raw["n_tokens"]) == (
        "stop",
        30,
        2,
    )
    timings = last.raw["timings"]
    assert (timings.n_evaluated, timings.n_reused, timings.n_tokens) == (5, 25, 2)
    assert timings.prompt_s > 0


def test_what_a_call_asks_for_reaches_the_server() -> None:
    with FakeLlmServer() as server, connected(server, api_key=SECRET) as llm:
        llm.chat(HI, max_tokens=7, temperature=0.5, seed=3, stop_strings=["\n"])
        (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {SECRET}"
    body = asked.body
    assert (body["max_tokens"], body["temperature"], body["seed"], body["stop"]) == (
        7,
        0.5,
        3,
        ["\n"],
    )
    assert body["model"] == "only"
    assert body["messages"] == [{"role": "user", "content": "Hi"}]


def test_nothing_of_the_environment_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "meant-for-another")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # loopback goes through no proxy
    with FakeLlmServer() as server, connected(server) as llm:
        llm.chat(HI)
    for request in server.requests:
        assert "meant-for-another" not in str(request.headers)
        assert "authorization" not in request.headers
        assert not [name for name in request.headers if name.startswith("x-stainless")]


def test_a_stop_string_ends_an_answer_that_the_server_goes_on_with() -> None:
    responses = answered(lambda h: h.stream(["one\n", "\ntwo", " three"]), max_tokens=50)
    assert responses[-1].message.content == "one\n\ntwo three"
    stream = ["one\n", "\ntwo", " three"]
    with FakeLlmServer(lambda h: h.stream(stream)) as server, connected(server) as llm:
        cut = list(llm.stream_chat(HI, stop_strings=["\n\nt"]))
    assert cut[-1].message.content == "".join(r.delta or "" for r in cut) == "one"
    assert cut[-1].raw["finish_reason"] == "stop"


def test_a_base_model_is_asked_for_a_completion() -> None:
    with (
        FakeLlmServer(models=["base"]) as server,
        connected(server, model="base", prompt_format="completion") as llm,
    ):
        assert not llm.metadata.is_chat_model
        assert llm.complete("Answer:", formatted=True).text == "Hello world"
        llm.chat(HI)
    first, second = server.asked
    assert first.path == second.path == "/v1/completions"
    assert first.body["prompt"] == "Answer:"
    assert "user: Hi" in second.body["prompt"]


def test_a_server_that_knows_no_stream_options_is_asked_without() -> None:
    def answer(handler: Handler) -> None:
        if "stream_options" in handler.server_of.asked[-1].body:
            return handler.send(400, {"error": {"message": "Unknown field stream_options"}})
        return handler.stream(["fine"])

    with FakeLlmServer(answer) as server, connected(server) as llm:
        assert llm.chat(HI).message.content == "fine"
        assert llm.chat(HI).message.content == "fine"
    assert len(server.asked) == 3


# --- which model ---


@pytest.mark.parametrize(
    ("models", "named", "taken", "known_as", "is_chat"),
    [
        (["a", "b"], "b", "b", "b", False),
        (["other:8b"], "b", "other:8b", "other:8b", True),  # prompted as what it is
        (["b:latest", "c"], "b", "b:latest", "b", False),
        (["/models/b-Q4_K_M.gguf", "c"], "b", "/models/b-Q4_K_M.gguf", "b", False),
        ([], "b", "b", "b", False),
    ],
)
def test_the_servers_model_is_taken(
    models: list[str], named: str, taken: str, known_as: str, is_chat: bool
) -> None:
    with (
        FakeLlmServer(models=models) as server,
        connected(server, model=named, prompt_format="completion") as llm,
    ):
        assert llm.facts.model == taken
        assert llm.metadata.model_name == known_as
        assert llm.metadata.is_chat_model is is_chat


def test_a_model_that_is_not_there_is_told_with_those_that_are() -> None:
    with (
        FakeLlmServer(models=["llama3:8b", "qwen3:4b"]) as server,
        pytest.raises(
            ModelError,
            match="has no model 'qwen3:8b'; it has 'llama3:8b', 'qwen3:4b'. Did you mean 'qwen3:4b'",
        ),
    ):
        ServerLLM(server.url, model="qwen3:8b")


# --- what goes wrong ---


@dataclass
class Case:
    """What a server does, and what is told of it."""

    name: str
    answer: Callable[[Handler], None]
    told: str


def dies(handler: Handler) -> None:
    handler.begin()
    handler.delta("Half an")
    handler.hang_up()


def status(code: int, message: str = "because") -> Callable[[Handler], None]:
    return lambda handler: handler.send(code, {"error": {"message": message}})


def said(*lines: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.begin()
        for line in lines:
            handler.event(line)
        handler.raw(b"")

    return answer


def thinks(handler: Handler) -> None:
    handler.begin()
    handler.event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    handler.delta("", "length")
    handler.raw(b"")


def html(handler: Handler) -> None:
    handler.send(200, "<html>Welcome</html>", "text/html")


CASES = [
    Case(
        "wrong key",
        status(401, f"no {SECRET}"),
        "refuses the key (HTTP 401, 'no …'). Set RAG_LLM__API_KEY",
    ),
    Case("forbidden", status(403), "refuses the key"),
    Case(
        "unknown model",
        status(404, "model 'x' not found"),
        "has no such model or no such path (HTTP 404, \"model 'x' not found\")",
    ),
    Case("busy", status(429), "is busy (HTTP 429"),
    Case(
        "too long",
        status(400, "This model's maximum context length is 4096 tokens"),
        "longer than the context window",
    ),
    Case("another 400", status(400, "bad seed"), "refuses the call (HTTP 400, 'bad seed')"),
    Case("5xx", status(500, "x" * 5000), "failed (HTTP 500, 'xxx"),
    Case("loading", status(503, "Loading model"), "is not ready yet (HTTP 503, 'Loading model')"),
    Case("gateway timeout", status(504), "was silent for"),
    Case(
        "no JSON",
        lambda h: h.send(500, "Internal error\n\n at x()", "text/plain"),
        "failed (HTTP 500, 'Internal error at x()')",
    ),
    Case(
        "HTML error",
        lambda h: h.send(502, "<html>Bad gateway", "text/html"),
        "failed (HTTP 502, 'an HTML page')",
    ),
    Case("HTML", html, "sent an HTML page. Set RAG_LLM__BASE_URL"),
    Case(
        "redirect",
        lambda h: h.send(307, "", Location="http://127.0.0.1:9/v1"),
        "answers with a redirect (HTTP 307)",
    ),
    Case("malformed", said("{not json"), "sent '{not json', which is no JSON object"),
    Case("a number", said("5"), "sent '5', which is no JSON object"),
    Case("odd choices", said('{"choices": ["x"]}'), "sent an event without choices"),
    Case(
        "odd text",
        said('{"choices": [{"delta": {"content": [1]}}]}'),
        "sent an answer that is no text",
    ),
    Case(
        "error event",
        said('{"error": {"code": 500, "message": "out of memory"}}'),
        "failed (HTTP 500, 'out of memory')",
    ),
    Case("nothing", said(), "broke off in the middle"),
    Case("no end", lambda h: h.stream(["Half"], None), "broke off in the middle"),
    Case("dies", dies, "broke (RemoteProtocolError)"),
    Case("hangs up", Handler.hang_up, "broke ("),
    Case("huge line", said("x" * 1_200_000), "sent a line of more than 1,000,000 bytes"),
    Case("only thinks", thinks, "used all 160 tokens for thinking"),
    Case("silent", Handler.wait_until_gone, "was silent for 0.5 s"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_fault_is_one_sentence_and_the_next_call_works(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        FakeLlmServer(case.answer) as server,
        connected(server, api_key=SECRET, timeout_s=0.5) as llm,
    ):
        with pytest.raises(ModelError) as raised:
            llm.chat(HI)
        server.answer = lambda handler: handler.stream(["fine"])
        assert llm.chat(HI).message.content == "fine"
    text = str(raised.value)
    assert case.told in text
    assert server.url in text or case.name == "only thinks"
    assert "\n" not in text
    assert len(text) < 500
    assert SECRET not in text + caplog.text


def test_what_was_said_before_a_server_died_is_kept() -> None:
    said: list[str] = []
    with FakeLlmServer(dies) as server, connected(server) as llm, pytest.raises(ModelError):
        said.extend(reply.delta for reply in llm.stream_chat(HI))
    assert "".join(said) == "Half an"
    assert len(server.asked) == 1  # a stream that has begun is not asked for again


def test_only_a_lost_connection_is_tried_again() -> None:
    def answer(handler: Handler) -> None:
        if len(handler.server_of.asked) < 3:
            handler.hang_up()
        else:
            handler.stream(["at last"])

    with FakeLlmServer(answer) as server, connected(server) as llm:
        assert llm.chat(HI).message.content == "at last"
        server.answer = status(500)
        with pytest.raises(ModelError):
            llm.chat(HI)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:9/v1", "nothing listens there"),
        ("http://nowhere.invalid/v1", "no machine of that name is known"),
        ("http://user:hunter2@127.0.0.1:9", "http://127.0.0.1:9/v1 cannot be reached"),
        ("http://127.0.0.1:port/v1", "is no URL"),
    ],
)
def test_a_server_that_is_not_there(url: str, told: str) -> None:
    with pytest.raises(ModelError, match=told) as raised:
        ServerLLM(url, model="x", timeout_s=5)
    assert "RAG_LLM__BASE_URL" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_key_is_asked_for_when_the_server_is_met() -> None:
    with FakeLlmServer(key=SECRET) as server:
        with pytest.raises(ModelError, match="wants a key"):
            ServerLLM(server.url, model="only")
        with pytest.raises(ModelError, match="refuses the key .*'Bad key Bearer …'"):
            ServerLLM(server.url, model="only", api_key="another")
        with pytest.raises(ModelError, match="no HTTP header can hold"):
            ServerLLM(server.url, model="only", api_key="two\nlines")
        with connected(server, api_key=SECRET) as llm:
            assert SECRET not in repr(llm) + str(llm.to_dict())


# --- answers without an end ---


def drips(handler: Handler) -> None:
    handler.begin("application/json")
    handler.repeat(b" ", every_s=0.1)


def floods(handler: Handler) -> None:
    handler.begin("application/json")
    handler.repeat(b" " * 100_000)


def nests(handler: Handler) -> None:
    handler.send(200, "[" * 1_000_000)


def compresses(handler: Handler) -> None:
    zipped = gzip.compress(b" " * 1_000_000)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(zipped)))
    handler.end_headers()
    handler.wfile.write(zipped)


@pytest.mark.parametrize(
    ("answer", "told", "n_left"),
    [
        (drips, "sent no whole answer within 0.5 s", 1),
        (floods, "sent more than 4,000,000 bytes", 1),
        (nests, "which is no JSON object", 0),
        (compresses, "sent a compressed answer", 0),
        (Handler.wait_until_gone, "was silent for 0.5 s", 1),
    ],
)
def test_what_should_be_short_is_bounded(
    answer: Callable[[Handler], None], told: str, n_left: int
) -> None:
    with FakeLlmServer(answer_other=answer) as server:
        with pytest.raises(ModelError, match=told):
            ServerLLM(server.url, model="only", timeout_s=0.5)
        eventually(lambda: server.n_left == n_left)
        (request,) = server.requests  # not asked again
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(("body", "every_s"), [(b" ", 0.1), (b" " * 100_000, 0.0)])
def test_an_error_without_an_end_is_left(body: bytes, every_s: float) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(500)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.repeat(body, every_s)

    with FakeLlmServer(answer) as server, connected(server, timeout_s=0.5) as llm:
        with pytest.raises(ModelError, match="sent (no whole answer|more than 4,000,000 bytes)"):
            llm.chat(HI)
        eventually(lambda: server.n_left == 1)


def test_a_turn_waits_once_for_a_server_that_counts_no_longer() -> None:
    def counts(handler: Handler) -> None:
        if handler.path == "/v1/models":
            return handler.send(200, {"data": [{"id": "only"}]})
        return handler.send(200, {"tokens": [1, 2, 3]})

    with FakeLlmServer(answer_other=counts) as server, connected(server, timeout_s=0.5) as llm:
        assert llm.n_tokens("The fox sleeps in the wood.") == 3
        server.answer_other = drips
        n_before = len(server.requests)
        for text in ("one", "two", "three"):
            assert llm.n_tokens(text) == estimated_tokens(text)
        assert len(server.requests) == n_before + 1
        assert llm.n_tokens("The fox sleeps in the wood.") == 3  # remembered


def test_lines_are_cut_and_joined_where_the_network_does_not() -> None:
    def answer(handler: Handler) -> None:
        handler.begin()
        sent = b"".join(
            b"data: %s\n\n" % json.dumps({"choices": [{"delta": {"content": f"{n} "}}]}).encode()
            for n in range(40)
        )
        for at in range(0, len(sent), 7):
            handler.raw(sent[at : at + 7])
        handler.raw(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]')
        handler.raw(b"")

    assert answered(answer)[-1].message.content == " ".join(map(str, range(40)))


def test_a_server_that_is_faster_than_the_reader_waits() -> None:
    n_sent = 0

    def answer(handler: Handler) -> None:
        nonlocal n_sent
        handler.begin()
        event = b'data: {"choices": [{"delta": {"content": "a"}}], "x": "%s"}\n\n' % (b"x" * 5_000)
        with contextlib.suppress(OSError):
            for n_sent in range(20_000):  # noqa: B007 – 100 MB
                handler.raw(event)

    with FakeLlmServer(answer) as server, connected(server, max_tokens=10_000) as llm:
        stream = llm.stream_chat(HI)
        assert next(stream).delta == "a"
        is_still = False
        while not is_still:  # until what lies between both is full
            before = n_sent
            is_still = threading.Event().wait(0.5) or before == n_sent
        assert n_sent < 15_000
        stream.close()


# --- closing ---


def test_closing_ends_what_waits_and_what_comes_later_with_a_sentence() -> None:
    with FakeLlmServer() as server, connected(server) as llm:
        server.answer = Handler.wait_until_gone
        found: list[BaseException] = []

        def call() -> None:
            try:
                llm.chat(HI)
            except ModelError as e:
                found.append(e)

        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: server.asked)
        llm.close()
        thread.join(30)
        with pytest.raises(ModelError, match="is closed"):
            llm.chat(HI)
    assert "is closed. Ask again." in str(found[0])


@pytest.mark.filterwarnings("ignore:coroutine 'connect_tcp")  # anyio's, cancelled as it begins
def test_closing_at_any_moment_leaves_nobody_waiting() -> None:
    odd: list[BaseException] = []

    def ask(connection: Connection) -> None:
        try:
            while True:
                assert connection.ask("/v1/models") is not None
        except ModelError as e:
            if "is closed" not in str(e):
                odd.append(e)
        except Exception as e:  # noqa: BLE001 – whatever it is
            odd.append(e)

    with FakeLlmServer() as server:
        for n in range(40):
            connection = Connection(server.url, api_key=None, timeout_s=5)
            threads = [
                threading.Thread(target=ask, args=(connection,), daemon=True) for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            threading.Event().wait(n % 10 * 0.002)
            connection.close()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
    assert odd == []


def test_the_end_of_the_interpreter_ends_the_requests() -> None:
    def endless(handler: Handler) -> None:
        handler.begin()
        handler.delta("a")
        handler.wait_until_gone()

    with FakeLlmServer(endless) as server:
        ended = run_alone(
            f"""
            import atexit, threading

            @atexit.register  # the first, so it runs last
            def tell():
                print("rag-model-server" in [t.name for t in threading.enumerate()])

            from rag.llm.remote.server import ServerLLM

            llm = ServerLLM({server.url!r}, model="only", timeout_s=60)
            stream = llm.stream_complete("Hello")
            print(next(stream).delta)
            """
        )
    assert (ended.stdout, ended.returncode) == ("a\nFalse\n", 0), ended.stderr[-500:]


# --- stopping ---


def test_stop_ends_the_wait_for_a_silent_server_and_closes_its_stream() -> None:
    with FakeLlmServer(Handler.wait_until_gone) as server, connected(server) as llm:
        stop = threading.Event()
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(llm.chat(HI, stop=stop)))
        thread.start()
        eventually(lambda: server.asked)
        stop.set()
        thread.join(3)  # the server would be silent for 30 s, the timeout is 5 s
        assert found[0].raw["finish_reason"] == "cancelled"
        eventually(lambda: server.n_left == 1)


async def test_leaving_an_async_stream_closes_the_servers(blockbuster: BlockBuster) -> None:
    def endless(handler: Handler) -> None:
        handler.begin()
        handler.delta("a")
        handler.wait_until_gone()

    with FakeLlmServer(endless) as server, connected(server) as llm:
        stream = await llm.astream_chat(HI)
        assert (await anext(stream)).delta == "a"
        await stream.aclose()
        task = asyncio.create_task(llm.achat(HI))
        await asyncio.to_thread(eventually, lambda: len(server.asked) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(eventually, lambda: server.n_left == 2)


def test_more_calls_than_the_server_takes_queue_here() -> None:
    go = threading.Event()

    def answer(handler: Handler) -> None:
        go.wait(60)
        handler.stream(["done"])

    stop = threading.Event()
    found: list[Any] = []
    with (
        FakeLlmServer(answer) as server,
        connected(server, max_concurrent=2, timeout_s=60) as llm,
    ):
        threads = [threading.Thread(target=lambda: found.append(llm.chat(HI))) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(server.asked) == 2)
        waiting = [llm.stream_chat(HI, caller=Caller(user), stop=stop) for user in "abc"]
        first = [next(stream) for stream in waiting]
        assert [r.raw["waiting"].place for r in first] == [2, 3, 4]
        assert not any(r.delta for r in first)
        stop.set()
        assert [list(stream)[-1].raw["finish_reason"] for stream in waiting] == ["cancelled"] * 3
        assert len(server.asked) == 2
        go.set()
        for thread in threads:
            thread.join(30)
        assert llm.chat(HI).message.content == "done"
    assert [f.message.content for f in found] == ["done"] * 2


# --- content ---


@pytest.mark.parametrize(
    "marker",
    ["<|im_end|>", "<start_of_turn>", "<end_of_turn>", "</s>", "<s>", "[INST]", "[/INST]", "<<SYS>>",
     "<bos>", "<unused5>", "<|eot_id|>", "<｜User｜>", "<think>", "<tool_call>", "[multimodal]", "<0x0A>"],
)  # fmt: skip
def test_no_marker_stands_in_what_is_sent_and_the_reader_sees_it_whole(marker: str) -> None:
    with FakeLlmServer() as server, connected(server) as llm:
        llm.chat([ChatMessage(role=MessageRole.USER, content=f"a {marker} b")])
        sent = server.asked[-1].body["messages"][0]["content"]
        server.answer = lambda handler: handler.stream([sent])
        assert llm.chat(HI).message.content == f"a {marker} b"
    assert marker not in sent
    assert sent.replace(JOINER, "") == f"a {marker} b"


def test_ordinary_text_is_sent_as_it_is() -> None:
    text = "a < b, <b>bold</b> [1] [IN] <table> 世界 | x | <3"
    assert defused(text) == text


def test_an_estimate_is_of_the_right_size() -> None:
    assert estimated_tokens("") == 0
    assert (
        10 <= estimated_tokens("For crossing a haunted swamp you should use an iron lantern") <= 24
    )
    assert estimated_tokens("2026-11-23") >= 10


def test_a_server_needs_no_llama_and_no_torch() -> None:
    code = "import sys, rag.llm.remote.server; print({'torch', 'llama_cpp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_doctor_looks_at_the_server() -> None:
    from rag import doctor
    from rag.settings import Settings

    def found(url: str) -> doctor.Check:
        settings = Settings(llm={"base_url": url, "model": "only", "api_key": SECRET})
        (check,) = [c for c in doctor.run(settings) if c.name == "model server"]
        return check

    with FakeLlmServer() as server:
        assert (found(server.url).verdict, found(server.url).found) == (
            "ok",
            f"only at {server.url}",
        )
    assert found(server.url).verdict == "bad"
    assert "cannot be reached" in found(server.url).found
