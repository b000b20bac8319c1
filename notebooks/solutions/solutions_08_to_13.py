# %%
import copy
import json
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib.compression import distillation, pruning, token_pruning, token_selection
from vau_lib.data import annotation, records, video
from vau_lib.detectors import baselines
from vau_lib.evaluation import metrics, result_tables
from vau_lib.synthetic import captions, feature_streams
from vau_lib.synthetic import dataset as scenarios_of
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, clients, event_order, finetuning, instruction_data
from vau_lib.workspace import presets

rng = np.random.default_rng(0)

# %% [markdown]
# ## 08.1 · Clips of half the length
# Twice as many clips; the histogram of lengths moves, that of events does not. Shorter clips show less, so more of
# their captions are the same text, and `annotation.flags` counts what stands more than three times.

# %%
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    fixed = dict(height=120, width=160, fps=5.0, duration_s=5.0, splits={"train": 1.0})
    drawn = scenarios_of.make_dataset(folder, num_videos=6, seed=3, **fixed)
    rows = {}
    for clip_s in (2.0, 1.0):
        draw = np.random.default_rng(0)
        writer = captions.CaptionTemplates(folder, draw)
        rows[clip_s] = [
            row
            for record in drawn
            for row in annotation.annotate(
                record, annotation.decouple(record, clip_s=clip_s, rng=draw), caption=writer.caption,
                summarise=writer.summarise, rng=draw, origin=writer.origin, folder=str(folder),
            )
        ]  # fmt: skip
counts = {}
for clip_s, found in rows.items():
    texts = [row.answer for row in found if row.level == "clip"]
    events = {(row.video_id, row.event) for row in found}
    repeated = sum("same caption" in why for why in annotation.flags(found, drawn).values())
    counts[clip_s] = dict(clips=len(texts), distinct=len(set(texts)), flagged=repeated, events=len(events))
print(pd.DataFrame(counts).T.rename_axis("clip_s").to_string())
assert counts[1.0]["clips"] > counts[2.0]["clips"] and counts[1.0]["events"] == counts[2.0]["events"]
assert counts[1.0]["distinct"] / counts[1.0]["clips"] < counts[2.0]["distinct"] / counts[2.0]["clips"]

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
# ## 08.3 · Ask a service
# A captioner is a function from a request to a text. The service here is a few lines on this machine that speak the
# protocol; of a real one only address, model and the key in `VAU_API_KEY` differ.


