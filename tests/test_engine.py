"""One model for many: whose turn it is, what is kept of whom, what is guessed, what is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil
import pytest
from fakes import smollm2_file
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import Llama
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from processes import run_alone
from tiny_gguf import TinyModel, write_gguf

from rag.errors import ModelError, WeightsError
from rag.llm.call import Caller, Timings, Waiting
from rag.llm.local.context import Context, Sampler, State
from rag.llm.local.conversations import Conversations
from rag.llm.local.gguf import GgufLLM
from rag.llm.local.lookup import N_DRAFT, Lookup
from rag.llm.local.sizing import Gpu, Size, sized
from rag.llm.queue import FairQueue, Ticket
from rag.prompt import completion_prompt
from rag.weights import gguf_file
from rag.weights.gguf import check, network


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def bot(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def timings(answer: Any) -> Timings:
    return answer.raw["timings"]


# --- whose turn it is ---


def order(users: str) -> str:
    """Return in which order the calls of some users run, when the queue is served one by one."""
    queue = FairQueue()
    running = queue.join("-")
    tickets = [queue.join(u) for u in users]
    served = ""
    running.leave()
    for _ in tickets:
        (now,) = [t for t in tickets if queue.is_turn(t, 0)]
        served += now.user
        now.leave()
        tickets = [t for t in tickets if t is not now]
    return served


@pytest.mark.parametrize(
    ("joined", "served"),
    [("abc", "abc"), ("aaab", "abaa"), ("aaabbc", "abcaba"), ("abab", "abab"), ("aaa", "aaa")],
)
def test_users_take_turns_and_each_users_calls_keep_their_order(joined: str, served: str) -> None:
    assert order(joined) == served


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=20))
def test_nobody_is_passed_twice_by_the_same_user(users: list[str]) -> None:
    served = order("".join(users))
    assert sorted(served) == sorted(users)
    for u in set(users):
        for at, other in enumerate(served):
            if other != u:
                continue
            # between two calls of one user every other who waits comes at most once
            before = served[served.rfind(u, 0, at) + 1 : at]
            assert len(set(before)) == len(before)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_a_place_is_how_many_come_before(users: list[str]) -> None:
    queue = FairQueue()
    running = queue.join("-")
    tickets = [queue.join(u) for u in users]
    places = {id(t): queue.waiting(t).place for t in tickets}  # type: ignore[union-attr]
    assert sorted(places.values()) == list(range(1, len(users) + 1))
    running.leave()
    left = list(tickets)
    for n_before in range(1, len(users) + 1):
        (now,) = [t for t in left if queue.is_turn(t, 0)]
        assert places[id(now)] == n_before
        left.remove(now)
        now.leave()


def test_a_waiting_call_is_told_when_its_place_changes_and_may_give_up() -> None:
    queue, stop = FairQueue(), threading.Event()
    first, second = queue.join("a"), queue.join("b")
    last = queue.join("c")
    waits = last.waits(stop)
    assert next(waits).place == 2
    second.leave()
    assert next(waits).place == 1
    stop.set()
    assert list(waits) == []
    last.leave()
    first.leave()
    first.leave()  # twice is once
    assert queue.is_turn(queue.join("d"), 0)


def test_several_slots_run_at_once_and_the_wait_is_estimated() -> None:
    queue = FairQueue(n_slots=2)
    done = queue.join("a")
    done.began = time.monotonic() - 10  # a call that took ten seconds
    done.leave()
    running = [queue.join("a"), queue.join("b")]
    assert all(queue.is_turn(t, 0) for t in running)
    waiting = queue.waiting(queue.join("c"))
    assert waiting is not None
    assert waiting.place == 2
    assert 8 < waiting.wait_s <= 10
    assert queue.waiting(running[0]) is None


# --- what is kept of whom ---


def state(*tokens: int, n_bytes: int = 10) -> State:
    return State(tokens, np.zeros(n_bytes, dtype=np.uint8))


def test_the_conversation_longest_unused_goes_first() -> None:
    kept = Conversations(max_bytes=30)
    for name, first in (("a", 1), ("b", 2), ("c", 3)):
        kept.put(name, state(first, 10, 11, 12))
    assert kept.n_bytes == 30
    assert kept.best([1, 10, 11, 99], at_least=3) is not None  # a is used
    kept.put("d", state(4, 10))
    assert kept.best([2, 10, 11, 12], at_least=1) is None, "b had to go"
    assert kept.best([1, 10], at_least=1) is not None
    kept.put("huge", state(5, n_bytes=31))
    assert kept.best([5], at_least=1) is None
    kept.put("a", state(1, 7, n_bytes=5))
    assert kept.n_bytes == 25, "a newer state takes the older one's place"


def test_the_state_that_knows_most_is_taken() -> None:
    kept = Conversations(max_bytes=100)
    kept.put("short", state(1, 2, 3))
    kept.put("long", state(1, 2, 3, 4, 5))
    found = kept.best([1, 2, 3, 4, 9], at_least=4)
    assert found is not None
    assert found.tokens == (1, 2, 3, 4, 5)
    assert kept.best([1, 2, 3, 9], at_least=4) is None


# --- what is guessed ---


def test_a_guess_is_what_followed_the_same_words() -> None:
    lookup = Lookup([5, 6, 7, 8, 9, 1, 5], cost=1.0)
    lookup.said(6)
    assert lookup.draft(n_most=10) == [7, 8, 9]
    assert lookup.draft(n_most=1) == [7]
    assert lookup.draft(n_most=0) == []
    assert Lookup([1, 2, 3, 1, 2, 4, 1, 2], cost=1.0).draft(n_most=1) == [4], (
        "the last place counts"
    )
    assert Lookup([5], cost=1.0).draft(n_most=1) == []
    lookup.said(99)
    assert lookup.draft(n_most=10) == []


def test_right_guesses_grow_and_wrong_ones_end() -> None:
    prompt = [*range(100), 0]
    lookup = Lookup(prompt, cost=2.0)
    lookup.said(1)
    assert len(lookup.draft(n_most=50)) == N_DRAFT
    lookup.judge(N_DRAFT, N_DRAFT)
    assert len(lookup.draft(n_most=50)) == 2 * N_DRAFT
    lookup.judge(2 * N_DRAFT, 1)
    assert len(lookup.draft(n_most=50)) == N_DRAFT
    for _ in range(5):
        lookup.judge(N_DRAFT, 0)
    assert lookup.draft(n_most=50) == [], "guessing does not pay any more"
    for _ in range(100):
        lookup.draft(n_most=50)
    assert lookup.draft(n_most=50), "until it is tried again"
    assert Lookup(prompt, cost=9.0).draft(n_most=50) == []


# --- the real models ---


@pytest.fixture(scope="module", params=["gemma", "smollm2"])
def path(request: pytest.FixtureRequest) -> Path:
    return gguf_file("gemma-3-270m") if request.param == "gemma" else smollm2_file()


@pytest.fixture(scope="module")
def llm(path: Path) -> GgufLLM:
    return GgufLLM(path, name=path.stem, n_ctx=2048, max_tokens=40, prompt_lookup="on")


@pytest.fixture(scope="module")
def plain(path: Path) -> GgufLLM:
    """The same without guesses and without anything kept."""
    return GgufLLM(path, name=path.stem, n_ctx=2048, max_tokens=40, prompt_lookup="off", cache_mb=0)


WORDS = "wolf swamp lantern rope dragon bridge silver boots map forest castle river storm".split()


def story(seed: int, n: int) -> str:
    dice = random.Random(seed)
    return " ".join(f"{dice.choice(WORDS)} {dice.randint(0, 99)}" for _ in range(n))


@pytest.mark.model
def test_a_conversation_taken_up_again_is_as_if_it_had_never_been_put_aside(path: Path) -> None:
    llama = Llama(str(path), n_ctx=2048, n_batch=256, n_threads=2, verbose=False)
    with contextlib.closing(Context(llama)) as context:
        tokens = llama.tokenize(story(1, 300).encode())[:1100]
        tail = llama.tokenize(story(2, 5).encode(), add_bos=False)

        def read(more: list[int]) -> None:
            for at in range(0, len(more), context.n_batch):
                context.read(more[at : at + context.n_batch])

        def logits() -> np.ndarray:
            row = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
            return np.ctypeslib.as_array(row, shape=(llama.n_vocab(),)).copy()

        def clear() -> None:
            # the data too: what is not restored must not be there by chance
            llama_cpp.llama_memory_clear(context._memory, True)
            context.keep(0)

        read(tokens[:800] + tail)
        undisturbed = logits()
        # going back in what was read is exact
        assert context.keep(800) == 800
        read(tokens[800:])
        assert context.keep(800) == 800
        read(tail)
        assert np.array_equal(logits(), undisturbed)
        # so is what was put aside where it goes on
        context.keep(800)
        aside = context.save()
        clear()
        read(tokens[500:])
        context.restore(aside)
        assert list(context.tokens) == tokens[:800]
        read(tail)
        assert np.array_equal(logits(), undisturbed)
        # going back behind that: only a model without a sliding window can
        has_window = llama_cpp.llama_model_n_swa(llama.model) > 0
        assert context.keep(600) == (0 if has_window else 600)


@pytest.mark.model
def test_interleaved_conversations_read_no_more_than_one_alone(
    llm: GgufLLM, plain: GgufLLM
) -> None:
    if not llm.metadata.is_chat_model:
        pytest.skip("a base model is shown no history")

    def turns(model: GgufLLM, names: str) -> dict[str, list[tuple[str, Timings]]]:
        history: dict[str, list[ChatMessage]] = {name: [] for name in names}
        said: dict[str, list[tuple[str, Timings]]] = {name: [] for name in names}
        for turn in range(4):
            for name in names:
                question = f"{story(ord(name), 30)}: what is number {turn}?"
                asked = [
                    ChatMessage(role=MessageRole.SYSTEM, content=story(ord(name) + 9, 60)),
                    *history[name],
                    user(f"Passages: {story(turn, 40)}\n{question}"),
                ]
                answer = model.chat(asked, caller=Caller(name, name), max_tokens=16)
                text = str(answer.message.content)
                history[name] += [user(question), bot(text or "…")]
                said[name].append((text, timings(answer)))
        return said

    together = turns(llm, "AB")
    for name in "AB":
        alone = turns(plain, name)[name]
        for (text, t), (expected, undisturbed) in zip(together[name], alone, strict=True):
            assert text == expected
            assert t.n_evaluated is not None
            assert undisturbed.n_evaluated is not None
            # another conversation's beginning may even be of use to the first turn
            assert t.n_evaluated <= undisturbed.n_evaluated
    assert together["B"][3][1].n_reused > 200  # type: ignore[operator]


@pytest.mark.model
@pytest.mark.parametrize(
    "prompt",
    [
        "Passage: the silver lantern of the castle burns without oil\nAnswer: the silver lantern",
        "Once upon a time there was a wolf who",
        "1 2 3 4 1 2 3 4 1 2 3 4 1 2",
        "The capital of France is",
    ],
)
def test_guessing_changes_no_answer_but_at_a_near_tie(
    llm: GgufLLM, plain: GgufLLM, prompt: str
) -> None:
    guessed = llm.complete(prompt, formatted=True, max_tokens=40)
    expected = plain.complete(prompt, formatted=True, max_tokens=40)
    assert timings(expected).n_drafted == 0
    if guessed.text != expected.text:
        both = zip(guessed.text, expected.text, strict=False)
        alike = f"{prompt} " + "".join(
            a for a, _ in itertools.takewhile(lambda p: p[0] == p[1], both)
        )
        # a word's first letters and the blank before it belong to the token that differs
        assert gap(plain, alike[: alike.rfind(" ")]) < 0.5


def gap(model: GgufLLM, prompt: str) -> float:
    """Return how far apart the two likeliest next tokens' log-probabilities are."""
    llama = Llama(model.model_path, n_ctx=2048, n_threads=2, verbose=False)
    with contextlib.closing(Context(llama)) as context:
        context.read(model._engine.tokens.prompt(prompt))
        row = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        first, second = np.sort(np.ctypeslib.as_array(row, shape=(llama.n_vocab(),)))[-1:-3:-1]
    return float(first - second)


