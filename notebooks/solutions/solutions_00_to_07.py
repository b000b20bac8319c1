# %% [markdown]
# # Worked solutions
#
# One cell per exercise, on small inputs, so that the tests run them all. A solution shows the idea on data whose
# truth is known; the notebook's own data is then a matter of the same calls. Numbers printed here are of these
# small inputs and of nothing else.
#
# The files in `notebooks/solutions` are the only source: `vau book` shows them as a page with what each cell printed.

# %%
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from vau_lib.data import datasets, records, video
from vau_lib.detectors import baselines, frame_sampling, key_clips, lshma, lshma_state, memtsm, preprocessing, training
from vau_lib.evaluation import metrics
from vau_lib.synthetic import dataset as scenarios_of

rng = np.random.default_rng(0)
walk = rng.normal(size=(60, 8))  # features of a quiet video
event = np.arange(60) >= 40  # its last third is an event
video_features = walk + 4.0 * event[:, None]

# %% [markdown]
# ## 00.1 · A shorter, then a longer beginning
# A long beginning takes the event in: what it should be compared with is then part of the reference.

# %%
gap = {}
for fraction in (0.1, 0.25, 0.9):
    start = max(2, int(fraction * len(video_features)))
    scores = baselines.neighbour_distance(video_features[:start], video_features)
    gap[fraction] = (
        scores[event].mean() - scores[start:40].mean() if start < 40 else scores[event].mean() - scores[:40].mean()
    )
    print(f"first {fraction:.0%}: the event stands {gap[fraction]:.2f} above the rest")
assert gap[0.9] < gap[0.25]

# %% [markdown]
# ## 00.2 · Score by the difference to the moment before
# It sees where the event begins and ends. An event that goes on steadily looks like a quiet video.

# %%
scores = baselines.difference(video_features)
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
# ## 01.2 · A damaged file
# The check decodes the last frame of each file: one whose end was cut off is named. Bytes appended behind the end
# belong to no frame, so that only a digest of the file would notice them.

# %%
with tempfile.TemporaryDirectory() as name:
    folder, mine = Path(name), []
    for clip in ("whole", "cut", "longer"):
        drawn = rng.integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
        info = video.write_video(folder / f"{clip}.mp4", drawn, fps=10.0)
        facts = dict(fps=info.fps, num_frames=info.num_frames, dataset="mine", split="test", label=0)
        mine.append(records.VideoRecord(id=clip, path=f"{clip}.mp4", **facts))
    content = (folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "longer.mp4").write_bytes((folder / "longer.mp4").read_bytes() + b"more")
    report = datasets.check(mine, folder)
print([r.id for r in report.readable], "can be read; cut.mp4:", report.broken["cut"].rpartition("cut.mp4: ")[2])
assert list(report.broken) == ["cut"]

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
# ## 02.1 · Which scene hides the event best
# How hard it is for an eye can be put into two numbers: how much of the picture the people fill, and by how many gray
# levels their outlines stand out from what is around them.

# %%
seen = []
for scene_seed in range(4, 10):
    scenario = scenarios_of.scenario_for(scene_seed, event="fight", difficulty="medium", duration_s=2.0, fps=3.0)
    film = scenarios_of.render(scenario)
    people, gray = film.masks > 0, film.frames.mean(-1)
    around = np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0 for mask in people]) & ~people
    contrast = float(abs(gray[people].mean() - gray[around].mean()))
    seen.append([scene_seed, scenario.scene, scenario.lighting, 100 * people.mean(), contrast])
seen = pd.DataFrame(seen, columns=["seed", "scene", "light", "% of the picture", "gray levels"]).round(1)
print(seen.to_string(index=False))
print("least contrast:", *seen.loc[seen["gray levels"].idxmin(), ["scene", "light"]])
assert seen["% of the picture"].between(0.1, 50).all() and seen["gray levels"].max() > 1.5 * seen["gray levels"].min()

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
# ## 04.1 · A tenth of the rate, then a quarter of the steps
# A difference counts where it is larger than what seeds do. Here the anomaly is change from row to row: few steps
# keep most of it, a rate that is too small for the epochs given learns nothing.


# %%
def clips(seed):
    draw = np.random.default_rng(seed)
    labels = {f"v{n:02d}": n % 2 for n in range(24)}
    return {
        name: draw.normal(0, 1 + 2 * label, (int(draw.integers(9, 30)), 6)) for name, label in labels.items()
    }, labels


def trained(seed, *, learning_rate, steps):
    (rows, labels), (val_rows, val_labels) = clips(0), clips(1)
    fitted = preprocessing.Preprocessing.fit(rows, steps=steps, temporal_difference=True)
    torch.manual_seed(seed)
    detector = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=6, width=16, slots=8))
    plan = training.TrainingPlan(epochs=2, learning_rate=learning_rate, batch_size=8, seed=seed)
    loss = lambda output, x, truth: memtsm.loss(output, x, truth, alpha=0.5)  # noqa: E731
    both = preprocessing.Sequences(rows, labels, fitted), preprocessing.Sequences(val_rows, val_labels, fitted)
    return training.fit(detector, loss, *both, plan=plan, progress=False)["val_video_auc"].iloc[-1]


