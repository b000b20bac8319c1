"""A released HolmesVAU folder becomes transformers' InternVL and computes what the released modules' equations say."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import released_holmesvau as released
import torch
from released_holmesvau import SIDE, language_logits, picture_tokens, vision_states
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.vlm import chat, holmesvau, inference, internlm2_tokenizer, models
from vau_lib.workspace import artifacts

sentencepiece = pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
FRAMES = np.random.default_rng(0).integers(0, 255, (3, SIDE, SIDE, 3), dtype=np.uint8)
QUESTION = "Are there any anomaly events detected in the video?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("release") / "HolmesVAU-2B"
    released.released_folder(place)
    return place


@pytest.fixture(scope="module")
def tensors(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return {name: part for file in set(index.values()) for name, part in load_file(folder / file).items()}


@pytest.fixture(scope="module")
def converted(folder):
    out = folder.parent / "converted"
    holmesvau.convert(folder, out, progress=False)
    return models.load(out, dtype=torch.float32, local_only=True)


def change(folder: Path, tmp_path: Path, **config) -> tuple[Path, dict]:
    """Return a copy of a released folder with another config.json, without weights, and its vocabulary's size."""
    place = tmp_path / "changed"
    place.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json"):
        (place / name).write_bytes((folder / name).read_bytes())
    whole = json.loads((folder / "config.json").read_text()) | config
    (place / "config.json").write_text(json.dumps(whole))
    return place, whole


def released_prompt(frames: int, question: str) -> str:
    """Return the prompt of conversation.py `internlm2-chat` and holmesvau_utils.py:63-65, pictures of 4 tokens."""
    picture = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    lines = "".join(f"Frame{n}: {picture}\n" for n in range(1, frames + 1))
    system = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
    user = f"<|im_start|>user\n{lines}{question}<|im_end|>"
    return f"<|im_start|>system\n{system}<|im_end|>{user}<|im_start|>assistant\n"


def released_ids(folder: Path, text: str) -> list[int]:
    """Return <s> and the ids of a text: added tokens cut it, sentencepiece reads what lies between (the slow tokenizer)."""
    added = {token: place for token, place in json.loads((folder / "added_tokens.json").read_text()).items()}
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = [1]
    for part in re.split("(" + "|".join(map(re.escape, added)) + ")", text):
        ids += [added[part]] if part in added else pieces.encode(part) if part else []
    return ids


# The converted model computes what the released one does


def test_class_tokens_and_picture_tokens_are_the_references(converted, tensors):
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    states = vision_states(tensors, pixels)
    with torch.inference_mode():
        found = chat.encode_images(converted.model, {"pixel_values": pixels})
    assert (found.last_hidden_state[:, 0] - states[:, 0]).abs().max() < 1e-5
    assert (torch.stack(list(found.pooler_output)) - picture_tokens(tensors, states)).abs().max() < 1e-5


def test_logits_of_frames_and_a_question_are_the_references(converted, tensors, folder):
    """The whole way: the prompt's bytes, sentencepiece's ids, pixels by hand (picture of the model's size, ImageNet), logits."""
    sample = chat.encode(converted, FRAMES, QUESTION, released="inference")
    ids = released_ids(folder, released_prompt(3, QUESTION))
    assert sample["input_ids"][0].tolist() == ids
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(FRAMES) / 255 - mean) / std).permute(0, 3, 1, 2)
    embeddings = tensors["language_model.model.tok_embeddings.weight"][ids].clone()
    place = torch.tensor(ids) == json.loads((folder / "added_tokens.json").read_text())["<IMG_CONTEXT>"]
    embeddings[place] = picture_tokens(tensors, vision_states(tensors, pixels)).flatten(0, 1)
    wanted = language_logits(tensors, embeddings)
    with torch.inference_mode():
        found = converted.model(**sample).logits[0]
    assert found.shape == wanted.shape and wanted.std() > 0.1
    assert (found - wanted).abs().max() < 1e-4
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize(
    "text", ["A man, 12 cars.", " two  spaces\n\nlines", "été 異常 🙂", "No anomaly exists in the video.\t{1: 'x'}"]
)
def test_the_tokenizer_reads_and_writes_like_sentencepiece(tmp_path, text, dummy_prefix):
    size = released.make_tokenizer(tmp_path, dummy_prefix=dummy_prefix)
    tokenizer = internlm2_tokenizer.convert(tmp_path, vocab_size=size)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == pieces.encode(text) and tokenizer.decode(ids) == pieces.decode(ids) == text
    assert tokenizer.encode(text) == [1, *ids] and len(tokenizer) == size


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "identity"])
@pytest.mark.parametrize("options", [{}, {"remove_extra_whitespaces": True}, {"byte_fallback": False}])
def test_other_sentencepiece_models_are_read_as_sentencepiece_reads_them(tmp_path, model_type, rule, options):
    """Normalisation, spaces and unknown letters as the file says, on texts that the conversion itself does not compare."""
    size = released.make_tokenizer(tmp_path, model_type=model_type, normalization_rule_name=rule, **options)
    tokenizer = internlm2_tokenizer.convert(tmp_path, vocab_size=size)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("A man falls.", "  What is  that?\n- a car\t1 ", "ﬁre ① été Ｆ", "Frame3 at 12.5s: fire 火"):
        assert tokenizer.encode(text, add_special_tokens=False) == pieces.encode(text), text


