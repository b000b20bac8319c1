# %% [markdown]
# # Worked solutions
#
# One cell per exercise, on small inputs, so that the tests run them all. A solution shows the idea on data whose
# truth is known; the notebook's own data is then a matter of the same calls. Numbers printed here are of these
# small inputs and of nothing else.
#
# This file is the only source: `vau book` shows it as a page with what each cell printed.

# %%
import numpy as np
import pandas as pd
import torch

from vau_lib.compression import token_selection
from vau_lib.data import annotation, records
from vau_lib.detectors import baselines, frame_sampling, key_clips, lshma, lshma_state
from vau_lib.evaluation import metrics
from vau_lib.synthetic import feature_streams
from vau_lib.vlm import event_order

rng = np.random.default_rng(0)
walk = rng.normal(size=(60, 8))  # features of a quiet video
event = np.arange(60) >= 40  # its last third is an event
video = walk + 4.0 * event[:, None]

# %% [markdown]
# ## 00.1 · A shorter, then a longer beginning
# A long beginning takes the event in: what it should be compared with is then part of the reference.

# %%
gap = {}
for fraction in (0.1, 0.25, 0.9):
    start = max(2, int(fraction * len(video)))
    scores = baselines.neighbour_distance(video[:start], video)
    gap[fraction] = (
        scores[event].mean() - scores[start:40].mean() if start < 40 else scores[event].mean() - scores[:40].mean()
    )
    print(f"first {fraction:.0%}: the event stands {gap[fraction]:.2f} above the rest")
assert gap[0.9] < gap[0.25]

# %% [markdown]
# ## 00.2 · Score by the difference to the moment before
# It sees where the event begins and ends. An event that goes on steadily looks like a quiet video.

# %%
scores = baselines.difference(video)
print(f"at the start {scores[40]:.1f}, inside {scores[42:].mean():.1f}, before {scores[:40].mean():.1f}")
assert scores.argmax() == 40 and abs(scores[42:].mean() - scores[:40].mean()) < 0.2 * scores[40]

# %% [markdown]
# ## 00.3 · Let the reference move
# Each snippet is compared with the last 20. After 20 snippets of an event the reference holds nothing else.

# %%
long = np.concatenate([walk, walk[::-1] + 4.0])  # an event as long as the rest
moving = np.array(
    [baselines.neighbour_distance(long[max(0, t - 20) : t], long[t : t + 1])[0] for t in range(8, len(long))]
)
print(f"first five of the event {moving[52:57].mean():.1f}, from its 25th on {moving[77:].mean():.1f}")
assert moving[52:57].mean() > 2 * moving[77:].mean()

# %% [markdown]
# ## 01.1 · Which class runs out of sources
# A split is of sources, not of clips: a class with few sources is the first of which nothing is left to train on.

# %%
table = pd.DataFrame({"label": ["fight"] * 6 + ["fall"] * 6, "group": list("abcdef") + list("ggghhh")})
sources = table.groupby("label")["group"].nunique()
print(
    sources.to_dict(),
    "of 6 clips each; at 40 % validation",
    (sources * 0.6).astype(int).to_dict(),
    "remain for training",
)
assert sources.idxmin() == "fall"

# %% [markdown]
# ## 01.3 · A reader of your own folder
# A name says all that a record needs; the group keeps clips of one camera together.

# %%
names = ["cam1_fight_0.mp4", "cam1_walk_1.mp4", "cam2_walk_0.mp4"]
own = [
    records.VideoRecord(
        id=name[:-4], path=name, dataset="mine", split="test" if name.startswith("cam2") else "train",
        label=int("fight" in name), classes=("fight",) if "fight" in name else (), group=name.split("_")[0],
    )
    for name in names
]  # fmt: skip
print([(record.id, record.label, record.source) for record in own], "leaks:", records.leaks(own))
assert not records.leaks(own) and records.leaks([own[0].moved("test"), own[1]]) == ["cam1"]

# %% [markdown]
# ## 02.2 · A fifth nuisance
# The number of boxes says nothing if both classes have as many. It does say something here: a fight needs two.

# %%
labels = {f"v{n}": np.array([n % 2]) for n in range(40)}
dark = {name: np.array([rng.uniform()]) for name in labels}
actors = {name: np.array([rng.integers(1, 4) + label[0]]) for name, label in labels.items()}
print(f"dark pixels: AUC {metrics.video_auc(dark, labels):.2f}, actors: AUC {metrics.video_auc(actors, labels):.2f}")
assert metrics.video_auc(actors, labels) > 0.6

