"""Pretraining of the tiny Qwen2.5-VL that sees motion on near places: `python benchmarks/near_pretraining.py SCRATCH OUT`.

- a moment is a pair of frames 0.2 s apart, a video of two frames for the processor: the patch embedding of Qwen2.5-VL reads two
  frames at once (temporal_patch_size 2), so that a token can hold how its patch changed; a still picture shows it the same twice
- first the vision tower learns what happens in each cell of a pair (nobody, somebody, an event), then the language model learns
  captions of twelve moments of a video, some of them taken from normal videos of other worlds; no judgement is shown to it
- the patch embedding starts as low frequencies of the pair's mean and of its difference, the rest at random
Worlds are of seeds 5000 and 6000; the demo's (0) and the tuning world's (100) are never rendered. It runs on a GPU where there
is one.
"""

import argparse
import json
import sys
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vau_lib.data import video
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import scenarios
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import near_world, tiny_vlm
from vau_lib.vlm import chat, models

SEEDS = {"train": 5000, "val": 6000}
CLASSES = 2 + len(near_world.EVENTS)  # nobody, somebody, the events
EMPTY_WEIGHT = 0.3
BATCH, CAPTION_BATCH = 256, 64
MOMENTS, LAG = near_world.MOMENTS, near_world.LAG
MIXED = 0.5  # captions that see moments of other worlds' normal videos too


def render_one(scenario: scenarios.Scenario, sizes: dict[str, tuple[int, int]]) -> tuple[str, dict]:
    """Return a scenario's event, and by name of a size its frames (T, h, w, 3) and cell classes (T, h/28, w/28)."""
    rendering = synthetic_dataset.render(scenario)
    with TemporaryDirectory() as scratch:  # through a file: what the demo sees was compressed
        path = Path(scratch) / "video.mp4"
        video.write_video(path, rendering.frames, fps=scenario.fps)
        with av.open(str(path)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    pixels, parts = torch.from_numpy(frames).permute(0, 3, 1, 2).float(), {}
    for name, size in sizes.items():
        small = F.interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)
        parts[name] = small.permute(0, 2, 3, 1).byte().numpy(), near_world.cells(rendering, size)
    return scenario.event, parts


def render(root: Path, counts: dict[str, int], sizes: dict[str, tuple[int, int]], workers: int) -> None:
    """Write root/SPLIT_SIZE.npz: frames (V, T, h, w, 3), cells (V, T, ...), length (V,), event (V,)."""
    torch.set_num_threads(1)
    for split, count in counts.items():
        chosen = synthetic_dataset.sample_scenarios(
            count, seed=SEEDS[split], duration_s=6.0, difficulty="easy", fps=10.0, height=240, width=320
        )
        with Pool(workers) as pool:
            done = pool.map(partial(render_one, sizes=sizes), chosen, chunksize=4)
        for name in sizes:
            parts = [part[name] for _, part in done]
            length = np.array([len(frames) for frames, _ in parts])
            stacked = [np.zeros((len(parts), length.max(), *parts[0][n].shape[1:]), np.uint8) for n in (0, 1)]
            for place, arrays in enumerate(parts):
                for whole, array in zip(stacked, arrays, strict=True):
                    whole[place, : len(array)] = array
            np.savez(root / f"{split}_{name}.npz", frames=stacked[0], cells=stacked[1], length=length,
                     event=np.array([event for event, _ in done]))  # fmt: skip


