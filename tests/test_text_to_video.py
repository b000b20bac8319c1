"""Three backends, one call; a paid job is never paid twice, a refusal is recorded, a key is nowhere, and truth is never made up."""

import json
import logging
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_video_service import FakeVideoService

from vau_lib.data import records, video
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import scenarios, text_to_video, veo
from vau_lib.vlm import clients, instruction_data
from vau_lib.workspace import artifacts

KEY = "AIza-a-very-secret-key-0123456789"
FEW = dict(duration_s=2.0, fps=5.0, height=64, width=96)


@pytest.fixture(scope="module")
def video_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 96, 3), dtype=np.uint8)
    video.write_video(path, noise, fps=24)
    return path.read_bytes()


@pytest.fixture
def service(video_bytes):
    services = []

    def start(faults=None):
        services.append(FakeVideoService(video_bytes, faults))
        return services[-1]

    yield start
    for fake in services:
        fake.close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_CLOUD_PROJECT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def client(service, **options):
    """Veo against the fake: no pauses, and a deadline that counts polls."""
    ticks = iter(range(10**6))
    settings = dict(price_per_second=0.1, poll_s=0.0, deadline_s=6, timeout_s=2.0, sleep=lambda _: None, clock=lambda: next(ticks))
    return veo.Veo(base_url=service.url, **(settings | options))


def total(generator, chosen):
    return text_to_video.cost(generator, chosen)


# A whole run


def test_twenty_jobs_with_refusals_timeouts_a_cut_download_and_a_rate_limit(service, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    faults = {2: "refuse", 7: "refuse", 11: "refuse", 4: "server error", 9: "never done", 13: "truncated", 16: "rate limit"}
    fake, chosen = service(faults), scenarios.covering_scenarios(20, 1, **FEW)
    backend = client(fake)
    first = text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), progress=False)
    assert first["status"].value_counts().to_dict() == {"done": 16, "rejected": 3, "failed": 1}
    assert "not done after 6 s" in first.set_index("status").loc["failed", "detail"]
    assert first[first["status"] == "rejected"]["detail"].str.contains("Violence").all()
    submitted = dict(fake.submitted)
    fake.patience = True  # the slow one is ready now
    second = text_to_video.run(client(fake), chosen, tmp_path, progress=False)  # nothing new to pay: no confirmation needed
    assert second["status"].value_counts().to_dict() == {"done": 17, "rejected": 3}
    assert fake.submitted == submitted and submitted[2] == 3 and {submitted[n] for n in submitted if n not in (2, 7, 11)} == {1}
    found = records.read_records(tmp_path / "records.jsonl")
    assert len(found) == 17 and all(text_to_video.verify(tmp_path / r.path) for r in found)
    assert not any(r.events for r in found)  # the service knows no spans, and none are made up
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in data for data in written) and KEY not in caplog.text and KEY not in second.to_csv()


def test_a_killed_run_loses_nothing_and_pays_nothing_twice(service, tmp_path):
    fake, chosen, polls = service(), scenarios.covering_scenarios(4, 2, **FEW), []

    def stops(_):
        polls.append(1)
        if len(polls) == 3:
            raise KeyboardInterrupt

    backend = client(fake, sleep=stops)
    with pytest.raises(KeyboardInterrupt):
        text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), progress=False)
    assert sum(fake.submitted.values()) == 3
    (tmp_path / "ledger.jsonl").open("a").write('{"id": "half a li')
    again = client(fake)
    table = text_to_video.run(again, chosen, tmp_path, confirm=again.price(chosen[0]), progress=False)  # one is still to be paid
    assert set(table["status"]) == {"done"} and set(fake.submitted.values()) == {1}


class Counting(veo.Veo):
    """Counts the most jobs that were open at once."""

    now, most, lock = 0, 0, threading.Lock()

    def generate(self, *args, **options):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().generate(*args, **options)
        finally:
            with self.lock:
                self.now -= 1