@pytest.mark.model
def test_a_copied_answer_is_guessed(llm: GgufLLM) -> None:
    row = "For crossing a haunted swamp you should use an iron lantern, waxed eel-skin boots and a rope"
    prompt = completion_prompt("How do I cross a haunted swamp?", [row])
    answer = llm.complete(prompt, formatted=True, max_tokens=30)
    assert timings(answer).n_accepted >= 8
    dice = {"formatted": True, "max_tokens": 30, "temperature": 0.7, "seed": 3}
    assert llm.complete(prompt, **dice).text == llm.complete(prompt, **dice).text


@pytest.mark.model
def test_a_storm_of_cancels_leaves_no_trace(llm: GgufLLM) -> None:
    prompt, dice = "Germany: Berlin\nFrance: Paris\nItaly:", random.Random(5)
    undisturbed = llm.complete(prompt, max_tokens=20, formatted=True).text
    storm_of_cancels(llm, dice, n=25)
    assert llm.complete(prompt, max_tokens=20, formatted=True).text == undisturbed


@pytest.mark.proof
@pytest.mark.model
def test_two_hundred_cancels_leave_no_trace(llm: GgufLLM) -> None:
    prompt, dice = "Germany: Berlin\nFrance: Paris\nItaly:", random.Random(6)
    undisturbed = llm.complete(prompt, max_tokens=20, formatted=True).text
    storm_of_cancels(llm, dice, n=200)
    assert llm.complete(prompt, max_tokens=20, formatted=True).text == undisturbed


