"""What do scoring and choosing cost, and does memory stay flat? One run, ratios.

- frame features: resident memory during a video, short and eight times as long; vision calls with tokens kept and as released
- scorer at the paper's size: seconds and peak memory, ours against the same attention with (T, T) matrices in full (a stand-in
  of equal results, written here)
- sampler: microseconds beside numpy's cumsum of the same length; samplers on real annotations where VAU_REAL_DATA is set, with
  intervals over videos of intended minus released
    python benchmarks/ats.py [--hour]    looks at a whole hour of video instead, by the steps of `vau explain` up to the tokens
"""

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import timing
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from vau_lib import explain
from vau_lib.data import video
from vau_lib.detectors import anomaly_scorer, frame_sampling
from vau_lib.evaluation import metrics, online_metrics
from vau_lib.features import frame_features
from vau_lib.workspace import artifacts

COUNTS = (8, 12, 16, 32)


class Peak:
    """Measure seconds, and by how much resident memory rose at most, of what runs inside."""

    def __enter__(self) -> "Peak":
        self.before, self.most, self.running = online_metrics.resident_bytes(), 0, True
        self.watcher = threading.Thread(target=self._watch)
        self.started = time.perf_counter()
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, online_metrics.resident_bytes())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.seconds, self.running = time.perf_counter() - self.started, False
        self.watcher.join()
        self.mb = (self.most - self.before) / 2**20


def frames(count: int) -> Iterator[np.ndarray]:
    """Yield noise that drifts, 240 x 320, without holding a video."""
    still = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    for place in range(count):
        yield np.roll(still, place, axis=1)


