"""Videos are taken apart, written about by whoever is passed in, and exported only as a person decided."""

import contextlib
import csv
import json
import socket
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import pytest

from vau_lib.data import annotation, answer_parsing, hivau
from vau_lib.data.records import RecordError, Span, VideoRecord
from vau_lib.synthetic import captions
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.vlm import clients

ANOMALOUS = VideoRecord("v", "videos/v.mp4", "toy", "train", 1, ("fall",), (Span(2.0, 8.0, "fall"),), 10.0, 100)
NORMAL = VideoRecord("n", "videos/n.mp4", "toy", "train", 0, fps=10.0, num_frames=100)
SUMMARY = 'An anomaly exists, a "fall". One person falls. The basis for judging this anomaly is that it hurts.'


def rng(seed=0):
    return np.random.default_rng(seed)


def rows_of(record=ANOMALOUS, summary=SUMMARY, **options):
    events = annotation.decouple(record, clip_s=3.0, rng=rng())
    writers = {
        "caption": lambda request: f"{request.span.start_s:g} to {request.span.end_s:g}",
        "summarise": lambda request: summary,
    }
    return annotation.annotate(record, events, rng=rng(), origin="test", **writers | options)


def test_clips_tile_their_event():
    (event,) = annotation.decouple(ANOMALOUS, clip_s=2.5, rng=rng())
    assert [(c.start_s, c.end_s) for c in event.clips] == [(2.0, 5.0), (5.0, 8.0)] and event.label == "fall"


def test_given_boundaries_are_cut_to_the_event():
    (event,) = annotation.decouple(ANOMALOUS, boundaries=[Span(0, 3), Span(4, 5), Span(7, 9.5), Span(9, 10)], rng=rng())
    assert [(c.start_s, c.end_s) for c in event.clips] == [(2.0, 3), (4, 5), (7, 8.0)]


def test_a_normal_video_gets_stretches_without_a_label():
    events = annotation.decouple(NORMAL, rng=rng(), normal_events=3)
    assert len(events) == 3 and not any(event.label for event in events)
    assert all(0 <= event.span.start_s < event.span.end_s <= 10 for event in events)
    with pytest.raises(RecordError, match="no event says when"):
        annotation.decouple(replace(ANOMALOUS, events=()), rng=rng())


def test_a_summary_is_cut_in_three():
    assert annotation.parse_summary(SUMMARY) == {
        "judgement": "An anomaly exists, a fall.", "description": "One person falls", "analysis": "That it hurts.",
    }  # fmt: skip
    assert annotation.parse_summary("No anomaly exists. A man walks.") == {
        "judgement": "No anomaly exists.", "description": "A man walks.",
    }  # fmt: skip
    with pytest.raises(ValueError, match="needs a judgement and a description, got 'Yes.'"):
        annotation.parse_summary("Yes.")


def test_the_released_texts_lost_capitals_and_semicolons():
    text = "An anomaly exists. A man falls; he lies. The basis for judging the anomaly is a T-shirt."
    assert annotation.parse_summary(text)["analysis"] == "A T-shirt."
    released = annotation.parse_summary(text, released=True)
    assert (released["description"], released["analysis"]) == ("A man falls. he lies", "A t-shirt.")


@pytest.mark.real
def test_the_rule_cuts_the_released_summaries_as_they_were_cut(real_data):
    videos = hivau.hivau_raw(real_data / "annotations/hivau70k/ucf_database_test.json")
    pairs = [(v.summary, v.part) for v in videos]
    pairs += [(s.text, part) for v in videos for s, part in zip(v.segments, v.parts, strict=True)]
    agree = {
        switch: sum(annotation.parse_summary(text, released=switch) == part for text, part in pairs) for switch in (True, False)
    }
    assert len(pairs) == 588 and agree[True] == 582  # six have a basis that does not call itself so
    assert agree[False] == 549  # 33 more keep semicolons and capitals


