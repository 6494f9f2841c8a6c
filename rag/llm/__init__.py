"""The language model: a GGUF file run by llama.cpp inside this process, or a server's.

Knows tokens, chat templates, a queue and how to stop; knows nothing of tables, passages or what
makes a good prompt (`prompt` does). Nothing is imported here: llama.cpp takes a second to load and
whoever uses a server does without it.

    call.py     what a model is told besides the prompt, and what it tells besides the answer
    queue.py    whose turn it is
    replies.py  one answer as steps, and the steps as LlamaIndex's streams
    answer.py   tokens' bytes to the text a reader sees: stop strings, whole characters
    local/      GgufLLM: llama.cpp inside this process
    remote/     ServerLLM: any OpenAI-compatible server
    serving.py  llama.cpp's own server, for several people
"""