def tower(width: int = 64, patch: int = 16) -> frame_features.TransformerEncoder:
    """A small CLIP tower with RANDOM weights: 196 patches, or 49 of 32 x 32 pixels."""
    sizes = {"hidden_size": width, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    net = CLIPVisionModel(CLIPVisionConfig(image_size=224, patch_size=patch, **sizes))
    return frame_features.TransformerEncoder(net, side=224)


def look(scratch: Path) -> None:
    print("\nLooking at a video, one frame in 16 (random tower, 320 x 240 noise)")
    encoder = tower()
    frame_features.FrameFeatures(_film(scratch, 200), encoder).features()  # warm-up
    for count in (800, 6400):
        film = _film(scratch, count)
        video.frame_times(film)
        for name, tokens in (("tokens kept", scratch / "tokens"), ("encoded again", None)):
            with Peak() as peak:
                frame_feats = frame_features.FrameFeatures(film, encoder, tokens_file=tokens)
                frame_feats.features()
                frame_feats.tokens(frame_sampling.uniform_sample(len(frame_feats), 12))
            size = tokens.stat().st_size / 2**20 if tokens else 0
            print(
                f"  {count:5} frames, {name:13}: {len(frame_feats):3} sampled frames, {frame_feats.frame_count:3} vision calls, "
                f"resident +{peak.mb:5.1f} MB, on disk {size:5.1f} MB, {peak.seconds:5.2f} s"
            )


def hour(scratch: Path) -> None:
    """Look at an hour, score it, choose twelve frames and have their tokens: seconds, encodes, memory by quarters of the hour."""
    film, encoder, scorer = scratch / "hour.mp4", tower(1024, 32), explain.random_scorer(1024)
    video.write_video(film, (frame[::2, ::2] for frame in frames(3600 * 30)), crf=40)
    frame_features.FrameFeatures(_film(scratch, 200), encoder).features()  # warm-up
    for name, kept in (("encoded again", None), ("candidates' tokens kept", explain.candidates(scorer, 12, 0.1))):
        with Peak() as peak:
            sampled, moments = frame_features.FrameFeatures(film, encoder, candidates=kept), [time.process_time()]
            resident = [online_metrics.resident_bytes()]
            for quarter in np.array_split(np.arange(len(sampled)), 4):
                sampled.features(quarter)
                resident.append(online_metrics.resident_bytes())
            moments.append(time.process_time())
            scores = scorer.score(sampled.features())
            moments.append(time.process_time())
            sampled.tokens(np.unique(frame_sampling.density_aware_sample(scores, 12)))
            moments.append(time.process_time())
        looking, scoring, choosing = np.diff(moments)
        print(f"  {name}: {len(sampled)} of {sampled.num_frames} frames sampled, {sampled.frame_count} encoded")
        print(f"    CPU time: looking {looking:.1f} s, scoring {scoring:.1f} s, choosing twelve and their tokens {choosing:.2f} s")
        grown = ", ".join(f"{value / 2**20:+.0f}" for value in np.diff(resident))
        kept_mb = sampled.most_token_bytes / 2**20
        print(
            f"    resident +{peak.mb:.0f} MB at most, by quarters of looking {grown} MB; tokens kept {kept_mb:.0f} MB", flush=True
        )


def _film(scratch: Path, count: int) -> Path:
    path = scratch / f"{count}.mp4"
    if not path.exists():
        video.write_video(path, frames(count), crf=40)
    return path


def full_attention(self: anomaly_scorer.Attention, x: torch.Tensor) -> torch.Tensor:
    """Attend with whole matrices, as the reference does: the same numbers, (T, T) memory."""
    parts = self.to_qkv(self.norm(x)).chunk(4, dim=-1)
    query, key, value, nearby = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
    alike = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    place = torch.arange(x.shape[1])
    near = (-(place[:, None] - place).abs() / math.e).exp()
    near = (near / near.sum(-1)).expand_as(alike)
    return self.out(torch.cat([alike @ value, near @ nearby], -1).transpose(1, 2).flatten(2))


def score() -> None:
    print("\nScorer at the paper's size, 6,492,929 parameters, one thread")
    scorer, ours = anomaly_scorer.AnomalyScorer().eval(), anomaly_scorer.Attention.forward
    for rows in (200, 2000, 6750):
        x, found = torch.randn(1, rows, 1024), {}
        for name, way in (("ours", ours), ("whole matrices", full_attention)):
            anomaly_scorer.Attention.forward = way
            with torch.inference_mode(), Peak() as peak:
                found[name] = scorer(x)
            print(f"  {rows:5} rows, {name:14}: {peak.seconds:6.2f} s, resident +{peak.mb:6.0f} MB")
        anomaly_scorer.Attention.forward = ours
        print(f"        largest difference {(found['ours'] - found['whole matrices']).abs().max():.1e}")


def choose() -> None:
    print("\nSampler, 12 frames, median of 200")
    for rows in (100, 6750):
        scores = np.random.default_rng(0).random(rows) ** 4
        ways = {
            "cumsum alone": lambda s: np.cumsum(s + 0.1),
            "released": lambda s: frame_sampling.density_aware_sample(s, 12, released=True),
            "intended": lambda s: frame_sampling.density_aware_sample(s, 12),
        }
        times = {name: [] for name in ways}
        for _ in range(200):
            for name, way in ways.items():
                started = time.perf_counter()
                way(scores)
                times[name].append(time.perf_counter() - started)
        print(f"  {rows:5} sampled frames: " + ", ".join(f"{n} {1e6 * np.median(t):.0f} us" for n, t in times.items()))


def annotations(folder: Path) -> None:
    """Compare the samplers on the real events of HIVAU-70k's 128 anomalous UCF-Crime test videos."""
    raw = artifacts.read_json(folder / "annotations" / "hivau70k" / "ucf_database_test.json")
    raw = {name: row for name, row in raw.items() if row["label"]}
    stored = np.load(folder / "predictions" / "ucf_sultani_style_scores_32seg.npz")
    of = dict(zip(stored["video"].tolist(), stored["scores"], strict=True))
    events = {n: [(start * r["fps"] / 16, end * r["fps"] / 16) for start, end in r["events"]] for n, r in raw.items()}
    scores = {n: metrics.expand_evenly(of[n], r["n_frames"])[::16] for n, r in raw.items()}
    compare("real scores of a Sultani-style model", frame_sampling.study(scores, events, COUNTS))
    place = {n: np.arange(len(values)) for n, values in scores.items()}
    inside = {n: np.any([(place[n] >= a) & (place[n] < b) for a, b in events[n]], axis=0) for n in events}
    for auc in (0.6, 0.7, 0.8, 0.9, 0.97):
        tables = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            drawn = {n: frame_sampling.noisy_oracle(inside[n], auc, rng) for n in events}
            tables.append(frame_sampling.study(drawn, events, COUNTS))
        compare(f"noisy oracle of AUC {auc}, 20 draws", pd.concat(tables))


def weighted_mean(values: dict[str, float], weights: dict[str, float]) -> float:
    """Return the mean over videos, an event counting as much as another where the weights are numbers of events."""
    return float(np.average([values[name] for name in weights], weights=list(weights.values())))


def compare(name: str, table: pd.DataFrame) -> None:
    print(f"\n128 real videos, {name}: uniform, top-k, released, intended; intended - released with 95 % over videos")
    for count, part in table.groupby("num_frames"):
        means = frame_sampling.summary(part).set_index("sampler")
        for column in ("hit_rate", "coverage", "event_recall", "duplicates"):
            value = (part[column] * part["events"] if column == "event_recall" else part[column]).rename("value")
            each = part[["video", "sampler", "events"]].join(value).groupby(["video", "sampler"]).mean().unstack("sampler")
            weight = each["events"]["intended"] if column == "event_recall" else pd.Series(1.0, each.index)
            sides = [(each["value"][sampler] / weight).to_dict() for sampler in ("intended", "released")]
            gap = metrics.paired_bootstrap(weighted_mean, *sides, weight.to_dict(), rng=np.random.default_rng(0))
            row = " ".join(f"{means.loc[s, column]:.3f}" for s in ("uniform", "top-k", "released", "intended"))
            print(f"  N {count:2} {column:13} {row}   {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with TemporaryDirectory() as scratch:
        if "--hour" in sys.argv:
            print(timing.machine())
            return hour(Path(scratch))
        look(Path(scratch))
    score()
    choose()
    if real := os.environ.get("VAU_REAL_DATA"):
        annotations(Path(real))


if __name__ == "__main__":
    main()
