"""A model's folder is loaded whole or refused in one line, compressed ones too; labels say what answers are worth."""

from copy import deepcopy

import damaged_weights
import numpy as np
import pytest
import torch

from vau_lib.compression import pruning
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import chat, finetuning, inference, models
from vau_lib.workspace import artifacts

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=2, vision_layers=2)
FRAMES = np.random.default_rng(0).integers(0, 255, (2, 112, 112, 3), dtype=np.uint8)


@pytest.fixture(params=models.FAMILIES)
def vlm(request):
    return tiny_vlm.tiny(request.param, sizes=SMALL)


def compress(vlm: models.VLM, way: str) -> torch.nn.Module:
    sample = chat.encode(vlm, FRAMES, "What?")
    if way == "factorised":
        return pruning.factorise(vlm.model, 0.6, [sample])
    return pruning.prune(vlm.model, 0.4, [sample], num_layers=int(way == "fewer layers"), uniform=way == "uniform")


@pytest.mark.parametrize("way", ["pruned", "uniform", "fewer layers", "factorised"])
def test_a_compressed_model_comes_back_with_its_processor_and_its_end_of_an_answer(vlm, tmp_path, way):
    small = vlm.replace(model=compress(vlm, way))
    models.save(small, tmp_path / "small")
    again = models.load(tmp_path / "small", dtype=torch.float32, local_only=True)
    assert again.label == f"{vlm.name} (toy, random weights, compressed)"
    assert again.model.generation_config.eos_token_id == vlm.tokenizer.eos_token_id
    sample = chat.encode(again, FRAMES, "What?")
    with torch.inference_mode():
        assert torch.allclose(again.model(**sample).logits, small.model(**sample).logits, atol=1e-5)
    answers = [inference.generate(one, [sample], log=None, max_new_tokens=4) for one in (small, again)]
    assert answers[0] == answers[1]
    models.save(again, tmp_path / "twice")
    assert models.load(tmp_path / "twice", local_only=True).label == again.label


def test_compressions_own_save_is_enough(vlm, tmp_path):
    """Through `pruning.save` alone: processor, question and kind are those of the folder the model was loaded from."""
    models.save(vlm.replace(question="Is it odd?", kind="tuned"), tmp_path / "whole")
    whole = models.load(tmp_path / "whole", dtype=torch.float32, local_only=True)
    pruning.save(compress(whole, "factorised"), tmp_path / "small")
    small = models.load(tmp_path / "small", local_only=True)
    assert (small.name, small.question) == (vlm.name, "Is it odd?") and small.kind.startswith("tuned, compressed")
    assert chat.encode(small, FRAMES, "What?")["input_ids"].tolist() == chat.encode(vlm, FRAMES, "What?")["input_ids"].tolist()
    pruning.save(compress(vlm, "factorised"), tmp_path / "bare", processor=vlm.processor)
    assert models.load(tmp_path / "bare", local_only=True).kind.startswith("compressed, of unknown origin")
    pruning.save(compress(vlm, "factorised"), tmp_path / "none")
    with pytest.raises(artifacts.StoreError, match="none cannot be loaded") as error:
        models.load(tmp_path / "none", local_only=True)
    assert "\n" not in str(error.value)


OTHER_FILES = ["no weights", "compression.json", "config.json", "generation_config.json"]


@pytest.mark.parametrize("fault", [*damaged_weights.FAULTS, *OTHER_FILES])
def test_a_compressed_folder_that_does_not_fit_is_one_line(vlm, tmp_path, fault):
    place = models.save(vlm.replace(model=compress(vlm, "factorised")), tmp_path / "small")
    path = place / "model.safetensors"
    if fault in damaged_weights.FAULTS:
        damaged_weights.damage(path, fault)
    elif fault == "no weights":
        path.unlink()
    else:
        (place / fault).write_text((place / fault).read_text()[:40])
    with pytest.raises(artifacts.StoreError) as error:
        models.load(place, local_only=True)
    assert "\n" not in str(error.value) and str(place) in str(error.value)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("generation_config.json", "generation_config.json is not JSON"),
        ("other shape", "has other shapes of 1 tensors, the first is"),
    ],
)
def test_a_whole_folder_that_does_not_fit_names_what(vlm, tmp_path, fault, words):
    place = models.save(vlm, tmp_path / "model")
    if fault in damaged_weights.FAULTS:
        damaged_weights.damage(place / "model.safetensors", fault)
    else:
        (place / fault).write_text("{")
    with pytest.raises(artifacts.StoreError, match=words) as error:
        models.load(place, local_only=True)
    assert "\n" not in str(error.value)


def test_an_adapter_without_weights_is_not_sought_on_the_hub(vlm, tmp_path):
    finetuning.lora(vlm.model, r=2, alpha=4).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(artifacts.StoreError, match="adapter_model.safetensors is missing"):
        finetuning.merge(vlm.model, tmp_path)