# %%
class Service(BaseHTTPRequestHandler):
    """Answers every question in one sentence that says how many pictures came with it."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        parts = [part["type"] for part in asked["messages"][-1]["content"]]
        text = f"Of {parts.count('image_url')} pictures I say: two people hit each other."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"model": asked["model"], "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
service = clients.Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "a-model")
with tempfile.TemporaryDirectory() as name:
    info = video.write_video(Path(name) / "a.mp4", np.zeros((10, 48, 64, 3), np.uint8), fps=5.0)
    facts = dict(fps=info.fps, num_frames=info.num_frames, dataset="mine", split="train", label=1)
    one = records.VideoRecord(id="a", path="a.mp4", events=(records.Span(0.0, 2.0, "fight"),), **facts)
    (part,) = annotation.decouple(one, rng=rng)
    prompt = annotation.ENGINE_PROMPTS["clip"]
    request = annotation.AnnotationRequest(one, "clip", part.clips[0], part.label, (), prompt)
    caption = service(request.prompt, annotation.sample_clip_frames(request, name, num_frames=4))
server.shutdown()
server.server_close()
print(caption)
assert caption == "Of 4 pictures I say: two people hit each other."

# %% [markdown]
# ## 09.1 · Rank and frames
# A higher rank has more weights and learns two answers by heart faster. And a frame that is not shown cannot be
# learned from: of two frames neither lies inside an event in the middle third.

# %%
sizes = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
toy = tiny_vlm.tiny("internvl", sizes=sizes)
shown = {"Yes, a fight.": np.full((2, 56, 56, 3), 250, np.uint8), "No.": np.zeros((2, 56, 56, 3), np.uint8)}
judgement, description = "Is there an anomaly?", "What happens?"


def samples_of(question, answers):
    """Return an encoded sample for each picture, with its answer."""
    return [chat.encode(toy, shown[name], question, answer=text) for name, text in answers.items()]


def learn(model, samples, *, steps, learning_rate=1e-2):
    """Train what is not frozen; return the mean loss of the samples afterwards."""
    optimiser = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=learning_rate)
    for _ in range(steps):
        optimiser.zero_grad()
        sum(model(**sample).loss for sample in samples).backward()
        optimiser.step()
    return loss_of(model, samples)


def loss_of(model, samples):
    with torch.no_grad():
        return float(np.mean([float(model(**sample).loss) for sample in samples]))


verdicts, ranks = samples_of(judgement, {name: name for name in shown}), {}
for rank in (1, 4, 16):
    adapted = finetuning.lora(copy.deepcopy(toy.model), r=rank, alpha=2 * rank, dropout=0.0, seed=0)
    ranks[rank] = finetuning.trainable_weights(adapted)[0], learn(adapted, verdicts, steps=25)
print({rank: f"{count} weights, loss {loss:.2f}" for rank, (count, loss) in ranks.items()})
hits = {}
for num_frames in (12, 2):
    places = instruction_data.interval_frames(0, 90, num_frames, None)
    hits[num_frames] = int(((places >= 30) & (places < 60)).sum())
print({count: f"{inside} inside the event" for count, inside in hits.items()}, "frames of 12 and of 2")
assert ranks[16][1] < ranks[1][1] and hits[12] >= 3 and hits[2] == 0

# %% [markdown]
# ## 09.2 · Frames of the first half only
# What has not begun by then is not seen at all, whatever the label says: the answer is then learned from the place.

# %%
spans = {"fight, early": (5, 25), "vandalism, in the middle": (20, 45), "fall, late": (40, 55)}  # frames of 60
whole = instruction_data.interval_frames(0, 60, 12, None)
lost = {}
for name, (start, stop) in spans.items():
    inside = (whole >= start) & (whole < stop)
    lost[name] = 1 - inside[:6].sum() / inside.sum()
print({name: f"{share:.0%} of its frames lost" for name, share in lost.items()})
assert lost["fall, late"] == 1 and lost["fight, early"] == 0 < lost["vandalism, in the middle"] < 1

# %% [markdown]
# ## 09.3 · What an adapter for judgements forgets
# The tiny model learns both tasks, then an adapter learns judgements alone. Its weights serve both questions, so that
# the description is lost while the judgement stays; without the adapter it is there again.

# %%
texts = {"Yes, a fight.": "Two people hit each other.", "No.": "Somebody walks by."}
described, both = samples_of(description, texts), copy.deepcopy(toy.model)
learn(both, verdicts + described, steps=60)
before = loss_of(both, described)
adapted = finetuning.lora(both, r=16, alpha=32, dropout=0.0, seed=0)
learn(adapted, samples_of(judgement, {name: "No anomaly." for name in shown}), steps=25)
after = loss_of(adapted, described)
with adapted.disable_adapter():
    without = loss_of(adapted, described)
print(f"loss of the descriptions {before:.2f} before, {after:.2f} with the adapter, {without:.2f} without it")
assert after > 2 * before and abs(without - before) < 1e-3

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
# ## 10.3 · Distil on pruned videos
# A student with fewer channels learns the teacher's logits, once on whole videos and once on videos of which a third
# of the tokens is left. One distillation serves both compressions if it was on pruned videos: read the table by
# columns.

# %%
qwen = tiny_vlm.tiny("qwen2_5_vl", sizes=sizes)
films = rng.integers(0, 255, (4, 4, 56, 56, 3), dtype=np.uint8)
clock = np.arange(4) / 2
asked = [chat.encode(qwen, film, judgement, times_s=clock, answer="Yes.", as_video=True) for film in films]


def lossy(model):
    return token_pruning.prune_tokens(model, keep_ratio=0.34)


def gap(model, teacher):
    """Return the mean KL divergence to the teacher, which reads the same tokens."""
    with torch.no_grad():
        return float(np.mean([float(distillation.distillation_loss(model, teacher, sample)) for sample in asked]))


small = pruning.prune(qwen.model, 0.6, asked)
students = {"not distilled": small, "on whole videos": copy.deepcopy(small), "on pruned videos": copy.deepcopy(small)}
distillation.distil(students["on whole videos"], qwen.model, asked, epochs=6, learning_rate=3e-3)
distillation.distil(lossy(students["on pruned videos"]), lossy(qwen.model), asked, epochs=6, learning_rate=3e-3)
found = {
    name: {"whole": gap(model, qwen.model), "a third": gap(lossy(model), lossy(qwen.model))}
    for name, model in students.items()
}
print(pd.DataFrame(found).T.rename_axis("student").to_string(float_format="%.4f"))
assert found["on pruned videos"]["a third"] < found["on whole videos"]["a third"] < found["not distilled"]["a third"]
assert found["on pruned videos"]["whole"] < 0.5 * found["not distilled"]["whole"]

# %% [markdown]
# ## 11.1 · Temperature, and judgements that are no longer asked
# At temperature 1 a policy that puts four nats between a right form and each of 500 other words still says nonsense
# four times in five, and nonsense earns nothing. And what shares its weights with what is paid, drifts when it is not
# paid.

# %%
words = torch.zeros(502)
words[:2] = 4.0  # "1, 2" and "2, 1"
first_reward = {}
for temperature in (0.3, 0.5, 1.0):
    form = float((words / temperature).softmax(0)[:2].sum())
    reward = np.mean(
        [sum(event_order.reward_parts({"task": "order", "order": [1, 2]}, a).values()) for a in ("1, 2", "2, 1")]
    )
    first_reward[temperature] = form * reward
print({t: f"{value:.2f}" for t, value in first_reward.items()}, "first reward of an order question")

questions = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])  # order, judgement: they share the first feature
right, judged = torch.tensor([0, 1]), {}
for fraction in (0.5, 0.0):
    weights = torch.zeros(3, 2, requires_grad=True)
    with torch.no_grad():
        weights[2, 1] = 1.0  # it judges rightly at first
    optimiser = torch.optim.SGD([weights], lr=0.5)
    for _ in range(60):
        earned = (questions @ weights).softmax(1).gather(1, right[:, None])[:, 0]  # expected reward of each question
        optimiser.zero_grad()
        loss = -(earned[0] * (1 - fraction) + earned[1] * fraction)
        loss.backward()
        optimiser.step()
    judged[fraction] = float((questions @ weights).softmax(1)[1, 1].detach())
print(
    {f"judgement_fraction {f}": f"{p:.2f}" for f, p in judged.items()},
    "probability of the right judgement (.73 at first)",
)
assert first_reward[0.3] > 5 * first_reward[1.0] and judged[0.5] > 0.73 > judged[0.0]

# %% [markdown]
# ## 11.2 · More for nearly right than for right
# A policy learns what earns most. With the partial reward above 1, an order that is nearly right beats the right one.

# %%
right, nearly = event_order.order_reward("1, 2, 3", [1, 2, 3]), event_order.order_reward("1, 3, 2", [1, 2, 3])
tau_of_nearly = nearly / event_order.PARTIAL
print(f"right earns {right}, nearly right {nearly:.2f}; with PARTIAL 4 it would earn {4 * tau_of_nearly:.2f}")
assert right > nearly > 0 and 4 * tau_of_nearly > right

# %% [markdown]
# ## 11.3 · Three pieces
# "3" was never generated, so its embedding is a random row that LoRA leaves frozen; the last layer is tied to it.
# With `tokens` that row learns too, and the same number of steps makes "3" much likelier.

# %%
(three,) = toy.tokenizer("3")["input_ids"]
answer, likely = chat.encode(toy, shown["No."], "Order?", answer="3"), {}
with torch.no_grad():
    blank = copy.deepcopy(toy.model)
    blank.get_input_embeddings().weight[three] = 0.0  # as of a word that never learned
for tokens in ((), (three,)):
    adapted = finetuning.lora(copy.deepcopy(blank), r=4, alpha=8, dropout=0.0, tokens=tokens, seed=0)
    learn(adapted, [answer], steps=30)
    place = int((answer["labels"][0] != -100).nonzero()[0]) - 1
    with torch.no_grad():
        likely[len(tokens)] = float(adapted(**answer).logits[0, place].softmax(0)[three])
print(f'probability of "3": {likely[0]:.3f} by LoRA alone, {likely[1]:.3f} with its embedding')
assert likely[1] > 2 * likely[0]

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
# ## 13.1 · Sorted by video AP
# AUC counts pairs of all videos alike, AP what stands at the top: a method that finds a few anomalies surely can pass
# one that ranks all of them a little better than chance.

# %%
names = [f"v{n}" for n in range(200)]
truth = {name: np.array([int(n < 20)]) for n, name in enumerate(names)}
surely, broadly = rng.uniform(0, 1, 200), rng.uniform(0, 1, 200)
surely[:6] = 2 + rng.uniform(0, 1, 6)  # six of twenty stand above all
broadly[:20] = rng.uniform(0.6, 1, 20)
order = pd.DataFrame([
    [name, metrics.video_auc(scores, truth), metrics.video_ap(scores, truth)]
    for name, values in (("a few surely", surely), ("all a little", broadly))
    for scores in [dict(zip(names, values[:, None], strict=True))]
], columns=["method", "video_auc", "video_ap"])  # fmt: skip
print(order.round(3).to_string(index=False))
by_auc, by_ap = (order.sort_values(metric, ascending=False)["method"].tolist() for metric in ("video_auc", "video_ap"))
print("the order holds" if by_auc == by_ap else "the order does not hold")
assert by_auc == by_ap[::-1]

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

# %% [markdown]
# ## 13.3 · The table of your own paper
# Every csv below `data/results` is read; one with the columns `level` and `dataset` joins the results, and its rows
# stand in each figure of that data set.

# %%
with tempfile.TemporaryDirectory() as name:
    mine = pd.DataFrame([{"level": "video", "method": "mine", "kind": "ours", "dataset": "fights", "features": "my own",
                          "video_auc": 0.9, "low": 0.85, "high": 0.94}])  # fmt: skip
    result_tables.write_curve(Path(name) / "my_paper.csv", mine)
    tables = result_tables.read_tables(presets.project_path("data/results"), Path(name))
results = pd.concat([t for t in tables.values() if {"level", "dataset"} <= set(t)], ignore_index=True)
beside = results[(results["dataset"] == "fights") & (results["level"] == "video")].nlargest(3, "video_auc")
print(beside[["method", "kind", "features", "video_auc"]].round(3).to_string(index=False))
assert (results["method"] == "mine").sum() == 1 and results["method"].nunique() > 5
