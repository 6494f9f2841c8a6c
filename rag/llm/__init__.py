"""The language model: a GGUF file run by llama.cpp inside this process.

One model, one context, one answer at a time. Knows tokens, chat templates and how to stop; knows
nothing of tables, passages or what makes a good prompt (`prompt` does).

    gguf.py      GgufLLM, the LlamaIndex LLM
    engine.py    one llama.cpp context, one answer at a time
    template.py  the GGUF's own chat template, rendered to tokens
    tokens.py    text to tokens and back; content never becomes a control token
    answer.py    tokens' bytes to the text a reader sees: stop strings, whole characters
    loading.py   a GGUF file loaded in silence, or one sentence why not
    runtime.py   what llama.cpp needs from the process: threads and a way to abort
"""

from rag.llm.gguf import GgufLLM

__all__ = ["GgufLLM"]
