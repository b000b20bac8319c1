"""Towers: the values transformers gives for the same pixels, rows by the released rules, weights never random by accident."""

import pickle
import re

import cv2
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from conftest import moving_square
from safetensors.torch import load_file, save_file

from vau_lib.data import video
from vau_lib.features import image_encoders
from vau_lib.workspace import artifacts

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {"image_size": 32, "patch_size": 16}
PIXELS = {"clip": image_encoders.CLIP_PIXELS, "siglip": ((0.5,) * 3, (0.5,) * 3)}  # SigLIP: -1 to 1


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No test asks the network: the hub is told so, and its cache and ours are empty folders."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("VAU_WEIGHTS", str(tmp_path / "weights"))


def made(kind: str) -> torch.nn.Module:
    torch.manual_seed(1)
    if kind == "clip":
        config = transformers.CLIPVisionConfig(**TINY, **SEEN, projection_dim=24)
        return transformers.CLIPVisionModelWithProjection(config).eval()
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY, **SEEN)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny CLIP and a tiny SigLIP tower on disk."""
    root = tmp_path_factory.mktemp("towers")
    for kind in PIXELS:
        made(kind).save_pretrained(root / kind)
    return root


def pictures(count: int, height: int = 37, width: int = 49) -> np.ndarray:
    """Frames of the size from which a tower of 32 pixels cuts its crops: 256 x 340 in proportion."""
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def direct(net: torch.nn.Module, seen: np.ndarray, mean: tuple, deviation: tuple) -> np.ndarray:
    """Return transformers' own features of frames (T, 32, 32, 3)."""
    values = torch.as_tensor((seen / 255.0 - mean) / deviation, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        output = net(pixel_values=values)
    return (output["image_embeds"] if "image_embeds" in output else output["pooler_output"]).numpy()


# Values


@pytest.mark.parametrize("kind", PIXELS)
def test_features_are_those_of_transformers_on_the_same_pixels(kind, folders):
    encoder, frames = image_encoders.CLIPEncoder(folders / kind), pictures(37)  # more than two batches
    expected = direct(made(kind), frames[:, 2:34, 8:40], *PIXELS[kind])  # the centre
    np.testing.assert_allclose(encoder.encode_frames(frames)[0].numpy(), expected, atol=2e-6)
    rows = encoder(frames)
    assert rows.shape == (2, encoder.width) == (2, {"clip": 24, "siglip": 32}[kind]) and rows.dtype == np.float16
    np.testing.assert_allclose(rows, [expected[:16].mean(0), expected[16:32].mean(0)], atol=1e-3)
    assert not np.allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=0.01)  # no L2 norm


def test_the_folder_says_what_pixels_it_wants(folders, tmp_path):
    save_to, frames = tmp_path / "own", pictures(2)
    made("clip").save_pretrained(save_to)
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.6, 0.7, 0.8]}
    expected = direct(made("clip"), frames[:, 2:34, 8:40], *own.values())
    for name, said in (("processor_config.json", {"image_processor": own}), ("preprocessor_config.json", own)):
        artifacts.write_json(save_to / name, said)
        encoder = image_encoders.CLIPEncoder(save_to)
        assert encoder.made_by()["pixels"] == list(own.values())
        np.testing.assert_allclose(encoder.encode_frames(frames)[0].numpy(), expected, atol=2e-6)
        (save_to / name).unlink()


def test_frames_are_resized_as_opencv_does(folders):
    frames = pictures(3, 120, 200)
    expected = np.stack([cv2.resize(frame, (49, 37), interpolation=cv2.INTER_LINEAR) for frame in frames])
    off = image_encoders.resized(frames, 37, 49).astype(int) - expected
    assert np.abs(off).max() <= 1 and abs(off.mean()) < 0.25  # cut off instead of rounded: -.38
    encoder = image_encoders.CLIPEncoder(folders / "clip")
    np.testing.assert_allclose(
        encoder.encode_frames(frames)[0], encoder.encode_frames(image_encoders.resized(frames, 37, 49))[0], atol=1e-6
    )


# Crops