def test_jobs_side_by_side_are_bounded_and_each_is_paid_once(service, tmp_path):
    fake, chosen = service({2: "refuse", 5: "rate limit", 7: "truncated"}), scenarios.covering_scenarios(10, 1, **FEW)
    settings = dict(price_per_second=0.1, base_url=fake.url, poll_s=0.02, timeout_s=5.0)
    backend = Counting(**settings)
    text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), jobs_at_once=3, progress=False)
    assert 2 <= backend.most <= 3
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    last = {row["id"]: row for row in rows}
    assert sorted(row["status"] for row in last.values()) == ["done"] * 9 + ["rejected"]
    assert sorted(fake.submitted.values()) == [1] * 9 + [3], "the refused one was tried with two more seeds"
    intents = [row["id"] for row in rows if row.get("sent") is not None and "operation" not in row]
    assert len(intents) == 12 and all(row.get("sent") is None for row in last.values()), "each was noted before it was sent"
    with pytest.raises(ValueError, match="procedural makes one video at a time here, a service 1 or more: got jobs_at_once=2"):
        text_to_video.run(text_to_video.Procedural(), chosen, tmp_path / "other", jobs_at_once=2, progress=False)


def test_a_stop_ends_all_jobs_and_the_next_run_pays_only_what_was_not_sent(service, tmp_path):
    fake, chosen, naps = service(), scenarios.covering_scenarios(8, 2, **FEW), []
    fake.polls = 3

    def stops(_):
        naps.append(1)
        if len(naps) == 4:
            raise KeyboardInterrupt

    backend = client(fake, sleep=stops, clock=lambda: 0)
    with pytest.raises(KeyboardInterrupt):
        text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), jobs_at_once=2, progress=False)
    sent = sum(fake.submitted.values())
    assert sent < 8
    again = client(fake, deadline_s=10**5)  # two jobs count polls on one clock
    table = text_to_video.run(again, chosen, tmp_path, confirm=lambda _: True, jobs_at_once=2, progress=False)
    assert set(table["status"]) == {"done"} and set(fake.submitted.values()) == {1} and len(fake.submitted) == 8


def test_fields_of_the_service_reach_it_and_others_are_refused(service, tmp_path):
    fake, bodies, answer = service(), [], None
    answer = fake.answer
    fake.answer = lambda request, body: (bodies.append(body), answer(request, body))
    fields = dict(
        negative_prompt="captions", person_generation="allow_adult", labels={"study": "vau"}, compression_quality="LOSSLESS"
    )
    chosen = scenarios.covering_scenarios(2, 3, **FEW)[:1]
    text_to_video.run(client(fake, **fields), chosen, tmp_path, confirm=lambda _: True, progress=False)
    sent = next(body["parameters"] for body in bodies if "parameters" in body)
    assert (sent["negativePrompt"], sent["personGeneration"], sent["generateAudio"]) == ("captions", "allow_adult", False)
    assert sent["compressionQuality"].lower() == "lossless" and (sent["sampleCount"], sent["durationSeconds"]) == (1, 4)
    for wrong, message in (
        (dict(mood="sad"), "no field 'mood' of the service"),
        (dict(seed=3), "no field 'seed'"),
        (dict(fps="x"), "fps"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            client(fake, **wrong)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("fault", ["server error", "rate limit"])
def test_what_passes_is_tried_again(service, tmp_path, fault):
    fake, chosen = service({0: fault}), scenarios.covering_scenarios(2, 3, **FEW)
    backend = client(fake)
    table = text_to_video.run(backend, chosen, tmp_path, confirm=lambda _: True, progress=False)
    assert set(table["status"]) == {"done"}


@pytest.mark.parametrize("fault", ["broken line", "slow answer"])
def test_a_job_whose_answer_did_not_come_is_not_sent_twice_without_a_new_yes(service, tmp_path, fault):
    fake, chosen = service({0: fault}), scenarios.covering_scenarios(2, 3, **FEW)
    backend = client(fake)
    table = text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), progress=False)
    assert table["status"].tolist() == ["failed", "done"] and "it may be paid" in table["detail"][0]
    with pytest.raises(ValueError, match="^1 videos by Veo"):
        text_to_video.run(client(fake), chosen, tmp_path, progress=False)
    again = text_to_video.run(client(fake), chosen, tmp_path, confirm=backend.price(chosen[0]), progress=False)
    assert set(again["status"]) == {"done"} and set(fake.submitted.values()) == {1}


