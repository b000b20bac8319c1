"""`vau explain`: a video, a model and a published scorer become JSON, a figure and one page; memory stays bounded."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import released_holmesvau
import torch
from conftest import moving_square
from PIL import Image
from typer.testing import CliRunner

from vau_lib import cli, explain
from vau_lib.data import video
from vau_lib.features import frame_features
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import inference, models
from vau_lib.workspace import artifacts

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)


def published_scorer(width: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors under the 34 names of anomaly_scorer.pth, for features of `width`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding.conv_1.0.weight": (512, width, 3), "embedding.conv_1.0.bias": (512,)}
    for layer in ("self_attn.layers.0", "self_attn.layers.1"):
        shapes |= {f"{layer}.{part}.norm.{kind}": (512,) for part in (0, 1) for kind in ("weight", "bias")}
        shapes |= {f"{layer}.0.fn.to_qkv.weight": (2048, 512), f"{layer}.0.fn.to_out.0.weight": (512, 1024)}
        shapes |= {f"{layer}.0.fn.to_out.0.bias": (512,), f"{layer}.1.fn.net.0.weight": (512, 512)}
        shapes |= {f"{layer}.1.fn.net.0.bias": (512,), f"{layer}.1.fn.net.3.weight": (512, 512)}
        shapes |= {f"{layer}.1.fn.net.3.bias": (512,)}
    shapes |= {"cls_head.mlp.0.weight": (128, 1024), "cls_head.mlp.0.bias": (128,), "cls_head.mlp.2.weight": (1, 128)}
    shapes |= {"cls_head.mlp.2.bias": (1,), "Amemory.memory_block": (60, 512), "Nmemory.memory_block": (60, 512)}
    for name in ("encoder_mu.0", "encoder_var.0"):
        shapes |= {f"{name}.weight": (512, 512), f"{name}.bias": (512,)}
    assert len(shapes) == 34
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text between them."""

    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def read_page(path) -> tuple[list, str]:
    parser = Tags()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.tags, " ".join(" ".join(parser.words).split())


def run(*arguments):
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)])