def test_an_adapter_of_the_whole_model_does_not_fit_the_compressed_one(vlm, tmp_path):
    small = compress(vlm, "factorised")
    finetuning.lora(vlm.model, r=2, alpha=4).save_pretrained(tmp_path)
    with pytest.raises(artifacts.StoreError, match="^the adapter at .* does not fit: ") as error:
        finetuning.merge(small, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["", "tuned: security"])
def test_random_weights_are_called_random_whatever_the_folder_says(vlm, tmp_path, kind):
    models.save(vlm.replace(kind=kind), tmp_path / "model")
    assert models.load(tmp_path / "model", local_only=True).kind == ", ".join(filter(None, [kind, "random weights"]))
    for name, part in vlm.model.named_parameters():
        if "norm" in name:
            part.data += 0.01 * torch.randn_like(part)  # as any training of the whole model leaves them
    models.save(vlm.replace(kind=kind), tmp_path / "model")
    assert models.load(tmp_path / "model", local_only=True).kind == kind


def test_a_tuned_model_says_on_what_it_was_tuned_after_every_road(vlm, tmp_path):
    tuned = vlm.replace(model=finetuning.lora(vlm.model, r=2, alpha=4), question="Odd?")
    finetuning.save_adapter(tuned, tmp_path / "adapter")
    fresh = tiny_vlm.tiny(vlm.family, sizes=SMALL)
    merged = finetuning.with_adapter(fresh, tmp_path / "adapter")
    models.save(merged.replace(model=compress(merged, "pruned")), tmp_path / "model")
    label = models.load(tmp_path / "model", local_only=True).label
    assert label == f"{vlm.name} (toy, random weights, tuned: {tmp_path / 'adapter'}, compressed)"


@pytest.mark.parametrize("content", ["[]", '{"name": 3}', '{"kind": null}', "{"])
def test_a_broken_made_by_is_one_line(vlm, tmp_path, content):
    place = models.save(vlm, tmp_path / "model")
    (place / "made_by.json").write_text(content)
    with pytest.raises(artifacts.StoreError, match="made_by.json"):
        models.load(place, local_only=True)


def qwen_of(folder, kind):
    return models.load(models.save(tiny_vlm.tiny("qwen2_5_vl").replace(kind=kind), folder), dtype=torch.float32, local_only=True)


@pytest.mark.parametrize("padding", [0, 2])
def test_text_behind_a_video_begins_where_qwen_was_trained_with_it(tmp_path, padding):
    """Of four moments of 2 x 2 tokens, two positions apart, by Qwen's rule: text, then 3 5 7 9 in time, then text from 10."""
    core = qwen_of(tmp_path / "real", "").model.model
    kinds = torch.tensor([[0] * padding + [0, 0, 0] + [2] * 16 + [0, 0]])
    mask = (torch.arange(kinds.shape[1]) >= padding).long()[None]
    options = dict(video_grid_thw=torch.tensor([[4, 4, 4]]), second_per_grid_ts=torch.tensor([1.0]), attention_mask=mask)
    positions, delta = core.get_rope_index(torch.full_like(kinds, 5), mm_token_type_ids=kinds, **options)
    text, behind = [0, 1, 2], [10, 11]
    time = text + [moment for moment in (3, 5, 7, 9) for _ in range(4)] + behind
    down, across = text + [3, 3, 4, 4] * 4 + behind, text + [3, 4, 3, 4] * 4 + behind
    assert positions[:, 0, padding:].tolist() == [time, down, across] and delta.tolist() == [[12 - 21]]
    toy = qwen_of(tmp_path / "toy", "toy, trained").model.model  # as it was trained
    assert toy.get_rope_index(torch.full_like(kinds, 5), mm_token_type_ids=kinds, **options)[0][0, 0, -2:].tolist() == [5, 6]


def test_qwen_generates_what_its_forward_says_behind_a_long_video(tmp_path):
    vlm = qwen_of(tmp_path / "real", "")
    frames = np.random.default_rng(2).integers(0, 255, (16, 112, 112, 3), dtype=np.uint8)
    sample = chat.encode(vlm, frames, "What?", times_s=[float(n) for n in range(16)], as_video=True)
    ids = vlm.model.generate(**sample, max_new_tokens=4, do_sample=False, eos_token_id=None)
    fresh = ids.shape[1] - sample["input_ids"].shape[1]
    whole = sample | {name: torch.nn.functional.pad(sample[name], (0, fresh)) for name in ("attention_mask", "mm_token_type_ids")}
    whole["attention_mask"][:, -fresh:] = 1
    with torch.no_grad():
        logits = deepcopy(vlm.model)(**(whole | {"input_ids": ids})).logits[0, -fresh - 1 : -1]
    assert logits.argmax(-1).tolist() == ids[0, -fresh:].tolist()
