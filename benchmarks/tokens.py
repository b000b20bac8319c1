"""Token selection rules: recall of foreground tokens, and pre-fill time with pruned tokens as ratios within one run.

Features are averaged pixels, which need no weights. The synthetic scenes are degraded by noise, flicker and sway; their seeds took
no part in any choice. Ped2 is real and read where VAU_REAL_DATA names it. The model is transformers' Qwen2.5-VL at toy width with
random weights: times are real, answers mean nothing.
    python benchmarks/tokens.py [truth] [speed]
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vau_lib.compression import token_pruning, token_selection
from vau_lib.data import video
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import scenarios

FOREGROUND = 0.1  # a token is foreground when this fraction of its pixels is
SEEDS = range(900, 912)
KEEP_RATIOS = (0.1, 0.2, 0.3)
ROUNDS = 7
VIDEO, START, END = 500, 501, 502


def synthetic_scenes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield degraded frames and masks of a fixed camera, 64 frames each, with one event and few people."""
    for number, seed in enumerate(SEEDS):
        event = tuple(scenarios.EVENTS)[number % len(scenarios.EVENTS)]
        scenario = synthetic_dataset.scenario_for(
            seed, event=event, duration_s=8.0, fps=8.0, num_people=3, num_vehicles=1, difficulty="hard"
        )
        rendered = synthetic_dataset.render(scenario)
        yield token_selection.degrade_frames(rendered.frames, np.random.default_rng(seed)), rendered.masks


def sprites(seed: int, frames: int = 64, height: int = 224, width: int = 336) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and masks of a textured still room: a runner to and fro, a slow walker, a parcel put down."""
    rng = np.random.default_rng(seed)
    room = gaussian_filter(rng.uniform(40, 215, (height, width, 3)), (6, 6, 0))
    room = (room - room.mean()) * 3 + 120

    def texture(tall: int, wide: int) -> np.ndarray:
        return np.clip(rng.uniform(30, 225, 3) + gaussian_filter(rng.normal(0, 60, (tall, wide, 3)), (2, 2, 0)), 0, 255)

    objects = []  # image, left, pixels a frame, top, first frame
    for slowest, fastest in ((7, 10), (0.4, 0.9)):
        left, speed = rng.uniform(30, width - 100), rng.choice([-1, 1]) * rng.uniform(slowest, fastest)
        objects.append((texture(58, 26), left, speed, rng.uniform(20, height - 100), 0))
    put_down = int(rng.integers(frames // 4, frames // 2))
    objects.append((texture(28, 30), rng.uniform(20, width - 60), 0.0, rng.uniform(height / 2, height - 50), put_down))
    video_frames, masks = np.empty((frames, height, width, 3), np.uint8), np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        frame = room.copy()
        for number, (image, left, speed, top, first) in enumerate(objects, 1):
            tall, wide = image.shape[:2]
            place = (left + speed * t) % (2 * (width - wide))  # turns round at the walls
            x, y = int(min(place, 2 * (width - wide) - place)), int(top)
            if t >= first:
                frame[y : y + tall, x : x + wide], masks[t, y : y + tall, x : x + wide] = image, number
        video_frames[t] = np.clip(frame, 0, 255)
    return video_frames, masks


def rooms(count: int = 12) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield degraded rooms: noise, flicker, a swaying corner; about a tenth of the tokens are foreground."""
    for seed in range(count):
        frames, masks = sprites(seed)
        yield token_selection.degrade_frames(frames, np.random.default_rng(seed)), masks


