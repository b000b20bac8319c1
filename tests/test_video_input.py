"""Video input: frames and tokens follow from a processor's configuration; the arithmetic is done here again."""

import json
import math

import numpy as np
import pytest
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from vau_lib import cli_models, guard
from vau_lib.data import video
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, video_input

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def qwen():
    return tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)


def grid_tokens(height: int, width: int, frames: int, longest: int, *, shared: int) -> int:
    """Return visual tokens: sides to whole tokens of 28 pixels within an area, one grid for every `shared` frames."""
    rows, columns = round(height / 28), round(width / 28)
    if rows * columns * 28**2 > longest:
        shrink = math.sqrt(height * width / longest)
        rows, columns = math.floor(height / shrink / 28), math.floor(width / shrink / 28)
    return rows * columns * math.ceil(frames / shared)


def visual(vlm, sample) -> int:
    return sum(int((sample["input_ids"] == token).sum()) for token in vlm.visual_token_ids)


def test_sixteen_frames_of_1080p_are_eight_times_fewer_tokens_as_video():
    """Processors alone, with the area of Qwen2.5-VL's preprocessor_config.json (12,845,056) for pictures, the class's for video."""
    pictures = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12_845_056})
    grids = pictures(images=[np.zeros((1080, 1920, 3), np.uint8)], return_tensors="pt")["image_grid_thw"]
    assert 16 * int(grids.prod(1).sum()) // 4 == grid_tokens(1080, 1920, 16, 12_845_056, shared=1) == 43_056
    films = Qwen2VLVideoProcessor(cap_pixels_per_frame=True)
    grid = films(videos=[np.zeros((16, 1080, 1920, 3), np.uint8)], return_tensors="pt", do_sample_frames=False)["video_grid_thw"]
    assert int(grid.prod()) // 4 == grid_tokens(1080, 1920, 16, 768 * 28**2, shared=2) == 5_760  # with text 43,311 and 5,796


@pytest.mark.parametrize("max_pixels", [28 * 28 * 4, 28 * 28 * 30, None])
@pytest.mark.parametrize("frames", [4, 5])
def test_tokens_of_a_prompt_are_those_of_the_grid(qwen, frames, max_pixels):
    shown = np.random.default_rng(0).integers(0, 255, (frames, 140, 196, 3), np.uint8)
    own = tiny_vlm.IMAGE_PX**2
    for as_video in (False, True):
        sample = chat.encode(qwen, shown, "What?", times_s=np.arange(frames) / 2, as_video=as_video, max_pixels=max_pixels)
        wanted = grid_tokens(140, 196, frames, max_pixels or own, shared=2 if as_video else 1)
        assert visual(qwen, sample) == wanted, (as_video, max_pixels)


@pytest.mark.parametrize(
    ("duration_s", "there", "given", "count"),
    [
        (10.0, 250, {}, 20),  # two a second
        (10.5, 250, {}, 20),  # 21 is no whole number of pairs
        (1.0, 25, {}, 4),  # the fewest
        (10_000.0, 250_000, {}, 768),  # the most
        (10.0, 250, {"fps": 1.0}, 10),
        (10.0, 250, {"fps": 8.0, "max_frames": 31}, 30),
        (10.0, 15, {"fps": 8.0}, 14),  # no more than there are
        (10.0, 250, {"num_frames": 16}, 16),
        (0.04, 1, {}, 2),  # one frame twice
    ],
)
def test_frames_by_the_second_within_the_models_own_limits(qwen, duration_s, there, given, count):
    times = video_input.sample_times(duration_s, there, video_input.defaults(qwen, **given))
    assert len(times) == count and times[0] == 0 and times[-1] < duration_s
    assert np.allclose(np.diff(times), duration_s / count)


def test_the_models_own_configuration_is_the_default(qwen):
    own = video_input.defaults(qwen)
    assert (own.min_frames, own.max_frames, own.patch_frames, own.max_pixels) == (4, 768, 2, None)
    with pytest.raises(ValueError, match="reads frames as pictures, not videos"):
        video_input.defaults(tiny_vlm.tiny("internvl", sizes=SMALL))
    for wrong in (dict(fps=0.0), dict(max_frames=1), dict(max_pixels=0)):
        with pytest.raises(ValueError, match="must be positive"):
            video_input.defaults(qwen, **wrong)