def test_the_ten_crops_have_the_released_order():
    frames = pictures(1, 256, 340)
    corners = [(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]  # centre, top left, top right, bottom left, bottom right
    for which, (top, left) in enumerate(corners):
        cut = frames[:, top : top + 224, left : left + 224]
        np.testing.assert_array_equal(image_encoders.crop(frames, which), cut)
        np.testing.assert_array_equal(image_encoders.crop(frames, which + 5), cut[:, :, ::-1])


def test_ten_crops_are_the_mean_of_single_ones(folders):
    frames = pictures(4)
    alone = [
        image_encoders.CLIPEncoder(folders / "clip", crops=(which,)).encode_frames(frames)[0].numpy()
        for which in image_encoders.TEN_CROPS
    ]
    ten = image_encoders.CLIPEncoder(folders / "clip", crops=image_encoders.TEN_CROPS)
    np.testing.assert_allclose(ten.encode_frames(frames)[0], np.mean(alone, axis=0), atol=1e-6)
    assert min(np.abs(a - b).max() for a in alone for b in alone if a is not b) > 1e-3
    assert ten.made_by()["crops"] == list(range(10))


# Rows


@pytest.mark.parametrize("count, dropped, kept", [(1, 1, 1), (15, 1, 1), (16, 1, 1), (31, 1, 2), (32, 2, 2), (33, 2, 3)])
def test_the_trailing_part_is_dropped_but_never_all(count, dropped, kept, folders):
    frames = pictures(count)
    for drop_last, rows in ((True, dropped), (False, kept)):
        encoder = image_encoders.CLIPEncoder(folders / "clip", drop_last=drop_last)
        found, every = encoder(frames), encoder.encode_frames(frames)[0].numpy()
        expected = [every[start : start + 16].mean(0) for start in range(0, count, 16)][:rows]
        assert len(found) == rows
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    "make", [lambda f: image_encoders.CLIPEncoder(f / "clip"), lambda f: image_encoders.SqueezeNetEncoder("random", side=32)]
)
def test_batches_cut_anywhere_give_the_same_rows(make, folders):
    encoder, frames = make(folders), pictures(40)
    whole = np.stack(list(encoder.snippet_features([frames], 6)))
    assert len(whole) == (6 if encoder.drop_last else 7)
    for size in (1, 7, 16, 39):
        parts = [frames[start : start + size] for start in range(0, 40, size)]
        np.testing.assert_allclose(np.stack(list(encoder.snippet_features(parts, 6))), whole, atol=2e-3, rtol=1e-5)


def test_a_video_file_is_encoded_as_its_frames(folders, tmp_path):
    video.write_video(tmp_path / "clip.mp4", moving_square(70))
    frames = video.read_frames(tmp_path / "clip.mp4", range(70))
    for encoder in (image_encoders.CLIPEncoder(folders / "siglip"), image_encoders.SqueezeNetEncoder("random", side=32)):
        rows = np.stack(list(encoder.encode(tmp_path / "clip.mp4", 16)))
        assert len(rows) == (4 if encoder.name == "clip" else 5) and rows.dtype == encoder.dtype
        np.testing.assert_allclose(rows, encoder(frames), atol=2e-3, rtol=1e-5)


# Weights


def test_random_weights_only_when_asked_and_the_rows_say_so(folders):
    config, state = transformers.CLIPVisionConfig(**TINY, **SEEN, projection_dim=24), torch.get_rng_state()
    one, two = (image_encoders.CLIPEncoder(weights="random", config=config) for _ in range(2))
    sizes = image_encoders.CLIPEncoder(folders / "clip", weights="random")  # the folder's sizes, not its weights
    assert torch.equal(torch.get_rng_state(), state)
    assert one.made_by()["weights_sha256"] == sizes.made_by()["weights_sha256"] == "random"
    assert one.made_by()["model"] == "clip_vision_model 32 x 2 layers" and one.width == sizes.width == 24
    frames = pictures(2)
    np.testing.assert_array_equal(one.encode_frames(frames)[0], two.encode_frames(frames)[0])
    np.testing.assert_array_equal(one.encode_frames(frames)[0], sizes.encode_frames(frames)[0])
    real = image_encoders.CLIPEncoder(folders / "clip")
    assert real.made_by()["weights_sha256"] == artifacts.sha256(folders / "clip" / "model.safetensors")
    assert real.made_by()["model"] == "clip" and not np.allclose(
        real.encode_frames(frames)[0], one.encode_frames(frames)[0], atol=1e-3
    )


