"""HolmesVAU-2B and InternVL2-2B (InternViT, MLP, InternLM2) as transformers' own InternVL with a Llama text model.

A one-time conversion of a released folder; what it writes is loaded without code that comes with weights.
- every tensor is used once, names and shapes are checked against the model before anything is written
- `attention.wqkv` is grouped: per group of key-value heads its queries, then one key, one value; InternViT's `attn.qkv` is thirds
- LoRA adapters inside the checkpoint (a training that was not merged) are added into their weights: W + 2 B A
- at most one shard of the result is in memory; the folder appears whole or not at all
Source: OpenGVLab/InternVL, internvl_chat/internvl/model (modeling_intern_vit.py, modeling_internlm2.py, modeling_internvl_chat.py);
pipixin321/HolmesVAU, internvl_chat/shell/merge_lora.py. Read for facts.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from vau_lib.vlm import internlm2_tokenizer
from vau_lib.vlm.models import check_free, new_folder
from vau_lib.workspace import artifacts, formats

IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
SHARD_BYTES = 2 * 2**30
LORA_SCALE = 2.0  # alpha is twice the rank, internvl_chat_finetune.py:805
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
RENAMED = (
    (r"^language_model\.output\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"^vision_model\.embeddings\.", "model.vision_tower.embeddings."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"\.tok_embeddings\.", ".embed_tokens."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.class_embedding$", ".cls_token"),
    (r"\.position_embedding$", ".position_embeddings"),
    (r"\.patch_embedding\.", ".patch_embeddings.projection."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.(q_norm|k_norm)\.", r".attention.\1."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
)
WRAPPERS = (  # of peft around either model, and of a data-parallel training
    (r"^module\.", ""),
    (r"^(language_model|vision_model)\.base_model\.model\.", r"\1."),
    (r"\.base_layer\.(weight|bias)$", r".\1"),
)


@artifacts.reader()
def convert(folder: str | Path, out: str | Path, *, progress: bool = True) -> dict:
    """Write a released folder as one that `models.load` reads; return what was converted (tensors, LoRA rank, name).

    `folder` holds config.json, the weights (safetensors or .bin, one file or shards with an index), tokenizer.model and
    tokenizer_config.json. StoreError in one line for a file that is missing or cut, and for tensors that do not fit.
    """
    folder = Path(folder)
    check_free(out)  # before gigabytes are read
    config = artifacts.read_json(folder / "config.json")
    _check_kind(config, folder)
    tokenizer = internlm2_tokenizer.convert(folder, vocab_size=config["llm_config"]["vocab_size"])
    native = native_config(config, image_token_id=tokenizer.context_image_token_id)
    stored = _Stored(folder, int(config.get("use_llm_lora") or 0), int(config.get("use_backbone_lora") or 0))
    with formats.building(folder, empty=True), init_empty_weights(include_buffers=False):
        empty = InternVLForConditionalGeneration(native)
    plan = _plan(stored, {name: tuple(part.shape) for name, part in empty.state_dict().items()}, native)
    made_by = folder / "made_by.json"
    facts = artifacts.read_json(made_by) if made_by.is_file() else {}
    facts = dict(name=facts.get("name", folder.resolve().name), kind=facts.get("kind", ""), family="internvl", question="")
    facts |= dict(converted_from="internvl_chat", tensors=len(stored.shapes), lora_rank=stored.rank)
    with new_folder(out) as scratch:
        _write_weights(stored, plan, scratch, progress)
        native.architectures, native.dtype = [type(empty).__name__], stored.dtype
        artifacts.write_json(scratch / "config.json", native.to_dict())
        _generation_config(tokenizer).save_pretrained(scratch)
        _processor(config, native, tokenizer).save_pretrained(scratch)
        artifacts.write_made_by(scratch, **facts)
    return facts


def native_config(config: Mapping, *, image_token_id: int) -> InternVLConfig:
    """Return transformers' configuration of a released one."""
    text, vision = config["llm_config"], config["vision_config"]
    rope = {"rope_type": "default", "rope_theta": float(text.get("rope_theta", 10_000))}
    if scaling := text.get("rope_scaling"):
        rope |= {"rope_type": scaling["type"], "factor": float(scaling["factor"])}
    heads, context = text["num_attention_heads"], text.get("max_position_embeddings", 2048)
    side, ratio = vision["image_size"], config.get("downsample_ratio", 0.5)
    return InternVLConfig(
        text_config=dict(
            model_type="llama", vocab_size=text["vocab_size"], hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"], num_hidden_layers=text["num_hidden_layers"],
            num_attention_heads=heads, num_key_value_heads=text.get("num_key_value_heads") or heads,
            hidden_act=text.get("hidden_act", "silu"), max_position_embeddings=context,
            rms_norm_eps=text.get("rms_norm_eps", 1e-6), attention_bias=bool(text.get("bias", True)), rope_parameters=rope,
            tie_word_embeddings=False, bos_token_id=text.get("bos_token_id", 1), eos_token_id=text.get("eos_token_id", 2),
            pad_token_id=text.get("pad_token_id", 2),
        ),
        vision_config=dict(
            hidden_size=vision["hidden_size"], intermediate_size=vision["intermediate_size"],
            num_hidden_layers=vision["num_hidden_layers"], num_attention_heads=vision["num_attention_heads"],
            attention_bias=vision.get("qkv_bias", False), use_qk_norm=vision.get("qk_normalization", True),
            hidden_act=vision.get("hidden_act", "gelu"), norm_type=vision.get("norm_type", "rms_norm"),
            layer_norm_eps=vision.get("layer_norm_eps", 1e-6), image_size=side, patch_size=vision["patch_size"],
        ),
        image_token_id=image_token_id, image_seq_length=int((_side(config) // vision["patch_size"] * ratio) ** 2),
        downsample_ratio=ratio, vision_feature_layer=config.get("select_layer", -1), tie_word_embeddings=False,
    )  # fmt: skip


def _side(config: Mapping) -> int:
    return config.get("force_image_size") or config["vision_config"]["image_size"]


def _check_kind(config: Mapping, folder: Path) -> None:
    """Refuse in one line what is no released InternVL with InternLM2, or works in a way that is not converted."""
    if not isinstance(config, Mapping) or config.get("model_type") != "internvl_chat":
        found = config.get("model_type") if isinstance(config, Mapping) else config
        raise artifacts.StoreError(f"{folder} is a {found!r}, need the released internvl_chat")
    try:
        text, vision = config["llm_config"], config["vision_config"]
        language = text["architectures"][0]
        needed = [("llm_config", name) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")]
        needed += [("llm_config", "num_attention_heads")] + [
            ("vision_config", name)
            for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
        ]
        absent = [f"{part}.{name}" for part, name in needed if name not in config[part]]
    except (KeyError, IndexError, TypeError) as error:
        raise artifacts.StoreError(f"{folder / 'config.json'} lacks {artifacts.one_line(error)}") from error
    if absent:
        raise artifacts.StoreError(f"{folder / 'config.json'} lacks {absent[0]}")
    odd = {
        f"its language model is {language}; of those take the published -hf folder": language != "InternLM2ForCausalLM",
        f"pixel shuffle {config.get('ps_version', 'v1')} transposes pictures; v2 is converted": config.get("ps_version") != "v2",
        "its embeddings are tied": bool(text.get("tie_word_embeddings")),
        f"its select_layer is {config.get('select_layer')}; -1 is converted": config.get("select_layer", -1) != -1,
        f"its rope_scaling is {text.get('rope_scaling')}": (text.get("rope_scaling") or {"type": "linear"}).get("type")
        not in ("linear", "dynamic"),
        "its picture size is no multiple of its patches": bool(_side(config) % vision["patch_size"]),
    }
    if reasons := [reason for reason, applies in odd.items() if applies]:
        raise artifacts.StoreError(f"{folder} cannot be converted: {reasons[0]}")


# Weights as released


class _Stored:
    """The tensors of a released folder under their plain names, LoRA pairs aside; none is read before it is asked for."""

    def __init__(self, folder: Path, llm_rank: int, vision_rank: int):
        self.folder, self.rank, self.shapes, self.lora = folder, max(llm_rank, vision_rank), {}, {}
        self._place: dict[str, tuple[Path, str]] = {}
        ranks = {"language_model": llm_rank, "vision_model": vision_rank}
        for file, listed in self._files().items():
            self._read_names(file, listed)
        for name in list(self.shapes):
            if found := re.fullmatch(r"(.*)\.lora_(A|B)(?:\.\w+)?\.weight", name):
                self.lora.setdefault(f"{found[1]}.weight", {})[found[2]] = name
        for target, pair in self.lora.items():
            self._check_pair(target, pair, ranks[target.split(".")[0]])
        for part, rank in ranks.items():
            if rank and not any(name.startswith(part) for name in self.lora):
                raise artifacts.StoreError(f"{folder}: config.json says LoRA of rank {rank}, the weights of {part} hold none")

    @cached_property
    def plain(self) -> list[str]:
        """Names of the tensors that are no LoRA factor."""
        factors = {name for pair in self.lora.values() for name in pair.values()}
        return sorted(self.shapes.keys() - factors)

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.read(self.plain[0]).dtype

    def read(self, name: str) -> Tensor:
        """Return a tensor with its LoRA added."""
        tensor = self._tensor(name)
        if pair := self.lora.get(name):
            change = self._tensor(pair["B"]).float() @ self._tensor(pair["A"]).float()
            tensor = (tensor.float() + LORA_SCALE * change).to(tensor.dtype)
        if not tensor.isfinite().all():
            raise artifacts.StoreError(f"{self.folder}: {name} holds {tensor[~tensor.isfinite()][0]:g}")
        return tensor

    def _tensor(self, name: str) -> Tensor:
        file, stored = self._place[name]
        if file.suffix == ".bin":
            return self._bin(file)[stored]
        with formats.safetensors_file(file) as opened:
            return opened.get_tensor(stored)

    def _files(self) -> dict[Path, set[str] | None]:
        """Return the weight files with the names that an index lists for each; None without an index."""
        for name in INDEXES:
            if (self.folder / name).is_file():
                index = artifacts.read_json(self.folder / name)
                files: dict[Path, set[str]] = {}
                try:
                    for tensor, file in index["weight_map"].items():
                        files.setdefault(self.folder / Path(file).name, set()).add(tensor)
                except (KeyError, TypeError, AttributeError) as error:
                    raise artifacts.StoreError(f"{self.folder / name} lists no weights") from error
                return files
        for name in WEIGHTS:
            if (self.folder / name).is_file():
                return {self.folder / name: None}
        raise artifacts.StoreError(f"no weights in {self.folder}: need {' or '.join((*WEIGHTS, *INDEXES))}")

    def _read_names(self, file: Path, listed: set[str] | None) -> None:
        try:
            if file.suffix == ".bin":
                shapes = {name: tuple(part.shape) for name, part in self._bin(file).items()}
            else:
                with formats.safetensors_file(file) as opened:
                    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
        except (OSError, RuntimeError, ValueError, AttributeError) as error:
            raise artifacts.StoreError(f"{file} cannot be read: {artifacts.one_line(error, 200)}") from error
        if listed is not None and (odd := listed ^ shapes.keys()):
            raise artifacts.StoreError(f"{file} and its index differ in {len(odd)} tensors, the first is {min(odd)}")
        for stored, shape in shapes.items():
            name = stored
            for pattern, new in WRAPPERS:
                name = re.sub(pattern, new, name)
            if name in self.shapes:
                raise artifacts.StoreError(f"{file}: {stored} is there twice")
            self.shapes[name], self._place[name] = shape, (file, stored)

    def _bin(self, file: Path) -> Mapping[str, Tensor]:
        if getattr(self, "_opened", (None,))[0] != file:
            self._opened = file, formats.read_torch(file, mmap=True)
        return self._opened[1]

    def _check_pair(self, target: str, pair: Mapping[str, str], rank: int) -> None:
        base = self.shapes.get(target)
        shapes = {kind: self.shapes[name] for kind, name in pair.items()}
        if base is None or set(shapes) != {"A", "B"}:
            raise artifacts.StoreError(f"{self.folder}: the LoRA of {target} lacks {'its weight' if base is None else 'a factor'}")
        if not rank:
            raise artifacts.StoreError(f"{self.folder}: {target} has a LoRA, config.json says there is none")
        if shapes != {"A": (rank, base[1]), "B": (base[0], rank)}:
            raise artifacts.StoreError(f"{self.folder}: the LoRA of {target} is {shapes}, need rank {rank} for {base}")


# Weights as transformers names them


@dataclass(frozen=True)
class _Part:
    """One tensor of the result: the stored tensor it is cut from, and how."""

    source: str
    cut: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


def _plan(stored: _Stored, wanted: Mapping[str, tuple[int, ...]], config: InternVLConfig) -> dict[str, _Part]:
    """Return how each tensor of the model is made; StoreError where one does not fit or a stored one is not used."""
    plan: dict[str, _Part] = {}
    for source in stored.plain:
        for target, cut, shape in _targets(source, stored.shapes[source], config):
            if target not in wanted:
                raise artifacts.StoreError(f"{stored.folder} has unknown {source} {stored.shapes[source]}")
            if shape != wanted[target]:
                raise artifacts.StoreError(
                    f"{stored.folder}: {source} is {stored.shapes[source]}, its part {target} needs {wanted[target]}"
                )
            plan[target] = _Part(source, cut, shape)
    if absent := sorted(wanted.keys() - plan.keys()):
        raise artifacts.StoreError(f"{stored.folder} lacks {len(absent)} of {len(wanted)} tensors, the first is {absent[0]}")
    return plan


def _targets(source: str, shape: tuple[int, ...], config: InternVLConfig) -> Iterator[tuple[str, Callable, tuple[int, ...]]]:
    name = source
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    text = config.text_config
    if found := re.fullmatch(r"(.*)\.attention\.wqkv\.(weight|bias)", name):
        groups = text.num_key_value_heads
        queries, width = text.num_attention_heads // groups, text.hidden_size // text.num_attention_heads
        fits = shape[0] == groups * (queries + 2) * width
        for kind, first, count in (("q", 0, queries), ("k", queries, 1), ("v", queries + 1, 1)):
            cut = partial(_cut_group, groups=groups, width=width, first=first, count=count)
            part = (groups * count * width, *shape[1:]) if fits else shape
            yield f"{found[1]}.self_attn.{kind}_proj.{found[2]}", cut, part
    elif found := re.fullmatch(r"(.*)\.attn\.qkv\.(weight|bias)", name):
        for place, kind in enumerate("qkv"):
            part = (shape[0] // 3, *shape[1:]) if shape[0] % 3 == 0 else shape
            yield f"{found[1]}.attention.{kind}_proj.{found[2]}", partial(_cut_third, place=place), part
    else:
        yield name, _whole, shape


def _cut_group(tensor: Tensor, *, groups: int, width: int, first: int, count: int) -> Tensor:
    """Return `count` heads from the `first` of each group of (groups * heads per group * width, ...)."""
    grouped = tensor.reshape(groups, -1, width, *tensor.shape[1:])
    return grouped[:, first : first + count].reshape(-1, *tensor.shape[1:])


def _cut_third(tensor: Tensor, *, place: int) -> Tensor:
    return tensor.chunk(3)[place]


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _write_weights(stored: _Stored, plan: Mapping[str, _Part], folder: Path, progress: bool) -> None:
    """Write shards of at most SHARD_BYTES and their index, one in memory at a time, in the order of the stored files."""
    parts = sorted(plan.items(), key=lambda item: (item[1].source, item[0]))
    size = stored.dtype.itemsize
    shards: list[list[tuple[str, _Part]]] = [[]]
    held = 0
    for name, part in parts:
        count = torch.Size(part.shape).numel() * size
        if held and held + count > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append((name, part))
        held += count
    index, total = {}, 0
    with tqdm(total=len(plan), desc="tensors", disable=not progress) as bar:
        for number, shard in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors, last = {}, (None, None)
            for name, part in shard:
                if part.source != last[0]:
                    last = part.source, stored.read(part.source)
                tensors[name] = part.cut(last[1]).clone(memory_format=torch.contiguous_format)
                bar.update()
            save_file(tensors, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, file)
            total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        artifacts.write_json(folder / INDEXES[0], {"metadata": {"total_size": total}, "weight_map": index})


# What stands beside the weights


def _generation_config(tokenizer) -> GenerationConfig:
    ends = [tokenizer.convert_tokens_to_ids(token) for token in internlm2_tokenizer.ENDS]
    return GenerationConfig(
        do_sample=False, max_new_tokens=1024, bos_token_id=tokenizer.bos_token_id, eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _processor(config: Mapping, native: InternVLConfig, tokenizer) -> InternVLProcessor:
    size = {"height": _side(config), "width": _side(config)}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=False, **IMAGENET), tokenizer,
        InternVLVideoProcessor(size=size, **IMAGENET), image_seq_length=native.image_seq_length,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
