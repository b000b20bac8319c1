"""Veo, Google's paid text-to-video service, as a backend of `text_to_video`.

- enterprise mode: an API key in express mode, or a project's own credentials; keys come from the environment and are in no file,
  message or log
- a refused prompt is tried twice more with another seed; rate limits and server errors are retried with growing pauses
- before a job is sent the ledger says so; where its answer never came it may be paid, and is not sent again without a new yes
- after a deadline the operation's name stays in the ledger, so that the next run fetches what was paid
- sound is off, since its filter refuses without a reason
Source: google-genai 3.4 (read for its protocol and its fields): models.generate_videos, types.GenerateVideosConfig, operations.get.
"""

import importlib
import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vau_lib.synthetic import scenarios
from vau_lib.synthetic.scenarios import Scenario
from vau_lib.synthetic.text_to_video import PIXELS, GeneratedVideo, GenerationError, JobRecord, Refusal, verify
from vau_lib.workspace import artifacts

MODEL = "veo-3.1-fast-generate-001"
DURATIONS_S = (4, 6, 8)
SET_HERE = {"number_of_videos", "duration_seconds", "seed", "generate_audio", "http_options", "output_gcs_uri"}  # fields
MAX_PROMPT = 2000  # characters
API_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
RETRY_STATUS = (408, 429, 500, 502, 503, 504)  # answers worth another try
REFUSED_STATUS = (429, 503)  # nothing was begun
GONE_STATUS = (404, 410)  # of an operation: the service has forgotten it
MAX_TRIES = 6  # of one request
MAX_ANSWER = 2**28  # bytes; a video is in the answer
SLOWEST = 10  # an answer comes within so many times the time-out, which is of each part of it
MAX_RETRIES = 2  # with another seed after a refusal, and of a download that was cut off


class _Forgotten(GenerationError):
    """What was asked for is not there."""


class _Doubtful(GenerationError):
    """A job that was sent and whose answer did not come."""


DOUBT = (
    "it was sent and no answer came, so that it may be paid: look into the service's list; the next run asks for its price again"
)