def test_a_whole_clip_with_its_text_tower_gives_the_same_tower(tmp_path):
    text = transformers.CLIPTextConfig(**TINY, vocab_size=50, projection_dim=24)
    seen = transformers.CLIPVisionConfig(**TINY, **SEEN, projection_dim=24)
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=24)).eval()
    whole.save_pretrained(tmp_path / "whole")
    frames = pictures(3)
    values = torch.as_tensor((frames[:, 2:34, 8:40] / 255.0 - PIXELS["clip"][0]) / PIXELS["clip"][1]).float()
    with torch.no_grad():
        expected = whole.visual_projection(whole.vision_model(values.permute(0, 3, 1, 2)).pooler_output)
    np.testing.assert_allclose(image_encoders.CLIPEncoder(tmp_path / "whole").encode_frames(frames)[0], expected, atol=2e-6)


def test_a_name_is_found_under_our_weights_and_in_the_hubs_cache(folders, tmp_path):
    expected = image_encoders.CLIPEncoder(folders / "clip").encode_frames(pictures(1))[0]
    made("clip").save_pretrained(tmp_path / "weights" / "some" / "tower")
    snapshot = tmp_path / "hub" / "models--other--tower" / "snapshots" / "abc"
    made("clip").save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    for encoder in map(image_encoders.CLIPEncoder, ("some/tower", "other/tower")):
        assert encoder.made_by()["model"] == "tower" and torch.equal(encoder.encode_frames(pictures(1))[0], expected)


def refusal(model, **options) -> str:
    """Return the one line with which a tower is refused."""
    with pytest.raises(artifacts.StoreError) as caught:
        image_encoders.CLIPEncoder(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("options", [{}, {"weights": "random"}])  # random weights need sizes too
def test_weights_that_are_nowhere_are_asked_for_by_name(options):
    said = refusal("nobody/nothing", **options)
    assert said.startswith("no weights nobody/nothing: put its config.json") and "VAU_WEIGHTS" in said


def test_a_missing_tensor_is_named(folders, tmp_path):
    for kind, tensor in (("clip", "visual_projection.weight"), ("siglip", "post_layernorm.bias")):
        made(kind).save_pretrained(tmp_path / kind)
        weights = load_file(tmp_path / kind / "model.safetensors")
        (name,) = [name for name in weights if name.endswith(tensor)]
        del weights[name]
        save_file(weights, tmp_path / kind / "model.safetensors", metadata={"format": "pt"})
        assert refusal(tmp_path / kind).startswith(f"{kind} lacks {name}; 1 such tensor")


def published(kind: str, folder):
    """Write a tiny whole model in the layout of the hub: both towers, numbers of places, projection_dim at the top only."""
    torch.manual_seed(2)
    seen, read = TINY | SEEN, TINY | {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=seen, text_config=read, projection_dim=24))
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=seen, text_config=read))
    model.save_pretrained(folder)
    places = {f"{half}_model.embeddings.position_ids": torch.arange(5)[None] for half in ("text", "vision")}
    changed(folder, lambda weights: weights | places)
    return model


def changed(folder, change) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


LAYER = "vision_model.encoder.layers.1."


