"""A model that reads a keep_ratio of its video is the same model: exact when all is kept, and every kept token where it was."""

import math

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vau_lib.compression import distillation, token_pruning

VIDEO, IMAGE, START, END, PAD = 120, 121, 122, 123, 0
PATCH, MERGE = 4, 2
CELL = PATCH * MERGE


def qwen(context: int = 512) -> Qwen2_5_VLForConditionalGeneration:
    """The real class at toy width with random weights (spread .1, so that logits differ visibly)."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = dict(
        model_type="qwen2_5_vl_text", vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context, rope_parameters=rope,
        initializer_range=0.1, bos_token_id=None, eos_token_id=127, pad_token_id=PAD,
    )  # fmt: skip
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, patch_size=PATCH,
        spatial_merge_size=MERGE, window_size=16, fullatt_block_indexes=[1], tokens_per_second=2, initializer_range=0.1,
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, video_token_id=VIDEO, image_token_id=IMAGE, vision_start_token_id=START,
        vision_end_token_id=END, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    return qwen()


def film(moments: int, height: int = 3, width: int = 4, seed: int = 0) -> np.ndarray:
    """A textured wall with a bright cell that steps right every second moment; frames (2 * moments, H, W, 3) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    wall = rng.uniform(-0.5, 0.5, (height * CELL, width * CELL, 3))
    frames = np.repeat(wall[None], 2 * moments, 0) + rng.normal(0, 0.01, (2 * moments, *wall.shape))
    for moment in range(moments):
        at = moment // 2 % width * CELL
        frames[2 * moment : 2 * moment + 2, CELL : 2 * CELL, at : at + CELL] += 1.0
    return frames


def as_patches(frames: np.ndarray) -> tuple[torch.Tensor, list[int]]:
    """Lay frames out as Qwen2.5-VL's processor does: rows (T, H, W, merge, merge), each (colour, frame, y, x)."""
    moments, height, width = len(frames) // 2, frames.shape[1] // PATCH, frames.shape[2] // PATCH
    cut = torch.from_numpy(frames).float().permute(0, 3, 1, 2)
    cut = cut.reshape(moments, 2, 3, height // MERGE, MERGE, PATCH, width // MERGE, MERGE, PATCH)
    rows = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(moments * height * width, -1)
    return rows, [moments, height, width]


def prompt(*films: np.ndarray, text: tuple[int, ...] = (5, 6, 7)) -> dict[str, torch.Tensor]:
    """One row: some text, the films in their marks, more text; 1 s per temporal patch."""
    ids, rows, grids = [9, 8], [], []
    for frames in films:
        pixels, grid = as_patches(frames)
        rows.append(pixels)
        grids.append(grid)
        ids += [START, *[VIDEO] * (math.prod(grid) // MERGE**2), END]
    return batch_of([ids + list(text)], rows, grids)


def batch_of(ids, rows, grids, *, right=False):
    longest = max(map(len, ids))
    pad = [[PAD] * (longest - len(row)) for row in ids]
    ones = [[1] * len(row) for row in ids]
    join = (lambda a, b: b + a) if right else (lambda a, b: a + b)
    input_ids = torch.tensor([join(p, row) for p, row in zip(pad, ids, strict=True)])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.tensor([join([0] * len(p), one) for p, one in zip(pad, ones, strict=True)]),
        "mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int(),
        "pixel_values_videos": torch.cat(rows),
        "video_grid_thw": torch.tensor(grids),
        "second_per_grid_ts": torch.ones(len(grids)),
    }


def together(*prompts: dict, right: bool = False) -> dict:
    """Batch single prompts, padded on the left (or right)."""
    return batch_of(
        [p["input_ids"][0].tolist() for p in prompts], [p["pixel_values_videos"] for p in prompts],
        [grid for p in prompts for grid in p["video_grid_thw"].tolist()], right=right,
    )  # fmt: skip


GREEDY = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)


# Exact


@pytest.mark.parametrize("before_tower", [True, False])
@torch.inference_mode()
def test_keeping_everything_changes_no_logit(model, before_tower):
    for right in (False, True):
        inputs = together(prompt(film(6)), prompt(film(3, 2, 2), film(4, seed=1)), right=right)
        real = inputs["attention_mask"].bool()
        whole = model(**inputs).logits[real]
        small = token_pruning.prune_tokens(model, keep_ratio=1, before_tower=before_tower)
        assert (small(**inputs).logits[real] - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("keep_ratio", [0.5, 0.25])
@torch.inference_mode()
def test_dropping_a_token_is_hiding_it_and_moving_nothing(model, keep_ratio):
    inputs = together(prompt(film(8)), prompt(film(6, 2, 3), film(8, seed=1)))
    small = token_pruning.prune_tokens(model, keep_ratio=keep_ratio)
    short = small(**inputs).logits
    hidden = {**inputs, "attention_mask": small.token_mask.long()}  # the whole prompt, dropped tokens masked
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"], attention_mask=inputs["attention_mask"],
    )  # fmt: skip
    whole = model(**hidden, position_ids=positions).logits
    for row in range(2):
        kept = small.token_mask[row]
        assert kept.sum() < inputs["attention_mask"][row].sum()
        torch.testing.assert_close(short[row, -int(kept.sum()) :], whole[row, kept], atol=2e-5, rtol=0)


def test_kept_tokens_keep_time_row_and_column(model):
    inputs = prompt(film(8))
    short, kept = token_pruning.prune_tokens(model, keep_ratio=0.25).prune(**inputs)
    whole, _ = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"],
    )
    assert torch.equal(short["position_ids"], whole[:, kept][:, None])
    time = short["position_ids"][0, 0][short["input_ids"][0] == VIDEO]
    assert len(time.unique()) > 1 and int(time.max()) > 3  # later moments are there, with gaps before them


