"""What OpenAI's clients may ask of one model, and what of that is refused by name rather than ignored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from newllm_lib.errors import UsageError
from newllm_lib.generation.sampling import Settings

# What a client may say that changes nothing of an answer.
_NOTES = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
)
_NEUTRAL: dict[str, tuple] = {  # what this server does not do, and the values that do not ask for it
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class TextPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As `encode_conversation` takes it."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text.encode("utf-8", "ignore").decode()}


class StreamOptions(BaseModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Asked(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="allow")
    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_done(self):
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _NOTES or any(value == neutral for neutral in _NEUTRAL.get(name, ())):
                continue
            what = f"{value!r} " if name in _NEUTRAL else ""
            raise ValueError(f"{name} {what}is not supported by this server: leave it out")
        return self

    def settings(self, most: int) -> Settings:
        """How to sample, where the request does not say as `newllm chat` does; `most` tokens at most."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        given: dict[str, Any] = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        seed = None if self.seed is None else self.seed % 2**31
        return Settings(**given, max_new_tokens=min(self.max_tokens or most, most), seed=seed)

    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatRequest(_Asked):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_name_for_the_length(self):
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self


class CompletionRequest(_Asked):
    """POST /v1/completions. `prompt`: one text, or the token ids of one."""

    prompt: str | list[int] | list[str]

    @model_validator(mode="after")
    def _one_prompt(self):
        if isinstance(self.prompt, list) and self.prompt and isinstance(self.prompt[0], str):
            if len(self.prompt) > 1:
                raise ValueError("prompt: one text a request, please")
            self.prompt = self.prompt[0]
        return self


def parse(kind: type[Any], body: bytes) -> Any:
    """A request of `kind` from the bytes of its JSON.

    Raises:
        UsageError: says in one line what is wrong with it.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{place}: {message}" if place else message) from None
