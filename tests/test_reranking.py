"""The cross-encoder: a tiny real one, with weights that make what it says known."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_e5
import torch
from fake_hub import COMMIT, FakeHub
from test_weights import closed_port
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import rag
from rag import doctor
from rag.errors import SettingsError, WeightsNotFound
from rag.reranking import Reranker
from rag.weights import e5_pack
from rag.wiring import parts

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wolf", "garlic", *string.ascii_lowercase]
WINDOW = 48


def write_cross_encoder(folder: Path, *, n_outputs: int = 1, reach: float = 1.0) -> Path:
    """Write a cross-encoder of two layers; each layer mixes all tokens into the first one."""
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    config = BertConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=WINDOW,
        num_labels=n_outputs,
    )
    torch.manual_seed(7)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():  # else every pair comes to nearly the same
            parameter.mul_(5)
        model.classifier.weight.mul_(reach)
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    if was_enabled:
        transformers_logging.enable_progress_bar()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Reranker:
    return Reranker(folder, device="cpu")


def by_hand(folder: Path, question: str, passage: str) -> float:
    """Score a pair with transformers alone."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder)
    pair = tokenizer(question, passage, return_tensors="pt", truncation=True, max_length=WINDOW)
    with torch.no_grad():
        return float(model(**pair).logits.double().sigmoid())


PASSAGES = ["garlic", "wolf", "a wolf and garlic", "g a r l i c", "w"]


def test_a_score_is_of_question_and_passage_together(tiny: Reranker, folder: Path) -> None:
    found = tiny.scores("wolf", PASSAGES)
    assert found == pytest.approx([by_hand(folder, "wolf", p) for p in PASSAGES], abs=1e-5)
    assert len({round(score, 4) for score in found}) == len(PASSAGES)
    assert found != pytest.approx(tiny.scores("garlic", PASSAGES), abs=1e-3)
    assert all(0 < score < 1 for score in found)


def test_nothing_to_score_is_nothing(tiny: Reranker) -> None:
    assert tiny.scores("wolf", []) == []


def test_scores_come_in_the_order_of_the_passages(tiny: Reranker) -> None:
    passages = [f"{'wolf ' * (n % 9)}{string.ascii_lowercase[n]}" for n in range(26)]
    single = [tiny.scores("garlic", [passage])[0] for passage in passages]
    assert tiny.scores("garlic", passages) == pytest.approx(single, abs=1e-5)


def test_a_pair_beyond_the_window_is_cut(tiny: Reranker, folder: Path) -> None:
    long, longer = "garlic " * 60, "garlic " * 400
    assert tiny.scores("wolf", [longer]) == pytest.approx([by_hand(folder, "wolf", longer)])
    assert tiny.scores("wolf", [longer, long]) == pytest.approx(
        [by_hand(folder, "wolf", long)] * 2, abs=1e-6
    )
    assert 0 < tiny.scores("wolf " * 400, [longer])[0] < 1


@pytest.mark.parametrize("mark", ["[SEP]", "[CLS]", "[PAD]", "[MASK]", "[SE[SEP]P]"])
def test_marks_in_a_row_do_not_part_it(tiny: Reranker, mark: str) -> None:
    (plain, marked) = tiny.scores("wolf", ["garlic wolf", f"garlic {mark} wolf"])
    if mark == "[SE[SEP]P]":
        plain = tiny.scores("wolf", ["garlic [SE P] wolf"])[0]
    assert marked == pytest.approx(plain, abs=1e-6)


def test_text_that_no_tokenizer_takes_is_scored(tiny: Reranker) -> None:
    passages = ["\ud800", "", "\x00", "wolf " * 10_000]
    assert all(0 < score < 1 for score in tiny.scores("\udfff wolf", passages))


def test_what_a_model_is_sure_of_keeps_its_order(tmp_path: Path) -> None:
    sure = Reranker(write_cross_encoder(tmp_path, reach=30.0), device="cpu")
    found = sure.scores("wolf", PASSAGES)
    assert len(set(np.float32(found))) < len(PASSAGES), "it is sure of them all"
    assert len(set(found)) == len(PASSAGES)


def test_threads_do_not_disturb_each_other(tiny: Reranker) -> None:
    asked = [("wolf " * (n % 5 + 1), [*PASSAGES[n % 5 :], "wolf " * n]) for n in range(24)]
    expected = [tiny.scores(*pair) for pair in asked]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: tiny.scores(*pair), asked))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_folder_that_sentence_transformers_wrote_is_one_too(
    tiny: Reranker, tmp_path: Path
) -> None:
    transformers_logging.disable_progress_bar()
    tiny._model.save(str(tmp_path / "saved"))
    transformers_logging.enable_progress_bar()
    again = Reranker(tmp_path / "saved", device="cpu")
    assert again.scores("wolf", PASSAGES) == pytest.approx(tiny.scores("wolf", PASSAGES))


# -- what is refused ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    id: str
    says: str