def ped2(root: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames and pixel masks of the anomalies of the twelve test videos."""
    for path in sorted((root / "ucsd_ped2" / "pixel_masks").glob("*.npz")):
        with np.load(path, allow_pickle=False) as packed:
            masks = np.unpackbits(packed["packed"], axis=-1)[..., : packed["shape"][2]]
        yield video.read_frames(root / "ucsd_ped2/testing/frames" / path.stem, range(len(masks))), masks


def select(videos: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, dict]]:
    """Return per video its truth (T, H, W) and, per rule, the masks at each of KEEP_RATIOS."""
    result = []
    for frames, masks in videos:
        truth, tokens = token_selection.mask_coverage(masks) >= FOREGROUND, token_selection.pixel_tokens(frames)
        keep = {name: [rule(tokens, keep_ratio=r) for r in KEEP_RATIOS] for name, rule in token_selection.RULES.items()}
        raw = token_selection.pixel_tokens(frames, block_px=1)
        keep["EVS, raw pixels"] = [token_selection.evs(raw, keep_ratio=r) for r in KEEP_RATIOS]
        ideal = truth[..., None].astype(np.float32)
        ideal[0] = 2  # the first moment, then the truth: what no rule can beat
        order = np.argsort(-ideal.ravel(), kind="stable")
        counts = [token_selection.token_budget(truth.shape, r) for r in KEEP_RATIOS]
        keep["truth known"] = [np.isin(np.arange(truth.size), order[:n]).reshape(truth.shape) for n in counts]
        result.append((truth, keep))
    return result


def table(name: str, selections: list[tuple[np.ndarray, dict]]) -> None:
    """Print, per rule and keep ratio, the recall of foreground tokens over all videos' tokens."""
    foreground, size = sum(truth.sum() for truth, _ in selections), sum(truth.size for truth, _ in selections)
    print(f"{name}: {len(selections)} videos, {foreground / size:.1%} of {size} tokens are foreground")
    for rule in selections[0][1]:
        cells = []
        for place, keep_ratio in enumerate(KEEP_RATIOS):
            hits = sum((keep[rule][place] & truth).sum() for truth, keep in selections)
            used = sum(keep[rule][place].sum() for _, keep in selections)
            cells.append(f"{keep_ratio:.0%}: {hits / foreground:.3f} (used {used / size:.3f})")
        print(f"  {rule:28}", "  ".join(cells))


def toy() -> Qwen2_5_VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    text = dict(
        model_type="qwen2_5_vl_text", vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=8192, rope_parameters=rope,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    vision = dict(depth=4, hidden_size=128, intermediate_size=384, num_heads=4, out_hidden_size=256, fullatt_block_indexes=[3])
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, video_token_id=VIDEO, vision_start_token_id=START)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def quiet_video(moments: int = 20, side: int = 8) -> dict[str, torch.Tensor]:
    """Return a prompt with a still, noisy room, as the processor lays it out; one cell changes in moments 8 to 12."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(0, 0.5, (1, side * side, 4, 1176)), moments, 0) + rng.normal(
        0, 0.02, (moments, side * side, 4, 1176)
    )
    for moment in range(8, 13):
        rows[moment, 3 * side + moment - 8] += 1.5
    pixels = torch.from_numpy(rows.reshape(-1, 1176)).float()
    ids = torch.tensor([[5, 6, START, *[VIDEO] * moments * side * side, END, 7, 8]])
    grid = torch.tensor([[moments, 2 * side, 2 * side]])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        "pixel_values_videos": pixels, "video_grid_thw": grid, "second_per_grid_ts": torch.ones(1),
    }  # fmt: skip


@torch.inference_mode()
def speed() -> None:
    """Print pre-fill time relative to the model alone, medians of interleaved rounds, at keep ratios and both places to prune."""
    model, inputs = toy(), quiet_video()
    whole = int((inputs["input_ids"] == VIDEO).sum())
    runs = {("model alone", 1.0): model}
    for early in (False, True):
        for keep_ratio in (1.0, 0.5, 0.3, 0.1):
            name = "before the tower" if early else "after the tower"
            runs[name, keep_ratio] = token_pruning.prune_tokens(model, keep_ratio=keep_ratio, before_tower=early)
    seconds: dict = {key: [] for key in runs}
    for _ in range(ROUNDS + 1):
        for key, variant in runs.items():
            start = time.perf_counter()
            variant(**inputs, logits_to_keep=1)
            seconds[key].append(time.perf_counter() - start)
    alone = np.median(seconds["model alone", 1.0][1:])
    for (name, keep_ratio), times in seconds.items():
        variant = runs[name, keep_ratio]
        count = whole if variant is model else int((variant.token_mask & (inputs["input_ids"] == VIDEO)).sum())
        ratio = f"pre-fill x{np.median(times[1:]) / alone:.3f}"
        print(f"{name:22}{keep_ratio:5.0%}  {count:5d} of {whole} video tokens  {ratio}  (toy, random weights)")


def main() -> None:
    torch.set_num_threads(1)
    parts = sys.argv[1:] or ["truth", "speed"]
    if "truth" in parts:
        table("a room with a runner, a slow walker and a parcel, degraded", select(rooms()))
        selections = select(synthetic_scenes())
        table("synthetic scenes, degraded", selections)
        table("those with at most a tenth foreground", [item for item in selections if item[0].mean() <= 0.1])
        if root := os.environ.get("VAU_REAL_DATA"):
            table("UCSD Ped2, anomalies", select(ped2(Path(root))))
    if "speed" in parts:
        speed()


if __name__ == "__main__":
    main()
