"""OpenAI's own client talks to the server; what is too large, too late or wrong is one clean error."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest
import torch

from newllm_lib.cli import main
from newllm_lib.generation.chat import ChatSession
from newllm_lib.generation.generate import complete
from newllm_lib.generation.sampling import Settings
from newllm_lib.serve.app import Limits
from newllm_lib.serve.engine import _StopStrings
from tests.helpers.foreign_models import make_model

HELLO = [{"role": "user", "content": "the old house"}]
GREEDY = {"temperature": 0, "max_tokens": 6}


def client_of(served, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.address, api_key="none", max_retries=0, **options)


def slowed(engine, seconds=0.02):
    """Let each step of the model take so long; returns the list that every step adds to."""
    steps = []

    def step(*args, **kwargs):
        steps.append(time.monotonic())
        time.sleep(seconds)

    engine.model.register_forward_pre_hook(step, with_kwargs=True)
    return steps


def test_a_chat_is_the_terminals(engine, serving):
    served = serving(engine())
    client = client_of(served)
    name = client.models.list().data[0].id
    assert name == served.engine.name
    answer = client.chat.completions.create(model=name, messages=HELLO, **GREEDY)
    session = ChatSession(engine().model, engine().tokenizer, Settings(temperature=0, max_new_tokens=6))
    first = "".join(session.reply(HELLO[0]["content"]))
    assert answer.choices[0].message.content == first and answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    longer = [*HELLO, {"role": "assistant", "content": first}, {"role": "user", "content": "and more"}]
    again = client.chat.completions.create(model=name, messages=longer, **GREEDY)
    assert again.choices[0].message.content == "".join(session.reply("and more"))


def test_a_stream_says_the_same_in_pieces(engine, serving):
    served = serving(engine())
    client, name = client_of(served), served.engine.name
    whole = client.chat.completions.create(model=name, messages=HELLO, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            model=name, messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices


def test_completions_go_on_with_a_text(engine, serving):
    served = serving(engine(None))
    client, name = client_of(served), served.engine.name
    answer = client.completions.create(model=name, prompt="the old", **GREEDY)
    loaded = engine(None)
    wanted = complete(loaded.model, loaded.tokenizer, "the old", temperature=0, max_new_tokens=6)
    assert answer.choices[0].text == wanted and answer.object == "text_completion"
    pieces = client.completions.create(model=name, prompt="the old", stream=True, **GREEDY)
    assert "".join(c.choices[0].text for c in pieces) == wanted
    ids = loaded.prompt_of_text("the old")
    assert client.completions.create(model=name, prompt=ids, **GREEDY).choices[0].text == wanted
    with pytest.raises(openai.BadRequestError, match="base model without a chat template"):
        client.chat.completions.create(model=name, messages=HELLO)


def test_a_seed_gives_the_same_answer_and_a_stop_string_ends_it(engine, serving):
    served = serving(engine())
    client, name = client_of(served), served.engine.name

    def ask(**more):
        answer = client.chat.completions.create(
            model=name, messages=HELLO, **{"max_tokens": 24, "temperature": 1, "seed": 4} | more
        )
        return answer.choices[0]

    said = ask().message.content
    assert ask().message.content == said and len(said) > 4
    cut = ask(stop=[said[2:4]])
    assert cut.message.content == said[: said.index(said[2:4])] and cut.finish_reason == "stop"
    assert ask(max_tokens=1).finish_reason == "length"


def test_stop_strings_are_found_across_pieces_and_nothing_is_lost():
    for text, stop, wanted in (
        ("Hello\nUser: hi", ["\nUser:"], "Hello"),
        ("aab", ["ab"], "a"),
        ("abab", ["abc"], "abab"),
        ("plain", [], "plain"),
    ):
        for size in (1, 2, 5):
            stops, said = _StopStrings(stop), ""
            for start in range(0, len(text), size):
                said += stops.add(text[start : start + size])
                if stops.found:
                    break
            assert said + stops.rest() == wanted


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "another"}, "There is no model 'another' here"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"temperature": -1}, "temperature"),
        ({"n": 2}, "n 2 is not supported"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"made_up": 1}, "made_up is not supported by this server"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0",
        ),
        ({"messages": [{"role": "user", "content": "a " * 5000}]}, "sees 4,000 at once: shorten it"),
    ],
)
def test_what_cannot_be_is_one_clean_error(engine, serving, change, says):
    served = serving(engine())
    body = {"model": served.engine.name, "messages": HELLO, **change}
    answer = httpx.post(f"{served.address}/chat/completions", json=body)
    assert answer.status_code in (400, 404) and set(answer.json()) == {"error"}
    assert says in answer.json()["error"]["message"] and "\n" not in answer.json()["error"]["message"]


def test_a_request_of_ten_megabytes_is_one_413(engine, serving):
    served = serving(engine())
    body = json.dumps({"model": served.engine.name, "messages": [{"role": "user", "content": "a" * 10**7}]})
    answer = httpx.post(f"{served.address}/chat/completions", content=body)
    assert answer.status_code == 413 and "larger than 4 MiB" in answer.json()["error"]["message"]
    chunked = (body[i : i + 10**5].encode() for i in range(0, len(body), 10**5))
    assert httpx.post(f"{served.address}/chat/completions", content=chunked).status_code == 413
    with pytest.raises(openai.APIStatusError, match="larger than 4 MiB"):
        client_of(served).chat.completions.create(
            model=served.engine.name, messages=[{"role": "user", "content": "a" * 10**7}]
        )
    broken = httpx.post(f"{served.address}/chat/completions", content="{")
    assert broken.status_code == 400 and "Invalid JSON" in broken.json()["error"]["message"]
    assert httpx.get(served.address + "/none").json()["error"]["message"].startswith("There is no /v1/none")


def test_a_body_that_never_ends_is_a_408(engine, serving):
    served = serving(engine(), Limits(read_seconds=0.3))
    with socket.create_connection(("127.0.0.1", httpx.URL(served.address).port)) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        half.settimeout(10)
        assert b"408" in half.recv(200)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(engine, serving, stream):
    made = engine()
    steps, served = slowed(made), serving(made)
    made._text.stop = frozenset()  # it would go on for long
    body = {"model": made.name, "messages": HELLO, "max_tokens": 3000, "stream": stream}
    if stream:
        with httpx.stream("POST", f"{served.address}/chat/completions", json=body) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.address}/chat/completions", json=body, timeout=0.5)
    time.sleep(1.5)
    count = len(steps)
    time.sleep(0.3)
    assert len(steps) == count < 150
    after = client_of(served).chat.completions.create(model=made.name, messages=HELLO, max_tokens=2)
    assert after.usage.completion_tokens <= 2  # the model is free again


def test_requests_wait_for_their_turn_and_too_many_are_refused(engine, serving):
    made = engine()
    slowed(made, 0.03)
    served = serving(made, Limits(waiting=2))
    body = {"model": made.name, "messages": HELLO, "max_tokens": 10, "temperature": 0}

    def ask(_):
        return httpx.post(f"{served.address}/chat/completions", json=body, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(200) >= 3 and codes.count(429) >= 1 and set(codes) == {200, 429}
    said = {a.json()["choices"][0]["message"]["content"] for a in answers if a.status_code == 200}
    assert len(said) == 1


def test_time_is_limited(engine, serving):
    made = engine()
    slowed(made, 0.05)
    served = serving(made, Limits(seconds=0.4))
    start = time.monotonic()
    answer = client_of(served).chat.completions.create(model=made.name, messages=HELLO, max_tokens=2000)
    assert time.monotonic() - start < 5 and answer.choices[0].finish_reason in ("length", "stop")


def test_a_models_failure_is_a_500_and_the_next_request_is_answered(engine, serving, capsys):
    made = engine()
    served = serving(made)
    handle = made.model.register_forward_pre_hook(lambda *_: torch.zeros(1, 2) @ torch.zeros(1, 2))
    body = {"model": made.name, "messages": HELLO, "max_tokens": 2}
    failed = httpx.post(f"{served.address}/chat/completions", json=body)
    assert (
        failed.status_code == 500 and "The model failed (RuntimeError)" in failed.json()["error"]["message"]
    )
    streamed = httpx.post(f"{served.address}/chat/completions", json={**body, "stream": True}).text
    assert '"server_error"' in streamed and "[DONE]" not in streamed
    handle.remove()
    assert httpx.post(f"{served.address}/chat/completions", json=body).status_code == 200
    assert "mat1 and mat2" in capsys.readouterr().out


def test_a_template_that_takes_no_system_message_is_a_400(engine, serving):
    served = serving(engine("gemma"))
    with pytest.raises(openai.BadRequestError, match="System role not supported"):
        client_of(served).chat.completions.create(
            model=served.engine.name, messages=[{"role": "system", "content": "x"}, *HELLO]
        )


def test_a_port_in_use_is_one_line_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "no_such_run", "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert f"Port {port} of 127.0.0.1 cannot be used (Address already in use)" in said.err
    assert said.err.count("\n") == 1 and "Loading" not in said.out
    assert main(["serve", "no_such_run", "--port", "70000"]) == 2
    assert main(["serve", "no_such_run", "--host", "not a host"]) == 2
    assert "give another --host" in capsys.readouterr().err


def test_ctrl_c_ends_it_even_in_the_middle_of_an_answer(tmp_path):
    folder = make_model(tmp_path / "tiny", "qwen2", form="qwen2")
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "newllm_lib", "serve", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NEWLLM_DEVICE": "cpu"},
    )
    line = next(line for line in server.stdout if "answers at" in line)
    address = line.split("answers at ")[1].split()[0]
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 4000, "stream": True}
    with httpx.stream("POST", f"{address}/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.send_signal(signal.SIGINT)
        assert list(lines)
    out, err = server.communicate(timeout=30)
    assert server.returncode == 0 and out.strip().endswith("Ended.") and not err.strip(), err
