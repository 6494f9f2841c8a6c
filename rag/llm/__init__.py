"""The language model: a GGUF file run by llama.cpp inside this process, or a server's.

Knows tokens, chat templates, a queue and how to stop; knows nothing of tables, passages or what
makes a good prompt (`prompt` does). Nothing is imported here: llama.cpp takes a second to load and
whoever uses a server does without it.

    call.py      what a model is told besides the prompt, and what it tells besides the answer
    gguf.py      GgufLLM, the LlamaIndex LLM on a GGUF file
    engine.py    one llama.cpp context, one answer at a time
    template.py  the GGUF's own chat template, rendered to tokens
    tokens.py    text to tokens and back; content never becomes a control token
    answer.py    tokens' bytes to the text a reader sees: stop strings, whole characters
    loading.py   a GGUF file loaded in silence, or one sentence why not
    runtime.py   what llama.cpp needs from the process: threads and a way to abort
"""
