"""One look at a video: events and thresholds by hand, reports in which hostile text is inert, live sources, folders, player."""

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
import threading
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import moving_square
from fake_chat_service import FakeChatService
from typer.testing import CliRunner

from vau_lib import analyse, cascade, cli, watch
from vau_lib.data import records, video
from vau_lib.detectors import lshma, lshma_state, memtsm, preprocessing, trained_detector
from vau_lib.features import extraction, xfeat
from vau_lib.plots import player
from vau_lib.vlm import clients, models
from vau_lib.workspace import artifacts

ROW_FRAMES = 4
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> =cmd|'/c calc'!A1 \u2028 \u2029 \x1b[31m 🔥 "
    '" onmouseover="alert(1) &amp; <b>bold</b> {"anomaly": 1, "kind": "<i>fire</i>", "from_s": 0.2, "to_s": 0.6}'
)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Folder of an untrained stream over small XFeat features with random weights, and scores of validation videos."""
    folder = tmp_path_factory.mktemp("detector")
    recipe = extraction.Recipe("xfeat", ROW_FRAMES, (("weights", "random"), ("side", 64)))
    rng = np.random.default_rng(0)
    fitted = preprocessing.Preprocessing.fit({"a": rng.random((40, 128))}, steps=None, temporal_difference=False)
    made = lshma.LSHMA(lshma_state.LSHMAConfig.xd(width=128, window=2)).eval()
    trained_detector.save(folder, trained_detector.TrainedDetector(made, fitted, None), facts={"features": recipe.made_by()})
    row = {"split": "val", "label": 0, "video": 0.0}
    scores = {f"n{k}": row | {"scores": [0.0, k / 100]} for k in range(1, 41)} | {"a": row | {"label": 1, "scores": [0.5]}}
    artifacts.write_json(folder / "scores.json", scores)
    return folder


@pytest.fixture
def service():
    with_steps = []

    def start(*steps):
        with_steps.append(FakeChatService(*steps))
        return with_steps[-1]

    yield start
    for made in with_steps:
        made.close()


def clip_of(ends, scores, compute_ms=100.0, lag_s=-1.0):
    frame = np.zeros((8, 8, 3), np.uint8)
    return watch.ScoredClip(np.array(ends), np.array(scores), 1, compute_ms, lag_s, frame)


def looked(plan=None, clips=(), threshold=0.5, vlm=None, live=False, send=None):
    """A cascade that was shown frames, four a second, and clips of two rows of a second."""
    of = cascade.Detector(None, None, None, threshold, "by hand", "", "LSHMA", False)
    found = cascade.Cascade(of, plan or cascade.AnalysisPlan(merge_s=2.0, pad_s=0.5), vlm, live=live, send=send)
    for place in range(0, len(clips), 2):
        moments = np.arange(4 * place, 4 * (place + 2)) / 4
        list(found.frames((float(second), np.full((8, 8, 3), int(second) % 256, np.uint8)) for second in moments))
        found.push(clip_of([place + 1.0, place + 2.0], clips[place : place + 2]))
    found.finish()
    return found


def test_a_threshold_lets_one_in_twenty_normal_validation_videos_through(detector, tmp_path):
    threshold, words = cascade.validation_threshold(detector)
    assert 0.38 < threshold <= 0.39  # of .01 to .40 two of forty reach it
    assert "2 of 40 normal and 1 of 1 anomalous" in words
    assert cascade.validation_threshold(tmp_path) == (0.5, "0.5 for want of validation scores in the detector's folder")


def test_hot_rows_make_events_known_when_their_clip_is_over():
    found = looked(clips=[0, 0, 0.1, 0.9, 0.6, 0, 0, 0.7, 0, 0, 0, 0, 0.5, 0.4])
    spans = [(e.start_s, e.end_s, e.known_s, e.peak, e.peak_s) for e in found.events]
    assert spans == [(3.0, 5.0, 4.0, 0.9, 3.5), (7.0, 8.0, 8.0, 0.7, 7.5), (12.0, 13.0, 14.0, 0.5, 12.5)]  # a gap of 2 s ends one
    assert [event.delay_s for event in found.events] == [1.1, 1.1, 2.1]  # to the clip's end, and 0.1 s of computing
    cost = found.cost()
    assert cost["alarms"] == 3 and cost["alarms_per_hour"] == pytest.approx(3 * 3600 / 14, abs=0.01)
    assert cost["alarm_delay_p50_s"] == 1.1 and 2.0 < cost["alarm_delay_p99_s"] <= 2.1


def test_only_the_window_of_an_event_is_shown_most_where_the_score_is_high():
    plan = cascade.AnalysisPlan(merge_s=2.0, pad_s=1.0, num_frames=6, tau=0.01)
    found = looked(plan, [0] * 10 + [0.5, 1.0, 0.5, 0.1] + [0] * 6)
    shown = found.events[0].shown_s
    assert len(set(shown)) == 6 and 9.0 <= min(shown) and max(shown) <= 14.0
    assert sum(11 <= second < 12 for second in shown) >= 2  # the highest row has 2 of the 4 seconds' mass


def test_pairs_go_in_two_and_two():
    frames = [(k / 10, b"%d" % k) for k in range(40)]
    rows = [(k / 2, k / 2 + 0.5, 2.0, 0.5) for k in range(8)]
    shown = cascade.choose(frames, rows, cascade.AnalysisPlan(num_frames=8, pair_lag_s=0.2))
    first, second = np.array([moment for moment, _ in shown]).reshape(-1, 2).T
    assert len(shown) == 8 and np.allclose(second - first, 0.2)


def test_what_is_kept_of_a_live_stream_is_bounded():
    plan = cascade.AnalysisPlan(merge_s=2.0, pad_s=0.5, window_s=4.0)
    found = looked(plan, [0.9, 0.0, 0.0, 0.0] * 300, live=True)
    assert len(found.events) == cascade.KEPT_EVENTS and found.cost()["alarms"] == 300
    assert len(found.reel.kept) <= 4 * (4 + 2 + 4 * 0.5) + 1 and found.rows.maxlen == watch.KEPT_SCORES
    assert len(found.strip) <= player.THUMBS


def test_a_slow_receiver_neither_fills_memory_nor_holds_up_the_end(monkeypatch):
    monkeypatch.setattr(cascade, "LAST_SENDS_S", 0.1)
    gate, sent = threading.Event(), []

    def slow(message):
        gate.wait(20)
        sent.append(message)

    found = looked(cascade.AnalysisPlan(merge_s=2.0, pad_s=0.5, window_s=4.0), [0.9, 0, 0, 0] * 300, live=True, send=slow)
    gate.set()
    assert (
        len(found.sending) <= cascade.UNSENT and found.cost()["not_sent"] >= 299 - len(sent) - 1 and found.cost()["alarms"] == 300
    )


def test_a_service_that_fails_does_not_end_the_stream(service):
    away = service((500, "", {}))
    found = looked(clips=[0.9, 0, 0, 0, 0.9, 0], vlm=clients.Endpoint(away.url, "m", tries=1))
    assert [bool(event.answer["error"]) for event in found.events] == [True, True]
    assert found.cost()["not_explained"] == 2 and "HTTP 500" in found.events[0].answer["error"]


def test_memtsm_is_watched_with_its_causal_score(clip, tmp_path):
    recipe = extraction.Recipe("xfeat", ROW_FRAMES, (("weights", "random"), ("side", 64)))
    rng = np.random.default_rng(1)
    features = {str(n): rng.random((20, 128)) for n in range(3)}
    fitted = preprocessing.Preprocessing.fit(features, steps=8, temporal_difference=True)
    made = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=128, slots=8)).eval()
    trained_detector.save(tmp_path, trained_detector.TrainedDetector(made, fitted, None), facts={"features": recipe.made_by()})
    encode, size = watch.live_encoder(tmp_path)
    seen = list(watch.watch(video.live(clip), trained_detector.load(tmp_path), encode, snippet_frames=size))
    rows = np.stack(list(xfeat.XFeatEncoder("random", side=64).encode(clip, ROW_FRAMES)))
    wanted = trained_detector.load(tmp_path).score_video(rows, causal=True, hop=1)[1]
    np.testing.assert_allclose(np.concatenate([one.scores for one in seen]), wanted, atol=5e-3)  # gray by RGB
    assert cascade.load_detector(tmp_path).system == "MemTSM-Net"


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, script and style texts, text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.inside, self.texts, self.shown = [], [], None, {"script": [], "style": []}, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = tag if tag in self.texts else None
        if self.inside:
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.texts[self.inside][-1] += data
        else:
            self.shown.append(data)


def check_inert(page):
    """One script and one style, both allowed by their hash; no handler, nothing from anywhere."""
    found = Page(page)
    policy = next(value for tag, name, value in found.attributes if tag == "meta" and name == "content" and "default-src" in value)
    for kind in ("script", "style"):
        assert len(found.texts[kind]) == 1, kind
        digest = base64.b64encode(hashlib.sha256(found.texts[kind][0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe" not in policy
    assert not [name for _, name, _ in found.attributes if name.startswith("on") or name == "style"]
    places = [value for _, name, value in found.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert all(re.match(r"data:(image/jpeg|video/mp4);base64,|report\.mp4$", value) for value in places)
    assert not {"iframe", "object", "embed", "link", "form", "b", "i"} & set(found.tags)
    assert "\u2028" not in page and "\x1b" not in page
    return found


def test_hostile_text_is_inert_in_page_and_table(detector, clip, service, tmp_path):
    answers = service(HOSTILE, "=cmd()" + "A" * 10_000 + "🔥", "@SUM(1)")
    place = tmp_path / "=cmd() <img onerror=alert(1)> <script> \u2028🔥.mp4"
    shutil.copy(clip, place)
    plan = cascade.AnalysisPlan(question="=what <b>now</b>?", num_frames=3)
    found = cascade.load_detector(detector, threshold=0.0)
    options = dict(plan=plan, vlm=clients.Endpoint(answers.url, "<b>m</b>"), events="0.5-1")
    content = analyse.analyse(place, found, tmp_path / "out", **options)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    shown = " ".join(check_inert(page).shown)
    assert "A" * 10_000 in shown and "</script><script>document.title" in shown and "<i>fire</i>" in shown
    assert "<b>m</b>" in shown and "RANDOM encoder weights" in shown and "known: event" in shown
    assert content["events"][0]["answer"]["anomaly"] == 1
    event = content["events"][0]
    assert event["answer"]["to_s"] == pytest.approx(event["shown_s"][0] + 0.6)  # the model's clock begins with its first frame
    with (tmp_path / "out" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 and all(not cell.startswith(("=", "@", "+")) for row in rows for cell in row.values())
    assert all("\n" not in cell for row in rows for cell in row.values())
    assert float(rows[-1]["end_s"]) == pytest.approx(49 / 25) and rows[3]["start_s"] == rows[2]["end_s"]


def test_a_report_holds_what_the_stream_gave(detector, clip, tmp_path):
    words = ["analyse", str(clip), "--detector", str(detector), "--out", str(tmp_path), "--events", "0-1"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.stderr
    content = artifacts.read_json(tmp_path / "report.json")
    encode, size = watch.live_encoder(detector)
    seen = list(watch.watch(video.live(clip), trained_detector.load(detector), encode, snippet_frames=size))
    table = np.genfromtxt(tmp_path / "scores.csv", delimiter=",", names=True, usecols=(0, 1, 2, 3), dtype=float)
    np.testing.assert_allclose(table["score"], np.concatenate([one.scores for one in seen]), atol=1e-6)
    hot = table["score"] >= content["threshold"]
    assert content["measured"]["detected"] == int(hot[table["start_s"] < 1].any())
    assert content["language_model"] == "none" and content["cost"]["language_model_s"] == 0
    assert "40 normal" in content["threshold_from"] and "by hand" not in content["threshold_from"]


def test_a_device_is_that_of_detector_encoder_and_language_model(detector, clip, tmp_path, monkeypatch):
    asked = []

    def noted(name, function):
        def call(*given, **words):
            asked.append((name, words.get("device")))
            return function(*given, **words)

        return call

    monkeypatch.setattr(trained_detector, "load", noted("detector", trained_detector.load))
    monkeypatch.setattr(extraction.ENCODERS["xfeat"], "__init__", noted("encoder", extraction.ENCODERS["xfeat"].__init__))
    monkeypatch.setattr(models, "load", noted("model", models.load))
    words = ["analyse", str(clip), "--detector", str(detector), "--out", str(tmp_path / "out"), "--model"]
    done = CliRunner().invoke(cli.app, [*words, "near", "--device", "cpu"])
    assert done.exit_code == 0, done.stderr
    assert {("detector", "cpu"), ("encoder", "cpu"), ("model", "cpu")} == set(asked)
    refused = CliRunner().invoke(cli.app, [*words, "near", "--device", "nowhere"])
    assert refused.exit_code == 1 and "device 'nowhere' cannot be used" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_large_video_lies_beside_the_page(detector, clip, tmp_path):
    plan = cascade.AnalysisPlan(embed_mb=0.001)
    analyse.analyse(clip, cascade.load_detector(detector), tmp_path, plan=plan)
    check_inert((tmp_path / "report.html").read_text())
    assert video.probe(tmp_path / "report.mp4").duration_s == pytest.approx(2.0, abs=0.1)


def test_footage_unlike_the_training_videos_is_named_and_gets_curves_without_training(detector, clip, tmp_path):
    found = cascade.load_detector(detector)
    far = analyse.Familiarity(found, keep=False)
    far.add(np.asarray(found.trained.preprocessing.mean) + 3 * np.asarray(found.trained.preprocessing.std))
    note = far.notes(found, "x.mp4")[0]
    assert "lie 3.00 standard deviations" in note and f"{found.trained.preprocessing.farthest:.2f}" in note
    near = analyse.Familiarity(found, keep=False)
    near.add(np.asarray(found.trained.preprocessing.mean))
    assert near.notes(found, "x.mp4") == []
    drawn = cascade.Detector(**{**vars(found), "drawn": True})
    assert "drawn videos only" in near.notes(drawn, str(clip))[0]
    content = analyse.analyse(clip, drawn, tmp_path)
    header = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert content["notes"] and "motion" in header and "appearance" in header
    assert (tmp_path / "report.html").read_text().count('class="plot"') == 2


def test_a_drawn_video_is_known_by_its_truth_or_its_folder(tmp_path):
    (tmp_path / "videos").mkdir()
    path = tmp_path / "videos" / "a.mp4"
    path.touch()
    assert not analyse._is_drawn(str(path))
    artifacts.write_json(tmp_path / "made_by.json", {"dataset": "synthetic", "edition": 3})
    assert analyse._is_drawn(str(path)) and not analyse._is_drawn("0")


def test_a_folder_goes_on_where_it_was_stopped(detector, tmp_path, monkeypatch):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    video.write_video(videos / "a.mp4", moving_square(16), fps=25)
    shutil.copy(videos / "a.mp4", videos / "c.mp4")
    (videos / "bad.mp4").write_bytes(b"no video")
    found, real, calls = cascade.load_detector(detector), analyse.analyse, []

    def stopped(source, *arguments, **options):
        calls.append(str(source))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(source, *arguments, **options)

    monkeypatch.setattr(analyse, "analyse", stopped)
    with pytest.raises(KeyboardInterrupt):
        analyse.analyse_folder(videos, found, out)
    lines = []
    rows = analyse.analyse_folder(videos, found, out, log=lines.append)
    assert [row["error"] == "" for row in rows] == [True, False, True] and len(calls) == 4  # a is kept
    assert "kept" in lines[0] and lines[1].startswith("bad.mp4: ") and "\n" not in lines[1]
    links = [value for tag, name, value in Page((out / "index.html").read_text()).attributes if (tag, name) == ("a", "href")]
    assert len(links) == 2 and all((out / link).is_file() for link in links)
    found = cascade.load_detector(detector, threshold=0.1)
    assert analyse.analyse_folder(videos, found, out)[2]["content"]["threshold"] == 0.1 and len(calls) == 7  # another: all again


def test_a_live_source_gives_json_lines_a_webhook_and_a_rolling_report(detector, clip, service, tmp_path, monkeypatch):
    hook, answers = service((204, "", {})), service('{"anomaly": 0}')
    frames, pages, write = list(video.live(clip)), [], analyse._write

    def camera(_):
        for moment, frame in frames:
            time.sleep(0.002)
            yield moment, frame
        raise KeyboardInterrupt  # Ctrl-C

    def written(folder, *arguments, **options):
        content = write(folder, *arguments, **options)
        pages.append(content["rolling"])
        return content

    monkeypatch.setattr(analyse.video, "live", camera)
    monkeypatch.setattr(analyse, "_write", written)
    words = ["analyse", "0", "--detector", str(detector), "--threshold", "0", "--every", "0.05", "--out", str(tmp_path)]
    words += ["--server", answers.url, "--model", "m", "--webhook", hook.url + "/secret"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["message"] for line in messages] == ["alarm", "explained"] and messages[1]["anomaly"] == 0
    assert [body for _, _, body in hook.seen] == messages
    assert pages[-1] is False and True in pages and "secret" not in done.stderr
    content = artifacts.read_json(tmp_path / "report.json")
    assert content["cost"]["judged"] == {"anomaly": 0, "normal": 1, "unclear": 0}


@pytest.mark.parametrize("step", [(302, "", {"Location": "http://127.0.0.1:1/x"}), (500, "", {})])
def test_a_webhook_that_fails_is_a_line_and_no_redirect_is_followed(service, step):
    hook, lines = service(step), []
    cascade.webhook(hook.url, log=lines.append)({"message": "alarm"})
    assert lines == [f"webhook: HTTP {step[0]}"] and len(hook.seen) == 1
    with pytest.raises(clients.AnswerError, match="must be http") as refused:
        cascade.webhook("http://name:secret@host/x", log=lines.append)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("given", "words"), [("36-x", "36-x"), ("52-36", "52")])
def test_events_that_are_none_are_one_line(given, words):
    with pytest.raises(ValueError, match=words):
        analyse.true_events(given, "a.mp4", 30.0)


@pytest.mark.real
def test_the_official_event_of_robbery102_stands_beside_the_curve(real_data):
    annotation = real_data / "gt" / "ucf_crime" / "UCF_Annotation_with_nframes.txt"
    (span,) = analyse.true_events(str(annotation), str(real_data / "videos" / "ucf_crime" / "Robbery102_x264.mp4"), 30.0)
    assert (span.start_s, span.end_s) == pytest.approx((1080 / 30, 1560 / 30), abs=1 / 30)
    with pytest.raises(ValueError, match="names no video other.mp4"):
        analyse.true_events(str(annotation), "other.mp4", 30.0)


# The player


def test_a_curve_is_drawn_where_its_rows_are():
    rows = np.array([[0.0, 5.0, 0.0], [5.0, 10.0, 1.0]])
    piece = player.player({"<s>": rows}, end_s=10.0, events=[], truth=[dict(start_s=5.0, end_s=10.0, label="<t>")])
    path = re.search(r'class="curve" d="([^"]+)"', piece)[1]
    middle = (player.LEFT + player.RIGHT) / 2
    assert path == f"M{player.LEFT:.1f} 166.0H{middle:.1f}L{middle:.1f} 18.0H{player.RIGHT:.1f}"  # 0 at the bottom, 1 at the top
    assert f'<rect x="{middle:.1f}"' in piece and "known: &lt;t&gt;" in piece and "<s>" not in piece


def test_a_long_live_stream_shows_its_last_hour():
    rows = np.array([[7200.0, 9000.0, 0.0], [9000.0, 10_800.0, 1.0]])
    old = dict(number=1, start_s=10.0, end_s=20.0, peak=1.0, peak_s=15.0, known_s=20.0)
    piece = player.player({"s": rows}, begin_s=7200.0, end_s=10_800.0, events=[old])
    middle = (player.LEFT + player.RIGHT) / 2
    assert f"M{player.LEFT:.1f} 166.0H{middle:.1f}L{middle:.1f} 18.0H{player.RIGHT:.1f}" in piece
    assert "<rect" not in piece and "10.0 to 20.0 s" in piece and 'data-begin="7200.000"' in piece
    assert player.ticks(10_800.0, 7200.0) == [7200.0 + 600 * k for k in range(7)]


def test_a_clock_of_years_costs_no_minutes(tmp_path):
    """A damaged header: its copy would have a picture for every second, its axis a mark for every two hours."""
    video.write_video(tmp_path / "long.mp4", moving_square(50), fps=0.001)
    assert video.probe(tmp_path / "long.mp4").duration_s == pytest.approx(50_000)
    assert player.media(tmp_path / "long.mp4", None) == ""
    assert 4 <= len(player.ticks(1.7e9)) <= 10 and player.ticks(86_400.0) == [14_400.0 * k for k in range(7)]


def test_a_long_curve_keeps_its_peaks():
    values = np.zeros(40_000)
    values[[7, 31_234]] = 1.0, 0.8
    rows = np.stack([np.arange(40_000.0), np.arange(1, 40_001.0), values], 1)
    kept = player.thinned(rows)
    assert len(kept) == player.POINTS and sorted(kept[:, 2])[-2:] == [0.8, 1.0]
    assert kept[0, 0] == 0 and kept[-1, 1] == 40_000 and (kept[1:, 0] == kept[:-1, 1]).all()


def test_a_player_in_a_notebook_is_a_frame_without_anywidget(clip):
    events = [records.Span(0.4, 1.2, "<event>")]
    shown = player.show(clip, {"score": np.linspace(0, 1, 13)}, step_s=0.16, events=events, widget=False)
    frame = Page(shown._repr_html_())
    assert frame.tags == ["iframe"] and ("iframe", "sandbox", "allow-scripts") in frame.attributes
    inside = next(value for _, name, value in frame.attributes if name == "srcdoc")
    assert "known: <event>" in " ".join(check_inert(inside).shown)


def test_a_player_is_a_widget_where_anywidget_is(clip):
    pytest.importorskip("anywidget", reason="anywidget is of the notebooks extra")
    shown = player.show(clip, {"score": np.linspace(0, 1, 13)}, step_s=0.16, widget=True)
    assert 'class="vau"' in shown.content and "export default" in str(shown._esm)
    shown.second = 1.5
    assert shown.second == 1.5
    data, _ = shown._repr_mimebundle_()  # a page without a kernel shows the frame
    assert {"application/vnd.jupyter.widget-view+json", "text/html"} <= set(data) and "srcdoc" in data["text/html"]


def test_hostile_text_is_inert_in_a_notebook_s_player(clip):
    """In the frame, and in the widget, whose text becomes part of the notebook's own page."""
    label, curve = HOSTILE + "=cmd()" + "A" * 10_000 + "🔥", {f"<img src=x onerror=alert(1)>{HOSTILE}": np.linspace(0, 1, 13)}
    shown = player.show(clip, curve, step_s=0.16, events=[records.Span(0.4, 1.2, label)], widget=False)
    outer = Page(shown._repr_html_())
    assert outer.tags == ["iframe"] and ("iframe", "sandbox", "allow-scripts") in outer.attributes
    inner = check_inert(next(value for _, name, value in outer.attributes if name == "srcdoc"))
    words = " ".join(inner.shown)
    assert "known: </script><script>document.title='owned'" in words and "<img src=x onerror=alert(1)>" in words
    assert "A" * 100 not in words  # a label is a line
    piece = Page(shown.content)
    assert not {"script", "b", "i", "iframe"} & set(piece.tags)
    assert not [name for _, name, _ in piece.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for _, name, value in piece.attributes if name in ("src", "href"))


@pytest.mark.browser
def test_a_browser_plays_the_page_and_asks_nobody(detector, clip, service, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs chromium")
    trap = service((200, "", {}))
    host = trap.url.removesuffix("/v1")
    answers = service(f'<img src="{host}/a"><script src="{host}/b"></script><link rel=stylesheet href="{host}/c">')
    found = cascade.load_detector(detector, threshold=0.0)
    analyse.analyse(clip, found, tmp_path, vlm=clients.Endpoint(answers.url, "m"))
    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--virtual-time-budget=3000", "--dump-dom", (tmp_path / "report.html").as_uri()]
    page = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    dom = Page(page)
    assert ("div", "data-ready", "yes") in dom.attributes, "the script ran under its policy"
    assert ("div", "class", "vau") in dom.attributes, "the video plays: the page is not marked unplayable"
    assert len(dom.texts["script"]) == 1 and trap.seen == []