def test_a_run_killed_between_sending_and_noting_does_not_send_again(service, tmp_path, monkeypatch):
    fake, chosen = service(), scenarios.covering_scenarios(2, 3, **FEW)
    backend, start = client(fake), veo.Veo._start

    def killed(self, *arguments):
        start(self, *arguments)  # paid
        raise KeyboardInterrupt  # and the machine is off: as a kill, nothing is noted any more

    monkeypatch.setattr(veo.Veo, "_start", killed)
    monkeypatch.setattr(text_to_video.JobRecord, "note", stop_after(text_to_video.JobRecord.note, 1))
    with pytest.raises(KeyboardInterrupt):
        text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    table = text_to_video.run(client(fake), chosen, tmp_path, confirm=total(backend, chosen), progress=False)
    assert table["status"].tolist() == ["failed", "done"] and "may be paid" in table["detail"][0]
    assert set(fake.submitted.values()) == {1}


def stop_after(note, number):
    """A `note` that writes the first `number` facts only."""
    written = []

    def limited(self, **facts):
        if len(written) < number:
            written.append(facts)
            note(self, **facts)

    return limited


def test_two_runs_at_once_do_not_pay_twice(service, tmp_path):
    fake, chosen, second = service(), scenarios.covering_scenarios(2, 3, **FEW), []

    def meanwhile(_):
        if not second:
            with pytest.raises(artifacts.StoreError, match="^another run is at work in ") as caught:
                text_to_video.run(client(fake), chosen, tmp_path, confirm=lambda _: True, progress=False)
            second.append(caught)

    text_to_video.run(client(fake, sleep=meanwhile), chosen, tmp_path, confirm=lambda _: True, progress=False)
    assert second and set(fake.submitted.values()) == {1}


def test_a_redirect_and_a_proxy_of_the_environment_get_no_key(tmp_path, monkeypatch):
    import http.server
    import threading

    seen, plan = [], {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.server.server_port, self.headers.get("x-goog-api-key")))
            self.send_response(307, "moved")
            self.send_header("Location", f"http://127.0.0.1:{plan['thief']}/steal")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_CONNECT = do_GET = do_POST

        def log_message(self, *_):
            pass

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    plan["thief"] = servers[1].server_port
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{plan['thief']}")
    backend = veo.Veo(price_per_second=0.0, base_url=f"http://127.0.0.1:{servers[0].server_port}", sleep=lambda _: None)
    chosen = scenarios.covering_scenarios(2, 3, **FEW)[:1]
    table = text_to_video.run(backend, chosen, tmp_path, confirm=lambda _: True, progress=False)
    monkeypatch.setenv("VAU_API_KEY", KEY)
    ask = clients.Endpoint(f"http://127.0.0.1:{servers[0].server_port}/v1", "toy", tries=1)
    with pytest.raises(clients.AnswerError, match="HTTP 307"):
        ask("What?")
    for server in servers:
        server.shutdown()
        server.server_close()
    assert table["status"].tolist() == ["failed"]
    assert len(seen) >= 2 and {port for port, _ in seen} == {servers[0].server_port}


@pytest.mark.parametrize("name", ["GOOGLE_API_KEY", "VAU_API_KEY"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\nX-Evil: 1", "\u00e9", " second"])
def test_a_key_with_a_line_end_is_stripped_or_refused_unseen(name, ending, monkeypatch):
    monkeypatch.setenv(name, KEY + ending)
    if not ending.strip():
        assert artifacts.key_from(name) == KEY
        return
    with pytest.raises(ValueError, match=f"the key in {name} holds a character") as caught:
        if name == "VAU_API_KEY":
            clients.Endpoint("https://127.0.0.1:9/v1", "toy", tries=1)("What?")
        else:
            veo.Veo(price_per_second=0.0)
    assert KEY[:12] not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_key_is_masked_before_a_message_is_cut():
    for before in range(360, 400):
        assert KEY[:6] not in artifacts.masked("x" * before + KEY, KEY, limit=400)
    assert artifacts.masked("key=a%2Fb%2Bc and a/b+c", "a/b+c") == "key=*** and ***"


def test_what_does_not_pass_is_one_line_without_the_key(service, tmp_path):
    fake, chosen = service({0: "forbidden"}), scenarios.covering_scenarios(2, 3, **FEW)
    table = text_to_video.run(client(fake), chosen, tmp_path, confirm=lambda _: True, progress=False)
    assert table["status"].tolist() == ["failed", "done"]
    detail = table["detail"][0]
    assert "403" in detail and "***" in detail and KEY not in detail and "\n" not in detail


def test_a_forgotten_operation_is_a_failed_job_that_is_paid_again_only_when_confirmed(service, tmp_path):
    fake, chosen = service({1: "forgotten"}), scenarios.covering_scenarios(4, 3, **FEW)
    backend = client(fake)
    table = text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), progress=False)
    assert table["status"].tolist() == ["done", "failed", "done", "done"]
    assert "404" in table["detail"][1] and "is lost" in table["detail"][1] and "\n" not in table["detail"][1]
    fake.faults.clear()
    with pytest.raises(ValueError, match="^1 videos by Veo .* pass confirm="):
        text_to_video.run(client(fake), chosen, tmp_path, progress=False)
    assert fake.submitted == {0: 1, 1: 1, 2: 1, 3: 1}
    again = text_to_video.run(client(fake), chosen, tmp_path, confirm=backend.price(chosen[1]), progress=False)
    assert set(again["status"]) == {"done"} and fake.submitted == {0: 1, 1: 2, 2: 1, 3: 1}