def test_a_converted_holmesvau_and_a_published_scorer_explain_a_video(tmp_path, clip):
    """The road of a user who has both files: convert once, explain; at toy width, with random weights in both."""
    pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
    released_holmesvau.released_folder(tmp_path / "HolmesVAU-2B")
    torch.save(published_scorer(released_holmesvau.VISION["hidden_size"]), tmp_path / "anomaly_scorer.pth")
    convert = ["convert", "holmesvau", str(tmp_path / "HolmesVAU-2B"), str(tmp_path / "native")]
    assert CliRunner().invoke(cli.app, convert).exit_code == 0
    options = ["--stride", 5, "--frames", 4, "--max-new-tokens", 6, "--out", tmp_path / "out"]
    done = run(clip, "--model", tmp_path / "native", "--scorer", tmp_path / "anomaly_scorer.pth", *options)
    assert done.exit_code == 0, done.output
    assert "by HolmesVAU-2B; scorer anomaly_scorer.pth" in done.output
    row = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert row["index"] == list(range(0, 50, 5)) and len(row["scores"]) == 10 and 0 <= min(row["scores"]) <= max(row["scores"]) <= 1
    assert len(row["chosen_index"]) == 4 and not {place % 5 for place in row["chosen_index"]} - {0}
    assert row["explanation"]["model"] == "HolmesVAU-2B" and row["vision_frames"] == 10
    with Image.open(tmp_path / "out" / "explanation.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").resize((60, 40)).getcolors(2400)) > 20
    tags, words = read_page(tmp_path / "out" / "explanation.html")
    assert [values["src"][:22] for tag, values in tags if tag == "img"] == ["data:image/png;base64,"]
    assert "clip.mp4" in words and all(f"{place}" in words for place in row["chosen_index"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"explanation.{kind}" for kind in ("html", "json", "png")]


def test_the_toy_is_named_and_says_so(tmp_path, clip):
    done = run(clip, "--model", "toy", "--stride", 5, "--frames", 4, "--max-new-tokens", 6, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    _, words = read_page(tmp_path / "explanation.html")
    assert "toy" in done.output and words.count("[TOY") >= 1 and "toy" in words


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "toy", "--scorer", "none.pth"], "no weights at "),
        (["--model", "toy", "--scorer", "wide.pth"], "wide.pth reads features of 1024, the vision tower of "),
        (["--model", "toy", "--scorer", "half.pth"], "half.pth is refused: not plain tensors"),
        (["--model", "toy", "--scorer", "other.pth"], "other.pth does not fit AnomalyScorer"),
        (["--model", "nowhere/at/all", "--scorer", "wide.pth"], "nowhere/at/all"),
        (["--model", "data/toy_models/internvl"], "--scorer is needed"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, clip, arguments, line, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.save(published_scorer(1024), tmp_path / "wide.pth")
    whole = (tmp_path / "wide.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    arguments = [str(tmp_path / word) if word.endswith(".pth") else word for word in arguments]
    done = run(clip, *arguments, "--out", tmp_path / "out")
    message = (done.stderr or done.output).strip().splitlines()[-1]
    assert done.exit_code == 1 and line in message and message.startswith("vau: ") and not (tmp_path / "out").exists()


def test_the_model_must_be_named(clip):
    assert run(clip).exit_code == 2


def test_nothing_of_a_video_or_an_answer_becomes_markup(tmp_path, monkeypatch):
    evil = "</p><script>alert(1)</script><img src=x onerror=alert(2)> & \x1b[31m\n http://example.org"
    path = tmp_path / "<b onclick='x'>&.mp4"
    video.write_video(path, moving_square(20), fps=10)
    monkeypatch.setattr(inference, "generate", lambda vlm, samples, **options: [evil] * len(samples))
    vlm = tiny_vlm.tiny("internvl", sizes=SMALL).replace(name="<i>model</i>")
    explained = explain.explain_video(path, vlm, explain.random_scorer(32), num_frames=2, stride=4)
    paths = explain.write(explained, tmp_path / "out")
    tags, words = read_page(paths["html"])
    text = paths["html"].read_text()
    assert {tag for tag, _ in tags} <= set("html head meta title style body h1 h2 img p table tr th td dl dt dd".split())
    assert not any(
        name.startswith("on") or (name in ("src", "href") and not value.startswith("data:"))
        for _, v in tags
        for name, value in v.items()
    )
    assert "<script>alert(1)</script>" in words and "<b onclick='x'>&.mp4" in words and "\x1b" not in text
    assert json.loads(paths["json"].read_text())["explanation"]["judgement"] == evil


# Memory


def fixed_by_brightness(limit: float = 1.0) -> explain.Scorer:
    """A scorer of each frame alone, so that what was seen later changes no score: the first feature, squashed."""
    return explain.Scorer(lambda features: limit / (1 + np.exp(-4 * features[:, 0])), "a test's scorer")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (200, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    video.write_video(path, frames, fps=25, crf=10)
    return path


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_candidates_tokens_wait_in_the_models_number_format(long_video, family, dtype):
    vlm = tiny_vlm.tiny(family, sizes=SMALL)
    vlm.model.to(dtype)
    one = explain.VisionTower(vlm).encode_frames(video.read_frames(long_video, [0]))[1]
    assert one.dtype == dtype
    options = dict(num_frames=2, stride=1, max_new_tokens=3)
    found, again = (
        explain.explain_video(long_video, vlm, fixed_by_brightness(), reuse=reuse, **options) for reuse in (True, False)
    )
    most = explain.CANDIDATES * 2 + frame_features.BATCH_FRAMES
    assert found.token_bytes <= most * one.nbytes < 200 * one.nbytes and again.token_bytes == 0
    assert np.array_equal(found.chosen_index, again.chosen_index) and found.scores.tolist() == again.scores.tolist()
    assert found.explanation.judgement == again.explanation.judgement
    assert 200 <= found.vision_frames <= 201 and again.vision_frames == 202  # a chosen frame was a candidate, nearly always


def test_a_byte_limit_holds_too(long_video):
    """As large as Qwen's tokens of 1080p frames are: 11 MiB a frame, 2,691 tokens of 2,048 in bfloat16."""

    class Wide:
        def encode_frames(self, frames):
            return torch.from_numpy(frames).float().mean((1, 2)), torch.zeros(len(frames), 10, 100, dtype=torch.bfloat16)

    kept = frame_features.Candidates(1000, lambda features, count: np.arange(count), most_bytes=40_000)
    sampled = frame_features.FrameFeatures(long_video, Wide(), stride=1, candidates=kept)
    sampled.features()
    assert sampled.most_token_bytes <= 40_000 + frame_features.BATCH_FRAMES * 2000 < 200 * 2000
    assert sampled.tokens([3, 150]).shape == (2, 10, 100)


def test_a_chosen_frame_that_was_no_candidate_is_encoded_again(long_video):
    """Scores that turn round when the end is seen: what was kept is worthless, and the answer is right all the same."""
    vlm = tiny_vlm.tiny("internvl", sizes=SMALL)

    def turns(features):
        seen = 1 / (1 + np.exp(-4 * features[:, 0]))
        return 1 - seen if len(features) == 200 else seen

    options = dict(num_frames=2, stride=1, max_new_tokens=3, tau=0.0)
    found, again = (
        explain.explain_video(long_video, vlm, explain.Scorer(turns, "turns"), reuse=reuse, **options) for reuse in (True, False)
    )
    assert np.array_equal(found.chosen_index, again.chosen_index) and found.vision_frames == again.vision_frames == 202
    assert found.explanation.judgement == again.explanation.judgement


# The golden run


GOLDEN = [16, 144, 272, 400, 528, 832, 1008, 1168, 1600, 1904, 2144, 2720]  # frames printed by inference.ipynb, robbery.mp4, N = 12


def golden_scores(path) -> np.ndarray:
    """Read the 171 scores off the published figure: its axes span 0 to 1 and snippets 0 to 170 with matplotlib's 5 % margins."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    dark = (red < 60) & (green < 60) & (blue < 60)
    rows, columns = np.flatnonzero(dark.sum(1) > 300), np.flatnonzero(dark.sum(0) > 80)  # the frame of the axes
    curve = (blue - red > 60) & (blue > 120) & (red < 150)
    width = columns[-1] - columns[0]
    known = [(x, rows[-1] - np.flatnonzero(curve[:, x]).mean()) for x in range(pixels.shape[1]) if curve[:, x].any()]
    snippet = [((x - columns[0]) / width * 1.1 - 0.05) * 170 for x, _ in known]
    heights = np.array([height for _, height in known]) / (rows[-1] - rows[0])
    return np.interp(np.arange(171), snippet, heights).clip(0, 1)


@pytest.mark.real
def test_the_published_scores_choose_the_published_frames(real_data):
    """Through `explain_video` with the published sampler: each of the 12 frames within one snippet, most of them exact."""
    scores = golden_scores(real_data / "figures_reference" / "notebook_score_curve_robbery.png")
    (path,) = (real_data / "videos" / "demo").glob("*robbery*")
    vlm = tiny_vlm.tiny("internvl", sizes=SMALL)
    scorer = explain.Scorer(lambda features: scores[: len(features)], "read off the published figure")
    found = explain.explain_video(path, vlm, scorer, released=True, max_new_tokens=2)
    apart = np.abs(np.array(found.chosen_index) - GOLDEN)
    assert len(found.scores) == 171 and apart.max() <= 16 and (apart == 0).sum() >= 6


def test_a_scorer_without_training_is_called_random(tmp_path):
    tower = explain.VisionTower(tiny_vlm.tiny("internvl", sizes=SMALL))
    tensors = published_scorer(32)
    torch.save(tensors, tmp_path / "anomaly_scorer.pth")
    assert explain.load_scorer(tmp_path / "anomaly_scorer.pth", tower)[0].label == "scorer anomaly_scorer.pth"
    tensors |= {name: torch.ones(512) for name in tensors if name.endswith("norm.weight")}
    torch.save(tensors, tmp_path / "anomaly_scorer.pth")
    scorer, _ = explain.load_scorer(tmp_path / "anomaly_scorer.pth", tower)
    assert scorer.label == "scorer anomaly_scorer.pth (RANDOM weights)"
    torch.save(published_scorer(64), tmp_path / "tokens.pth")
    _, described = explain.load_scorer(tmp_path / "tokens.pth", tower)
    assert described.describe is explain.mean_and_max_tokens and artifacts.sha256(tmp_path / "tokens.pth")


def test_frames_are_smaller_and_scored_by_the_second(long_video):
    vlm = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
    tower = explain.VisionTower(vlm, max_pixels=28 * 28 * 4)  # frames of 32 x 32 become 4 tokens at most
    assert explain.stride_of(long_video, 5) == 5 and explain.stride_of(long_video, 100) == 1  # of 25 frames a second
    options = dict(num_frames=2, stride=explain.stride_of(long_video, 5), max_new_tokens=3)
    small = explain.explain_video(long_video, vlm, fixed_by_brightness(), tower=tower, **options)
    own = explain.explain_video(long_video, vlm, fixed_by_brightness(), **options)
    assert len(small.index) == len(own.index) == 40
    assert tower.encode_frames(video.read_frames(long_video, [0]))[1].shape[1] <= 4 < tiny_vlm.IMAGE_PX**2 // 28**2
    assert small.explanation.prompt_tokens < own.explanation.prompt_tokens
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        explain.stride_of(long_video, 0)
    with pytest.raises(ValueError, match="max_pixels is positive, for Qwen"):
        explain.VisionTower(tiny_vlm.tiny("internvl", sizes=SMALL), max_pixels=1000)