class Veo:
    """The service as a `text_to_video.Generator`.

    Args:
        price_per_second: of video, in the service's currency; no default, since prices change.
        model: the service's name of the model.
        prompt: makes a scenario's text.
        duration_s: seconds of each video (4, 6, 8); None takes the shortest that holds the scenario, at most 8.
        aspect_ratio, resolution: passed on to the service.
        fields: others of the service's GenerateVideosConfig, like negative_prompt, person_generation (the service draws adults only
            unless an account may more, so that babies and children are refused), compression_quality or labels.
        poll_s, deadline_s: seconds between two questions for a video, and until it is left for the next run.
        timeout_s: of one request.
        base_url: another address of the service, for tests.
        sleep, clock: replaced by tests.
    """

    provides, waits = PIXELS, True

    def __init__(
        self, *, price_per_second: float, model: str = MODEL, prompt: Callable[[Scenario], str] = scenarios.prompt,
        duration_s: int | None = None, aspect_ratio: str = "16:9", resolution: str = "720p", poll_s: float = 10.0,
        deadline_s: float = 900.0, timeout_s: float = 60.0, base_url: str | None = None,
        sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic, **fields: Any,
    ):  # fmt: skip
        if duration_s is not None and duration_s not in DURATIONS_S:
            raise ValueError(f"a video lasts {', '.join(map(str, DURATIONS_S))} s, got {duration_s}")
        if not price_per_second >= 0:
            raise ValueError(f"price_per_second must be 0 or more, got {price_per_second}")
        self.name, self.model, self.prompt, self.duration_s = f"Veo {model}", model, prompt, duration_s
        self.price_per_second = price_per_second
        self.options = {"aspect_ratio": aspect_ratio, "resolution": resolution} | fields
        self.poll_s, self.deadline_s, self.sleep, self.clock = poll_s, deadline_s, sleep, clock
        self.stopped = threading.Event()  # a run that ends early asks no more for what is open
        self.client, self._secret = _client(base_url, timeout_s)
        _check_fields(fields)

    def price(self, scenario: Scenario) -> float:
        return self.price_per_second * self.seconds(scenario)

    def seconds(self, scenario: Scenario) -> int:
        """Return `duration_s`, else the shortest length that holds the scenario, else the longest."""
        return self.duration_s or next((s for s in DURATIONS_S if s >= scenario.duration_s), DURATIONS_S[-1])

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo | Refusal:
        """Make one video at `path`; the operation's name is in `job` from the moment it is paid until it is fetched."""
        text = self.prompt(scenario)
        if len(text) > MAX_PROMPT:
            raise GenerationError(f"a prompt has at most {MAX_PROMPT} characters, got {len(text)}")
        facts = {"prompt": text, "model": self.model, "seconds": self.seconds(scenario)}
        reasons: list[str] = []
        while len(reasons) <= MAX_RETRIES:
            name = job.get("operation")
            if not name and job.get("sent") is not None:  # a run before was stopped between the two
                job.note(sent=None)
                raise GenerationError(DOUBT)
            if not name and self.stopped.is_set():
                raise GenerationError("stopped before it was sent")
            if not name:
                job.note(sent=seed + len(reasons))
                try:
                    name = self._start(text, scenario, seed + len(reasons))
                except Exception:  # an answer that says no, or a doubt that is reported: nothing is open
                    job.note(sent=None)
                    raise
                job.note(operation=name, seed=seed + len(reasons), sent=None)
            try:
                done = self._wait(name)
            except _Forgotten as error:  # it is made anew only after a new confirmation: the next run counts it as unpaid
                job.note(operation=None)
                raise GenerationError(
                    f"{name.rpartition('/')[2]} is lost: {error}; the next run asks for its price again"
                ) from None
            if done.error:
                job.note(operation=None)
                raise GenerationError(self._clean(f"the service failed: {done.error.get('message', done.error)}"))
            videos = (done.response and done.response.generated_videos) or []
            if videos:
                self._download(videos[0], name, path)
                job.note(operation=None)
                return GeneratedVideo(facts=facts | {"seed": job.get("seed"), "operation": name})
            filtered = (done.response and done.response.rai_media_filtered_reasons) or ["no reason given"]
            reasons.append(self._clean("; ".join(filtered)))
            job.note(operation=None, refusals=len(reasons))
        return Refusal(tuple(reasons), facts)

    def _start(self, text: str, scenario: Scenario, seed: int) -> str:
        from google.genai import types

        config = types.GenerateVideosConfig(
            number_of_videos=1, duration_seconds=self.seconds(scenario), seed=seed, generate_audio=False, **self.options
        )
        source = types.GenerateVideosSource(prompt=text)
        request = partial(self.client.models.generate_videos, model=self.model, source=source, config=config)
        if not (name := getattr(self._with_retries(request, unreadable=False), "name", None)):
            raise GenerationError("the service's answer to a new job names no operation")
        return name

    def _wait(self, name: str) -> Any:
        from google.genai import types

        until = self.clock() + self.deadline_s
        while True:
            operation = self._with_retries(lambda: self.client.operations.get(types.GenerateVideosOperation(name=name)))
            if operation.done:
                return operation
            if self.stopped.is_set():
                raise GenerationError("stopped; the next run asks for it again, it is not paid twice")
            if self.clock() >= until:
                raise GenerationError(
                    f"not done after {self.deadline_s:.0f} s; the next run asks for it again, it is not paid twice"
                )
            self.sleep(self.poll_s)

    def _download(self, generated: Any, name: str, path: Path) -> None:
        """Write the video's bytes; a cut-off download is fetched again, twice."""
        for fetch in range(MAX_RETRIES + 1):
            data = generated.video.video_bytes
            if not data:
                raise GenerationError(
                    f"{name.rpartition('/')[2]}: the answer holds no bytes ({generated.video.uri or 'no address'})"
                )
            with artifacts.replacing(path) as temporary:
                Path(temporary).write_bytes(data)
            try:
                verify(path)
                return
            except GenerationError:
                if fetch == MAX_RETRIES:
                    path.unlink(missing_ok=True)
                    raise
            self.sleep(self.poll_s)
            generated = self._wait(name).response.generated_videos[0]

    def _with_retries(self, request: Callable[[], Any], *, unreadable: bool = True) -> Any:
        """Send a request until it is answered, pauses doubling from one second; GenerationError when that is no use.

        `unreadable` sends it again after an answer that cannot be read (a proxy's page, JSON cut short) or did not come: not where
        it may be paid; there only what was certainly not begun is sent again.
        """
        from google.genai import errors

        broken = (OSError, *(importlib.import_module(name).HTTPError for name in ("httpx", "httpx2") if find_spec(name)))

        for number in range(MAX_TRIES):
            kind, doubt = GenerationError, False
            try:
                return request()
            except errors.APIError as error:
                problem, retry = f"the service says {error.code}: {error.message}", error.code in RETRY_STATUS
                doubt = retry and error.code not in REFUSED_STATUS
                kind = _Forgotten if error.code in GONE_STATUS else GenerationError
            except broken as error:
                problem, retry = f"the service cannot be reached ({type(error).__name__}: {error})", True
                doubt = not isinstance(error, ConnectionRefusedError) and "Connect" not in type(error).__name__
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                problem, retry = f"the service's answer cannot be read ({type(error).__name__}: {error})", unreadable
                doubt = True
            if doubt and not unreadable:
                kind, problem = _Doubtful, f"{problem}; {DOUBT}"
                break
            if not retry:
                break
            self.sleep(2**number * (1 + random.random() / 4))  # noqa: S311 (only keeps clients from asking in step)
        raise kind(self._clean(problem)) from None

    def _clean(self, text: str) -> str:
        """Return a message as one line without the key, which a service may repeat."""
        return artifacts.masked(text, self._secret, limit=400)