def test_every_text_becomes_a_question_with_its_seconds():
    rows = rows_of()
    assert Counter((r.level, r.task) for r in rows) == {
        ("clip", "caption"): 2, **{(level, task): 1 for level in ("event", "video") for task in hivau.TASKS["event"]},
    }  # fmt: skip
    assert [r.id for r in rows][:3] == ["v_E0C0_caption", "v_E0C1_caption", "v_E0_judgement"]
    assert (rows[1].span.start_s, rows[1].span.end_s, rows[1].answer) == (5.0, 8.0, "5 to 8")
    assert rows[-1].span.end_s == 10.0 and all(r.question in annotation.PROMPT_POOLS[r.task] for r in rows)


def test_summaries_are_made_from_what_lies_below():
    asked = []
    rows_of(summarise=lambda a: asked.append(a) or SUMMARY, caption=lambda a: "A {brace} here.")
    assert asked[0].texts == ("A {brace} here.",) * 2 and asked[1].texts == (SUMMARY,)
    assert "A {brace} here." in asked[0].prompt and "there is an anomaly (fall)" in asked[0].prompt


def test_the_pools_have_the_papers_sizes_and_no_question_twice():
    assert {task: len(set(pool)) for task, pool in annotation.PROMPT_POOLS.items()} == {
        "caption": 24, "judgement": 10, "description": 10, "analysis": 10,
    }  # fmt: skip


@pytest.mark.real
def test_the_released_pools_can_be_used_and_are_not_ours(real_data):
    pools = annotation.read_prompt_pools(real_data / "annotations/hivau70k/prompt_pools_and_engine_prompts.json")
    assert [len(pools[task]) for task in annotation.PROMPT_POOLS] == [24, 10, 10, 10]
    assert not any(set(pools[task]) & set(annotation.PROMPT_POOLS[task]) for task in pools)


def test_pools_that_lack_a_task_are_refused(tmp_path):
    (tmp_path / "p.json").write_text('{"caption": []}')
    with pytest.raises(RecordError, match="p.json: caption must be a list"):
        annotation.read_prompt_pools(tmp_path / "p.json")


