"""How good retrieval, refusal and answers are, on public data and on the demo.

Run from the checkout, with the shared data beside it: `python benchmarks/quality.py`, or a part of
it: `retrieval`, `refusal` or `demo`. Prints the tables of the README. Takes 20 to 40 minutes on 2
cores, most of it embedding questions.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import yaml
from corpora import SQUAD_FIT, Corpus, squad, xquad

import rag
from rag import wiring
from rag.evaluation import Evaluation
from rag.evaluation.metrics import Estimate, auc, ndcg, ratio, recall, reciprocal_rank
from rag.retrieval import Hit
from rag.settings import Mode

MODES: tuple[Mode, ...] = ("vector", "text", "hybrid")
RRF_K = 60
LANGUAGES = ("en", "de", "es", "zh")
TESTS = Path(__file__).resolve().parents[1] / "tests" / "data"
THRESHOLD = rag.Settings().retrieval.min_relevance


def main() -> None:
    parts = {"retrieval": retrieval, "refusal": refusal, "demo": demo}
    chosen = sys.argv[1:] or list(parts)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in chosen:
            parts[name](Path(folder))


@cache
def _squad(folder: Path) -> Corpus:
    return squad(folder)


@cache
def _xquad(folder: Path, lang: str, asked_in: str | None = None) -> Corpus:
    return xquad(folder, lang, asked_in=asked_in)


# -- retrieval ---------------------------------------------------------------------------------


def retrieval(folder: Path) -> None:
    """Print nDCG@10, recall@5 and MRR@10 of each mode, and of reciprocal rank fusion."""
    print("\n| set | questions | vector | text | hybrid | vector and text by RRF |")
    print("|---|--:|---|---|---|---|")
    sets: dict[str, Corpus] = {"SQuAD 2.0": _squad(folder)}
    sets |= {f"XQuAD {lang}": _xquad(folder, lang) for lang in LANGUAGES}
    sets |= {f"XQuAD {lang} → en": _xquad(folder, "en", lang) for lang in LANGUAGES if lang != "en"}
    for name, corpus in sets.items():
        asked = corpus.numbers(corpus.titles)
        gold = [corpus.questions[i].gold for i in asked]
        rankings = {
            mode: [_keys(hits) for hits in corpus.ask(corpus.retriever(mode=mode), asked)]
            for mode in MODES
        }
        pairs = zip(rankings["vector"], rankings["text"], strict=True)
        rrf = [reciprocal_rank_fusion(pair) for pair in pairs]
        cells = [_retrieved(r, gold) for r in (*rankings.values(), rrf)]
        print(f"| {name} | {len(asked):,} | " + " | ".join(cells) + " |", flush=True)


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]]) -> list[str]:
    """Return keys by the sum of 1 / (60 + rank). Source: Cormack et al., SIGIR 2009."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, 1):
            scores[key] = scores.get(key, 0.0) + 1 / (RRF_K + rank)
    return sorted(scores, key=lambda key: scores[key], reverse=True)


def _keys(hits: Sequence[Hit]) -> list[str]:
    return [hit.node.metadata["row_key"] for hit in hits]


def _retrieved(rankings: Sequence[Sequence[str]], gold: Sequence[str]) -> str:
    figures: list[Callable[..., float]] = [ndcg, recall, reciprocal_rank]
    cuts = (10, 5, 10)
    found = [[[key] for key in ranking] for ranking in rankings]
    values = [
        _mean([figure(f, [g], k) for f, g in zip(found, gold, strict=True)])
        for figure, k in zip(figures, cuts, strict=True)
    ]
    return " / ".join(values)


def _mean(values: Sequence[float]) -> str:
    estimate = ratio(values)
    assert estimate is not None
    return f"{estimate.value:.3f}"


# -- refusal -----------------------------------------------------------------------------------


def refusal(folder: Path) -> None:
    """Print how relevance tells answerable questions from those on other articles."""
    print("\n| index | questions | AUC | answered | right row first and answered | refused |")
    print("|---|--:|---|---|---|---|")
    corpus = _squad(folder)
    held_out = set(corpus.titles) - set(SQUAD_FIT)
    _refused("SQuAD 2.0, four articles held out", corpus, held_out)
    for lang in LANGUAGES:
        both = _xquad(folder, lang)
        _refused(f"XQuAD {lang}, every other article", both, set(both.titles[::2]))
    for lang in LANGUAGES[1:]:
        both = _xquad(folder, "en", lang)
        _refused(f"XQuAD en, questions in {lang}", both, set(both.titles[::2]))
    retriever = corpus.retriever(titles=held_out)
    inside = corpus.ask(retriever, corpus.numbers(held_out))
    impossible = corpus.ask(retriever, corpus.numbers(held_out, is_answerable=False))
    figure = auc([_relevance(h) for h in inside], [_relevance(h) for h in impossible])
    print(f"\nAgainst questions on the same articles that none answers: AUC {_of(figure)}")