def test_added_tokens_keep_their_published_ids(converted, folder):
    published = json.loads((folder / "added_tokens.json").read_text())
    assert {token: converted.tokenizer.convert_tokens_to_ids(token) for token in published} == published
    assert converted.tokenizer.eos_token == "<|im_end|>"
    ends = {"</s>": 2, "<|im_start|>": published["<|im_start|>"], "<|im_end|>": published["<|im_end|>"]}
    assert converted.model.generation_config.eos_token_id == list(ends.values())


def test_it_answers_through_the_same_functions_as_any_model(converted):
    explanation = inference.explain(converted, FRAMES, [0, 1, 2], max_new_tokens=4, log=None)
    assert explanation.model == converted.label == "HolmesVAU-2B" and explanation.prompt_tokens > 100


def test_generation_is_greedy_by_the_reference(converted, tensors, folder):
    """Four tokens one by one, each the reference's likeliest (pictures' tokens are never generated)."""
    sample = chat.encode(converted, FRAMES[:1], QUESTION, released="inference")
    generated = converted.model.generate(**sample, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0].tolist()
    ids = released_ids(folder, released_prompt(1, QUESTION))
    pixels = chat.prepare_images(converted, chat.to_images(FRAMES[:1]))["pixel_values"]
    visual = picture_tokens(tensors, vision_states(tensors, pixels))[0]
    ends = converted.model.generation_config.eos_token_id
    for _ in range(4):
        embeddings = tensors["language_model.model.tok_embeddings.weight"][ids].clone()
        embeddings[torch.tensor(ids) == converted.processor.image_token_id] = visual
        logits = language_logits(tensors, embeddings)[-1]
        logits[ends] = -torch.inf
        ids.append(int(logits.argmax()))
    assert generated == ids


# Every wrapper of the release


def write_lora(tensors: dict, rank: int, *, base_layer: bool) -> tuple[dict, dict]:
    """Return tensors as a training leaves them, LoRA in the language model, and what merging them by hand gives."""
    generator, wrapped, merged = torch.Generator().manual_seed(3), {}, dict(tensors)
    for name, tensor in tensors.items():
        if not name.startswith("language_model."):
            wrapped[name] = tensor
            continue
        inside = name.replace("language_model.", "language_model.base_model.model.", 1)
        stem = inside.removesuffix(".weight")
        if not re.search(r"attention\.w|feed_forward", name):
            wrapped[inside] = tensor
            continue
        a, b = torch.randn(rank, tensor.shape[1], generator=generator), torch.randn(tensor.shape[0], rank, generator=generator)
        wrapped |= {f"{stem}{'.base_layer' * base_layer}.weight": tensor}
        wrapped |= {f"{stem}.lora_A.default.weight": a * 0.05, f"{stem}.lora_B.default.weight": b * 0.05}
        merged[name] = tensor + 2 * (b * 0.05) @ (a * 0.05)
    return wrapped, merged


@pytest.mark.parametrize("base_layer", [True, False])
def test_adapters_in_the_checkpoint_are_merged(folder, tensors, tmp_path, base_layer):
    """As saved after the published training (rank r, alpha 2 r), with the names of both generations of peft."""
    place, _ = change(folder, tmp_path, use_llm_lora=4)
    wrapped, merged = write_lora(tensors, 4, base_layer=base_layer)
    released.write_shards(place, wrapped)
    assert holmesvau.convert(place, tmp_path / "out", progress=False)["lora_rank"] == 4
    vlm = models.load(tmp_path / "out", dtype=torch.float32, local_only=True)
    ids = list(range(5, 30))
    wanted = language_logits(merged, merged["language_model.model.tok_embeddings.weight"][ids])
    plain = language_logits(tensors, tensors["language_model.model.tok_embeddings.weight"][ids])
    with torch.inference_mode():
        found = vlm.model(input_ids=torch.tensor([ids])).logits[0]
    assert (found - wanted).abs().max() < 1e-4 and (wanted - plain).abs().max() > 1e-2