@torch.inference_mode()
def test_generation_goes_on_as_if_the_dropped_tokens_were_masked(model):
    inputs = together(prompt(film(8)), prompt(film(5, 2, 3), text=(5,)))
    small = token_pruning.prune_tokens(model, keep_ratio=0.3)
    said = small.generate(**inputs, **GREEDY)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(said[:, :length], inputs["input_ids"])  # the caller cuts its own prompt off, whatever we dropped
    for row in range(2):  # greedily, by full forwards of the whole prompt with dropped tokens masked
        ids, mask = inputs["input_ids"], small.token_mask.long()
        positions, _ = model.model.get_rope_index(
            ids, inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"],
            second_per_grid_ts=inputs["second_per_grid_ts"], attention_mask=inputs["attention_mask"],
        )  # fmt: skip
        for step in range(6):
            seen = {k: inputs[k] for k in ("pixel_values_videos", "video_grid_thw")}
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, **seen).logits[:, -1]
            logits[:, 127] = -math.inf  # no end before the sixth
            assert logits[row].argmax() == said[row, length + step]
            ids, mask = (torch.cat([ids, logits.argmax(-1, keepdim=True)], 1), torch.cat([mask, torch.ones(2, 1)], 1).long())
            positions = torch.cat([positions, positions[..., -1:] + 1], -1)


@torch.inference_mode()
def test_keep_all_generates_what_the_model_does(model):
    inputs = together(prompt(film(4)), prompt(film(6, 2, 2)))
    assert torch.equal(
        token_pruning.prune_tokens(model, keep_ratio=1.0).generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY)
    )


@torch.inference_mode()
def test_a_batch_answers_as_one_by_one(model):
    alone = [prompt(film(8)), prompt(film(5, 2, 3), film(4, seed=3)), prompt(film(3, 4, 4), text=(5, 6, 7, 8, 9, 10))]
    small = token_pruning.prune_tokens(model, keep_ratio=0.3)
    batch = together(*alone)
    logits, said = small(**batch).logits[:, -1], small.generate(**batch, **GREEDY)[:, -6:]
    for row, one in enumerate(alone):
        torch.testing.assert_close(small(**one).logits[0, -1], logits[row], atol=2e-5, rtol=0)
        assert torch.equal(small.generate(**one, **GREEDY)[0, -6:], said[row])


# Before the tower


@torch.inference_mode()
def test_a_moment_without_tokens_is_never_encoded_and_nothing_else_changes(model):
    def first_and_last(features, keep_ratio):
        mask = torch.zeros(features.shape[:3], dtype=torch.bool)
        mask[0, 0], mask[-1, :, 1] = True, True
        return mask

    inputs, rows = prompt(film(8)), []
    watch = model.model.visual.register_forward_hook(lambda _, given, out: rows.append(len(given[0])))
    early = token_pruning.prune_tokens(model, keep_ratio=0.5, rule=first_and_last)(**inputs).logits
    late = token_pruning.prune_tokens(model, keep_ratio=0.5, rule=first_and_last, before_tower=False)(**inputs).logits
    watch.remove()
    assert rows[1] == len(inputs["pixel_values_videos"]) and rows[0] == rows[1] // 4  # 2 of 8 moments
    assert (early - late).abs().max() <= 1e-5


