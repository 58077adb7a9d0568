"""OpenAI's HTTP interface (`/v1/chat/completions`, `/v1/completions`, `/v1/models`) for one model.

Requests wait in a queue for the one model. A body too large, a prompt too long, a value that cannot be: one
error in OpenAI's form. A client that leaves ends its answer at the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.serve.engine import Answer, Engine
from newllm_lib.serve.requests import ChatRequest, CompletionRequest, parse

_LOOK = 0.2  # seconds between two looks at whether the client is still there


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    body_bytes: int = 4 * 2**20
    read_seconds: float = 30.0  # until its body is there
    seconds: float = 300.0  # of answering
    tokens: int = 4096  # of an answer
    waiting: int = 32  # requests in the queue
    drained_bytes: int = 64 * 2**20  # of a body too large that are read before the connection is closed


class Refused(Exception):
    """A request that gets no answer: an HTTP status and a line."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def body(self) -> dict:
        """OpenAI's form of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def make_app(engine: Engine, limits: Limits | None = None) -> FastAPI:
    """The application; `app.state.desk` says whether it is closing."""
    app = FastAPI(title="New-LLM", docs_url=None, redoc_url=None, openapi_url=None)
    desk = app.state.desk = Desk(engine, limits or Limits())
    started = int(time.time())

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        there = "/v1/chat/completions, /v1/completions and /v1/models"
        return JSONResponse(Refused(404, f"There is no {request.url.path}, only {there}.").body(), 404)

    @app.get("/v1/models")
    async def models() -> dict:
        one = {"id": engine.name, "object": "model", "created": started, "owned_by": "newllm"}
        return {"object": "list", "data": [one]}

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "waiting": desk.waiting}

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        asked = await desk.read(request, ChatRequest)
        ids = desk.checked(lambda: engine.prompt_of_chat([message.plain() for message in asked.messages]))
        return await desk.respond(request, asked, ids, ChatForm(engine.name))

    @app.post("/v1/completions")
    async def completions(request: Request):
        asked = await desk.read(request, CompletionRequest)
        prompt = asked.prompt
        ids = engine.prompt_of_text(prompt) if isinstance(prompt, str) else prompt
        return await desk.respond(request, asked, ids, TextForm(engine.name))

    return app


class TextForm:
    """What an answer to /v1/completions looks like."""

    prefix, whole, piece = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str):
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def choice(self, text: str, finish: str | None) -> dict:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    def response(self, text: str, asked: Answer) -> dict:
        """All at once."""
        body = {**self.head, "object": self.whole, "choices": [self.choice(text, asked.finish)]}
        return body | {"usage": usage(asked)}

    def first(self) -> list[dict]:
        """Choices of the chunks before the first piece."""
        return []

    def delta(self, text: str) -> dict:
        return self.choice(text, None)

    def last(self, finish: str) -> dict:
        return self.choice("", finish)

    def chunk(self, choices: list[dict], **more: Any) -> str:
        """One event of a stream."""
        body = {**self.head, "object": self.piece, "choices": choices, **more}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class ChatForm(TextForm):
    """What an answer to /v1/chat/completions looks like."""

    prefix, whole, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str, finish: str | None) -> dict:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}

    def first(self) -> list[dict]:
        return [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]

    def delta(self, text: str) -> dict:
        return {"index": 0, "delta": {"content": text}, "finish_reason": None}

    def last(self, finish: str) -> dict:
        return {"index": 0, "delta": {}, "finish_reason": finish}


def usage(asked: Answer) -> dict:
    prompt, said = len(asked.ids), asked.tokens
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


class Desk:
    """Reads requests, lets them wait for the model, and hands out its answers."""

    def __init__(self, engine: Engine, limits: Limits):
        self.engine, self.limits = engine, limits
        self.waiting = 0
        self.closing = False
        self._model = asyncio.Lock()

    async def read(self, request: Request, kind: type) -> Any:
        """The request's body as `kind`.

        Raises:
            Refused: too large, too slow, no such thing, or for another model.
        """
        try:
            body = await asyncio.wait_for(self._body(request), self.limits.read_seconds)
        except asyncio.TimeoutError:
            raise Refused(408, "The request did not come to its end in time.") from None
        asked = self.checked(lambda: parse(kind, body))
        if asked.model != self.engine.name:
            message = f"There is no model {asked.model!r} here, only {self.engine.name!r}."
            raise Refused(404, message, "model_not_found")
        return asked

    async def _body(self, request: Request) -> bytes:
        """All of it; of one too large the rest is thrown away: a client reads nothing before it has sent."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size <= self.limits.body_bytes:
                parts.append(part)
            elif size > self.limits.drained_bytes:
                break
        if size > self.limits.body_bytes:
            raise Refused(413, f"The request is larger than {self.limits.body_bytes >> 20} MiB: shorten it.")
        return b"".join(parts)

    def checked(self, work: Any) -> Any:
        """What `work` gives; what it raises for the user becomes a Refused."""
        try:
            return work()
        except NewLLMError as error:
            raise Refused(400, str(error)) from error

    async def respond(self, request: Request, asked: Any, ids: list[int], form: TextForm):
        """The answer in its form, at once or as a stream; it may have to wait for the model first."""
        settings = self.checked(lambda: asked.settings(self.limits.tokens))
        room = self.checked(lambda: self.engine.room(ids, settings.max_new_tokens))
        settings = settings.changed("max_new_tokens", str(room))
        chat = isinstance(form, ChatForm)
        answer = Answer(ids, settings, chat, asked.stop_strings(), self.limits.seconds)
        if self.waiting >= self.limits.waiting:
            raise Refused(
                429, "Too many requests wait for the model: try again later.", "rate_limit_exceeded"
            )
        if asked.stream:
            shows_usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = self._events(request, answer, form, shows_usage)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        text = "".join([piece async for piece in self._pieces(request, answer)])
        return JSONResponse(form.response(text, answer))

    async def _events(
        self, request: Request, answer: Answer, form: TextForm, shows_usage: bool
    ) -> AsyncIterator[str]:
        more: dict = {"usage": None} if shows_usage else {}
        pieces = self._pieces(request, answer)
        async with contextlib.aclosing(pieces):
            if first := form.first():
                yield form.chunk(first, **more)
            try:
                async for piece in pieces:
                    yield form.chunk([form.delta(piece)], **more)
            except Refused as error:
                yield f"data: {json.dumps(error.body())}\n\n"
                return
        yield form.chunk([form.last(answer.finish)], **more)
        if shows_usage:
            yield form.chunk([], usage=usage(answer))
        yield "data: [DONE]\n\n"

    async def _pieces(self, request: Request, answer: Answer) -> AsyncGenerator[str, None]:
        """The answer's pieces from the model's thread, once the model is free; none once the client has left.

        Raises:
            Refused: the model failed, or the server is closing.
        """
        if not await self._wait(request):
            return
        left, queue = threading.Event(), asyncio.Queue[str | BaseException | None]()
        loop = asyncio.get_running_loop()

        def put(item: str | BaseException | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for piece in self.engine.answer(answer, lambda: left.is_set() or self.closing):
                    put(piece)
                put(None)
            except BaseException as error:
                put(error)

        working = asyncio.create_task(asyncio.to_thread(work))
        looked = time.monotonic()
        try:
            while not self.closing:
                item: str | BaseException | None = ""
                with contextlib.suppress(asyncio.TimeoutError):
                    item = await asyncio.wait_for(queue.get(), _LOOK)
                if item is None:
                    return
                if isinstance(item, BaseException):
                    say(f"The model failed: {type(item).__name__}: {item}")
                    raise Refused(500, f"The model failed ({type(item).__name__}): the server says why.")
                if item:
                    yield item
                if time.monotonic() - looked > _LOOK:
                    looked = time.monotonic()
                    if await request.is_disconnected():
                        return
            raise Refused(503, "The server is closing.")
        finally:
            left.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(working)
            self._model.release()

    async def _wait(self, request: Request) -> bool:
        """Wait until the model is free and take it; False: the client left before."""
        self.waiting += 1
        try:
            while not self.closing:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._model.acquire(), _LOOK)
                    return True
                if await request.is_disconnected():
                    return False
            raise Refused(503, "The server is closing.")
        finally:
            self.waiting -= 1


class _Server(uvicorn.Server):
    """Ends answers that are being given when it is told to end."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.config.app.state.desk.closing = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def make_server(app: FastAPI) -> uvicorn.Server:
    return _Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))


def listen(host: str, port: int) -> socket.socket:
    """A socket for the server.

    Raises:
        UsageError: the address is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a host with a null character
        made.close()
        reason = getattr(error, "strerror", None) or str(error)
        which = "--host" if isinstance(error, socket.gaierror) else "--port"
        raise UsageError(f"Port {port} of {host} cannot be used ({reason}): give another {which}.") from None
    return made


def serve(engine: Engine, bound: socket.socket, limits: Limits | None = None) -> None:
    """Serve on a socket from `listen` until Ctrl-C or SIGTERM."""
    app, (host, port, *_) = make_app(engine, limits), bound.getsockname()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    what = "" if engine.chats else " It has no chat template: it answers /v1/completions alone."
    say(f"{engine.name} answers at {address} as OpenAI's clients expect; Ctrl-C ends it.{what}")
    if host not in ("127.0.0.1", "::1"):
        say("Whoever reaches this machine can use it: there is no password.")
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app).run(sockets=[bound])
    say("Ended.")