@pytest.mark.parametrize("wrapper", ["one file", "bin", "module.", "bfloat16"])
def test_one_file_bin_and_half_precision_are_read(folder, tensors, tmp_path, wrapper, converted):
    place, _ = change(folder, tmp_path)
    stored = dict(tensors)
    if wrapper == "bfloat16":
        stored = {name: part.bfloat16() for name, part in tensors.items()}
    if wrapper == "module.":
        stored = {f"module.{name}": part for name, part in tensors.items()}
    if wrapper == "bin":
        torch.save(stored, place / "pytorch_model.bin")
    else:
        save_file(stored, place / "model.safetensors", metadata={"format": "pt"})
    holmesvau.convert(place, tmp_path / "out", progress=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    state = converted.model.state_dict()
    assert {part.dtype for part in found.values()} == {torch.bfloat16 if wrapper == "bfloat16" else torch.float32}
    assert found.keys() == state.keys()
    assert all(torch.allclose(found[name].float(), part, atol=1e-2 if wrapper == "bfloat16" else 0) for name, part in state.items())


def test_shards_of_the_result_hold_the_same(folder, tmp_path, converted, monkeypatch):
    monkeypatch.setattr(holmesvau, "SHARD_BYTES", 40_000)
    holmesvau.convert(folder, tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    again = models.load(tmp_path / "out", dtype=torch.float32, local_only=True).model.state_dict()
    assert all(torch.equal(again[name], part) for name, part in converted.model.state_dict().items())


# What does not fit is one line, and nothing is written


FAULTS = {
    "a missing tensor": "lacks 1 of 67 tensors, the first is model.language_model.norm.weight",
    "12 missing tensors": "lacks .* tensors, the first is ",
    "an unknown tensor": r"has unknown language_model.model.odd \(2,\)",
    "another shape": r"mlp1.1.weight is \(3, 3\), its part model.multi_modal_projector.linear_1.weight needs",
    "wqkv of other heads": "attention.wqkv.weight is .*self_attn.q_proj.weight needs",
    "not a number": "holds nan",
    "half a shard": "model-00002-of-00003.safetensors cannot be read",
    "no shard": "model-00002-of-00003.safetensors cannot be read",
    "an index that lies": "and its index differ in 1 tensors",
    "no weights": "no weights in ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_one_line_and_leave_nothing(folder, tensors, tmp_path, fault):
    place, _ = change(folder, tmp_path)
    stored = dict(tensors)
    if fault == "a missing tensor":
        del stored["language_model.model.norm.weight"]
    if fault == "12 missing tensors":
        stored = {name: stored[name] for name in sorted(stored)[12:]}
    if fault == "an unknown tensor":
        stored["language_model.model.odd"] = torch.zeros(2)
    if fault == "another shape":
        stored["mlp1.1.weight"] = torch.zeros(3, 3)
    if fault == "wqkv of other heads":
        stored["language_model.model.layers.0.attention.wqkv.weight"] = torch.zeros(96, 32)
    if fault == "not a number":
        stored["mlp1.3.bias"] = stored["mlp1.3.bias"] * torch.nan
    if fault != "no weights":
        released.write_shards(place, stored)
    second = place / "model-00002-of-00003.safetensors"
    if fault == "half a shard":
        second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    if fault == "no shard":
        second.unlink()
    if fault == "an index that lies":
        index = json.loads((place / "model.safetensors.index.json").read_text())
        del index["weight_map"]["mlp1.0.bias"]
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(artifacts.StoreError, match=FAULTS[fault]) as error:
        holmesvau.convert(place, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value) and sorted(path.name for path in tmp_path.iterdir()) == ["changed"]


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"model_type": "internvl"}, "is a 'internvl', need the released internvl_chat"),
        ({"ps_version": "v1"}, "pixel shuffle v1 transposes pictures"),
        ({"llm_config": {"architectures": ["Qwen2ForCausalLM"]}}, "lacks llm_config.vocab_size"),
        ({"llm_config": None}, "config.json lacks"),
        ({"select_layer": -4}, "select_layer is -4"),
        ({"use_llm_lora": 8}, "says LoRA of rank 8, the weights of language_model hold none"),
    ],
)
def test_a_config_of_another_kind_is_one_line(folder, tensors, tmp_path, config, line):
    place, _ = change(folder, tmp_path, **config)
    released.write_shards(place, tensors)
    with pytest.raises(artifacts.StoreError, match=re.escape(line)) as error:
        holmesvau.convert(place, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value)


