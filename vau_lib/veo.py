"""Veo makes a video for money and forgets it soon: write the operation's name down first, fetch patiently, never say the key.

- enterprise mode only: from version 3 the client refuses Veo with a plain developer key; a key (express mode) or a project with
  its own credentials, both from the environment
- a refusal is an answer without videos, with reasons: another seed is tried twice, then it is recorded
- too many requests, a server's error and a broken line are tried again with growing pauses; a deadline leaves the operation's name
  in the ledger, so that the next run fetches what was paid
- sound is switched off: its filter refuses without reason, and nobody here listens
Source: google-genai 3.4 (read for its protocol): models.generate_videos, operations.get.
"""

import importlib
import os
import random
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vau_lib import store, synthesis
from vau_lib.footage import PIXELS, Clip, GenerationError, Memo, Rejected, verified
from vau_lib.grammar import Scenario

MODEL = "veo-3.1-fast-generate-001"
DURATIONS_S = (4, 6, 8)
LONGEST_PROMPT = 2000  # characters
KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
AGAIN = (408, 429, 500, 502, 503, 504)  # answers worth another try
TRIES, REFUSALS = 6, 2  # of one request; of another seed after a refusal
WHAT = "Veo"


class Veo:
    """The service as a `generation.Generator`. `price_per_second` has no default: prices change, look yours up."""

    provides = PIXELS

    def __init__(
        self, *, price_per_second: float, model: str = MODEL, prompt: Callable[[Scenario], str] = synthesis.prompt,
        duration_s: int | None = None, aspect_ratio: str = "16:9", resolution: str = "720p", poll_s: float = 10.0,
        deadline_s: float = 900.0, timeout_s: float = 60.0, base_url: str | None = None,
        sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        if duration_s is not None and duration_s not in DURATIONS_S:
            raise ValueError(f"a video lasts {', '.join(map(str, DURATIONS_S))} s, got {duration_s}")
        if not price_per_second >= 0:
            raise ValueError(f"price_per_second must be 0 or more, got {price_per_second}")
        self.name, self.model, self.prompt, self.duration_s = f"{WHAT} {model}", model, prompt, duration_s
        self.rate, self.look = price_per_second, {"aspect_ratio": aspect_ratio, "resolution": resolution}
        self.poll_s, self.deadline_s, self.sleep, self.clock = poll_s, deadline_s, sleep, clock
        self.client, self._secret = _client(base_url, timeout_s)

    def price(self, scenario: Scenario) -> float:
        return self.rate * self.seconds(scenario)

    def seconds(self, scenario: Scenario) -> int:
        """Return the length asked for: the given one, else the shortest that holds the scenario, else the longest."""
        return self.duration_s or next((s for s in DURATIONS_S if s >= scenario.duration_s), DURATIONS_S[-1])

    def generate(self, scenario: Scenario, path: Path, *, seed: int, memo: Memo) -> Clip | Rejected:
        """Make one video at `path`; the operation's name is in `memo` from the moment it is paid until it is fetched."""
        text = self.prompt(scenario)
        if len(text) > LONGEST_PROMPT:
            raise GenerationError(f"a prompt has at most {LONGEST_PROMPT} characters, got {len(text)}")
        facts = {"prompt": text, "model": self.model, "seconds": self.seconds(scenario)}
        reasons: list[str] = []
        while len(reasons) <= REFUSALS:
            name = memo.get("operation")
            if not name:
                name = self._start(text, scenario, seed + len(reasons))
                memo.note(operation=name, seed=seed + len(reasons))
            done = self._wait(name)
            if done.error:
                memo.note(operation=None)
                raise GenerationError(self._clean(f"the service failed: {done.error.get('message', done.error)}"))
            videos = (done.response and done.response.generated_videos) or []
            if videos:
                self._keep(videos[0], name, path)
                memo.note(operation=None)
                return Clip(path, self.name, facts=facts | {"seed": memo.get("seed"), "operation": name})
            said = (done.response and done.response.rai_media_filtered_reasons) or ["no reason given"]
            reasons.append(self._clean("; ".join(said)))
            memo.note(operation=None, refusals=len(reasons))
        return Rejected(self.name, tuple(reasons), facts)

    def _start(self, text: str, scenario: Scenario, seed: int) -> str:
        from google.genai import types

        config = types.GenerateVideosConfig(
            number_of_videos=1, duration_seconds=self.seconds(scenario), seed=seed, generate_audio=False, **self.look
        )
        source = types.GenerateVideosSource(prompt=text)
        return self._patiently(
            lambda: self.client.models.generate_videos(model=self.model, source=source, config=config)
        ).name

    def _wait(self, name: str) -> Any:
        from google.genai import types

        until = self.clock() + self.deadline_s
        while True:
            operation = self._patiently(lambda: self.client.operations.get(types.GenerateVideosOperation(name=name)))
            if operation.done:
                return operation
            if self.clock() >= until:
                raise GenerationError(
                    f"not done after {self.deadline_s:.0f} s; the next run asks for it again, it is not paid twice"
                )
            self.sleep(self.poll_s)

    def _keep(self, generated: Any, name: str, path: Path) -> None:
        """Write the video's bytes; a cut-off download is fetched again, twice."""
        for fetch in range(REFUSALS + 1):
            data = generated.video.video_bytes
            if not data:
                raise GenerationError(
                    f"{name.rpartition('/')[2]}: the answer holds no bytes ({generated.video.uri or 'no address'})"
                )
            with store.replacing(path) as temporary:
                Path(temporary).write_bytes(data)
            try:
                verified(path)
                return
            except GenerationError:
                if fetch == REFUSALS:
                    path.unlink(missing_ok=True)
                    raise
            self.sleep(self.poll_s)
            generated = self._wait(name).response.generated_videos[0]

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask until answered, pauses doubling from one second with a little chance; GenerationError when it is no use."""
        from google.genai import errors

        broken = (
            OSError,
            *(importlib.import_module(name).HTTPError for name in ("httpx", "httpx2") if find_spec(name)),
        )

        for number in range(TRIES):
            try:
                return ask()
            except errors.APIError as error:
                problem, again = f"the service says {error.code}: {error.message}", error.code in AGAIN
            except broken as error:
                problem, again = f"the service cannot be reached ({type(error).__name__}: {error})", True
            if not again:
                break
            self.sleep(2**number * (1 + random.random() / 4))  # noqa: S311 (only keeps clients from asking in step)
        raise GenerationError(self._clean(problem)) from None

    def _clean(self, text: str) -> str:
        """Return a message as one line without the key, whatever the service put into it."""
        text = " ".join(str(text).split())[:400]
        return text.replace(self._secret, "***") if self._secret else text


def _client(base_url: str | None, timeout_s: float) -> tuple[Any, str]:
    """Return the SDK's client and the secret it holds, "" for a project's own credentials."""
    try:
        from google import genai
    except ImportError as error:
        raise ImportError("Veo needs the package google-genai: pip install 'vau-lib[generate]'") from error
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
    project = os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    if not key and not project:
        raise ValueError(f"no key for {WHAT}: set {KEYS[0]}, or GOOGLE_CLOUD_PROJECT with its own credentials")
    options = {"http_options": {"timeout": round(1000 * timeout_s)} | ({"base_url": base_url} if base_url else {})}
    if key:
        return genai.Client(enterprise=True, api_key=key, **options), key
    location = os.environ.get("GOOGLE_CLOUD_LOCATION", "us-central1")
    return genai.Client(enterprise=True, project=project, location=location, **options), ""
