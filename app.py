"""The web chat: `chainlit run app.py`; everything is in `rag.web`."""

from rag.web import setup

setup()
