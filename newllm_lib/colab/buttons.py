"""Buttons that answer while a cell is busy.

A click reaches the kernel as a message that waits its turn behind the running cell. JupyterLab 4.4 with
ipykernel 7 sends it to a thread of its own (a subshell); for older kernels, Colab's 6.17 among them, a
waiting cell has to look into the queue itself. Only clicks are taken out of it: the cells that the user
queued behind stay there, in order.
"""

from __future__ import annotations

import time

from newllm_lib.colab.environment import shell

_GLANCE = 0.2  # seconds between two looks at the queue


def wait(seconds: float) -> None:
    """Sleep, but let clicks be answered meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        answer_clicks()
        time.sleep(min(left, _GLANCE))


def answer_on_its_own_thread(widget) -> None:
    """Let clicks on `widget` go where the front end sends them (ipykernel 7).

    Since 7.4 they go back to the thread that made the widget, which is the one the cell keeps busy, unless
    that is forgotten. Nothing happens on other kernels.
    """
    vars(widget.comm).pop("_reply_subshell_id", None)


def answer_clicks() -> int:
    """Deliver the widget messages that wait in the kernel's queue; returns how many."""
    instance = shell()
    kernel = instance.kernel if instance else None
    if not _queues_by_itself(kernel):
        return 0
    import zmq

    kernel.shell_stream.flush(zmq.POLLIN)  # from the socket into the queue
    waiting = []
    while not kernel.msg_queue.empty():
        waiting.append(kernel.msg_queue.get_nowait())
    clicks = [item for item in waiting if _is_click(kernel, item)]
    for item in waiting:
        if item not in clicks:
            kernel.msg_queue.put_nowait(item)
    for _, _, (frames,) in clicks:
        identities, parts = kernel.session.feed_identities(frames, copy=False)
        message = kernel.session.deserialize(parts, content=True, copy=False)
        kernel.shell_handlers["comm_msg"](kernel.shell_stream, identities, message)
    return len(clicks)


def _queues_by_itself(kernel) -> bool:
    """Whether this is a kernel whose one thread both runs cells and reads messages (ipykernel 5 and 6)."""
    return hasattr(kernel, "msg_queue") and getattr(kernel, "shell_channel_thread", None) is None


def _is_click(kernel, item) -> bool:
    _, dispatch, arguments = item
    if dispatch != kernel.dispatch_shell or len(arguments) != 1:
        return False
    # Only the header is read: a message that stays in the queue can be deserialized only once.
    _, parts = kernel.session.feed_identities(arguments[0], copy=False)
    return kernel.session.unpack(parts[1].bytes).get("msg_type") == "comm_msg"
