"""What this project does on a GPU, beside the CPU path's numbers: one call, meant for eight minutes (not timed on a card yet).

- the detectors train, score and stream there, and their scores are the CPU's
- XFeat against stock kornia on the same card; decoding on the card (torchcodec, DALI) against decoding on the CPU, colours compared
- prefill of a language model of Qwen2.5-VL-3B's text sizes at keep ratios, with memory
Random weights and features of the published sizes: the numbers are times, not quality. No card was at hand when this was written:
the dry run on a CPU, at tiny sizes, is what the tests run.
    python benchmarks/gpu.py [--device cuda|cpu]
"""

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from kornia.feature import XFeat

from vau_lib.data import video, video_readers
from vau_lib.detectors import anomaly_scorer, lshma, lshma_state, memtsm, preprocessing, trained_detector, training
from vau_lib.features import xfeat

UPDATES = 5
MODELS = {  # name: (model, feature width, videos a step, snippets of a video, steps or None for whole videos)
    "MemTSM-Net": (lambda: memtsm.MemTSM(), 128, 16, 200, 32),
    "LSHMA xd": (lambda: lshma.LSHMA(lshma_state.LSHMAConfig.xd()), 512, 16, 200, None),
    "LSHMA ucf": (lambda: lshma.LSHMA(lshma_state.LSHMAConfig.ucf()), 512, 16, 200, None),
    "LSHMA ucf, released, one video": (lambda: lshma.LSHMA(lshma_state.LSHMAConfig.ucf(released=True)), 512, 1, 1000, None),
    "anomaly scorer": (lambda: anomaly_scorer.AnomalyScorer(), 1024, 16, 200, 200),
}


def main(device: str) -> None:
    here = f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads, a dry run of small sizes"
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else here}; torch {torch.__version__}", flush=True)
    rows = [measure(name, *sizes, device) for name, sizes in MODELS.items()]
    print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)
    print(features(device).round(3).to_string(index=False), flush=True)
    print(prefill(device).round(3).to_string(index=False), flush=True)


def features(device: str) -> pd.DataFrame:
    """Return frames per second of XFeat, stock and ours, of pixels in memory and of a file, and of the decoders."""
    frames_of, size, batch = (1024, (240, 320), 64) if device == "cuda" else (32, (64, 64), 16)
    encoder = xfeat.XFeatEncoder("random", device=device)
    frames = np.random.default_rng(0).integers(0, 255, (batch, *size, 3), dtype=np.uint8)
    stock = XFeat().eval().to(device)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float().to(device) / 255
    shrunk = F.interpolate(pixels, (encoder.side, encoder.side), mode="bilinear", antialias=True)
    gray = 255 * shrunk.mean(1)
    rows = [
        ("stock kornia, float32, pixels there", batch, lambda: stock.net(shrunk)),
        ("ours, pixels there", batch, lambda: encoder.dense(gray)),
        ("ours, arrays of the CPU, resizing too", batch, lambda: encoder(frames)),
    ]
    with TemporaryDirectory() as folder, torch.inference_mode(), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        path, still = Path(folder) / "film.mp4", np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
        video.write_video(path, (np.roll(still, place, axis=1) for place in range(frames_of)), fps=30)
        rows += [
            ("decoding on the CPU, gray", frames_of, lambda: sum(1 for _ in video.gray_frames(path))),
            ("a file to features", frames_of, lambda: list(encoder.encode(path, 16))),
        ]
        for reader in video_readers.DEVICE_READERS:
            if video.device_frames(path, device, [reader]) is not None:  # else it would be the time of doing nothing
                rows.append((f"decoding on the card, {reader}", frames_of, partial(decode_there, path, device, reader)))
        table = [{"what": name, "frames/s": count / timed(work, device)} for name, count, work in rows]
    print("\n".join(sorted({str(note.message) for note in notes if "decoded on the CPU" in str(note.message)})))
    return pd.DataFrame(table)


def decode_there(path: Path, device: str, reader: str) -> int:
    """Return how many frames a reader of the card gives of a file."""
    return sum(map(len, video.device_frames(path, device, [reader])))


def prefill(device: str) -> pd.DataFrame:
    """Return milliseconds and memory of reading a prompt of video tokens at keep ratios: Qwen2.5-VL-3B's text sizes, random."""
    from transformers import Qwen2Config, Qwen2Model

    sizes = {"hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36, "num_attention_heads": 16}
    if device == "cpu":
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=1000)
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = Qwen2Model(config).to(kind).eval()
    tokens, text, rows = (16_384 if device == "cuda" else 64), 64, []
    for keep in (1.0, 0.5, 0.25, 0.1):
        x = torch.randn(1, int(tokens * keep) + text, config.hidden_size, device=device, dtype=kind)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            seconds = timed(lambda x=x: model(inputs_embeds=x), device)
        memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
        rows.append({"keep ratio": keep, "tokens": x.shape[1], "prefill ms": 1000 * seconds, "peak GiB": memory})
    table = pd.DataFrame(rows)
    return table.assign(times=table["prefill ms"].iloc[0] / table["prefill ms"])


def measure(name: str, make: Callable, width: int, videos: int, snippets: int, steps: int | None, device: str) -> dict:
    """Return a model's updates per second, snippets per second when scored, and whether its scores are those of the CPU."""
    if device == "cpu":
        videos, snippets = max(1, videos // 4), snippets // 10
    rng = np.random.default_rng(0)
    features = {f"v{k}": rng.normal(size=(snippets, width)).astype(np.float32) for k in range(videos)}
    dense = name == "anomaly scorer"
    targets = {f"v{k}": np.full(snippets, k % 2) if dense else k % 2 for k in range(videos)}
    fitted = preprocessing.Preprocessing.fit(features, steps=steps, temporal_difference=False)
    sequences = preprocessing.Sequences(features, targets, fitted)
    model = make()
    network, objective = model.for_training(sequences.labels)
    network.to(device).train()
    items = [sequences[k] for k in range(videos)]
    batch = torch.utils.data.default_collate(items) if steps else preprocessing.pad_collate(items)
    batch = {key: value.to(device) for key, value in batch.items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5)
    generator = torch.Generator(device).manual_seed(0)

    def update() -> None:
        x = training.augment(batch["x"], generator=generator)
        output = network(x, batch["lengths"]) if "lengths" in batch else network(x)
        optimiser.zero_grad()
        objective(output, batch["x"], batch["labels"]).backward()
        optimiser.step()

    each_s = timed(update, device, calls=UPDATES)
    detector = trained_detector.TrainedDetector(model.eval(), fitted, pd.DataFrame())
    score_s = timed(lambda: detector.score(features["v0"]), device)
    there = detector.score(features["v0"])
    model.cpu()
    apart = float(np.abs(there - detector.score(features["v0"])).max())
    return {
        "model": name, "videos a step": videos, "snippets": snippets, "updates/s": 1 / each_s,
        "trained snippets/s": videos * snippets / each_s, "scored snippets/s": snippets / score_s, "largest gap to the CPU": apart,
    }  # fmt: skip


def timed(work: Callable[[], object], device: str, calls: int = 3) -> float:
    """Return the best seconds of a call, after one that is not counted."""
    best = float("inf")
    for call in range(calls + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start) if call else best
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    main(parser.parse_args().device)
