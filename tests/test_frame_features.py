"""Each frame is seen once, a few at a time, and what it showed can be had again."""

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, InternVLVisionConfig, InternVLVisionModel

from vau_lib.data import video
from vau_lib.detectors import anomaly_scorer, frame_sampling
from vau_lib.features import frame_features, image_encoders, xfeat


class Counting:
    """An encoder whose rows say what it saw: mean and place of the brightest column; counts its calls."""

    def __init__(self):
        self.batches = []

    def encode_frames(self, frames):
        self.batches.append(len(frames))
        flat = torch.from_numpy(frames).float().mean((2, 3))  # (t, H)
        return torch.stack([flat.mean(1), flat.amax(1)], 1), None


@pytest.fixture(scope="module")
def tower() -> frame_features.TransformerEncoder:
    """A tiny CLIP tower with random weights: 9 patches and a class token, 16 wide."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return frame_features.TransformerEncoder(CLIPVisionModel(CLIPVisionConfig(image_size=24, patch_size=8, **sizes)), side=24)


def test_glances_are_one_frame_in_sixteen(clip):
    frame_feats = frame_features.FrameFeatures(clip, Counting())
    assert frame_feats.index.tolist() == [0, 16, 32, 48] and len(frame_feats) == 4  # ceil(50 / 16)
    assert frame_feats.times_s == pytest.approx([0, 0.64, 1.28, 1.92])


def test_rows_are_those_of_the_frames(clip):
    encoder = Counting()
    rows = frame_features.FrameFeatures(clip, encoder, stride=7).features()
    expected = encoder.encode_frames(video.read_frames(clip, range(0, 50, 7)))[0]
    assert np.array_equal(rows, expected.numpy()) and rows.dtype == np.float32


def test_a_cap_widens_the_stride(clip):
    frame_feats = frame_features.FrameFeatures(clip, Counting(), stride=2, cap=6)
    assert frame_feats.stride == 9 and len(frame_feats) == 6


def test_only_a_few_frames_are_held_at_a_time(clip):
    frame_feats = frame_features.FrameFeatures(clip, encoder := Counting(), stride=1)
    frame_feats.features()
    assert max(encoder.batches) == frame_features.BATCH_FRAMES and sum(encoder.batches) == frame_feats.frame_count == 50


def test_nothing_is_seen_twice(clip):
    frame_feats = frame_features.FrameFeatures(clip, Counting(), stride=4)
    some = frame_feats.features([5, 3, 5])
    every = frame_feats.features()
    assert frame_feats.frame_count == len(frame_feats) == 13 and np.array_equal(every[[5, 3, 5]], some)


def test_tokens_of_chosen_frames_are_reused(clip, tower, tmp_path):
    """With a file every frame goes through the tower once; without, the chosen ones go twice; the tokens are the same."""
    kept, again = (
        frame_features.FrameFeatures(clip, tower, stride=4, tokens_file=tmp_path / "tokens"),
        frame_features.FrameFeatures(clip, tower, stride=4),
    )
    assert np.array_equal(kept.features(), again.features())
    chosen = [1, 4, 4, 11]
    first, second = kept.tokens(chosen), again.tokens(chosen)
    assert first.shape == (4, 9, 16) and (kept.frame_count, again.frame_count) == (13, 17)
    torch.testing.assert_close(first, second)


def test_tokens_are_found_whatever_the_order_of_looking(clip, tower, tmp_path):
    there = frame_features.FrameFeatures(clip, tower, stride=3, tokens_file=tmp_path / "a")
    back = frame_features.FrameFeatures(clip, tower, stride=3, tokens_file=tmp_path / "b")
    back.features([16, 2])
    assert torch.allclose(there.tokens([2, 9, 16]), back.tokens([2, 9, 16]), atol=1e-5) and back.frame_count == 4 - 1


def test_what_is_kept_can_be_projected(clip, tower):
    half = frame_features.TransformerEncoder(tower.net, side=24, project=lambda patches: patches[:, :4, :2])
    assert frame_features.FrameFeatures(clip, half).tokens([0]).shape == (1, 4, 2)


def test_the_feature_is_the_class_token(clip, tower):
    frames = video.read_frames(clip, [0, 16])
    features, tokens = tower.encode_frames(frames)
    assert features.shape == (2, 16) and tokens.shape == (2, 9, 16)
    assert np.allclose(frame_features.FrameFeatures(clip, tower).features([0, 1]), features.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_internvl_s_tower_in_any_precision(clip, kind):
    """A toy of the class the language model's tower is: 4 patches of 14 x 14, random weights."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = InternVLVisionModel(InternVLVisionConfig(image_size=[28, 28], patch_size=[14, 14], **sizes)).to(kind)
    frame_feats = frame_features.FrameFeatures(clip, frame_features.TransformerEncoder(net, side=28))
    assert frame_feats.features().dtype == np.float32 and frame_feats.tokens([0, 1]).shape == (2, 4, 16)


