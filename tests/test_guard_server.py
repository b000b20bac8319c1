"""`vau guard --server`: the same prompt and frames go to a service; what a service does wrong is a row or one line."""

import base64
import io
import json
import math
import shutil
from email.utils import formatdate

import numpy as np
import pytest
from fake_chat_service import FakeChatService
from PIL import Image
from typer.testing import CliRunner

from vau_lib import cli, guard
from vau_lib.data import video
from vau_lib.vlm import clients

JSON_ANSWER = 'A man falls. {"anomaly": 1, "kind": "fall", "from_s": 0.5, "to_s": 1.5}'
KEY = "sk-very-secret"


@pytest.fixture
def start(monkeypatch):
    """Return what starts a service; no proxy of this machine stands between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    services = []

    def begin(*steps, **options):
        services.append(FakeChatService(*steps, **options))
        return services[-1]

    yield begin
    for service in services:
        service.close()


def ask(service, source, out=None, *, pauses=None, retry=False, **plan):
    patience = 0.5 if "hang" in service.steps else 10.0  # a busy machine is no fault of the service
    sleep = (pauses if pauses is not None else []).append
    endpoint = clients.Endpoint(service.url, "served", timeout_s=patience, tries=2, sleep=sleep)
    settings = guard.GuardPlan(**({"num_frames": 4, "max_new_tokens": 50} | plan))
    return guard.guard(endpoint, source, out, plan=settings, retry=retry, log=None, progress=False)


@pytest.fixture
def folder(clip, tmp_path):
    place = tmp_path / "videos"
    place.mkdir()
    for name in "abcde":
        shutil.copy(clip, place / f"{name}.mp4")
    return place


def test_the_same_prompt_and_frames_go_to_the_service(start, clip, monkeypatch):
    monkeypatch.setenv("VAU_API_KEY", KEY)
    service = start(JSON_ANSWER)
    (row,) = ask(service, clip)
    path, headers, body = service.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("served", 50, 0)
    parts = body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 4 + ["text"]
    index = [int((k + 0.5) / 4 * video.probe(clip).num_frames) for k in range(4)]
    times = video.frame_times(clip)[index]
    assert [part["text"].split("\n")[-1] for part in parts[:-1:2]] == [f"Frame{n} at {t:.1f}s: " for n, t in enumerate(times, 1)]
    assert parts[-1]["text"].strip() == guard.QUESTION
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(parts[1]["image_url"]["url"].split(",")[1]))))
    assert np.abs(first.astype(int) - video.read_frames(clip, index[:1])[0]).mean() < 6  # JPEG
    assert (row["anomaly"], row["kind"], row["from_s"], row["to_s"]) == (1, "fall", 0.5, 1.5)
    assert (row["prompt_tokens"], row["new_tokens"], row["cut"]) == (100, 7, False)
    assert KEY not in json.dumps(row) and "served at 127.0.0.1" in row["model"]


def test_confidence_comes_from_the_services_logprobs(start, clip):
    (row,) = ask(start(JSON_ANSWER, word_logprob=-0.25), clip)
    assert row["confidence"] == pytest.approx(math.exp(-0.25))  # the one token that holds the label
    (row,) = ask(start("An anomaly exists in the video.", word_logprob=-0.25), clip)
    assert row["confidence"] == pytest.approx(math.exp(-0.5))  # "An anomaly" says it, "exists" adds nothing


def test_a_service_without_logprobs_is_asked_without(start, clip):
    service = start((400, '{"error": "logprobs are not supported"}', {}), "Yes.")
    (row,) = ask(service, clip)
    assert row["anomaly"] == 1 and row["confidence"] is None and "logprobs" not in service.seen[1][2]


def test_a_rate_limit_is_waited_out_by_seconds_or_by_date(start, clip):
    for header, low, high in (("3", 3, 3), (formatdate(usegmt=True), 0, 2)):
        pauses = []
        (row,) = ask(start((429, "{}", {"Retry-After": header}), "No."), clip, pauses=pauses)
        assert row["anomaly"] == 0 and len(pauses) == 1 and low <= pauses[0] <= high


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("hang", "(?i)time"),
        ("cut body", "JSONDecodeError"),
        ("no json", "JSONDecodeError"),
        ("empty", "holds no text"),
        ((500, "{}", {}), "HTTP 500"),
        ((401, "{}", {}), "HTTP 401"),
        ((302, "", {"Location": "http://127.0.0.1:1/v1/chat/completions"}), "HTTP 302"),
    ],
)
def test_what_a_service_does_wrong_is_one_line_and_then_a_row(start, folder, clip, tmp_path, monkeypatch, step, line):
    monkeypatch.setenv("VAU_API_KEY", KEY)
    with pytest.raises(clients.AnswerError, match=line) as caught:
        ask(start(step), clip)
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    if step == "hang":
        return
    out, service = tmp_path / "rows.jsonl", start(step, step, "Yes.")
    rows = ask(service, folder, out)
    broken = [bool(row["error"]) for row in rows]
    assert broken[-1] is False and 1 <= sum(broken) <= 2 and KEY not in out.read_text()
    assert all(row["anomaly"] is None and row["confidence"] is None for row in rows if row["error"])
    again = ask(start("No."), folder, out, retry=True)
    assert [row["anomaly"] for row in again] == [0 if was else 1 for was in broken], "only errors are asked again"


def test_an_answer_that_was_cut_says_so(start, clip):
    (row,) = ask(start("length"), clip)
    assert row["cut"] and row["anomaly"] is None


def reply(message, reason="stop", **beside):
    """Return a step: one choice with this message, as the protocol has it; no usage and no logprobs unless given."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    choice |= {name: value for name, value in beside.items() if name == "logprobs"}
    usage = {name: value for name, value in beside.items() if name == "usage"}
    return (200, json.dumps({"object": "chat.completion", "choices": [choice], **usage}), {})