def spoilt(folder: Path, kind: str) -> Path:
    """Write a folder that is no cross-encoder."""
    folder.mkdir()
    if kind == "embedding model":
        e5_pack.repack(tiny_e5.data_file(), folder)
        return folder
    write_cross_encoder(folder, n_outputs=3 if kind == "three outputs" else 1)
    if kind == "damaged weights":
        (folder / "model.safetensors").write_bytes(b"no weights")
    if kind == "damaged config":
        (folder / "config.json").write_text("{")
    if kind == "code of its own":
        config = json.loads((folder / "config.json").read_text())
        names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
        config |= {"model_type": "own", "auto_map": names}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text("raise SystemExit('code of the model was run')")
    return folder


@pytest.mark.parametrize(
    "case",
    [
        Refused("embedding model", "it is of the kind 'BertModel'"),
        Refused("three outputs", "it has 3 outputs instead of one"),
        Refused("damaged weights", "cannot be loaded as a cross-encoder: "),
        Refused("damaged config", "cannot be loaded as a cross-encoder: "),
        Refused("code of its own", "custom code which must be executed"),
    ],
    ids=lambda case: case.id,
)
def test_what_is_no_cross_encoder_is_one_sentence(tmp_path: Path, case: Refused) -> None:
    folder = spoilt(tmp_path / "model", case.id)
    with pytest.raises(WeightsNotFound) as caught:
        Reranker(folder, device="cpu")
    text = str(caught.value)
    assert case.says in text
    assert text.startswith(f"Folder {str(folder)!r} cannot be loaded as a cross-encoder")
    assert text.endswith("Set RAG_RETRIEVAL__RERANK_MODEL to another, or unset it.")
    assert "\n" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda_is_one_sentence(folder: Path) -> None:
    with pytest.raises(SettingsError, match="RAG_EMBEDDING__DEVICE is 'cuda', but"):
        Reranker(folder, device="cuda")


# -- settings ----------------------------------------------------------------------------------


def reranking(model: str | None) -> rag.Settings:
    return rag.Settings(retrieval={"rerank_model": model})


def test_without_the_setting_there_is_none() -> None:
    assert parts.load_reranker(rag.Settings()) is None


def test_a_reranker_is_loaded_once_while_it_is_used(folder: Path) -> None:
    first = parts.load_reranker(reranking(str(folder)))
    assert first is not None
    assert parts.load_reranker(reranking(f"{folder}")) is first
    assert first.scores("wolf", ["garlic"])


def test_a_folder_that_is_not_there_names_the_setting() -> None:
    with pytest.raises(WeightsNotFound, match="no folder 'nowhere'.*RAG_RETRIEVAL__RERANK_MODEL"):
        parts.load_reranker(reranking("nowhere"))


def test_a_folder_that_lacks_a_file_says_which(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(WeightsNotFound, match="no cross-encoder: it has no 'tokenizer.json'"):
        parts.load_reranker(reranking("part"))


def test_doctor_has_a_line_for_it(folder: Path) -> None:
    def lines(model: str | None) -> list[tuple[str, str]]:
        checks = doctor.run(reranking(model))
        return [(c.verdict, c.found) for c in checks if c.name == "cross-encoder"]

    assert lines(None) == []
    assert lines(str(folder)) == [("ok", f"{folder}, local")]
    assert lines("org/reranker") == [
        ("note", "org/reranker, a hub model: downloaded when first used")
    ]


# -- the hub -----------------------------------------------------------------------------------

ASK = """
import json, sys
import rag
from rag.wiring import parts

heard = []
settings = rag.Settings(retrieval={"rerank_model": sys.argv[1]})
try:
    found = parts.load_reranker(settings, lambda *report: heard.append(report))
    told = {"scores": found.scores("wolf", ["garlic", "wolf"]), "heard": heard}
except rag.errors.RagError as e:
    told = {"error": type(e).__name__, "text": str(e)}
print(json.dumps(told))
"""


def ask(url: str, home: Path, model: str = "org/reranker") -> dict[str, Any]:
    """Load it in a process of its own: the hub's client reads its environment at import."""
    env = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, model],
        env=env | {"NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_hub_reranker_is_downloaded_once_and_then_needs_no_hub(
    folder: Path, tiny: Reranker, tmp_path: Path
) -> None:
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    others = {"onnx/model.onnx": b"x", "pytorch_model.bin": b"x", "own.py": b"raise SystemExit"}
    with FakeHub({"org/reranker": {**files, **others}}) as hub:
        found = ask(hub.url, tmp_path)
        asked = " ".join(hub.requests)
    assert found["scores"] == pytest.approx(tiny.scores("wolf", ["garlic", "wolf"]))
    assert any(what == "downloading org/reranker" for what, *_ in found["heard"])
    assert not any(name in asked for name in others)
    assert (tmp_path / "hub" / "models--org--reranker" / "snapshots" / COMMIT).is_dir()
    offline = ask(closed_port(), tmp_path)
    assert offline == {"scores": found["scores"], "heard": []}


def test_a_corrupt_download_is_refused(folder: Path, tmp_path: Path) -> None:
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    with FakeHub({"org/reranker": files}, corrupt=frozenset({"model.safetensors"})) as hub:
        assert ask(hub.url, tmp_path)["error"] == "ChecksumMismatch"


def test_what_the_hub_does_not_have_is_one_sentence(tmp_path: Path) -> None:
    with FakeHub({}) as hub:
        found = ask(hub.url, tmp_path)
    assert found["error"] == "WeightsNotFound"
    assert "The hub has no model 'org/reranker'" in found["text"]
