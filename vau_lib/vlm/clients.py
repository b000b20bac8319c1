"""Clients that answer a prompt: an OpenAI-compatible service, or answers read from a file. Both are called with a prompt.

- `Endpoint` speaks the chat-completions protocol with the standard library alone; its key is read from the environment
  when a question is sent, goes to that one address only (no redirect, no proxy of the environment), and is in no message, log or
  file; what a server says is not repeated, an answer is bounded in bytes and in time
- a failure is tried again where that can help (rate limit, server error, time-out), with growing pauses; then it raises
  one line
- `Replay` gives answers read from a file and is labelled so wherever they are used
"""

import base64
import email.utils
import errno
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from vau_lib.workspace import artifacts

TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
LOCAL = {"localhost", "127.0.0.1", "::1"}
CUT = ("length", "model_length", "content_filter", "error")  # model_length and error: Mistral
REASONING = ("reasoning_content", "reasoning", "thinking")  # DeepSeek, SGLang, llama.cpp; vLLM, OpenRouter; others
MAX_ANSWER = 2**24  # bytes; an answer of text has a few thousand


class AnswerError(ValueError):
    """No usable answer; the message is one line and holds no key."""


@dataclass(frozen=True)
class Reply:
    """What a service answered: text, its tokens and their log-probabilities where it gives them, tokens read, why it ended."""

    text: str
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    cut: bool = False  # by the limit of tokens or by a filter


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible service: `base_url` ends before `/chat/completions`; `key_env` names the variable with the key."""

    base_url: str
    model: str
    key_env: str = "VAU_API_KEY"
    timeout_s: float = 60.0
    tries: int = 4
    pause_s: float = 1.0  # before the second try; doubles each time, unless the service says how long
    longest_pause_s: float = 60.0
    max_tokens: int = 512
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self):
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username:
            raise AnswerError("base_url must be http(s)://host[:port]/path without a user in it")
        if self.tries < 1 or self.timeout_s <= 0:
            raise AnswerError(f"tries and timeout_s must be positive, got {self.tries} and {self.timeout_s}")

    @property
    def label(self) -> str:
        return f"{self.model} at {urlsplit(self.base_url).hostname}"

    def __call__(self, prompt: str, frames: Sequence[np.ndarray] = ()) -> str:
        """Ask; `frames` uint8 (H, W, 3) go along as JPEG. AnswerError after the last try, or at once where trying is useless."""
        parts = [{"type": "text", "text": prompt}] + [_jpeg(frame) for frame in frames]
        return self.reply(parts if len(parts) > 1 else prompt).text

    def reply(self, content: str | list[dict], *, max_tokens: int | None = None, logprobs: bool = False) -> Reply:
        """Ask with the content of one message, parts of text and pictures (`prompt_parts`); AnswerError as above.

        A service that refuses `logprobs` (HTTP 400 or 422) is asked once more without, then as OpenAI's reasoning models want it.
        """
        message = {"role": "user", "content": content}
        body = {"model": self.model, "messages": [message], "max_tokens": max_tokens or self.max_tokens, "temperature": 0}
        renamed = {"model": self.model, "messages": [message], "max_completion_tokens": body["max_tokens"]}  # no temperature
        for form in [*([body | {"logprobs": True}] if logprobs else []), body, renamed]:
            try:
                return self._tried(form)
            except _Unfit as error:
                refused = error
        raise AnswerError(str(refused))

    def _tried(self, body: dict) -> Reply:
        for attempt in range(1, self.tries + 1):
            try:
                return self._send(json.dumps(body).encode())
            except _TryAgain as failure:
                if attempt == self.tries:
                    raise AnswerError(f"{self.label}: {failure} ({self.tries} tries)") from None
                wait = self.pause_s * 2 ** (attempt - 1) if failure.wait_s is None else failure.wait_s
                self.sleep(min(wait, self.longest_pause_s))
        raise AssertionError("unreachable")

    def _send(self, body: bytes) -> Reply:
        headers = self._headers()
        try:
            status, wait, answer = _post(f"{self.base_url.rstrip('/')}/chat/completions", body, headers, self.timeout_s)
            if status != 200:
                line = f"HTTP {status} {http.client.responses.get(status, '')}".rstrip()  # not the server's own words
                if status in TRY_AGAIN:
                    raise _TryAgain(line, _seconds(wait))
                if status in (400, 422):
                    raise _Unfit(f"{self.label}: {line}")
                raise AnswerError(f"{self.label}: {line}")
            content = artifacts.parse_json(answer)
        except AnswerError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:  # refused, timed out, cut off, not HTTP, not JSON
            timed_out = isinstance(error, TimeoutError) and not error.strerror
            reason = "timed out" if timed_out else error.strerror if isinstance(error, OSError) else ""
            raise _TryAgain(f"{type(error).__name__}{f': {reason}' if reason else ''}") from None
        return self._read(content)

    def _read(self, content: object) -> Reply:
        try:
            choice = content["choices"][0]
            message = choice["message"]
            text, reasoned = _text(message)
        except (KeyError, IndexError, TypeError, AttributeError):
            choice, text, reasoned = {}, "", False
        cut = choice.get("finish_reason") in CUT
        if not text:
            why = (
                ", the limit of tokens ended its reasoning"
                if cut and reasoned
                else ", a filter or the limit ended it"
                if cut
                else ""
            )
            raise AnswerError(f"{self.label}: the response holds no text in choices[0].message.content{why}")
        tokens, logprobs = _token_logprobs(choice.get("logprobs"))
        if reasoned:  # some list the reasoning's tokens too, without its tags
            first = _tokens_before(tokens, text)
            tokens, logprobs = tokens[first:], logprobs[first:]
        usage = content.get("usage")
        counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
        counts = [count if isinstance(count, int) else None for count in counts]
        return Reply(text, tokens, logprobs, *counts, cut=cut)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        try:
            key = artifacts.key_from(self.key_env)
        except artifacts.StoreError as error:
            raise AnswerError(f"{self.label}: {error}") from None
        if not key:
            return headers
        url = urlsplit(self.base_url)
        if url.scheme != "https" and url.hostname not in LOCAL:
            raise AnswerError(f"{self.label}: a key is sent over https only, not over {url.scheme}")
        return headers | {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Replay:
    """Answers given before, {id: text}; `source` says by whom. Nothing is generated here."""

    texts: Mapping[str, str]
    source: str

    @property
    def label(self) -> str:
        return f"replayed: {self.source}"

    def __call__(self, name: str) -> str:
        if name not in self.texts:
            raise AnswerError(f"{self.label}: no answer for {name!r}")
        return self.texts[name]


@artifacts.reader(AnswerError)
def replay(path: str | Path, *, source: str, id_key: str = "id", text_key: str = "answer") -> Replay:
    """Read answers: a JSON object {id: text}, or a list (.json, or one object per line) with `id_key` and `text_key`."""
    path = Path(path)
    try:
        rows = [row for _, row in artifacts.json_lines(path)] if path.suffix == ".jsonl" else artifacts.read_json(path)
    except (OSError, ValueError) as error:
        raise AnswerError(f"{path.name}: not a file of answers ({error})") from error
    try:
        pairs = rows.items() if isinstance(rows, Mapping) else [(row[id_key], row[text_key]) for row in rows]
        pairs = [(str(name), text) for name, text in pairs]
    except (KeyError, TypeError, IndexError) as error:
        raise AnswerError(f"{path.name}: an entry without {id_key!r} and {text_key!r} ({error})") from error
    texts = dict(pairs)
    if len(texts) < len(pairs) or not all(isinstance(text, str) for text in texts.values()):
        raise AnswerError(f"{path.name}: an id is there twice, or an answer is no text")
    return Replay(texts, source)


def check_address(address: str) -> None:
    """Raise AnswerError, without the address, unless it is http(s)://host[:port]/path without a user in it."""
    try:
        url = urlsplit(address)
        fits = url.scheme in ("http", "https") and url.hostname and not url.username and (url.port or 1)
    except ValueError:
        fits = False
    if not fits:
        raise AnswerError("the address must be http(s)://host[:port]/path without a user in it")