knobs = {"as it is": (3e-3, 32), "a tenth of the rate": (3e-4, 32), "8 steps": (3e-3, 8)}
results = {
    name: [trained(seed, learning_rate=rate, steps=steps) for seed in range(2)] for name, (rate, steps) in knobs.items()
}
print(
    {name: f"{np.mean(values):.2f} ± {np.std(values):.2f}" for name, values in results.items()}, "validation video AUC"
)
moved = {name: abs(np.mean(values) - np.mean(results["as it is"])) for name, values in results.items()}
assert moved["a tenth of the rate"] > moved["8 steps"]

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
# ## 05.3 · A bar that falls while nothing happens
# A key clip comes once the bar has fallen to what the scene moves. A slow change gets its key clip earlier, and there
# it breaks: the noise of a still camera has a size too, and sooner or later the bar is below it.


# %%
def falling(features, *, fade, window=8):
    """Return which clips are kept when the bar falls by `fade` with every clip since the last key clip."""
    x = torch.from_numpy(features).float()
    state, kept = key_clips.KeyState.empty(1, x.shape[1], x), []
    for clip in x.split(window):
        _, ratio, new = key_clips.decide(clip[None], state, torch.tensor([len(clip)]), every=10**6)
        keep = ratio > fade ** state.since.clamp_min(0)
        key_mean = torch.where(keep[:, None], new.last_mean, state.key_mean)
        state = new._replace(key_mean=key_mean, since=torch.where(keep, 0.0, state.since + 1))
        kept.append(bool(keep))
    return np.array(kept)


noise = rng.normal(0, 0.05, (400, 16))
scenes = {"still": 1.0 + noise, "slow change": 1.0 + noise + np.linspace(0, 0.4, 400)[:, None]}
kept = {(name, fade): int(falling(x, fade=fade).sum()) for name, x in scenes.items() for fade in (1.0, 0.9)}
print({f"{name}, bar x {fade} a clip": count for (name, fade), count in kept.items()}, "key clips of 50")
assert kept["slow change", 0.9] > kept["slow change", 1.0] and kept["still", 0.9] > kept["still", 1.0] + 3

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
# ## 06.2 · Out by age and salience
# A train passes every 30 clips. A queue of six has forgotten the last one when the next comes; a memory that keeps
# what stood out when it came, the salient, longer than the rest knows it. As released the sign of the age is the
# other way.


# %%
def surprise(stream, *, rule, slots=6):
    """Return each clip's distance to the nearest one in memory; a full memory loses the entry of lowest retention."""
    memory, scores = [], []
    for now, clip in enumerate(stream):
        near = min((np.linalg.norm(clip - held) for held, *_ in memory), default=0.0)
        scores.append(near)
        memory.append((clip, now, near))
        if len(memory) > slots:
            age = np.array([now - came for _, came, _ in memory])
            salience = np.array([found for *_, found in memory])
            retention = {"queue": -age, "retention": -age / (1e-3 + salience**2)}[rule]
            memory.pop(int(retention.argmin()))
    return np.array(scores)


usual, train = rng.normal(0, 0.1, (300, 8)), 2.0 * np.eye(8)[0]
at = np.arange(300)
passes, attacks = (at % 30 == 15), np.isin(at, (100, 190, 250))
stream = usual + passes[:, None] * train
stream[attacks] += 2.0 * np.eye(8)[1:4]  # no attack is like another: one that is, is remembered as well
late = at > 30  # by then a train has passed
auc = {
    rule: metrics.video_auc({str(t): [s] for t, s in zip(at[late], surprise(stream, rule=rule)[late], strict=True)},
                            {str(t): [int(attacks[t])] for t in at[late]})
    for rule in ("queue", "retention")
}  # fmt: skip
print({rule: round(value, 3) for rule, value in auc.items()}, "AUC of attacks; trains are usual")
assert auc["retention"] > auc["queue"]

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
# ## 07.2 · The highest only where it is twice the middle
# With a scorer that knows the event nothing changes. With a weak one a part's highest score is mostly noise: the rule
# then takes the middle of the mass where the two are near each other, and its frames lie between those of both
# samplers.

# %%
shares = []
for noise_std in (0.02, 0.3):
    for _ in range(40):
        curve = np.clip(0.1 + abs(rng.normal(0, noise_std, 240)), 0, 1)
        start = int(rng.integers(20, 200))
        curve[start : start + 16] = np.clip(curve[start : start + 16] + 0.5, 0, 1)
        middle, highest = (frame_sampling.density_aware_sample(curve, 8, middle=choice) for choice in (True, False))
        twice = np.where(curve[highest] >= 2 * curve[middle], highest, middle)
        for name, index in (("middle", middle), ("highest", highest), ("twice", twice)):
            shares.append([noise_std, name, frame_sampling.judge(index, [(start, start + 16)])["hit_rate"]])
table = pd.DataFrame(shares, columns=["noise", "frame of a part", "hit rate"])
table = table.pivot_table(index="noise", columns="frame of a part", values="hit rate")
print(table.round(3).to_string())
assert (table["twice"] >= table["middle"] - 1e-9).all() and (table["twice"] <= table["highest"] + 1e-9).all()

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