def _refused(name: str, corpus: Corpus, titles: set[str]) -> None:
    inside = corpus.numbers(titles)
    outside = [i for i, q in enumerate(corpus.questions) if q.title not in titles]
    outside = random.Random(0).sample(outside, min(len(outside), len(inside)))
    retriever = corpus.retriever(titles=titles)
    found = corpus.ask(retriever, inside)
    answerable = [_relevance(hits) for hits in found]
    off_topic = [_relevance(hits) for hits in corpus.ask(retriever, outside)]
    right = [
        _keys(hits)[0] == corpus.questions[i].gold and r >= THRESHOLD
        for hits, i, r in zip(found, inside, answerable, strict=True)
    ]
    shares = [
        ratio([float(r >= THRESHOLD) for r in answerable]),
        ratio([float(r) for r in right]),
        ratio([float(r < THRESHOLD) for r in off_topic]),
    ]
    cells = [_of(auc(answerable, off_topic)), *(_percent(s) for s in shares)]
    print(f"| {name} | {len(inside)} + {len(outside)} | " + " | ".join(cells) + " |", flush=True)


def _relevance(hits: Sequence[Hit]) -> float:
    return hits[0].relevance if hits else 0.0


def _of(estimate: Estimate | None) -> str:
    assert estimate is not None
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def _percent(estimate: Estimate | None) -> str:
    assert estimate is not None
    return f"{estimate.value:.1%}"


# -- the demo, through the real models -----------------------------------------------------------


def demo(folder: Path) -> None:
    """Print what `rag eval` measures of the demo's questions and conversations."""
    del folder  # the working directory
    settings = rag.Settings()
    wiring.write_demo(settings)
    rag.sync(settings)
    single = yaml.safe_load((TESTS / "demo_questions.yaml").read_text())
    turns = yaml.safe_load((TESTS / "demo_conversations.yaml").read_text())
    of_single = rag.evaluate(settings, single)
    of_turns = rag.evaluate(settings, turns)
    n_answerable = of_single.n_answerable
    follow_ups = [o for o in of_turns.outcomes if o.question.previous]
    print("\n| demo | measured |")
    print("|---|---|")
    print(f"| right row first | {_first(of_single)} of {n_answerable} |")
    refused = [o.reply is not None and o.reply.refused for o in of_single.outcomes]
    should = [not o.question.expected for o in of_single.outcomes]
    n_right = sum(r and s for r, s in zip(refused, should, strict=True))
    print(f"| off-topic questions refused | {n_right} of {sum(should)} |")
    n_found = sum(o.found["hybrid"][0].row_key in o.question.expected for o in follow_ups)
    print(f"| follow-up turns: right row first | {n_found} of {len(follow_ups)} |")
    for name, figure in (
        ("citation precision, single questions", of_single.metrics["answer.citation_precision"]),
        ("citation precision, conversations", of_turns.metrics["answer.citation_precision"]),
        ("claims bound to a source", of_single.metrics["answer.support"]),
    ):
        print(f"| {name} | {_of(figure)}, of {figure.n if figure else 0} |")
    cites = [
        c
        for o in (*of_single.outcomes, *of_turns.outcomes)
        if o.reply is not None
        for c in o.reply.citations
    ]
    in_row = sum(0 <= c.start < c.end <= len(c.text) for c in cites)
    print(f"| highlighted spans inside their row | {in_row} of {len(cites)} |")
    for of_some in (of_single, of_turns):
        for outcome, failed in of_some.failures():
            print(f"  {', '.join(failed)}: {outcome.question.question!r} → {outcome.query!r}")


def _first(evaluation: Evaluation) -> int:
    asked = [o for o in evaluation.outcomes if o.question.expected]
    return sum(o.found["hybrid"][0].row_key in o.question.expected for o in asked)


if __name__ == "__main__":
    main()