# %% [markdown]
# ## 02.3 · Anomalous by its place alone
# Somebody walks where nobody walks: pooled over the picture the two videos are equal, on a grid they are not.

# %%
usual, forbidden = np.zeros((3, 3, 4)), np.zeros((3, 3, 4))
usual[2, 1], forbidden[0, 2] = 1.0, 1.0  # the same person in two places
print(
    "pooled differ:",
    bool((usual.mean((0, 1)) != forbidden.mean((0, 1))).any()),
    "grid differs:",
    bool((usual != forbidden).any()),
)
assert (usual.mean((0, 1)) == forbidden.mean((0, 1))).all()

# %% [markdown]
# ## 03.1 · Shorter snippets
# The network reads the same frames, so its time stays; there are more rows, so the disk does not.

# %%
frames, width = 300, 384
for snippet_frames in (5, 4):
    rows = -(-frames // snippet_frames)
    print(f"snippets of {snippet_frames}: {rows} rows, {rows * width * 4 / 1024:.0f} KiB, {frames} frames read")
assert -(-frames // 4) == 75

# %% [markdown]
# ## 03.2 · The median instead of mean and maximum
# One bright lamp is one place of many: the maximum is the lamp, the mean moves a little, the median does not notice.

# %%
picture = rng.normal(size=(30 * 45,))
lamp = picture.copy()
lamp[7] = 100.0
moved = {
    name: abs(pool(lamp) - pool(picture)) for name, pool in (("mean", np.mean), ("max", np.max), ("median", np.median))
}
print({name: round(float(value), 3) for name, value in moved.items()})
assert moved["median"] < moved["mean"] < moved["max"]

# %% [markdown]
# ## 03.3 · Keep a 3 × 3 grid
# Nine rows of places instead of one: an event that is a matter of place (02.3) needs them.

# %%
maps = rng.normal(size=(1, 64, 30, 45)).astype(np.float32)
grid = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps), 3)
print("one row has", maps.shape[1], "numbers, a grid", grid.numel())
assert torch.allclose(grid.mean((2, 3)), torch.from_numpy(maps.mean((2, 3))), atol=1e-5)  # its mean is the old row

# %% [markdown]
# ## 04.2 · The maximum over time before the scorer
# Averaging dilutes a short event by the length of its video; the maximum does not, but takes the highest noise.

# %%
for length in (32, 320):
    quiet, short = rng.normal(0, 0.3, length), rng.normal(0, 0.3, length)
    short[5:9] += 2.0
    print(f"{length} steps: mean {short.mean() - quiet.mean():+.2f}, maximum {short.max() - quiet.max():+.2f} above")
assert abs(short.mean() - quiet.mean()) < 0.2 < short.max() - quiet.max()

# %% [markdown]
# ## 04.3 · A memory that is written while training
# Slots follow a moving average of the normal embeddings nearest to them; the distance to the nearest slot is a score.

# %%
normal = torch.from_numpy(rng.normal(size=(200, 4)) + 3.0).float()
slots = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
for row in normal:
    nearest = torch.cdist(row[None], slots)[0].argmin()
    slots[nearest] = 0.9 * slots[nearest] + 0.1 * row
distance = {
    name: float(torch.cdist(x, slots).min(1).values.mean()) for name, x in (("normal", normal), ("anomalous", -normal))
}
print({name: round(value, 2) for name, value in distance.items()})
assert distance["anomalous"] > 2 * distance["normal"]

# %% [markdown]
# ## 05.1 · One clip in 2, one in 50
# Only a still scene notices: nothing else of it is ever kept.

# %%
still, cuts = (
    rng.normal(0, 0.01, (400, 16)) + 1.0,
    np.repeat(rng.normal(size=(20, 16)) * 5, 20, 0) + rng.normal(0, 0.01, (400, 16)),
)
kept = {every: [key_clips.key_clips(x, window=8, every=every).mean() for x in (still, cuts)] for every in (2, 50)}
print(
    {every: [f"{share:.0%}" for share in shares] for every, shares in kept.items()},
    "of the still scene and of the one with cuts",
)
assert kept[2][0] - kept[50][0] > kept[2][1] - kept[50][1]