def spelled(*tokens, logprob=-0.5):
    return {"content": [{"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []} for token in tokens]}


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": 'First {"anomaly": 0}. No anomaly.'}]}


@pytest.mark.parametrize(
    ("message", "anomaly"),
    [
        ({"content": [{"type": "text", "text": "No anomaly"}, {"type": "text", "text": " exists."}]}, 0),
        ({"content": [THINKING, {"type": "text", "text": '{"anomaly": 1}'}]}, 1),  # Mistral's Magistral
        ({"content": [{"type": "text", "text": "Yes.", "annotations": []}, {"type": "image_url", "image_url": {"url": "x"}}]}, 1),
        ({"content": ["Yes", "."]}, 1),
        ({"content": "Yes.", "reasoning_content": "There is no anomaly."}, 1),  # DeepSeek, SGLang, llama.cpp
        ({"content": "No.", "reasoning": "An anomaly exists.", "refusal": None, "tool_calls": []}, 0),  # vLLM, OpenRouter
        ({"content": "[THINK]No anomaly?[/THINK]Yes."}, 1),  # Magistral without a parser
        ({"content": None, "refusal": "I'm sorry, I cannot assist with that request."}, None),
        ({"content": [{"type": "refusal", "refusal": "I cannot help with this."}]}, None),
    ],
)
def test_an_answer_is_read_in_every_form_that_servers_send(start, clip, message, anomaly):
    (row,) = ask(start(reply(message)), clip)
    assert row["anomaly"] == anomaly and row["text"] and row["error"] == ""
    assert row["prompt_tokens"] is None and row["new_tokens"] is None and row["confidence"] is None


@pytest.mark.parametrize(
    ("message", "reason", "line"),
    [
        ({"content": None, "reasoning": "The man walks"}, "length", "the limit of tokens ended its reasoning"),
        ({"content": "", "reasoning_content": "The man"}, "length", "the limit of tokens ended its reasoning"),
        ({"content": [THINKING]}, "length", "the limit of tokens ended its reasoning"),
        ({"content": None}, "content_filter", "a filter or the limit ended it"),
        ({"content": None, "tool_calls": [{"id": "a", "type": "function"}]}, "tool_calls", "holds no text"),
        ({"content": [{"type": "text"}, 3, None, {"type": "text", "text": 4}]}, "stop", "holds no text"),
        ({"content": {"text": "Yes"}}, "stop", "holds no text"),
        ({}, "stop", "holds no text"),
    ],
)
def test_a_message_without_an_answer_is_one_line_that_says_why(start, clip, message, reason, line):
    with pytest.raises(clients.AnswerError, match=line):
        ask(start(reply(message, reason)), clip)


@pytest.mark.parametrize("reason", ["length", "model_length", "content_filter", "error"])
def test_an_answer_that_did_not_end_by_itself_is_marked(start, clip, reason):
    (row,) = ask(start(reply({"content": "No anomaly exists."}, reason)), clip)
    assert row["cut"] and row["anomaly"] == 0


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"content": None}, {"content": []}, {"content": [{"token": "Yes.", "logprob": None}]}, {"tokens": ["Yes."]},
     {"content": [{"token": "Yes.", "logprob": math.nan}]}, {"content": "Yes."}, []],
)  # fmt: skip
def test_logprobs_that_are_not_there_are_no_confidence(start, clip, logprobs):
    (row,) = ask(start(reply({"content": "Yes."}, logprobs=logprobs, usage=None)), clip)
    assert row["anomaly"] == 1 and row["confidence"] is None