def post(address: str, message: Mapping, *, timeout_s: float = 10.0) -> int:
    """Post a message as JSON and return the HTTP status; no redirect is followed, no proxy used, no answer read.

    AnswerError, without the address, where nothing answers in time.
    """
    check_address(address)
    try:
        return _post(address, json.dumps(message).encode(), {"Content-Type": "application/json"}, timeout_s)[0]
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AnswerError(f"{urlsplit(address).hostname}: {type(error).__name__}") from None


class _TryAgain(Exception):
    def __init__(self, line: str, wait_s: float | None = None):
        super().__init__(line)
        self.wait_s = wait_s


class _Unfit(Exception):
    """The service does not take this request."""


def _post(address: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> tuple[int, str | None, bytes]:
    """Return (status, Retry-After, answer) of one request, finished after `timeout_s` whatever the server does."""
    url = urlsplit(address)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection, over = kind(url.hostname, url.port, timeout=timeout_s), threading.Event()
    connection.connect()
    opened = connection.sock

    def close() -> None:
        over.set()
        with suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)  # wakes what reads from it: a server may send a byte now and then for ever

    timer = threading.Timer(timeout_s, close)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", url.path + (f"?{url.query}" if url.query else ""), body, dict(headers))
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER + 1)
        if over.is_set():
            raise TimeoutError(errno.ETIMEDOUT, f"timed out after {timeout_s:g} s")
        if len(answer) > MAX_ANSWER:
            raise OSError(errno.EMSGSIZE, f"an answer of more than {MAX_ANSWER:,} bytes")
        return response.status, response.headers.get("Retry-After"), answer
    except (OSError, http.client.HTTPException) as error:
        if over.is_set():
            raise TimeoutError(errno.ETIMEDOUT, f"timed out after {timeout_s:g} s") from error
        raise
    finally:
        timer.cancel()
        connection.close()


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number or a date; None where it says neither."""
    try:
        seconds = float(text)
        return max(0.0, seconds) if seconds < float("inf") else None
    except (TypeError, ValueError):  # absent, or a date
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _text(message: Mapping) -> tuple[str, bool]:
    """Return the answer of a message, "" where it has none, and whether the service gave reasoning apart from it.

    Content is a text, or a list of parts (OpenAI's form of a message; Mistral's Magistral sends it, with parts of type "thinking").
    Where there is none, a `refusal` is the answer; it holds no verdict.
    """
    content, reasoned = message.get("content"), any(message.get(name) for name in REASONING)
    if isinstance(content, list):
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else part for part in content if isinstance(part, str | dict)
        ]
        reasoned = reasoned or any(part.get("type") in REASONING for part in parts)
        texts = [part.get("text", part.get("refusal")) for part in parts if part.get("type") in ("text", "output_text", "refusal")]
        content = "".join(text for text in texts if isinstance(text, str))
    if not content:
        content = message.get("refusal")
    return artifacts.CONTROL.sub("", content).strip() if isinstance(content, str) else "", bool(reasoned)


def _tokens_before(tokens: Sequence[str], text: str) -> int:
    """Return how many tokens come before those of `text`; all of them where they do not spell it."""
    place = "".join(tokens).rfind(text)
    if place < 0:
        return len(tokens)
    ends = np.cumsum([len(token) for token in tokens])
    return int(np.searchsorted(ends, place, side="right"))


def _token_logprobs(given: object) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return tokens and log-probabilities of a choice's `logprobs`; both empty where they are not all there."""
    try:
        pairs = [(entry["token"], float(entry["logprob"])) for entry in given["content"]]
    except (KeyError, TypeError, ValueError):
        return (), ()
    if not all(isinstance(token, str) and logprob <= 0 for token, logprob in pairs):  # nan is neither
        return (), ()
    return tuple(token for token, _ in pairs), tuple(logprob for _, logprob in pairs)


def prompt_parts(prompt: str, frames: Sequence[np.ndarray], mark: str) -> list[dict]:
    """Return a prompt as parts of a message: a picture of frames uint8 (H, W, 3) in the place of every `mark`."""
    texts = prompt.split(mark)
    if len(texts) != len(frames) + 1:
        raise ValueError(f"{len(frames)} frames need as many places in the prompt, it has {len(texts) - 1}")
    parts = [{"type": "text", "text": texts[0]}]
    for frame, text in zip(frames, texts[1:], strict=True):
        parts += [_jpeg(frame), {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def _jpeg(frame: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"}}