# %% [markdown]
# ## 05.2 · Distance by the cosine
# A lamp makes every feature longer, not different: the cosine does not see it, the distance does.

# %%
before, after = walk[:1], 3.0 * walk[:1]
cosine = 1 - float((before * after).sum() / (np.linalg.norm(before) * np.linalg.norm(after)))
print(f"cosine distance {cosine:.3f}, distance {np.linalg.norm(after - before):.2f}")
assert abs(cosine) < 1e-9 < np.linalg.norm(after - before)

# %% [markdown]
# ## 06.1 · Events longer than the memory
# The second half of a long event is compared with its own first half: the memory has become the event.

# %%
memory, scores = 10, []
for t in range(8, len(long)):
    scores.append(np.linalg.norm(long[t] - long[max(0, t - memory) : t].mean(0)))
scores = np.array(scores)
print(f"first ten {scores[52:62].mean():.1f}, later {scores[65:].mean():.1f}, before {scores[:52].mean():.1f}")
assert scores[52:62].mean() > scores[65:].mean()

# %% [markdown]
# ## 06.3 · One camera's state starts another's
# The state is a value: saved, loaded, handed on. Its size is the same after one clip and after a hundred.

# %%
config = lshma_state.LSHMAConfig(width=16, window=4, layers=1, memory=3)
model = lshma.LSHMA(config).eval()
with torch.no_grad():
    _, first = model.step(torch.zeros(1, 4, 16))
    state = first
    for _ in range(20):
        _, state = model.step(torch.randn(1, 4, 16), state)
print(f"{first.num_bytes()} bytes after one clip, {state.num_bytes()} after 21")
assert first.num_bytes() == state.num_bytes()

# %% [markdown]
# ## 07.1 · tau .01 and 1
# A large tau makes the choice even: fewer of the frames lie inside the event.

# %%
curve = np.full(400, 0.02)
curve[200:210] = 0.9
hits = {
    tau: frame_sampling.judge(frame_sampling.density_aware_sample(curve, 12, tau=tau), [(200, 210)])["hit_rate"]
    for tau in (0.01, 1.0)
}
print({tau: round(float(rate), 2) for tau, rate in hits.items()})
assert hits[0.01] > hits[1.0]

# %% [markdown]
# ## 07.3 · tau by length
# With tau = c / T the quiet mass of a video is c whatever its length, and a short event keeps its share of an hour.

# %%
rates = {}
for length in (400, 6750):
    hour = np.full(length, 0.0)
    hour[200:220] = 0.9
    for name, tau in (("0.1", 0.1), ("20 / T", 20 / length)):
        chosen = frame_sampling.density_aware_sample(hour, 12, tau=tau)
        rates[length, name] = float(frame_sampling.judge(chosen, [(200, 220)])["hit_rate"])
print({f"{length} snippets, tau {name}": round(rate, 2) for (length, name), rate in rates.items()})
assert rates[6750, "20 / T"] > rates[6750, "0.1"]

# %% [markdown]
# ## 08.2 · A third wording
# The parser looks for "The basis for judging": a summary that has it gives three parts, one without gives two.

# %%
summary = "An anomaly exists, a fight. Two people hit each other."
basis = "The basis for judging this anomaly is that nobody hits on an ordinary day."
parts = {text: annotation.parse_summary(text) for text in (f"{summary} {basis}", summary)}
for found in parts.values():
    print(f"{len(found)} parts: {', '.join(found)}")
assert [len(found) for found in parts.values()] == [3, 2]

# %% [markdown]
# ## 10.1 · Fewer tokens
# The first moment is always whole: of eight moments an eighth of the tokens is spent before anything moves.

# %%
tokens = np.tile(rng.normal(size=(1, 8, 8, 12)), (8, 1, 1, 1)) + rng.normal(0, 0.05, (8, 8, 8, 12))
truth = np.zeros((8, 8, 8), bool)
for moment in range(1, 8):
    truth[moment, 3:5, moment - 1 : moment + 1] = True
tokens[truth] += 3.0
recall = {
    ratio: token_selection.foreground_recall(token_selection.keep_mask(tokens, keep_ratio=ratio), truth)
    for ratio in (0.3, 0.15)
}
print({ratio: round(float(value), 2) for ratio, value in recall.items()}, "of what moves is kept")
assert recall[0.3] > recall[0.15]

