"""A click is answered while a cell is busy, in a real kernel; the cells queued behind run after it,
in order.
"""

from __future__ import annotations

import time

import pytest

CELL = """
import ipywidgets
from newllm_lib.colab import buttons
button, clicked = ipywidgets.Button(), []
button.on_click(lambda pressed: clicked.append("while busy"))
buttons.answer_on_its_own_thread(button)
print("id", button.model_id, flush=True)
for _ in range(150):
    buttons.wait(0.1)
    if clicked:
        break
print("clicked", clicked, flush=True)
"""


@pytest.fixture(scope="module")
def kernel():
    """A client of a fresh kernel."""
    pytest.importorskip("ipywidgets")
    manager = pytest.importorskip("jupyter_client.manager").KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def printed(client, start: str, timeout: float = 60) -> str:
    """The first printed line that begins with `start`."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=timeout)
        assert message["msg_type"] != "error", message["content"]["traceback"]
        if message["msg_type"] == "stream":
            for line in message["content"]["text"].splitlines():
                if line.startswith(start):
                    return line.removeprefix(start).strip()
    raise AssertionError(f"nothing that begins with {start!r} was printed")


def subshell(client) -> str | None:
    """A thread of the kernel that takes clicks, as JupyterLab asks for one; None where the kernel
    has none.
    """
    client.kernel_info()
    if "kernel subshells" not in client.get_shell_msg(timeout=30)["content"].get("supported_features", []):
        return None
    client.control_channel.send(client.session.msg("create_subshell_request", {}))
    return client.get_control_msg(timeout=30)["content"]["subshell_id"]


def test_a_click_is_answered_while_the_cell_runs(kernel):
    click = kernel.session.msg("comm_msg", {})
    click["header"]["subshell_id"] = subshell(kernel)
    kernel.execute(CELL)
    click["content"] = {
        "comm_id": printed(kernel, "id"),
        "data": {"method": "custom", "content": {"event": "click"}},
    }
    kernel.execute("print('second', clicked)")
    kernel.execute("print('third', clicked)")
    kernel.shell_channel.send(click)
    assert printed(kernel, "clicked") == "['while busy']"
    assert printed(kernel, "second") == printed(kernel, "third") == "['while busy']"