def _check_fields(fields: dict[str, Any]) -> None:
    """Raise ValueError for what the service has no field for, and for what this backend sets itself."""
    from google.genai import types

    known = set(types.GenerateVideosConfig.model_fields) - SET_HERE
    if odd := sorted(fields.keys() - known):
        raise ValueError(f"no field {odd[0]!r} of the service to set; there are {', '.join(sorted(known))}")
    try:
        types.GenerateVideosConfig(**fields)
    except ValueError as error:
        raise ValueError(f"a field of the service: {artifacts.one_line(error, 300)}") from None


def _client(base_url: str | None, timeout_s: float) -> tuple[Any, str]:
    """Return the SDK's client and the secret it holds, "" for a project's own credentials."""
    try:
        from google import genai
    except ImportError as error:
        raise ImportError("Veo needs the package google-genai: pip install 'vau-lib[generate]'") from error
    key = next((key for name in API_KEYS if (key := artifacts.key_from(name))), "")
    project = os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    if not key and not project:
        raise ValueError(f"no key for Veo: set {API_KEYS[0]}, or GOOGLE_CLOUD_PROJECT with its own credentials")
    plain = {"timeout": round(1000 * timeout_s), "httpx_client": _http_client(SLOWEST * timeout_s)}
    options = {"http_options": plain | ({"base_url": base_url} if base_url else {})}
    if key:
        return genai.Client(enterprise=True, api_key=key, **options), key
    location = os.environ.get("GOOGLE_CLOUD_LOCATION", "us-central1")
    return genai.Client(enterprise=True, project=project, location=location, **options), ""


def _http_client(limit_s: float) -> Any:
    """Return an HTTP client that follows no redirect, asks no proxy of the environment (both would be given the key), and ends an
    answer after `limit_s` seconds or MAX_ANSWER bytes: the SDK's own reads one that trickles, or never ends, for ever."""
    http = importlib.import_module("httpx2" if find_spec("httpx2") else "httpx")

    class Bounded(http.BaseTransport):
        """A connection for each request: what is closed late is this one's only."""

        def handle_request(self, request):
            inner = http.HTTPTransport(trust_env=False)
            timer = threading.Timer(limit_s, inner.close)
            timer.daemon = True
            timer.start()
            try:
                response = inner.handle_request(request)
            except BaseException:
                timer.cancel()
                inner.close()
                raise
            response.stream = Body(response.stream, inner, timer)
            return response

    class Body(http.SyncByteStream):
        def __init__(self, stream, inner, timer):
            self.stream, self.inner, self.timer = stream, inner, timer

        def __iter__(self):
            count = 0
            for part in self.stream:
                count += len(part)
                if count > MAX_ANSWER:
                    raise GenerationError(f"the service's answer is longer than {MAX_ANSWER:,} bytes")  # again would be as long
                yield part

        def close(self):
            self.timer.cancel()
            self.stream.close()
            self.inner.close()

    return http.Client(transport=Bounded(), follow_redirects=False, trust_env=False)