def test_xfeat_describes_single_frames(clip):
    """Random weights: the rows of frame_feats are those of the frames one by one."""
    encoder = xfeat.XFeatEncoder("random", side=64, bfloat16=False)
    rows = frame_features.FrameFeatures(clip, encoder).features()
    assert rows.shape == (4, 128)
    assert np.allclose(rows[1:2], encoder(video.read_frames(clip, [16]), snippet_frames=1), atol=1e-4)


def test_an_encoder_without_tokens_says_so(clip, tmp_path):
    with pytest.raises(ValueError, match="Counting gives no visual tokens"):
        frame_features.FrameFeatures(clip, Counting(), tokens_file=tmp_path / "tokens").features()
    with pytest.raises(ValueError, match="Counting gives no visual tokens"):
        frame_features.FrameFeatures(clip, Counting()).tokens([0])


@pytest.mark.parametrize("places", [[4], [-1]])
def test_a_glance_outside_is_refused(clip, places):
    with pytest.raises(ValueError, match=rf"clip.mp4: sampled frame {places[0]} is outside its 4"):
        frame_features.FrameFeatures(clip, Counting()).features(places)


def test_a_wrong_encoder_is_refused(clip):
    class Broken:
        def encode_frames(self, frames):
            return torch.full((len(frames), 3), torch.nan), None

    with pytest.raises(ValueError, match=r"clip.mp4: Broken gave \(4, 3\)"):
        frame_features.FrameFeatures(clip, Broken()).features()


def test_a_stride_of_zero_is_refused(clip):
    with pytest.raises(ValueError, match="stride and cap must be 1 or more, got 0 and None"):
        frame_features.FrameFeatures(clip, Counting(), stride=0)


def test_a_missing_video_is_named(tmp_path):
    with pytest.raises(video.VideoError, match="nowhere.mp4: no such file"):
        frame_features.FrameFeatures(tmp_path / "nowhere.mp4", Counting())


@pytest.mark.real
def test_a_real_video_through_squeezenet(real_data):
    """Robbery102: 1,827 frames are 115 frame_feats; the rows are the network's own of those frames."""
    encoder = image_encoders.SqueezeNetEncoder(real_data / "weights" / image_encoders.SQUEEZENET_FILE)
    path = real_data / "videos" / "ucf_crime" / "Robbery102_x264.mp4"
    frame_feats = frame_features.FrameFeatures(path, encoder)
    assert len(frame_feats) == 115
    rows = frame_feats.features([0, 70, 114])
    expected = encoder.encode_frames(video.read_frames(path, [0, 70 * 16, 114 * 16]))[0].numpy()
    assert np.allclose(rows, expected, atol=1e-4) and frame_feats.frame_count == 3


@pytest.mark.real
def test_times_are_true_at_a_variable_rate(real_data):
    """earthquake.mp4 was filmed by a phone: a sampled frame's time is the container's, not frame over rate."""
    frame_feats = frame_features.FrameFeatures(real_data / "videos" / "demo" / "holmesvau_earthquake.mp4", Counting())
    assert np.array_equal(frame_feats.times_s, video.frame_times(frame_feats.path)[frame_feats.index])
    assert len(frame_feats) == 26 and len(np.unique(np.diff(frame_feats.times_s).round(6))) > 1  # 26 snippets: specification, 0


@pytest.mark.real
def test_a_real_video_from_file_to_frames(real_data):
    """Coarse to fine on robbery.mp4 (2,730 HEVC frames), SqueezeNet rows, a scorer with RANDOM weights: what is counted holds."""
    encoder = image_encoders.SqueezeNetEncoder(real_data / "weights" / image_encoders.SQUEEZENET_FILE, side=64)
    frame_feats = frame_features.FrameFeatures(real_data / "videos" / "demo" / "holmesvau_robbery.mp4", encoder)
    torch.manual_seed(0)
    scorer = anomaly_scorer.AnomalyScorer(anomaly_scorer.ScorerConfig(width=512, hidden=16, heads=2, head_width=4))

    def score_at(places):
        with torch.inference_mode():
            return scorer(torch.from_numpy(frame_feats.features(places))[None])[0].numpy()

    scores, looked = frame_sampling.coarse_to_fine(score_at, len(frame_feats))
    frames = frame_sampling.choose_frames(scores, frame_feats.num_frames, 12)
    assert len(scores) == 171 and frame_feats.frame_count == looked.sum() < 0.5 * 171
    assert len(set(frames.tolist())) == 12 and not (frames % 16).any() and frames.max() < 2730