@pytest.mark.parametrize("kind", PIXELS)
def test_a_published_folder_fits_to_the_last_tensor_or_is_one_line(kind, tmp_path):
    model = published(kind, tmp_path / kind)
    net = image_encoders.CLIPEncoder(tmp_path / kind).net  # whole, it loads, and holds the numbers of the whole model
    for name, value in net.state_dict().items():
        given = model.state_dict().get(name, model.state_dict().get(f"vision_model.{name}"))
        assert torch.equal(value, given), name
    faults = {
        "lacks .*; 16 such tensors": lambda w: {k: v for k, v in w.items() if not k.startswith(LAYER)},
        r"lacks .*layers\.1\..*; 16 such": lambda w: {k.replace("layers.1.", "layers.7."): v for k, v in w.items()},
        r"has .*fc1.weight of shape \(65, 32\), not \(64, 32\); 1 such": lambda w: (
            w | {LAYER + "mlp.fc1.weight": torch.zeros(65, 32)}
        ),
        r"has .*layers\.2\..*, which no .* has; 16 such": lambda w: (
            w | {k.replace("layers.1.", "layers.2."): v.clone() for k, v in w.items() if k.startswith(LAYER)}
        ),
        r"has adapter\.weight, which no": lambda w: w | {"adapter.weight": torch.zeros(2)},
    }
    for line, change in faults.items():
        published(kind, tmp_path / kind)
        changed(tmp_path / kind, change)
        assert re.search(line, refusal(tmp_path / kind)), refusal(tmp_path / kind)
    published(kind, tmp_path / kind)
    raw = (tmp_path / kind / "model.safetensors").read_bytes()
    for kept in (len(raw) // 2, len(raw) - 8, 8, 0):
        (tmp_path / kind / "model.safetensors").write_bytes(raw[:kept])
        assert "does not load as" in refusal(tmp_path / kind)


def test_another_kind_of_model_is_refused(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**TINY, **SEEN)).save_pretrained(tmp_path / "vit")
    headless = transformers.SiglipVisionConfig(**TINY, **SEEN, vision_use_head=False)
    transformers.SiglipVisionModel(headless).save_pretrained(tmp_path / "headless")
    assert "one of clip_vision_model, siglip_vision_model, with its head, got vit" in refusal(tmp_path / "vit")
    assert "with its head, got siglip_vision_model" in refusal(tmp_path / "headless")


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_broken_and_hostile_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "clip"
    made("clip").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "clip does not load as a CLIPVisionModelWithProjection" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == "clip: no weights, neither model.safetensors nor pytorch_model.bin"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"visual_projection.weight": Trap()}, protocol=2))
    assert "clip does not load" in refusal(folder) and not (tmp_path / "trapped").exists()
    torch.save(made("clip").state_dict(), folder / "pytorch_model.bin")
    assert image_encoders.CLIPEncoder(folder).weights == artifacts.sha256(folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "none such"}')
    assert refusal(folder).startswith("clip: ")


FRAMES = np.zeros((2, 37, 49, 3), np.uint8)