@pytest.mark.parametrize(
    ("tokens", "confidence"),
    [
        (["An", " anomaly", " exists", "?", "\n", "No", "."], math.exp(-0.5)),  # only "No" is the answer's
        (["No", "."], math.exp(-0.5)),
        (["An", " anomaly", " exists", "?"], None),  # the reasoning's tokens alone say nothing about the answer
    ],
)
def test_tokens_of_the_reasoning_are_no_confidence(start, clip, tokens, confidence):
    (row,) = ask(start(reply({"content": "No.", "reasoning": "An anomaly exists?"}, logprobs=spelled(*tokens))), clip)
    assert row["anomaly"] == 0 and row["confidence"] == (confidence and pytest.approx(confidence))


def test_a_model_that_wants_the_limit_under_its_new_name_gets_it(start, clip):
    refuses = (400, '{"error": {"message": "Unsupported parameter: max_tokens", "code": "unsupported_parameter"}}', {})
    service = start(refuses, refuses, "Yes.")
    (row,) = ask(service, clip)
    body = service.seen[2][2]
    assert row["anomaly"] == 1 and body["max_completion_tokens"] == 50 and not {"max_tokens", "temperature", "logprobs"} & set(body)


def test_a_service_that_is_down_ends_the_batch_soon(start, folder, tmp_path):
    service = start((403, "{}", {}))
    with pytest.raises(clients.AnswerError, match="3 videos in a row failed, the last: .*HTTP 403"):
        ask(service, folder, tmp_path / "rows.jsonl")
    assert len(service.seen) == 3 and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3


def test_what_a_service_cannot_do_is_refused_before_anything_is_sent(start, clip):
    service = start("Yes.")
    for wrong in (dict(keep_ratio=0.5), dict(as_video=True)):
        with pytest.raises(ValueError, match="a service gets all tokens of pictures"):
            ask(service, clip, **wrong)
    assert not service.seen


def test_pictures_are_made_smaller_on_request(start, clip):
    service = start("Yes.")
    ask(service, clip, max_pixels=1000)
    url = service.seen[0][2]["messages"][0]["content"][1]["image_url"]["url"]
    width, height = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size
    assert 250 <= width * height <= 1000


def test_the_command_asks_a_service_and_goes_on(start, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    service, out = start(JSON_ANSWER), tmp_path / "rows.jsonl"
    words = ["guard", str(folder), "--server", service.url, "--model", "served", "--key-env", "MY_KEY", "--out", str(out)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0 and "a.mp4: anomaly (0.90): fall, 0.5 to 1.5 s" in done.output and KEY not in done.output
    assert {headers["Authorization"] for _, headers, _ in service.seen} == {f"Bearer {KEY}"} and len(service.seen) == 5
    assert CliRunner().invoke(cli.app, words).exit_code == 0 and len(service.seen) == 5
    assert len(out.read_text().splitlines()) == 5