def test_other_language_models_are_named(folder, tensors, tmp_path):
    place, whole = change(folder, tmp_path)
    whole["llm_config"]["architectures"] = ["Qwen2ForCausalLM"]
    (place / "config.json").write_text(json.dumps(whole))
    with pytest.raises(artifacts.StoreError, match="is Qwen2ForCausalLM; of those take the published -hf folder"):
        holmesvau.convert(place, tmp_path / "out", progress=False)


@pytest.mark.parametrize("fault", ["no model", "half", "two names", "no picture token", "too many"])
def test_a_tokenizer_that_does_not_fit_is_one_line(folder, tensors, tmp_path, fault):
    place, whole = change(folder, tmp_path)
    released.write_shards(place, tensors)
    model, added = place / "tokenizer.model", json.loads((place / "added_tokens.json").read_text())
    if fault == "no model":
        model.unlink()
    if fault == "half":
        model.write_bytes(model.read_bytes()[: model.stat().st_size // 2 + 3])
    if fault == "two names":
        (place / "added_tokens.json").write_text(json.dumps(added | {"<odd>": added["<img>"]} | {"<img>": added["<box>"]}))
    if fault == "no picture token":
        (place / "added_tokens.json").unlink()
        (place / "tokenizer_config.json").unlink()
    if fault == "too many":
        whole["llm_config"]["vocab_size"] -= 1
        (place / "config.json").write_text(json.dumps(whole))
    lines = {
        "no model": "no tokenizer.model in", "half": "tokenizer", "two names": "is both", "too many": "tokens, the model has",
        "no picture token": "the tokenizer has no <img>",
    }  # fmt: skip
    with pytest.raises(artifacts.StoreError, match=lines[fault]) as error:
        holmesvau.convert(place, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_stopped_conversion_leaves_no_half_folder(folder, tmp_path, monkeypatch):
    """Ctrl-C while weights are written; the next one is whole, and one that is there is replaced in one step."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(holmesvau, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            holmesvau.convert(folder, tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        holmesvau.convert(folder, tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="other exists and holds something else"):
        holmesvau.convert(folder, tmp_path / "other", progress=False)


def test_an_output_that_cannot_be_written_is_one_line_with_its_own_name(folder, tmp_path, monkeypatch):
    """Found at once, not after gigabytes; a mount point cannot be replaced, whoever mounted it."""
    for name in ("features", "mount", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "features" / "made_by.json").write_text('{"encoder": "xfeat"}')
    replace = os.replace

    def busy(source, target):
        if source == tmp_path / "mount":
            raise OSError(errno.EBUSY, "Device or resource busy", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    wrong = {"file": "file is a file: name a folder", "file/in": "cannot write .*in: ", "full": "full exists and holds something"}
    wrong |= {"features": "features exists and holds something", "mount": "cannot write .*mount: Device or resource busy$"}
    for name, line in wrong.items():
        with pytest.raises(ValueError, match=line) as caught:
            holmesvau.convert(folder, tmp_path / name, progress=False)
        assert "\n" not in str(caught.value) and "/." not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "file", "full", "mount"]


def test_the_command_converts_and_the_released_folder_itself_is_refused(folder, tmp_path):
    run = CliRunner().invoke(cli.app, ["convert", "holmesvau", str(folder), str(tmp_path / "out")])
    assert run.exit_code == 0 and "HolmesVAU-2B: 55 tensors" in run.output
    assert models.load(tmp_path / "out", local_only=True).label == "HolmesVAU-2B"
    with pytest.raises(artifacts.StoreError, match="run `vau convert holmesvau .* OUT` once") as error:
        models.load(folder, local_only=True)
    assert "\n" not in str(error.value)
    run = CliRunner().invoke(cli.app, ["convert", "llava", str(folder), str(tmp_path / "other")])
    assert run.exit_code == 1 and "there is only holmesvau" in run.output + run.stderr