@pytest.mark.parametrize(
    "refused, said",
    [
        (lambda f: image_encoders.CLIPEncoder(f, weights="pretrained"), 'None, or "random" .* got \'pretrained\''),
        (lambda f: image_encoders.CLIPEncoder(f, config=object()), 'or "random" where a config is given, got None'),
        (lambda f: image_encoders.CLIPEncoder(f, crops=()), r"crops must be some of 0 to 9, got \(\)"),
        (lambda f: image_encoders.CLIPEncoder(f, crops=(10,)), r"got \(10,\)"),
        (lambda f: image_encoders.CLIPEncoder(f)(FRAMES.astype(np.float32)), r"uint8 \(T, H, W, 3\)"),
        (lambda f: image_encoders.CLIPEncoder(f)(FRAMES[:0]), r"T at least 1, got shape \(0, 37, 49, 3\)"),
        (lambda f: image_encoders.CLIPEncoder(f)(FRAMES, snippet_frames=0), "snippet_frames must be at least 1, got 0"),
        (lambda f: image_encoders.crop(FRAMES, 10), "a crop is 0 to 9, got 10"),
        (lambda f: image_encoders.crop(FRAMES[:, :, :40], 0), r"in proportion, got \(2, 37, 40, 3\)"),
        (lambda f: image_encoders.SqueezeNetEncoder("random", side=16), "at least 32 pixels, got 16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(refused, said, folders):
    with pytest.raises(ValueError, match=said):
        refused(folders / "clip")


# SqueezeNet


def test_squeezenet_is_never_random_by_accident(tmp_path):
    with pytest.raises(artifacts.StoreError, match="no weights squeezenet/"):
        image_encoders.SqueezeNetEncoder()
    encoder = image_encoders.SqueezeNetEncoder("random", side=64)
    rows = encoder(pictures(17))
    assert encoder.made_by() == {"encoder": "squeezenet", "weights_sha256": "random", "side": 64, "local_change": None}
    assert rows.shape == (2, 512) and rows.dtype == np.float32 and rows.min() >= 0 and rows.std() > 0
    np.testing.assert_allclose(rows[0], encoder.encode_frames(pictures(17))[0].numpy()[:16].mean(0), rtol=1e-5, atol=1e-6)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(artifacts.StoreError, match="other.pt does not fit SqueezeNet"):
        image_encoders.SqueezeNetEncoder(tmp_path / "other.pt")


@pytest.mark.real
@pytest.mark.parametrize("name", ["fi001", "nofi077", "nofi133"])
def test_squeezenet_reproduces_stored_rows(name, real_data):
    """Stored (fp16): 32 evenly spread frames, made elsewhere. Ours lie .6 to 1 % off; 227 pixels a side 15 to 19 %."""
    stored = np.load(real_data / "features" / "fight_surv_squeezenet_32x512.npz")
    reference = stored["x"][list(stored["names"]).index(name)].astype(np.float32)[::8]
    (path,) = (real_data / "fight_surv").glob(f"*/{name}.mp4")
    places = np.linspace(0, video.probe(path).num_frames - 1, 32).round().astype(int)[::8]
    encoder = image_encoders.SqueezeNetEncoder(real_data / "weights" / image_encoders.SQUEEZENET_FILE)
    found = encoder.encode_frames(video.read_frames(path, places))[0].numpy()
    assert np.linalg.norm(found - reference) / np.linalg.norm(reference) < 0.02


# local change of the last map


@pytest.mark.parametrize("name", ["SqueezeNetEncoder", "EfficientNetLiteEncoder"])
def test_local_change_is_that_of_the_last_map(name):
    """By loops: the change of every place at each lag, its longest places averaged, a snippet's mean on a log scale."""
    weights = "random" if name == "SqueezeNetEncoder" else None  # at random EfficientNet answers everything with zeros
    encoder = getattr(image_encoders, name)(weights, side=128, pooling="local_change", lags=(1, 3), top_fraction=0.2)
    frames = pictures(7)
    maps = torch.cat(list(encoder.maps(frames))).numpy()
    count, channels, height, width = maps.shape
    top, rows = max(1, round(0.2 * height * width)), []
    for t in range(count):
        row = []
        for lag in (1, 3):
            change = np.abs(maps[t] - maps[max(t - lag, 0)]).reshape(channels, -1).T  # a place a row
            longest = np.argsort(-np.linalg.norm(change, axis=1), kind="stable")[:top]
            row.append(change[longest].mean(0) if change.any() else np.zeros(channels))
        rows.append(np.concatenate(row))
    by_hand = [np.log(0.05 + np.mean(rows[first : first + 2], axis=0)) for first in range(0, 7, 2)]
    found = encoder(frames, snippet_frames=2)
    assert found.shape == (4, 2 * channels) and found.dtype == np.float32 and encoder.width == 2 * channels
    np.testing.assert_allclose(found, by_hand, atol=2e-4)
    assert found.std(0).max() > 0.01, "the pictures change"


def test_however_a_video_is_cut_its_local_change_is_the_same():
    encoder, frames = image_encoders.SqueezeNetEncoder("random", side=64, pooling="local_change"), pictures(23)
    whole = encoder(frames, snippet_frames=2)
    for sizes in ([7, 9, 7], [1] * 23, [22, 1]):
        parts = np.split(frames, np.cumsum(sizes)[:-1])
        np.testing.assert_allclose(np.stack(list(encoder.snippet_features(parts, 2))), whole, atol=5e-3)
    past, live = None, []
    for first in range(0, 23, 2):
        row, past = encoder.next_snippet(frames[first : first + 2], past)
        live.append(row)
    np.testing.assert_allclose(np.stack(live), whole, atol=5e-3)


def test_a_still_picture_has_the_least_local_change():
    encoder = image_encoders.SqueezeNetEncoder("random", side=64, pooling="local_change")
    still = np.repeat(pictures(1), 5, axis=0)
    np.testing.assert_allclose(encoder(still, snippet_frames=5), np.log(0.05), atol=1e-4)


def test_a_folder_says_that_it_holds_local_change():
    encoder = image_encoders.SqueezeNetEncoder("random", side=64, pooling="local_change", lags=(2,))
    assert encoder.made_by()["local_change"] == {"lags": [2], "top_fraction": 0.05}
    with pytest.raises(ValueError, match="single frames have no local_change"):
        encoder.encode_frames(pictures(2))
    with pytest.raises(ValueError, match="one of pooled, local_change, got 'mean'"):
        image_encoders.EfficientNetLiteEncoder("random", pooling="mean")


def test_bfloat16_is_near_and_part_of_what_features_are(folders):
    frames = pictures(5)
    plain = image_encoders.CLIPEncoder(folders / "clip", device="cpu")
    half = image_encoders.CLIPEncoder(folders / "clip", device="cpu", bfloat16=True)
    (one, _), (other, _) = plain.encode_frames(frames), half.encode_frames(frames)
    apart = float((one - other).norm() / one.norm())
    assert 0 < apart < 0.02 and other.dtype == torch.float32
    assert (plain.made_by()["bfloat16"], half.made_by()["bfloat16"]) == (None, True)