@torch.inference_mode()
def test_what_moves_is_what_is_kept(model):
    small = token_pruning.prune_tokens(model, keep_ratio=0.25)
    small(**prompt(film(8)))
    kept = small.token_mask[0][prompt(film(8))["input_ids"][0] == VIDEO].view(8, 3, 4)
    assert kept[0].all() and all(kept[t, 1, t // 2] for t in range(2, 8))


# Training


def test_gradients_reach_the_tower_and_labels_are_cut_alike():
    model = qwen().train()
    inputs = together(prompt(film(6)), prompt(film(4, 2, 2), text=(5,)), right=True)
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] >= VIDEO) | (inputs["attention_mask"] == 0), -100)
    small = token_pruning.prune_tokens(model, keep_ratio=0.4)
    short, kept = small.prune(**inputs, labels=labels)
    assert torch.equal(short["labels"][short["labels"] != -100], labels[labels != -100])  # text is all there
    small(**inputs, labels=labels).loss.backward()
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_a_compressed_model_learns(model):
    model = qwen().train()
    small = token_pruning.prune_tokens(model, keep_ratio=0.3)
    inputs = together(prompt(film(4), text=(5, 6)), prompt(film(4, seed=5), text=(7, 8)))
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    moved = torch.optim.Adam(small.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = small(**inputs, labels=labels).loss
        moved.zero_grad()
        loss.backward()
        moved.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_usual_engine_trains_it(tmp_path):
    from transformers import Trainer, TrainingArguments

    small = token_pruning.prune_tokens(qwen().train(), keep_ratio=0.4)
    rows = [prompt(film(4, seed=n), text=(5, 6 + n)) for n in range(4)]

    def collate(items):
        batch = together(*items)
        return batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] >= VIDEO, -100)}

    how = dict(
        max_steps=2, per_device_train_batch_size=2, remove_unused_columns=False, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    engine = Trainer(model=small, args=TrainingArguments(tmp_path, **how), train_dataset=rows, data_collator=collate)
    before = small.model.model.visual.patch_embed.proj.weight.detach().clone()
    assert engine.train().training_loss > 0
    assert (small.model.model.visual.patch_embed.proj.weight != before).any()


@torch.inference_mode()
def test_several_answers_per_prompt(model):
    inputs = prompt(film(6))
    torch.manual_seed(0)
    said = token_pruning.prune_tokens(model, keep_ratio=0.3).generate(
        **inputs, do_sample=True, num_return_sequences=3, max_new_tokens=4
    )
    assert len(said) == 3 and torch.equal(said[2, : inputs["input_ids"].shape[1]], inputs["input_ids"][0])


@torch.inference_mode()
def test_an_adapter_may_wrap_the_model():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(qwen(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2)).eval()
    inputs = prompt(film(4))
    assert (token_pruning.prune_tokens(adapted, keep_ratio=1)(**inputs).logits - adapted(**inputs).logits).abs().max() <= 1e-5


# Refusals


@pytest.mark.parametrize("amount", [{"keep_ratio": 0}, {"keep_ratio": 1.01}, {"keep_ratio": math.nan}, {"threshold": -0.1}, {}])
def test_an_impossible_amount_is_refused(model, amount):
    with pytest.raises(ValueError, match="keep_ratio|threshold"):
        token_pruning.prune_tokens(model, **amount)


def test_a_model_without_eyes_is_refused():
    with pytest.raises(ValueError, match="Linear has no vision tower"):
        token_pruning.prune_tokens(torch.nn.Linear(2, 2), keep_ratio=0.5)


def test_an_empty_and_a_huge_video_are_refused(model):
    small = token_pruning.prune_tokens(model, keep_ratio=0.5)
    inputs = prompt(film(2))
    empty = inputs | {"pixel_values_videos": inputs["pixel_values_videos"][:0]}
    with pytest.raises(ValueError, match="empty or broken video"):
        small(**empty)
    with pytest.raises(ValueError, match="holds 24 video tokens, its 1 videos make 48"):
        more, grid = as_patches(film(4))
        small(**inputs | {"pixel_values_videos": more, "video_grid_thw": torch.tensor([grid])})
    with pytest.raises(ValueError, match="keeps .*, the model's context is 512: lower keep_ratio"):
        small(**prompt(film(100)))


# Pictures, and another family


def pictures(*films: np.ndarray) -> dict[str, torch.Tensor]:
    """One row per film: every second frame a picture between words, as a dialogue about frames has it."""
    ids, rows, grids = [], [], []
    for frames in films:
        row = []
        for number, frame in enumerate(frames[::2]):
            pixels, grid = as_patches(np.stack([frame, frame]))  # the processor shows a picture twice
            rows.append(pixels)
            grids.append(grid)
            row += [10 + number, START, *[IMAGE] * (math.prod(grid) // MERGE**2), END]
        ids.append(row + [5, 6])
    batch = batch_of(ids, rows, grids)
    batch["pixel_values"], batch["image_grid_thw"] = batch.pop("pixel_values_videos"), batch.pop("video_grid_thw")
    del batch["second_per_grid_ts"]
    return batch


@torch.inference_mode()
def test_frames_as_pictures_are_a_film_and_a_lone_picture_is_whole(model):
    inputs = pictures(film(8), film(1))
    real = inputs["attention_mask"].bool()
    whole = model(**inputs).logits[real]
    assert (token_pruning.prune_tokens(model, keep_ratio=1)(**inputs).logits[real] - whole).abs().max() <= 1e-5
    small = token_pruning.prune_tokens(model, keep_ratio=0.25)
    alone = small(**pictures(film(8))).logits[0, -1]
    torch.testing.assert_close(small(**inputs).logits[0, -1], alone, atol=2e-5, rtol=0)
    seen = small.token_mask & (inputs["input_ids"] == IMAGE)
    assert seen.sum(1).tolist() == [24, 12]  # a quarter of eight pictures of 12 tokens; all of one


def internvl():
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        text_config=dict(
            model_type="qwen2", vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.1,
            bos_token_id=None, eos_token_id=127, pad_token_id=PAD,
        ),
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=[32, 32],
            patch_size=[4, 4], initializer_range=0.1, layer_scale_init_value=1.0,
        ),
        image_token_id=IMAGE, image_seq_length=16, downsample_ratio=0.5, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    return InternVLForConditionalGeneration(config).eval()


@torch.inference_mode()
def test_another_family_is_cut_too():
    model = internvl()
    frames = torch.from_numpy(film(6, 4, 4)[::2]).float().permute(0, 3, 1, 2)  # six pictures of 16 tokens
    row = [token for number in range(6) for token in (10 + number, *[IMAGE] * 16)] + [5, 6]
    ids = torch.tensor([row])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": frames}
    whole = model(**inputs).logits
    for early in (True, False):
        small = token_pruning.prune_tokens(model, keep_ratio=1, before_tower=early)
        assert (small(**inputs).logits - whole).abs().max() <= 1e-5
        small = token_pruning.prune_tokens(model, keep_ratio=0.3, before_tower=early)
        short = small(**inputs).logits
        hidden = inputs | {"attention_mask": small.token_mask.long()}
        places = torch.arange(ids.shape[1])[None]  # plain positions, of the whole prompt
        masked = model(**hidden, position_ids=places).logits[small.token_mask]
        torch.testing.assert_close(short[0], masked, atol=2e-5, rtol=0)
    assert torch.equal(small.generate(**inputs, **GREEDY)[0, ids.shape[1]], short[0, -1].argmax())


@torch.inference_mode()
def test_tiles_of_one_picture_are_no_film():
    model = internvl()
    ids = torch.tensor([[9, *[IMAGE] * 64, 5]])  # four tiles that touch
    small = token_pruning.prune_tokens(model, keep_ratio=0.25)
    small(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(4, 3, 32, 32))
    assert small.token_mask.all()


def test_text_alone_goes_straight_through(model):
    ids = torch.tensor([[5, 6, 7]])
    small = token_pruning.prune_tokens(model, keep_ratio=0.5)
    with torch.inference_mode():
        assert torch.equal(small(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(ValueError, match="need position_ids"):
        small(input_ids=ids, past_key_values=object())
    assert small.config is model.config


@pytest.mark.parametrize("right", [False, True])
@torch.inference_mode()
def test_distillation_meets_the_answers_in_what_a_pruned_model_reads(model, right):
    """Against each prompt alone, its last positions counted from the end of what was read."""
    small = token_pruning.prune_tokens(model, keep_ratio=0.3)
    alone, batch = [prompt(film(6)), prompt(film(4, seed=1), text=(5, 9))], {}
    batch = together(*alone, right=right)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, real in enumerate(batch["attention_mask"].bool()):
        labels[row, real.nonzero()[-2:, 0]] = 5  # two tokens each; which ones they are does not matter
    for student, teacher in ((small, model), (model, small), (small, small)):
        gaps = []
        for inputs in alone:
            ours, theirs = (one(**inputs).logits[0, -3:-1].log_softmax(-1) for one in (student, teacher))
            gaps += (theirs.exp() * (theirs - ours)).sum(-1).tolist()
        found = distillation.distillation_loss(student, teacher, {**batch, "labels": labels})
        assert float(found) == pytest.approx(np.mean(gaps), rel=1e-3, abs=1e-6)