@pytest.mark.parametrize("fault", ["proxy page", "cut answer"])
def test_a_poll_that_cannot_be_read_fails_that_job_only_and_is_not_paid_again(service, tmp_path, fault):
    fake, chosen = service({1: fault}), scenarios.covering_scenarios(3, 3, **FEW)
    backend = client(fake)
    table = text_to_video.run(backend, chosen, tmp_path, confirm=total(backend, chosen), progress=False)
    assert table["status"].tolist() == ["done", "failed", "done"]
    assert "\n" not in table["detail"][1] and KEY not in table["detail"][1]
    fake.faults.clear()
    again = text_to_video.run(client(fake), chosen, tmp_path, progress=False)  # what was paid is fetched
    assert set(again["status"]) == {"done"} and set(fake.submitted.values()) == {1}


def test_no_network_is_one_line(tmp_path):
    backend = veo.Veo(price_per_second=0.0, base_url="http://127.0.0.1:9", sleep=lambda _: None, timeout_s=0.3)
    table = text_to_video.run(backend, scenarios.covering_scenarios(2, 3, **FEW), tmp_path, progress=False)
    assert set(table["status"]) == {"failed"} and table["detail"].str.contains("the service cannot be reached").all()


# Money and keys


def test_spending_needs_the_exact_sum_or_a_yes(service, tmp_path):
    fake, chosen, questions = service(), scenarios.covering_scenarios(2, 4, **FEW), []
    backend = client(fake)
    for confirm in (None, 0.79, lambda text: questions.append(text) or False):
        with pytest.raises(ValueError, match=r"^2 videos by Veo .* cost 0.80: pass confirm=0.80, or a function that asks$"):
            text_to_video.run(backend, chosen, tmp_path, confirm=confirm, progress=False)
    assert not fake.submitted and questions == [f"2 videos by {backend.name} cost 0.80. Go on?"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(duration_s=5), "^a video lasts 4, 6, 8 s, got 5$"),
        (dict(price_per_second=-1.0), "^price_per_second must be 0 or more, got -1.0$"),
    ],
)
def test_impossible_wishes_are_refused(service, options, message):
    with pytest.raises(ValueError, match=message):
        client(service(), **options)


def test_without_a_key_it_says_what_to_set(monkeypatch):
    monkeypatch.delenv("GOOGLE_API_KEY")
    with pytest.raises(ValueError, match="^no key for Veo: set GOOGLE_API_KEY, or GOOGLE_CLOUD_PROJECT"):
        veo.Veo(price_per_second=0.1)


def test_a_prompt_too_long_fails_before_anything_is_paid(service, tmp_path):
    fake = service()
    backend = client(fake, prompt=lambda _: "x" * 2001)
    table = text_to_video.run(backend, scenarios.covering_scenarios(2, 3, **FEW), tmp_path, confirm=lambda _: True, progress=False)
    assert not fake.submitted and table["detail"][0] == "a prompt has at most 2000 characters, got 2001"


# The other backends


def test_the_drawn_backend_brings_its_truth(tmp_path):
    chosen = scenarios.covering_scenarios(2, 5, **FEW)
    table = text_to_video.run(text_to_video.Procedural(), chosen, tmp_path, progress=False)
    assert set(table["status"]) == {"done"}
    first, second = records.read_records(tmp_path / "records.jsonl")
    assert first.label == 1 and len(first.events) == 1 and second.label == 0 and not second.events
    truth = synthetic_dataset.read_truth(tmp_path / f"videos/{first.id}.npz")
    assert truth["masks"].shape == (first.num_frames, 64, 96)
    stamp = os.stat(tmp_path / first.path).st_mtime_ns
    text_to_video.run(text_to_video.Procedural(), chosen, tmp_path, progress=False)
    assert os.stat(tmp_path / first.path).st_mtime_ns == stamp