def test_a_film_of_uneven_frames_is_read_by_its_clock(qwen, tmp_path):
    path = tmp_path / "clip.mp4"
    frames = np.repeat(np.arange(0, 250, 5, dtype=np.uint8), 64 * 64 * 3).reshape(50, 64, 64, 3)
    video.write_video(path, frames, fps=25)
    shown, times_s = video_input.read(path, video_input.defaults(qwen, fps=8.0))  # 3.125 frames from one to the next
    assert times_s.tolist() == pytest.approx([k / 8 for k in range(16)])
    wanted = [int(k / 8 * 25 + 1e-6) for k in range(16)]  # what is on screen then
    assert np.abs(shown.mean((1, 2, 3)) / 5 - wanted).max() < 0.6
    chat.encode(qwen, shown, "What?", times_s=times_s, as_video=True)


def test_guard_shows_a_film_by_the_second_and_its_own_seconds_in_windows(qwen, tmp_path):
    path = tmp_path / "clip.mp4"
    video.write_video(path, np.random.default_rng(1).integers(0, 255, (60, 64, 64, 3), np.uint8), fps=10)
    plan = guard.GuardPlan(as_video=True, fps=2.0, max_new_tokens=2, question="What?")
    (row,) = guard.guard(qwen, path, plan=plan, log=None, progress=False)
    assert row["frames"] == 12 and row["times_s"] == [k / 2 for k in range(12)] and row["asked"]["max_frames"] == 768
    halves = guard.GuardPlan(as_video=True, fps=2.0, max_new_tokens=2, question="What?", window_s=3.0)
    (row,) = guard.guard(qwen, path, plan=halves, log=None, progress=False)
    assert row["frames"] == 12 and row["times_s"] == [k / 2 for k in range(12)] and len(row["windows"]) == 2
    tuned = guard.GuardPlan(as_video=True, max_new_tokens=2, question="What?")
    (row,) = guard.guard(qwen.replace(num_frames=6), path, plan=tuned, log=None, progress=False)
    assert row["frames"] == 6, "as many as in its tuning, unless frames per second are asked for"
    with pytest.raises(ValueError, match="fps and max_frames are of video input"):
        guard.guard(qwen, path, plan=guard.GuardPlan(fps=2.0), log=None, progress=False)


def test_frames_go_in_as_video_where_a_model_can_unless_its_tuning_was_otherwise(qwen, tmp_path):
    """For guard, tune and reinforce alike: --video or --pictures, else the adapter's own way, else video."""
    pictures_only = tiny_vlm.tiny("internvl", sizes=SMALL)
    assert cli_models._as_video(qwen, None) and not cli_models._as_video(pictures_only, None)
    assert not cli_models._as_video(qwen, False) and cli_models._as_video(pictures_only, True)  # refused later, with its reason
    assert not cli_models._as_video(qwen.replace(question="Odd?"), None), "tuned, and not known to be on video"
    for tuned_so in (True, False):
        (tmp_path / "made_by.json").write_text(json.dumps({"as_video": tuned_so}))
        assert cli_models._as_video(qwen, None, tmp_path) is tuned_so
        asked = qwen.replace(question="Odd?")  # a whole model that was tuned says so itself, beside an adapter that says nothing
        assert cli_models._as_video(asked, None, model=tmp_path) is tuned_so
        assert cli_models._as_video(asked, None, tmp_path / "adapter", tmp_path) is tuned_so


def test_the_kept_model_of_near_places_is_shown_a_video_of_as_many_frames_as_in_its_tuning():
    """As twelve pictures it answers words without sense."""
    vlm, as_video = cli_models._guard_model(cli_models.TOY_NEAR, None, None, pictures=False, video=False)
    assert as_video and vlm.num_frames == 24