# %% [markdown]
# ## 10.2 · A rule of your own
# Keep what differs most from the median of all moments: a still background scores nothing.


# %%
def by_median(features, *, keep_ratio):
    """Keep what differs most from the median of all moments, bool (T, H, W)."""
    new = torch.as_tensor(abs(features - np.median(features, 0)).mean(-1))
    order = new.flatten().argsort(descending=True)[: token_selection.token_budget(tuple(new.shape), keep_ratio)]
    return torch.isin(torch.arange(new.numel()), order).reshape(new.shape).numpy()


rules = {"by median": by_median, "EVS": token_selection.evs, "random": token_selection.random_tokens}
found = {
    name: float(token_selection.foreground_recall(rule(tokens, keep_ratio=0.2), truth)) for name, rule in rules.items()
}
print({name: round(value, 2) for name, value in found.items()})
assert found["by median"] > found["random"]

# %% [markdown]
# ## 11.2 · More for nearly right than for right
# A policy learns what earns most. With the partial reward above 1, an order that is nearly right beats the right one.

# %%
right, nearly = event_order.order_reward("1, 2, 3", [1, 2, 3]), event_order.order_reward("1, 3, 2", [1, 2, 3])
tau_of_nearly = nearly / event_order.PARTIAL
print(f"right earns {right}, nearly right {nearly:.2f}; with PARTIAL 4 it would earn {4 * tau_of_nearly:.2f}")
assert right > nearly > 0 and 4 * tau_of_nearly > right

# %% [markdown]
# ## 12.1 · How much of an interval is the bootstrap's own noise
# Draw it anew with other seeds: the ends of 50 resamples jump about, those of 1000 hardly.

# %%
truths = {f"v{n}": np.array([n % 2]) for n in range(60)}
scored = {name: np.array([label[0] + rng.normal()]) for name, label in truths.items()}
spread = {}
for resamples in (50, 1000):
    runs = [
        metrics.bootstrap_ci(metrics.video_auc, scored, truths, rng=np.random.default_rng(s), resamples=resamples)
        for s in range(5)
    ]
    spread[resamples] = float(np.std([run.low for run in runs]))
print({resamples: round(value, 4) for resamples, value in spread.items()}, "std of the lower end")
assert spread[1000] < spread[50]

# %% [markdown]
# ## 12.2 · A threshold chosen on test
# It is never worse than one from validation, on any data: that is the whole trouble with it.

# %%
val_truth = {f"w{n}": np.array([n % 2]) for n in range(20)}
val_scores = {name: np.array([label[0] + rng.normal()]) for name, label in val_truth.items()}


def f1(threshold):
    predicted = {name: (score >= threshold).astype(int) for name, score in scored.items()}
    return metrics.binary_report(truths, predicted)["f1"]


honest, cheated = f1(metrics.f1_threshold(val_scores, val_truth)), f1(metrics.f1_threshold(scored, truths))
print(f"F1 {honest:.3f} by validation, {cheated:.3f} by the test itself")
assert cheated >= honest

# %% [markdown]
# ## 12.3 · Add a method
# A method is a function from features to a score per snippet; a table needs nothing else of it.

# %%
streams = feature_streams.drifting_world(4, rng=rng, rows=300, events=3, width=16, directions=2, world_seed=1)
features, stream_truth = ({s.id: getattr(s, name) for s in streams} for name in ("features", "labels"))
methods = {"difference": baselines.difference, "largest channel": lambda x: abs(x).max(1)}
print(
    {
        name: round(metrics.frame_auc({i: score(x) for i, x in features.items()}, stream_truth), 2)
        for name, score in methods.items()
    }
)

# %% [markdown]
# ## 13.2 · Only what excludes the best baseline
# A method is drawn when the lower end of its interval lies above the best baseline's value.

# %%
results = pd.DataFrame(
    {"method": ["a", "b", "flow", "size"], "kind": ["model"] * 2 + ["baseline"] * 2, "video_auc": [0.9, 0.8, 0.75, 0.6],
     "low": [0.82, 0.7, 0.6, 0.5]}
)  # fmt: skip
best = results.loc[results["kind"] == "baseline", "video_auc"].max()
left = results[(results["kind"] == "model") & (results["low"] > best)]["method"].tolist()
print(f"best baseline {best}, left: {left}")
assert left == ["a"]
