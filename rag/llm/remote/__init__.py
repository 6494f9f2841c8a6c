"""A model behind an OpenAI-compatible server: llama.cpp's own, vLLM, Ollama, LM Studio.

server.py      ServerLLM, the LlamaIndex LLM
connection.py  a request to the server out, events in
client.py      HTTP itself: headers, sizes
events.py      the events of a streamed answer, as steps
facts.py       what a server says about itself: models, context window
refusals.py    what goes wrong on the way, each as one sentence
content.py     texts for a vocabulary that is not at hand: defused, and counted roughly
"""
