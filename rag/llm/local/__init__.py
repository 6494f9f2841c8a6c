"""A GGUF file run by llama.cpp inside this process.

gguf.py           GgufLLM, the LlamaIndex LLM
engine.py         a loaded model and the queue of those who ask it
runner.py         the thread that owns the context and works on one answer after the other
context.py        one sequence of llama.cpp: read, go on, go back, put aside, take up again
conversations.py  what was put aside, within a memory budget
lookup.py         guesses of the next tokens, out of the prompt
sizing.py         how large a context fits here, and what goes to the GPU
template.py       the chat template of a GGUF or of its family: messages to tokens
jinja.py          a chat template as text, or one sentence why not
sandbox.py        Jinja2 with a budget of work and memory: a template is a stranger's program
weighable.py      a template's syntax tree, rewritten for the sandbox to weigh
tokens.py         text to tokens and back; content never becomes a control token
loading.py        a GGUF file loaded in silence, or one sentence why not
abort.py          a way to make llama.cpp leave off in the middle of a call
"""