def patches(pairs: Tensor) -> Tensor:
    """Return pairs uint8 (N, 2, H, W, 3) as the processor prepares them, (patches, 1176)."""
    mean, std = (pairs.new_tensor(v, dtype=torch.float) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = ((pairs.float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    n, c, t, h, w = pixels.shape
    pixels = pixels.reshape(n, c, t, h // 28, 2, 14, w // 28, 2, 14).permute(0, 3, 6, 4, 7, 1, 2, 5, 8)
    return pixels.reshape(n * h * w // 196, -1)


def tokens_of(visual: nn.Module, pairs: Tensor) -> Tensor:
    """Return the visual tokens (N, n, C) of pairs uint8 (N, 2, H, W, 3)."""
    n, _, h, w, _ = pairs.shape
    grid = torch.tensor([[1, h // 14, w // 14]] * n, device=pairs.device)
    out = visual(patches(pairs), grid_thw=grid)
    out = out.pooler_output if hasattr(out, "pooler_output") else out
    return out.reshape(n, -1, out.shape[-1])


def batched_attention(self, hidden_states, cu_seqlens, position_embeddings=None, **_):
    """Do what Qwen2_5_VLVisionAttention does, pairs of one size side by side instead of one after another."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    total, count = hidden_states.shape[0], len(cu_seqlens) - 1
    q, k, v = self.qkv(hidden_states).reshape(total, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (part.reshape(count, total // count, self.num_heads, -1).transpose(1, 2) for part in (q, k, v))
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(total, -1))


@torch.no_grad()
def start_patch_embedding(visual: nn.Module) -> None:
    """Set the patch embedding to low frequencies of the mean of a pair (half of the channels) and of its difference."""
    weight = visual.patch_embed.proj.weight  # (C, 3, 2, 14, 14)
    x = (torch.arange(14) + 0.5) * np.pi / 14
    waves = sorted(((a, b) for a in range(7) for b in range(7)), key=lambda ab: ab[0] ** 2 + ab[1] ** 2)
    half, colour = weight.shape[0] // 2, 4
    for channel in range(weight.shape[0]):
        place, difference = channel % half, channel >= half
        tint = (1.0, 0.0, -1.0) if place >= half - colour else (1.0, 1.0, 1.0)
        a, b = waves[place - (half - colour) if place >= half - colour else place]
        wave = torch.cos(a * x)[:, None] * torch.cos(b * x)[None, :]
        wave = wave / wave.norm() / 3**0.5 / 14 * 3
        pair = torch.tensor([-4.0, 4.0] if difference else [0.5, 0.5])
        weight[channel] = torch.tensor(tint)[:, None, None, None] * pair[None, :, None, None] * wave


class Data:
    """Videos of one split on the device."""

    def __init__(self, path: Path, device: str):
        stored = np.load(path)
        self.frames, self.cells = (torch.from_numpy(stored[name]).to(device) for name in ("frames", "cells"))
        self.length = torch.from_numpy(stored["length"]).to(device)
        self.event = stored["event"]
        places = [(v, t) for v, n in enumerate(stored["length"]) for t in range(n)]
        self.places = torch.tensor(places, device=device)

    def pairs(self, places: Tensor) -> Tensor:
        """Return the pairs (N, 2, H, W, 3) that begin at places (N, 2): video and frame."""
        v, t = places.T
        later = torch.minimum(t + LAG, self.length[v] - 1)
        return torch.stack([self.frames[v, t], self.frames[v, later]], 1)


def schedule(optimizer, steps: int):
    warm = max(1, steps // 10)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / warm) * 0.5 * (1 + np.cos(np.pi * min(1, s / steps)))
    )


def train_tower(visual: nn.Module, train: Data, val: Data, steps: int, rate: float, log) -> tuple[nn.Module, dict]:
    """Train the tower on cells; return its head and what it reaches on the other worlds."""
    device, width = train.frames.device, visual.config.out_hidden_size
    head = nn.Linear(width, CLASSES).to(device)
    optimizer = torch.optim.AdamW([*visual.parameters(), *head.parameters()], lr=rate, weight_decay=0.05)
    plan, weight = schedule(optimizer, steps), torch.ones(CLASSES, device=device)
    weight[0] = EMPTY_WEIGHT
    happens = train.cells.flatten(2).amax(2)[tuple(train.places.T)] >= 2
    groups = [train.places[happens], train.places[~happens]]
    total, began = 0.0, time.time()
    for step in range(steps):
        places = torch.cat([g[torch.randint(len(g), (BATCH // 2,), device=device)] for g in groups])
        pairs, cells = train.pairs(places), train.cells[tuple(places.T)]
        mirror = torch.rand(BATCH, device=device) < 0.5
        pairs = torch.where(mirror[:, None, None, None, None], pairs.flip(3), pairs)
        cells = torch.where(mirror[:, None, None], cells.flip(2), cells)
        gain, shift = (0.8 + 0.4 * torch.rand(2, BATCH, 1, 1, 1, 1, device=device)).unbind(0)
        pairs = (pairs.float() * gain + (shift - 1) * 60).clamp(0, 255)
        logits = head(tokens_of(visual, pairs))
        loss = F.cross_entropy(logits.flatten(0, 1), cells.flatten().long(), weight=weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        optimizer.step()
        plan.step()
        total += float(loss.detach()) if step % 50 == 0 else 0
        if (step + 1) % 500 == 0:
            log(f"tower step {step + 1} loss {total / 10:.3f} {reached(visual, head, val)} {time.time() - began:.0f} s")
            total = 0.0
    return head, reached(visual, head, val)


@torch.no_grad()
def all_tokens(visual: nn.Module, data: Data) -> Tensor:
    parts = [tokens_of(visual, data.pairs(places)) for places in data.places.split(512)]
    tokens = torch.cat(parts)
    whole = tokens.new_zeros(*data.frames.shape[:2], *tokens.shape[1:])
    whole[tuple(data.places.T)] = tokens
    return whole


@torch.no_grad()
def reached(visual: nn.Module, head: nn.Module, data: Data) -> dict:
    """Return frame and video AUC of the largest probability of an event in a pair, and in twelve pairs of a video."""
    probability = head(all_tokens(visual, data)).softmax(-1)[..., 2:].sum(-1).amax(-1)  # (V, T)
    truth = (data.cells.flatten(2).amax(2) >= 2)[tuple(data.places.T)]
    frame = roc_auc_score(truth.cpu(), probability[tuple(data.places.T)].cpu())
    index = even_moments(data.length)
    twelve = probability.gather(1, index).sort(1, descending=True).values[:, :3].mean(1)
    label = [event in near_world.EVENTS for event in data.event]
    return dict(frame_auc=round(float(frame), 4), video_auc=round(float(roc_auc_score(label, twelve.cpu())), 4))


def even_moments(length: Tensor) -> Tensor:
    return ((torch.arange(MOMENTS, device=length.device) + 0.5) / MOMENTS * length[:, None]).long()


class Captions:
    """Prompts with captions, tokenised once for each text; visual tokens are put in their places."""

    def __init__(self, vlm: models.VLM, device: str):
        dummy, self.samples, self.vlm = np.zeros((2 * MOMENTS, 240, 320, 3), np.uint8), {}, vlm
        core = vlm.model.model
        for event in near_world.HAPPENINGS:
            for variant, question in enumerate(toy_dataset.QUESTIONS["caption"] * 2):
                answer = toy_dataset.answer("caption", event, variant // 2)
                sample = chat.encode(vlm, dummy, question, times_s=near_world.clock(2 * MOMENTS), answer=answer, as_video=True)
                extra = {k: sample[k] for k in ("second_per_grid_ts",) if k in sample}
                position, _ = core.get_rope_index(
                    sample["input_ids"], mm_token_type_ids=sample["mm_token_type_ids"], video_grid_thw=sample["video_grid_thw"],
                    attention_mask=sample["attention_mask"], **extra,
                )  # fmt: skip
                self.samples[event, variant] = sample["input_ids"][0], position[:, 0], sample["labels"][0]
        self.device = device

    def loss(self, visual: Tensor, events: list[str], variants: list[int]) -> Tensor:
        """Return the loss of captions given visual tokens (B, moments x n, C)."""
        chosen = [self.samples[pair] for pair in zip(events, variants, strict=True)]
        longest, vlm = max(len(ids) for ids, _, _ in chosen), self.vlm
        ids = torch.stack([F.pad(i, (0, longest - len(i)), value=vlm.tokenizer.pad_token_id) for i, _, _ in chosen]).to(self.device)
        labels = torch.stack([F.pad(x, (0, longest - len(x)), value=-100) for _, _, x in chosen]).to(self.device)
        position = torch.stack([F.pad(p, (0, longest - p.shape[1]), value=0) for _, p, _ in chosen], 1).to(self.device)
        embeds = vlm.model.get_input_embeddings()(ids)
        mask = (ids == vlm.processor.video_token_id)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(mask, visual.to(embeds.dtype))
        hidden = vlm.model.model.language_model(inputs_embeds=embeds, position_ids=position).last_hidden_state
        where = labels[:, 1:] != -100  # right padding is behind every learned token: a causal model never sees it
        return F.cross_entropy(vlm.model.lm_head(hidden[:, :-1][where]), labels[:, 1:][where])

    @torch.no_grad()
    def likeliest(self, visual: Tensor) -> list[str]:
        """Return which event's caption is likeliest for each (B, N, C)."""
        costs = [[float(self.loss(v[None], [event], [0])) for event in near_world.HAPPENINGS] for v in visual]
        return [near_world.HAPPENINGS[int(np.argmin(row))] for row in costs]


def train_captions(vlm: models.VLM, train: Data, val: Data, steps: int, rate: float, seed: int, log) -> dict:
    device = str(train.frames.device)
    captions, rng = Captions(vlm, device), np.random.default_rng(seed)
    tokens = all_tokens(vlm.model.model.visual, train)
    learn = [p for name, p in vlm.model.named_parameters() if ".visual." not in name]
    optimizer = torch.optim.AdamW(learn, lr=rate, weight_decay=0.01)
    plan, began = schedule(optimizer, steps), time.time()
    lengths, inside = train.length.cpu().numpy(), (train.cells.flatten(2).amax(2) >= 2).cpu().numpy()
    normal = [v for v, event in enumerate(train.event) if event not in near_world.EVENTS]
    vlm.model.train()
    for step in range(steps):
        chosen, events = [], []
        for v in rng.integers(len(lengths), size=CAPTION_BATCH):
            at = near_world.moments(int(lengths[v]), MOMENTS, rng)
            places = np.stack([np.full(MOMENTS, v), at], 1)
            hits = np.flatnonzero(inside[v])
            if rng.random() < MIXED:
                other = rng.choice(normal, MOMENTS)
                places = np.stack([other, (rng.random(MOMENTS) * lengths[other]).astype(int)], 1)
                own = int(rng.integers(3, MOMENTS - 2))
                where = (
                    np.sort(rng.permutation(MOMENTS)[:own]) if rng.random() < 0.5 else rng.integers(MOMENTS - own) + np.arange(own)
                )
                source = hits if len(hits) else np.arange(lengths[v])
                places[where, 0], places[where, 1] = v, np.sort(rng.choice(source, own))
            chosen.append(places)
            events.append(str(train.event[v]))
        index = torch.from_numpy(np.stack(chosen)).to(device)
        loss = captions.loss(
            tokens[index[..., 0], index[..., 1]].flatten(1, 2), events, rng.integers(4, size=CAPTION_BATCH).tolist()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learn, 1.0)
        optimizer.step()
        plan.step()
        if (step + 1) % 250 == 0:
            log(f"captions step {step + 1} loss {float(loss.detach()):.3f} {time.time() - began:.0f} s")
    vlm.model.eval()
    tokens = all_tokens(vlm.model.model.visual, val)
    index = even_moments(val.length)
    named = captions.likeliest(tokens[torch.arange(len(index), device=device)[:, None], index].flatten(1, 2))
    right = [(a in near_world.EVENTS) == (b in near_world.EVENTS) for a, b in zip(named, val.event, strict=True)]
    return dict(loss=round(float(loss.detach()), 4), judged_by_caption=round(float(np.mean(right)), 4),
                named=round(float(np.mean([a == b for a, b in zip(named, val.event, strict=True)])), 4))  # fmt: skip


def sizes_of(options) -> tiny_vlm.TinySizes:
    return tiny_vlm.TinySizes(vision_width=options.width, vision_layers=options.layers, picture_px=options.px)


def main() -> None:
    """Read the command line; render or train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--val", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--caption-steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--render-only", action="store_true")
    options = parser.parse_args()
    began, device = time.time(), "cuda" if torch.cuda.is_available() else "cpu"
    options.scratch.mkdir(parents=True, exist_ok=True)
    sizes = {str(px): near_world.picture_size(px) for px in sorted({112, 131} if options.render_only else {options.px})}
    if not all((options.scratch / f"{split}_{name}.npz").exists() for split in SEEDS for name in sizes):
        render(options.scratch, {"train": options.videos, "val": options.val}, sizes, options.workers)
        print(f"rendered in {time.time() - began:.0f} s", flush=True)
    if options.render_only:
        return
    began = time.time()
    if device == "cpu":
        torch.set_num_threads(1)  # toy widths are slower with more
    train, val = (Data(options.scratch / f"{split}_{options.px}.npz", device) for split in SEEDS)
    vlm = tiny_vlm.tiny("qwen2_5_vl", sizes=sizes_of(options), seed=options.seed)
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

    modeling_qwen2_5_vl.Qwen2_5_VLVisionAttention.forward = batched_attention
    visual = vlm.model.model.visual
    start_patch_embedding(visual)
    torch.manual_seed(options.seed)
    vlm.model.requires_grad_(True).to(device)
    log = partial(print, f"[{options.px} {options.width}x{options.layers}]", flush=True)
    head, tower = train_tower(visual, train, val, options.steps, options.rate, log)
    text = train_captions(vlm, train, val, options.caption_steps, 2e-3, options.seed, log)
    facts = dict(tower=tower, captions=text, seconds=round(time.time() - began),
                 device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
                 command=" ".join(Path(word).name for word in sys.argv), videos=len(train.length))  # fmt: skip
    log(json.dumps(facts))
    options.out.mkdir(parents=True, exist_ok=True)
    torch.save({"model": vlm.model.to("cpu").state_dict(), "head": head.to("cpu").state_dict(), "facts": facts,
                "sizes": [options.px, options.width, options.layers]}, options.out / "weights.pt")  # fmt: skip


if __name__ == "__main__":
    main()