def storm_of_cancels(llm: GgufLLM, dice: random.Random, *, n: int) -> None:
    """Ask from four threads and stop or leave each answer at a random moment."""
    moments = [(dice.random(), dice.random() * 0.25, dice.randint(5, 300)) for _ in range(n)]

    def ask(mine: list[tuple[float, float, int]], name: str) -> None:
        for kind, after_s, n_words in mine:
            stop = threading.Event()
            stream = llm.stream_complete(
                story(n_words, n_words), formatted=True, stop=stop, caller=Caller(name, name)
            )
            if kind < 0.5:
                timer = threading.Timer(after_s, stop.set)
                timer.start()
                reasons = [r.raw.get("finish_reason") for r in stream if r.raw]
                timer.cancel()
                assert reasons[-1] in ("cancelled", "length", "stop")
            else:
                until = time.monotonic() + after_s
                with contextlib.closing(stream):
                    for _ in stream:
                        if time.monotonic() > until:
                            break

    threads = [threading.Thread(target=ask, args=(moments[i::4], f"u{i}")) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(600)
        assert not t.is_alive()


@pytest.mark.model
async def test_fifty_at_once_are_all_answered(llm: GgufLLM) -> None:
    places: list[int] = []

    async def ask(i: int) -> str:
        last: Any = None
        caller = Caller(f"user {i % 5}", "")
        stream = await llm.astream_complete(f"{i}:", formatted=True, max_tokens=3, caller=caller)
        async for reply in stream:
            if reply.raw and isinstance(reply.raw.get("waiting"), Waiting):
                places.append(reply.raw["waiting"].place)
            last = reply
        return str(last.raw["finish_reason"])

    reasons = await asyncio.gather(*(ask(i) for i in range(50)))
    assert set(reasons) <= {"length", "stop"}
    assert max(places) > 20


@pytest.mark.model
def test_the_reading_of_a_prompt_is_cancelled_at_once(llm: GgufLLM) -> None:
    stop = threading.Event()
    prompt = story(11, 450)
    assert llm.n_tokens(prompt) > 1200
    ended: list[tuple[float, Any]] = []

    def ask() -> None:
        answer = llm.complete(prompt, formatted=True, stop=stop)
        ended.append((time.monotonic(), answer))

    thread = threading.Thread(target=ask)
    thread.start()
    while not llm._engine.n_known and thread.is_alive():
        time.sleep(0.001)
    stopped = time.monotonic()
    stop.set()
    thread.join(60)
    assert ended[0][1].raw["finish_reason"] == "cancelled"
    # the whole prompt takes seconds; a busy machine is given ten times the 100 ms
    assert ended[0][0] - stopped < 1.0


@pytest.mark.model
def test_an_unused_model_is_freed_and_a_waiting_question_is_told(path: Path) -> None:
    model = GgufLLM(path, name="x", n_ctx=512, max_tokens=5)
    runner = weakref.ref(model._engine._runner)
    assert model.complete("a b c", formatted=True).text
    model._engine._runner.close()
    with pytest.raises(ModelError, match="was unloaded"):
        model.complete("a b c", formatted=True)
    thread = model._engine._runner._thread
    del model
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
    assert runner() is None


def test_a_context_that_cannot_fit_is_refused_before_it_is_tried(path: Path) -> None:
    def size(n_ctx: int | None) -> Size:
        return sized(path, n_ctx=n_ctx, usual_n_ctx=4096, gpu=Gpu(), can_offload=False)

    assert size(None).n_ctx == min(4096, network(path).n_ctx)
    assert not size(None).flash_attn
    assert size(1024).n_ctx == 1024


@settings(max_examples=30)
@given(st.integers(0, 3), st.floats(0, 1))
def test_a_sampler_takes_any_seed(seed: int, temperature: float) -> None:
    with contextlib.closing(Sampler(temperature=temperature, seed=seed - 2)):
        pass


def test_tickets_are_left_by_whoever_gives_up() -> None:
    queue = FairQueue()
    first = queue.join("a")
    others: list[Ticket] = [queue.join("b") for _ in range(3)]
    for other in others:
        other.leave()
    first.leave()
    assert queue.waiting(first) is None
    assert queue.is_turn(queue.join("c"), 0)


def test_a_context_larger_than_the_memory_is_refused_or_made_smaller(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "huge.gguf",
        {
            "general.architecture": "llama",
            "llama.context_length": 1 << 20,
            "llama.block_count": 500,
            "llama.embedding_length": 8192,
            "llama.attention.head_count": 64,
        },
    )
    assert network(path).cache_bytes == 2 * 500 * 64 * 2 * 128
    with pytest.raises(ModelError, match=r"needs 17\d\d\d?\.\d GB besides .* RAG_LLM__N_CTX to at"):
        sized(path, n_ctx=1 << 20, usual_n_ctx=4096, gpu=Gpu(), can_offload=False)
    made = sized(path, n_ctx=None, usual_n_ctx=1 << 20, gpu=Gpu(), can_offload=False)
    assert 512 <= made.n_ctx < 1 << 20
    assert made.has_8bit_cache
    assert made.flash_attn


def rss_growth(model: GgufLLM, *, n_first: int, n_all: int) -> float:
    """Return how much larger the process is after all turns than after the first ones."""
    process, after_first = psutil.Process(), 0
    for n in range(n_all):
        name = f"user {n % 7}"
        asked = [user(story(n % 7, 15)), bot("yes"), user(story(n, 5))]
        model.chat(asked, caller=Caller(name, name), max_tokens=4)
        if n + 1 == n_first:
            gc.collect()
            after_first = process.memory_info().rss
    gc.collect()
    return process.memory_info().rss / after_first - 1


@pytest.fixture
def talker() -> GgufLLM:
    """A model whose memory for conversations is full after a few turns."""
    return GgufLLM(smollm2_file(), name="smollm2", n_ctx=1024, cache_mb=4)


@pytest.mark.model
def test_memory_does_not_grow_with_the_turns(talker: GgufLLM) -> None:
    assert rss_growth(talker, n_first=15, n_all=45) < 0.05


@pytest.mark.proof
@pytest.mark.model
def test_memory_after_500_turns_is_that_after_50(talker: GgufLLM) -> None:
    assert rss_growth(talker, n_first=50, n_all=500) < 0.05


def test_the_process_ends_while_threads_still_count_and_answer() -> None:
    ended = run_alone(
        """
        import threading, time
        from pathlib import Path
        from fakes import smollm2_file
        from rag.llm.local.gguf import GgufLLM

        llm = GgufLLM(smollm2_file(), name="x", n_ctx=512, prompt_lookup="off")

        def count():
            while True:
                llm.n_tokens("the red fox " * 2000)

        def answer():
            for _ in llm.stream_complete("the red fox", max_tokens=500):
                pass

        for work in (count, count, answer):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.5)
        """
    )
    assert ended.returncode == 0, ended.stderr[-500:]


def test_the_end_of_the_interpreter_waits_for_those_who_read() -> None:
    """One that was ended inside pydantic's Rust would abort the process."""
    ended = run_alone(
        """
        import threading, time
        from fakes import smollm2_file
        from rag.llm.local.gguf import GgufLLM

        llm = GgufLLM(smollm2_file(), name="x", n_ctx=512, prompt_lookup="off")
        begun = threading.Event()

        def read():
            for reply in llm.stream_complete("the red fox", max_tokens=500):
                if reply.delta:  # else it says who comes first
                    begun.set()
                if (reply.raw or {}).get("finish_reason") == "cancelled":
                    time.sleep(0.3)
            print("read to its end", flush=True)

        for _ in range(2):  # one of them waits for its turn
            threading.Thread(target=read, daemon=True).start()
        begun.wait()
        """
    )
    assert ended.stdout == "read to its end\n", ended.stderr[-500:]
    assert ended.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_is_told_that_it_has_no_model() -> None:
    ended = run_alone(
        """
        import os, warnings
        from fakes import smollm2_file
        from rag.errors import ModelError, WeightsError
        from rag.llm.local.gguf import GgufLLM

        llm = GgufLLM(smollm2_file(), name="x", n_ctx=512, prompt_lookup="off")
        llm.complete("a", max_tokens=1)
        warnings.simplefilter("ignore")
        pid = os.fork()
        if pid == 0:
            try:
                llm.complete("a", max_tokens=1)
            except ModelError as e:
                os._exit(7 if "forked" in str(e) else 8)
            os._exit(9)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert ended.returncode == 7, ended.stderr[-500:]


def test_a_collection_inside_the_runners_lock_does_not_lock_up(tmp_path: Path) -> None:
    word = "go"
    path = TinyModel([word], {259: [259]}).write(tmp_path / "tiny.gguf")
    llm = GgufLLM(path, name="tiny", n_ctx=512, n_threads=1, prompt_lookup="off")
    first, second = (llm.stream_complete(word, max_tokens=300) for _ in range(2))
    next(first)
    runner = llm._engine._runner
    with runner._lock:  # what a garbage collection does to an abandoned stream, at any point
        first.close()
    second.close()
    assert llm.complete(word, max_tokens=3).text


def test_a_file_of_nonsense_is_refused_or_read_but_never_a_traceback(tmp_path: Path) -> None:
    whole = TinyModel(["go"], {}).write(tmp_path / "whole.gguf").read_bytes()
    dice = random.Random(4)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            damaged[dice.randrange(4, 400)] = dice.choice((0, 1, 0x7F, 0xFF, dice.randrange(256)))
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        network(path)
        with contextlib.suppress(WeightsError):
            check(path)


@pytest.mark.parametrize("field", [("block_count", 600), ("context_length", 3)])
def test_a_file_that_would_abort_llama_cpp_is_refused_before(
    tmp_path: Path, field: tuple[str, int]
) -> None:
    path = TinyModel(["go"], {}, **{f"llama__{field[0]}": field[1]}).write(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match="which no model has"):
        GgufLLM(path, name="x", n_ctx=512)
