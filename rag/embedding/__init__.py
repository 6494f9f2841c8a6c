"""E5: texts in, unit vectors out, always with the right prefix and never cut.

Two engines, LlamaIndex embeddings both, that answer alike. Does not know where a model folder
came from (`weights`). Nothing is imported here: torch takes 5 to 13 seconds.

    loading.py       which engine runs a model
    onnx_engine.py   ONNX Runtime, for the CPU; no torch
    torch_engine.py  LlamaIndex's `HuggingFaceEmbedding`, for a GPU and for every other model
    export.py        the 8-bit copy of a model that ONNX Runtime runs, in the cache
    exporting.py     makes one, with torch, as a process of its own
    parity.py        how alike the two engines embed
    e5.py            what both engines do with a text
"""
