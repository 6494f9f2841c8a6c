"""The promise that nothing leaves the machine, in a network namespace that has only loopback.

Native libraries open sockets too, so patching Python's would prove nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
set -eu
ip link set lo up
test "$(ip -o link | grep -vc ' lo: ')" = 0
if timeout 5 bash -c 'echo > /dev/tcp/192.0.2.1/80' 2>/dev/null; then exit 9; fi
"$PYTHON" -m rag demo
"$PYTHON" -m rag sync
"$PYTHON" -m rag ask 'What do I need against a werewolf?'
cd "$ROOT"
"$PYTHON" -m pytest -q -p no:cacheprovider tests/test_browser.py -k "$ONE_WEB_QUESTION"
"""

ONE_WEB_QUESTION = "test_the_werewolf_question_from_start_to_row"


@pytest.mark.model
@pytest.mark.browser
def test_demo_sync_ask_and_web_work_with_loopback_only(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAG_")}
    done = subprocess.run(
        ["unshare", "-rn", "bash", "-c", SCRIPT],
        cwd=tmp_path,
        env=environment
        | {"PYTHON": sys.executable, "ROOT": str(ROOT), "ONE_WEB_QUESTION": ONE_WEB_QUESTION},
        capture_output=True,
        text=True,
    )
    if "unshare failed" in done.stderr and not os.environ.get("CI"):
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wolfsbane" in done.stdout.lower()
    assert "1 passed" in done.stdout