def test_an_open_model_is_called_with_prompt_and_seed(tmp_path):
    calls = []

    def pipeline(*, prompt, generator, output_type, num_frames):
        calls.append((prompt, generator.initial_seed(), num_frames))
        return SimpleNamespace(frames=np.full((1, num_frames, 32, 48, 3), 0.5, np.float32))

    chosen = scenarios.covering_scenarios(2, 6, **FEW)
    table = text_to_video.run(text_to_video.Diffusers(pipeline, num_frames=9), chosen, tmp_path, seed=7, progress=False)
    assert set(table["status"]) == {"done"} and [c[1:] for c in calls] == [(7, 9), (1007, 9)]
    assert [c[0] for c in calls] == [scenarios.prompt(s) for s in chosen]
    assert not any(r.events for r in records.read_records(tmp_path / "records.jsonl"))


def test_an_open_model_out_of_memory_is_a_failed_line(tmp_path):
    def pipeline(**_):
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    table = text_to_video.run(
        text_to_video.Diffusers(pipeline), scenarios.covering_scenarios(2, 6, **FEW), tmp_path, progress=False
    )
    assert table["status"].tolist() == ["failed"] * 2 and "out of memory. Tried" in table["detail"][0]


def test_a_pipeline_of_diffusers_own_classes_keeps_its_device_and_takes_another_dtype(tmp_path):
    """Random weights of a few kilobytes: the text-to-video pipeline of ModelScope, its classes unchanged."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is of the extra 'generate'")
    pipeline = tiny_pipeline(diffusers)
    pipeline.save_pretrained(tmp_path / "model")
    chosen = scenarios.covering_scenarios(2, 6, **FEW)[:1]
    options = dict(num_frames=2, height=32, width=32, num_inference_steps=2, fps=8.0)
    seen = []
    for place, made in (
        ("a", text_to_video.Diffusers(pipeline, **options)),
        ("b", text_to_video.Diffusers(str(tmp_path / "model"), **options)),
    ):
        made.pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0].dtype, args[0].device.type)))
        table = text_to_video.run(made, chosen, tmp_path / place, progress=False)
        assert table["status"].tolist() == ["done"], table["detail"][0]
    frames = [video.read_frames(next((tmp_path / place / "videos").glob("*.mp4")), [0, 1]) for place in "ab"]
    assert frames[0].shape == (2, 32, 32, 3) and np.array_equal(*frames), "a seed is a video"
    assert set(seen) == {(torch.float32, "cpu")}
    half = text_to_video.Diffusers(pipeline, dtype=torch.bfloat16, **options)
    assert half.pipeline.unet.dtype == torch.bfloat16 == half.pipeline.vae.dtype


def tiny_pipeline(diffusers):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = {chr(n): n - 32 for n in range(33, 127)}
    words = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"])
    vocabulary = {word: number for number, word in enumerate(words)}
    tokens = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4,
        bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=vocabulary["<|endoftext|>"],
    ))  # fmt: skip
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), latent_channels=4,
        norm_num_groups=2, sample_size=32,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    pipeline = diffusers.TextToVideoSDPipeline(vae=vae, text_encoder=text, tokenizer=tokens, unet=unet, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="need the package diffusers"):
        text_to_video.Diffusers("some/model")


def test_no_scenarios_are_refused(tmp_path):
    with pytest.raises(ValueError, match="^no scenarios to make videos of$"):
        text_to_video.run(text_to_video.Procedural(), [], tmp_path)


# Pseudo labels and a person's word


def test_detections_are_tracked_and_marked_as_guesses(video_bytes, tmp_path):
    (tmp_path / "noise.mp4").write_bytes(video_bytes)
    numbers = iter(range(24))

    def detector(frames):
        out = []
        for _ in frames:
            t = next(numbers)
            boxes = np.array([[2.0 * t, 10, 2.0 * t + 20, 40], [60, 5, 80, 30]])[: 1 if t == 5 else 2]
            out.append((boxes, ["person", "car"][: len(boxes)], np.full(len(boxes), 0.9)))
        return out

    found = text_to_video.detect_and_track(tmp_path / "noise.mp4", detector, batch=10)
    assert found["source"] == "pseudo" and len(found["frames"]) == 24
    people = {frame["track_ids"][0] for frame in found["frames"]}
    cars = [frame["track_ids"][1] for frame in found["frames"] if len(frame["track_ids"]) == 2]
    assert people == {1} and cars[0] == 2 and cars[-1] != 1
    with pytest.raises(ValueError, match="the detector gave 1 results for 24 frames"):
        text_to_video.detect_and_track(tmp_path / "noise.mp4", lambda _: [(np.zeros((0, 4)), [], np.zeros(0))], batch=24)


def test_two_boxes_that_cross_keep_their_labels():
    left = [(np.array([[t, 0, t + 10, 10], [30 - t, 0, 40 - t, 10]], float), ["person", "car"], np.ones(2)) for t in range(30)]
    ids = text_to_video.track_by_overlap(left)
    assert all(frame.tolist() == [1, 2] for frame in ids)


class Blind(text_to_video.Procedural):
    """As a text-to-video model: pixels, and nobody knows when something happens."""

    name, provides = "blind", frozenset({"pixels"})

    def generate(self, scenario, path, *, seed, job):
        super().generate(scenario, path, seed=seed, job=job)
        return text_to_video.GeneratedVideo()


def test_footage_without_truth_becomes_rows_of_whole_videos(tmp_path):
    """Of what was asked for, and they say so; rows of an earlier run with truth do not stay."""
    chosen = scenarios.covering_scenarios(4, 5, **FEW)
    text_to_video.run(text_to_video.Procedural(), chosen, tmp_path, progress=False)
    known = [json.loads(line) for line in (tmp_path / "instructions.jsonl").read_text().splitlines()]
    assert {row["source"] for row in known} == {"truth"} and {row["level"] for row in known} == {"clip", "event", "video"}
    text_to_video.run(Blind(), chosen, tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "instructions.jsonl").read_text().splitlines()]
    assert {(row["source"], row["level"], row["span_s"]) for row in rows} == {("prompt", "video", None)}
    verdicts = {row["video"]: row["answer"].startswith("An anomaly") for row in rows if row["task"] == "judgement"}
    found = records.read_records(tmp_path / "records.jsonl")
    assert verdicts == {record.path: bool(record.label) for record in found} and list(verdicts.values()).count(True) == 2
    assert instruction_data.read_rows({tmp_path / "instructions.jsonl": tmp_path})


def test_rows_follow_a_review(tmp_path):
    chosen = scenarios.covering_scenarios(4, 5, **FEW)
    text_to_video.run(Blind(), chosen, tmp_path, progress=False)
    sheet = text_to_video.review_sheet(tmp_path)
    sheet.loc[0, "verdict"], sheet.loc[1, "verdict"], sheet.loc[1, "label"] = "reject", "edit", 1
    sheet.to_csv(tmp_path / "review.csv", index=False)
    rows = text_to_video.reviewed_instructions(tmp_path)
    paths = [record.path for record in records.read_records(tmp_path / "records.jsonl")]
    assert {row["video"] for row in rows} == set(paths[1:])
    assert [(row["task"], row["answer"], row["source"]) for row in rows if row["video"] == paths[1]] == [
        ("judgement", "An anomaly exists.", "review")
    ]
    assert {row["task"] for row in rows if row["video"] == paths[2]} == {"judgement", "description", "analysis"}


def test_a_review_is_read_back(tmp_path):
    chosen = scenarios.covering_scenarios(4, 5, **FEW)
    text_to_video.run(text_to_video.Procedural(), chosen, tmp_path, progress=False)
    sheet = text_to_video.review_sheet(tmp_path)
    assert sheet["event"].tolist() == [scenario.event for scenario in chosen]
    assert sheet["verdict"].tolist() == [""] * 4
    sheet.loc[0, "verdict"] = "reject"
    sheet.loc[1, ["verdict", "label"]] = "edit", 1
    sheet.loc[2, "verdict"] = "accept"
    sheet.to_csv(tmp_path / "review.csv", index=False)
    kept, counts = text_to_video.apply_review(tmp_path)
    assert [r.id for r in kept] == sheet["id"].tolist()[1:] and kept[0].label == 1
    assert counts == {"reject": 1, "edit": 1, "accept": 1, "": 1}
    sheet.loc[3, "verdict"] = "maybe"
    sheet.to_csv(tmp_path / "review.csv", index=False)
    with pytest.raises(ValueError, match="a verdict is accept, reject or edit, got 'maybe'"):
        text_to_video.apply_review(tmp_path)
