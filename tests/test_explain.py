"""A video goes from file to figure; what a sampled frame showed is not looked at again; bad input is one clear line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_square

from vau_lib import explain
from vau_lib.data import hivau, records, video
from vau_lib.features import frame_features
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, inference, models

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
KEPT = Path(__file__).parents[1] / "data" / "toy_models" / "internvl"


@pytest.fixture(scope="module", params=models.FAMILIES)
def any_twin(request):
    return tiny_vlm.tiny(request.param, sizes=SMALL)


@pytest.fixture(scope="module")
def toy_vlm():
    return tiny_vlm.tiny("internvl", sizes=SMALL)


def fixed(scores) -> explain.Scorer:
    """A scorer that gives these scores, whatever the features."""
    return explain.Scorer(lambda features: np.asarray(scores, float), "fixed scores")


def explain_clip(path, vlm, scorer, **options) -> explain.ExplainedVideo:
    return explain.explain_video(path, vlm, scorer, **({"num_frames": 4, "stride": 5, "max_new_tokens": 4} | options))


# What is shown is what was seen


def test_a_record_holds_every_glance_and_what_was_shown(any_twin, clip):
    scores = [0.0] * 4 + [1.0] * 2 + [0.0] * 4
    found = explain_clip(clip, any_twin, fixed(scores), tau=0.0)
    assert found.index.tolist() == list(range(0, 50, 5)) and found.scores.tolist() == scores
    assert {20, 25} <= set(found.chosen_index) and len(set(found.chosen_index)) == 4
    assert found.explanation.times_s == tuple(video.frame_times(clip)[found.chosen_index].round(3))
    assert found.times_s == pytest.approx(found.index / 25)
    assert set(found.seconds) == {"features", "score", "sample", "encode", "ask"} and min(found.seconds.values()) >= 0
    row = json.loads(json.dumps(found.as_row()))
    assert row["path"] == clip.name and row["scores"] == scores


def test_tokens_kept_are_the_tokens_the_model_makes_itself(any_twin, clip):
    """Of the frame_feats in batches, through a file, against `chat.visual_tokens` of the chosen frames' own prompt."""
    frames = video.read_frames(clip, [10, 35])
    own = chat.visual_tokens(any_twin, chat.encode(any_twin, frames, "What?"))
    _, tokens = explain.VisionTower(any_twin).encode_frames(video.read_frames(clip, range(0, 50, 5)))
    assert torch.allclose(tokens[[2, 7]], torch.stack(list(own)), atol=1e-5)


def test_reuse_encodes_each_frame_once_and_answers_the_same(any_twin, clip):
    scores = np.linspace(0, 1, 10)
    kept, again = (explain_clip(clip, any_twin, fixed(scores), reuse=reuse) for reuse in (True, False))
    assert (kept.vision_frames, again.vision_frames) == (10, 14)
    assert np.array_equal(kept.chosen_index, again.chosen_index)
    for name in ("judgement", "description", "analysis"):
        assert getattr(kept.explanation, name) == getattr(again.explanation, name)


def test_the_tower_is_not_called_beyond_the_sampled_frames(toy_vlm, clip):
    """Counted at the tower itself: ten frame_feats in one batch of 16 are one call, and none for three questions."""
    calls = []
    hook = toy_vlm.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        explain_clip(clip, toy_vlm, fixed(np.linspace(0, 1, 10)))
    finally:
        hook.remove()
    assert len(calls) == 1


def test_a_short_video_shows_frames_that_were_no_sampled_frames(toy_vlm, clip):
    """50 frames at stride 16, twelve asked: even frames of all of it, encoded beside the 4 frame_feats."""
    found = explain_clip(clip, toy_vlm, fixed([0.2] * 4), stride=16, num_frames=12)
    assert len(set(found.chosen_index)) == 12 and found.vision_frames == 4 + 12


def test_a_cap_bounds_what_is_looked_at(toy_vlm, clip):
    found = explain_clip(clip, toy_vlm, fixed([0.5] * 5), stride=1, cap=5, num_frames=3)
    assert len(found.index) == found.vision_frames == 5