def test_a_stopped_run_goes_on_and_one_bad_answer_ends_its_video_only(tmp_path):
    done = []

    def work(record):
        done.append(record.id)
        return rows_of(record, summary="Yes." if record.id == "n" else SUMMARY)

    failed = annotation.run([ANOMALOUS, NORMAL], tmp_path, work, seed=1)
    assert list(failed) == ["n"] and "n, event 0: a summary needs" in failed["n"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.json"]
    annotation.run([ANOMALOUS, NORMAL], tmp_path, work, seed=1)
    annotation.run([ANOMALOUS], tmp_path, work, seed=2)
    assert done == ["v", "n", "n", "v"]  # what is there and made alike is kept
    assert annotation.collect(tmp_path, [ANOMALOUS, NORMAL]) == rows_of()


def test_what_a_person_should_look_at_is_flagged():
    rows = rows_of(summary="No anomaly exists. A man walks.")
    assert annotation.flags(rows, [ANOMALOUS]) == {"v_judgement": "judged normal, labelled otherwise"}
    assert "without a reason" in annotation.flags(rows_of(summary="An anomaly exists. A man."), [ANOMALOUS])["v_E0_judgement"]


def test_only_what_a_person_decided_is_exported(tmp_path):
    rows = rows_of()
    table = annotation.review_table(rows, {rows[0].id: "look"})
    table["decision"] = ["edit", "drop", *["accept"] * (len(rows) - 2)]
    table.loc[0, "edited_answer"] = "A person falls,\nsays the guard."
    annotation.write_review(tmp_path / "review.csv", table)
    kept, tally = annotation.apply_review(rows, tmp_path / "review.csv")
    assert tally == {"edit": 1, "drop": 1, "accept": len(rows) - 2}
    assert kept[0].answer == "A person falls,\nsays the guard." and kept[0].origin == "test, edited"
    assert kept[1:] == rows[2:] and kept[0].span == rows[0].span


@pytest.mark.parametrize(
    "change, said",
    [({"decision": "maybe"}, "got 'maybe'"), ({"decision": ""}, "got ''"), ({"decision": "edit"}, "answer is empty"),
     ({"id": "zzz"}, "'zzz', which is no row")],
)  # fmt: skip
def test_a_review_that_does_not_fit_is_refused(change, said):
    table = annotation.review_table(rows_of())
    table["decision"] = "accept"
    for column, value in change.items():
        table.loc[0, column] = value
    with pytest.raises(ValueError, match=said):
        annotation.apply_review(rows_of(), table)
    with pytest.raises(ValueError, match="no column decision"):
        annotation.apply_review(rows_of(), pd.DataFrame({"id": [], "edited_answer": []}))


def test_undecided_rows_may_be_taken_by_name():
    rows = rows_of()
    assert annotation.apply_review(rows, annotation.review_table(rows), undecided="accept")[0] == rows
    assert annotation.apply_review(rows, annotation.review_table(rows), undecided="drop")[0] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    found = synthetic_dataset.make_dataset(root, num_videos=6, seed=3, duration_s=3.0, height=48, width=64, fps=8.0)
    return root, found


def test_templates_speak_the_truth_of_the_drawn_world(world):
    root, found = world
    for record in found:
        writer = captions.CaptionTemplates(root, rng())
        events = annotation.decouple(record, clip_s=1.5, rng=rng())
        rows = annotation.annotate(
            record, events, caption=writer.caption, summarise=writer.summarise, rng=rng(), origin=writer.origin
        )
        assert all(answer_parsing.parse_verdict(r.answer) == bool(record.label) for r in rows if r.task == "judgement")
        assert not annotation.flags(rows, [record])
        told = " ".join(r.answer for r in rows)
        assert any(captions.CaptionTemplates.ACTIONS[kind] in told for kind in record.classes) == bool(record.label)
        if not record.label:
            assert not any(text in told for text in captions.CaptionTemplates.ACTIONS.values())


def test_a_captioner_sees_the_seconds_it_is_asked_about(world):
    root, found = world
    request = annotation.AnnotationRequest(found[0], "clip", Span(0.0, 1.0), "", (), "")
    assert annotation.sample_clip_frames(request, root, num_frames=4).shape == (4, 48, 64, 3)


@pytest.fixture
def service(monkeypatch):
    """A chat-completions service on this machine that answers as its list says: a text, a status, or "hang"."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    plan, seen, release = [], [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            step = plan.pop(0)
            if step == "hang":
                release.wait(5)
                return
            status, text, headers = (200, step, {}) if isinstance(step, str) else step
            content = json.dumps({"choices": [{"message": {"content": text}}]}) if status == 200 else "{}"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", plan, seen
    release.set()
    server.shutdown()
    server.server_close()


def endpoint(url, pauses, **options):
    return clients.Endpoint(url, "toy-model", key_env="TOY_KEY", sleep=pauses.append, **{"timeout_s": 5.0} | options)


def test_a_service_is_asked_with_pictures_and_key(service, monkeypatch):
    url, plan, seen = service
    monkeypatch.setenv("TOY_KEY", "secret-123")
    plan[:] = ["  A dog.  ", "  A dog.  "]
    ask = endpoint(url, [])
    assert ask("What?", [np.zeros((8, 8, 3), np.uint8)]) == "A dog."
    path, key, body = seen[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret-123", "toy-model")
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url"]
    assert "secret" not in repr(ask) + ask.label
    assert ask("What?", np.zeros((4, 8, 8, 3), np.uint8)) == "A dog."  # one array of frames, as `sample_clip_frames` gives
    assert [part["type"] for part in seen[1][2]["messages"][0]["content"]] == ["text", *["image_url"] * 4]


def test_a_rate_limit_is_waited_out(service):
    url, plan, seen = service
    plan[:] = [(429, "", {"Retry-After": "7"}), (503, "", {}), (503, "", {}), "Yes."]
    pauses = []
    assert endpoint(url, pauses)("What?") == "Yes." and pauses == [7.0, 2.0, 4.0] and len(seen) == 4


def test_a_service_that_stays_away_ends_in_one_line(service, monkeypatch):
    url, plan, seen = service
    monkeypatch.setenv("TOY_KEY", "secret-123")
    plan[:] = [(500, "", {})] * 2
    with pytest.raises(clients.AnswerError, match=r"^toy-model at 127.0.0.1: HTTP 500 .* \(2 tries\)$") as caught:
        endpoint(url, [], tries=2)("What?")
    assert "secret" not in str(caught.value)


def test_a_refused_request_is_not_repeated(service):
    url, plan, seen = service
    plan[:] = [(401, "", {})]
    with pytest.raises(clients.AnswerError, match="HTTP 401"):
        endpoint(url, [])("What?")
    assert len(seen) == 1


def test_a_slow_service_times_out(service):
    url, plan, _ = service
    plan[:] = ["hang"]
    with pytest.raises(clients.AnswerError, match="(?i)time.*out"):
        endpoint(url, [], tries=1, timeout_s=0.2)("What?")


def test_a_redirect_is_not_followed(service, monkeypatch):
    url, plan, seen = service
    monkeypatch.setenv("TOY_KEY", "secret-123")
    plan[:] = [(302, "", {"Location": f"{url}/elsewhere"})]
    with pytest.raises(clients.AnswerError, match="HTTP 302"):
        endpoint(url, [])("What?")
    assert len(seen) == 1


@pytest.fixture
def rude():
    """A server that sends given bytes, whatever it is asked."""
    server, plan = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                asked = connection.recv(65536)
                for part in plan[0](asked) if callable(plan[0]) else [plan[0]]:
                    connection.sendall(part)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", plan
    server.close()


def drip(_):
    for _ in range(600):
        time.sleep(0.05)
        yield b"H"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",  # BadStatusLine
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",  # LineTooLong
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(300)) + b"\r\n",  # too many headers
        HEAD + b"Content-Length: 500\r\n\r\n{",  # IncompleteRead
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"\r\n" + b"[" * 200_000,  # deep JSON
        HEAD + b"\r\n" + b"1" * 5_000,  # a number Python does not read
        b"",
        drip,  # a byte now and then, for ever
        lambda asked: [b"HTTP/1.1 500 " + asked.split(b"Bearer ")[1].split(b"\r")[0] + b"\r\nContent-Length: 0\r\n\r\n"],
        lambda asked: [HEAD, b"\r\n", *[b" " * 2**20] * 20],  # without end
    ],
    ids="status line headers cut chunk deep number nothing drip echo endless".split(),
)
def test_a_server_that_does_not_speak_http_is_one_line_in_time(answer, rude, monkeypatch):
    url, plan = rude
    monkeypatch.setenv("TOY_KEY", "secret-123")
    plan[:] = [answer]
    began = time.monotonic()
    with pytest.raises(clients.AnswerError) as caught:
        endpoint(url, [], tries=1, timeout_s=1.0)("What?")
    assert time.monotonic() - began < 4 and "\n" not in str(caught.value)
    assert "secret" not in f"{caught.value!r} {caught.value.__context__!r}"


def test_an_id_that_climbs_writes_nothing_outside(tmp_path):
    bad = ["../evil", "/tmp/evil", "a/../../evil", "x\0y", "n" * 300, "cut\udce9"]
    records = [replace(synthetic_record(), id=name) for name in [*bad, "fine"]]
    failed = annotation.run(records, tmp_path / "out", lambda record: [])
    assert set(failed) == set(bad) and all("\n" not in line for line in failed.values())
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["fine.json"]


def synthetic_record():
    return VideoRecord("v", "v.mp4", "own", "test", 0, num_frames=10)


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "'=quoted", "\r=1", '=HYPERLINK("http://x")']
)
def test_a_review_sheet_holds_no_formula_and_is_read_back(text, tmp_path):
    table = pd.DataFrame([{"id": "a", "decision": "edit", "edited_answer": text, "answer": text, "start_s": -1.5, "flag": "-2"}])
    annotation.write_review(tmp_path / "r.csv", table)
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.reader(file))[1]
    assert not any(cell[:1] in tuple("=+@\t\r") or (cell[:1] == "-" and not cell[1:].replace(".", "").isdigit()) for cell in cells)
    assert annotation.read_review(tmp_path / "r.csv")["edited_answer"][0] == text.replace("\r", "\n")


def test_an_answer_without_text_is_refused(service):
    url, plan, _ = service
    plan[:] = ["   "]
    with pytest.raises(clients.AnswerError, match="holds no text"):
        endpoint(url, [])("What?")


def test_a_key_never_travels_in_the_clear(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "secret-123")
    with pytest.raises(clients.AnswerError, match="over https only"):
        endpoint("http://example.invalid/v1", [])("What?")
    with pytest.raises(clients.AnswerError, match="base_url"):
        endpoint("ftp://example.invalid", [])