def test_rows_can_be_described_otherwise(toy_vlm, clip):
    tower = explain.VisionTower(toy_vlm, describe=explain.mean_and_max_tokens)
    rows, (_, tokens) = (
        frame_features.FrameFeatures(clip, tower, stride=10).features(),
        tower.encode_frames(video.read_frames(clip, range(0, 50, 10))),
    )
    mean, most = np.split(rows, 2, axis=1)
    assert np.allclose(mean, tokens.mean(1), atol=1e-5) and (most >= mean).all() and np.isin(most, tokens).mean() > 0.9


def test_an_untrained_scorer_says_so_and_is_the_same_every_time(toy_vlm, clip):
    torch.manual_seed(1)
    outside = torch.rand(1)
    torch.manual_seed(1)
    first, again = (explain_clip(clip, toy_vlm, explain.random_scorer(32)) for _ in range(2))
    assert "RANDOM" in first.label and "toy" in first.label and np.array_equal(first.scores, again.scores)
    assert torch.equal(torch.rand(1), outside)


# Figures


def drawn_times(figure) -> list[float]:
    """Return where the ticks stand that tie pictures to the time line."""
    lines = figure.axes[0].lines
    return [line.get_xdata()[0] for line in lines if len(line.get_xdata()) == 2]


def test_a_figure_shows_the_frames_the_curve_and_the_answers(toy_vlm, clip):
    scores = [0.0] * 4 + [1.0] * 2 + [0.0] * 4
    found = explain_clip(clip, toy_vlm, fixed(scores))
    figure = explain.figure(found)
    curve = figure.axes[0].lines[0]
    at = dict(zip(curve.get_xdata().round(3), curve.get_ydata(), strict=True))
    assert all(value == 1 for time, value in at.items() if 0.81 < time < 1.19)  # frame_feats 4 and 5 until the next, 0.8-1.2 s
    assert all(value == 0 for time, value in at.items() if time < 0.79 or time > 1.21)
    assert len(figure.axes) == 1 + 4 and drawn_times(figure) == list(found.explanation.times_s)
    assert figure.get_suptitle().startswith("[TOY, RANDOM] clip.mp4")  # random weights of the toy
    for name in ("judgement: ", "description: ", "analysis: ", "by tiny-internvl (toy, random weights); fixed scores"):
        assert name in figure.get_supxlabel()


def test_a_single_frame_is_a_figure_too(toy_vlm, tmp_path):
    path = tmp_path / "one.mp4"
    video.write_video(path, moving_square(1), fps=25)
    assert len(explain.figure(explain_clip(path, toy_vlm, fixed([0.3]), num_frames=1)).axes) == 2


@pytest.mark.real
@pytest.mark.parametrize("name", ["robbery", "earthquake", "car_accident"])
def test_real_videos_go_from_file_to_figure(real_data, name, tmp_path):
    """TOY model, RANDOM scorer: what is true of it are frames, times and labels. The earthquake has a variable rate."""
    (path,) = (real_data / "videos" / "demo").glob(f"*{name}*")
    vlm = models.load(KEPT, local_only=True)
    found = explain.explain_video(path, vlm, explain.random_scorer(64), max_new_tokens=24)
    container = video.frame_times(path)
    assert len(set(found.chosen_index)) == 12 and np.array_equal(found.times_s, container[found.index])
    assert found.explanation.times_s == pytest.approx(container[list(found.chosen_index)], abs=1e-3)
    frame_feats = -(-len(container) // 16)
    assert found.vision_frames == frame_feats + (12 if frame_feats <= 12 else 0)
    if name == "earthquake":  # places over the mean rate are elsewhere
        even = np.array(found.chosen_index) / video.probe(path).fps
        assert np.abs(np.array(found.explanation.times_s) - even).max() > 0.01
    figure = explain.figure(found)
    assert drawn_times(figure) == list(found.explanation.times_s) and len(figure.axes) == 13
    assert figure.get_suptitle().startswith("[TOY, RANDOM]") and "RANDOM weights" in figure.get_supxlabel()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("judgement", "title", "caption"),
    [
        ("", "no judgement in the answer", "judgement: (the model answered nothing)"),
        ("No anomaly exists in the video.", "judged normal", "analysis: (not asked: nothing to explain)"),
        ("An anomaly exists.", "judged anomalous", "analysis: (the model answered nothing)"),
    ],
)
def test_an_empty_answer_is_called_empty(toy_vlm, clip, monkeypatch, judgement, title, caption):
    """Answers replayed in place of generating; two of the three say nothing."""
    monkeypatch.setattr(inference, "generate", lambda vlm, samples, **options: [judgement, ""] if len(samples) == 2 else [""])
    figure = explain.figure(explain_clip(clip, toy_vlm, fixed([0.5] * 10)))
    assert title in figure.get_suptitle() and caption in figure.get_supxlabel()
    assert "description: (the model answered nothing)" in figure.get_supxlabel()


# Bad input: one clear line each


def line_of(error) -> str:
    said = str(error.value)
    assert said and "\n" not in said
    return said


def test_a_missing_video_is_named(toy_vlm, tmp_path):
    with pytest.raises(video.VideoError) as error:
        explain_clip(tmp_path / "nowhere.mp4", toy_vlm, fixed([0.5]))
    assert "nowhere.mp4: no such file" in line_of(error)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.5] * 9 + [np.nan], r"clip.mp4: scores must lie in [0, 1], got nan at place 9"),
        ([1.5] + [0.5] * 9, r"clip.mp4: scores must lie in [0, 1], got 1.5 at place 0"),
        ([0.5] * 9, "clip.mp4: 50 frames at stride 5 have 10 scores, got 9"),
        ([[0.5] * 10], "clip.mp4: scores must be (T,) with T at least 1, got shape (1, 10)"),
    ],
)
def test_scores_that_are_none_name_the_video(toy_vlm, clip, scores, said):
    with pytest.raises(ValueError) as error:
        explain_clip(clip, toy_vlm, fixed(scores))
    assert line_of(error) == said


def test_all_zero_scores_are_even_frames(toy_vlm, clip):
    zero, flat = (explain_clip(clip, toy_vlm, fixed([value] * 10)) for value in (0.0, 0.7))
    assert np.array_equal(zero.chosen_index, flat.chosen_index) and set(zero.scores) == {0.0}
    gaps = np.diff(zero.chosen_index)
    assert gaps.max() - gaps.min() <= 5


def test_more_frames_than_exist_is_one_line(toy_vlm, tmp_path):
    path = tmp_path / "short.mp4"
    video.write_video(path, moving_square(3), fps=25)
    with pytest.warns(UserWarning, match="^5 frames asked of 3, some repeat$"):
        found = explain_clip(path, toy_vlm, fixed([0.5]), num_frames=5)
    assert set(found.chosen_index) == {0, 1, 2} and len(found.chosen_index) == 5


def test_more_frames_than_the_model_takes_are_refused(toy_vlm, clip):
    with pytest.raises(ValueError) as error:
        explain_clip(clip, toy_vlm, fixed([0.5] * 50), stride=1, num_frames=40)
    assert line_of(error) == "40 frames are more than max_frames=32: choose fewer"


def test_a_prompt_beyond_the_context_is_refused(clip):
    short = tiny_vlm.tiny("internvl", sizes=tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, context=64))
    with pytest.raises(ValueError) as error:
        explain_clip(clip, short, fixed([0.5] * 10))
    assert "4 frames and the question need" in line_of(error) and "has 64: take fewer frames" in line_of(error)


def test_a_model_without_its_tokens_is_refused(toy_vlm):
    class Closed:
        pass

    with pytest.raises(ValueError) as error:
        explain.VisionTower(toy_vlm.replace(model=Closed()))
    assert line_of(error) == "tiny-internvl (internvl) does not give its visual tokens"


GOOD = {"id": 1, "type": "clip", "task": "caption", "video": "ucf-crime/clips/test/A_E0C0.mp4", "prompt": "What?"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": 2, "type"', "line 2: broken json"),
        (json.dumps(GOOD | {"id": 2, "task": "poem", "anwser": "So."}), "got task 'poem'"),
        (json.dumps(GOOD | {"id": 2, "anwser": ""}), "answer is empty"),
    ],
)
def test_a_bad_instruction_is_a_numbered_line_and_the_rest_goes_on(line, said, tmp_path):
    path, good = tmp_path / "rows.jsonl", [json.dumps(GOOD | {"id": n, "anwser": "So."}) for n in (1, 3)]
    path.write_text("\n".join([good[0], line, good[1]]))
    found = hivau.hivau_instructions(path)
    assert [row.id for row in found] == ["1", "3"]
    (problem,) = found.problems
    assert problem.startswith("rows.jsonl line 2") and said in problem and "\n" not in problem
    with pytest.raises(records.RecordError) as error:
        hivau.hivau_instructions(path, strict=True)
    assert line_of(error) == problem
