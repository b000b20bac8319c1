"""A HolmesVAU-2B folder at toy width in the released layout, and a small reference that computes on its tensors.

Names, wrappers and files are those of the release: InternViT `vision_model.*`, `mlp1.{0,1,3}`, InternLM2 `language_model.*`,
config.json with llm_config and vision_config, shards with an index, tokenizer.model with added tokens. The reference is written
from the published modules' equations, in functions over the released names: nothing of transformers or of the conversion is in it.
"""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer

SIDE, PATCH = 28, 7  # 4 x 4 patches, 4 tokens a picture
VISION = dict(
    architectures=["InternVisionModel"], model_type="intern_vit_6b", hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=3, image_size=SIDE, patch_size=PATCH, qkv_bias=True, qk_normalization=False, norm_type="layer_norm",
    hidden_act="gelu", layer_norm_eps=1e-6, use_flash_attn=True, drop_path_rate=0.1,
)  # fmt: skip
TEXT = dict(
    architectures=["InternLM2ForCausalLM"], model_type="internlm2", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, bias=False, hidden_act="silu", rms_norm_eps=1e-5, rope_theta=1_000_000,
    rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=1,
    eos_token_id=2, pad_token_id=2,
)  # fmt: skip
RENAMED = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
APPENDED = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
SENTENCES = [
    "Are there any anomaly events detected in the video?", "An anomaly exists in the video, a man falls.",
    "No anomaly exists in the video.", "Frame1 at 2.5s: a car, Frame2: a street.", "user assistant system 1 2 3 4 5 6 7 8 9 0",
]  # fmt: skip


def make_tokenizer(folder, *, dummy_prefix: bool = True, **options) -> int:
    """Train tokenizer.model, write it with tokenizer_config.json and added_tokens.json; return the number of tokens."""
    (folder / "corpus.txt").write_text("\n".join(SENTENCES * 20))
    settings = dict(
        vocab_size=420, model_type="bpe", byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False, user_defined_symbols=[f"[UNUSED_TOKEN_{n}]" for n in range(140, 147)],
        character_coverage=1.0, minloglevel=2, hard_vocab_limit=False, split_digits=True, num_threads=1,
    )  # fmt: skip
    SentencePieceTrainer.train(input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), **settings | options)
    (folder / "corpus.txt").unlink()
    vocab = [line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text().split("\n") if line]
    (folder / "tokenizer.vocab").unlink()
    first = vocab.index("[UNUSED_TOKEN_141]")
    added = {0: "<unk>", 1: "<s>", 2: "</s>"} | dict(enumerate(RENAMED, first)) | dict(enumerate(APPENDED, len(vocab)))
    entry = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    config = {
        "added_tokens_decoder": {str(place): {"content": token} | entry for place, token in added.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}, "bos_token": "<s>",
        "eos_token": "</s>", "pad_token": "</s>", "tokenizer_class": "InternLM2Tokenizer", "unk_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False))
    (folder / "added_tokens.json").write_text(json.dumps({token: place for place, token in added.items() if place > 2}))
    return len(vocab) + len(APPENDED)


def make_tensors(vocab_size: int, *, seed: int = 0, **text) -> dict[str, torch.Tensor]:
    """Return random tensors under the released names."""
    generator, text = torch.Generator().manual_seed(seed), TEXT | text

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    width, wide, patches = VISION["hidden_size"], VISION["intermediate_size"], (SIDE // PATCH) ** 2
    tensors = {
        "vision_model.embeddings.class_embedding": random(1, 1, width),
        "vision_model.embeddings.position_embedding": random(1, patches + 1, width),
        "vision_model.embeddings.patch_embedding.weight": random(width, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": random(width),
    }
    for n in range(VISION["num_hidden_layers"]):
        shapes = {
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,), "mlp.fc1.weight": (wide, width), "mlp.fc1.bias": (wide,), "mlp.fc2.weight": (width, wide),
            "mlp.fc2.bias": (width,), "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,),
            "norm2.bias": (width,), "ls1": (width,), "ls2": (width,),
        }  # fmt: skip
        tensors |= {f"vision_model.encoder.layers.{n}.{name}": random(*shape) for name, shape in shapes.items()}
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    tensors |= {
        "mlp1.0.weight": random(4 * width), "mlp1.0.bias": random(4 * width), "mlp1.1.weight": random(hidden, 4 * width),
        "mlp1.1.bias": random(hidden), "mlp1.3.weight": random(hidden, hidden), "mlp1.3.bias": random(hidden),
        "language_model.model.tok_embeddings.weight": random(vocab_size, hidden),
        "language_model.model.norm.weight": random(hidden),
        "language_model.output.weight": random(vocab_size, hidden),
    }  # fmt: skip
    head = hidden // text["num_attention_heads"]
    rows = (text["num_attention_heads"] + 2 * text["num_key_value_heads"]) * head
    for n in range(text["num_hidden_layers"]):
        shapes = {
            "attention.wqkv.weight": (rows, hidden), "attention.wo.weight": (hidden, hidden), "attention_norm.weight": (hidden,),
            "ffn_norm.weight": (hidden,), "feed_forward.w1.weight": (inner, hidden), "feed_forward.w2.weight": (hidden, inner),
            "feed_forward.w3.weight": (inner, hidden),
        }  # fmt: skip
        tensors |= {f"language_model.model.layers.{n}.{name}": random(*shape) for name, shape in shapes.items()}
    return tensors


def make_config(vocab_size: int, **changes) -> dict:
    """Return config.json as released."""
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": TEXT | {"vocab_size": vocab_size},
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "vision_config": VISION, "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": SIDE,
        "max_dynamic_patch": 6, "ps_version": "v2", "select_layer": -1, "template": "internlm2-chat", "torch_dtype": "float32",
        "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True, **changes,
    }  # fmt: skip


def write_shards(folder, tensors: dict[str, torch.Tensor], count: int = 3) -> None:
    """Write shards with an index, each with a part of the sorted names."""
    names, index = sorted(tensors), {}
    for n in range(count):
        file, part = f"model-{n + 1:05d}-of-{count:05d}.safetensors", names[n::count]
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": index}))


def released_folder(folder, **tokenizer) -> dict[str, torch.Tensor]:
    """Write a whole released folder; return its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = make_tokenizer(folder, **tokenizer)
    tensors = make_tensors(vocab_size)
    (folder / "config.json").write_text(json.dumps(make_config(vocab_size)))
    write_shards(folder, tensors)
    return tensors


# The reference


def vision_states(tensors: dict, pixels: torch.Tensor) -> torch.Tensor:
    """Return InternViT's last states (B, 1 + patches, C) of pixels (B, 3, SIDE, SIDE)."""

    def get(name: str) -> torch.Tensor:
        return tensors[f"vision_model.{name}"]

    x = F.conv2d(pixels, get("embeddings.patch_embedding.weight"), get("embeddings.patch_embedding.bias"), stride=PATCH)
    x = torch.cat([get("embeddings.class_embedding").expand(len(x), -1, -1), x.flatten(2).mT], 1)
    x = x + get("embeddings.position_embedding")
    width, heads = VISION["hidden_size"], VISION["num_attention_heads"]
    for n in range(VISION["num_hidden_layers"]):
        layer = f"encoder.layers.{n}."
        y = F.layer_norm(x, (width,), get(layer + "norm1.weight"), get(layer + "norm1.bias"), 1e-6)
        qkv = F.linear(y, get(layer + "attn.qkv.weight"), get(layer + "attn.qkv.bias"))
        q, k, v = qkv.reshape(*y.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT) * (width // heads) ** -0.5).softmax(-1) @ v
        y = F.linear(y.transpose(1, 2).flatten(2), get(layer + "attn.proj.weight"), get(layer + "attn.proj.bias"))
        x = x + y * get(layer + "ls1")
        y = F.layer_norm(x, (width,), get(layer + "norm2.weight"), get(layer + "norm2.bias"), 1e-6)
        y = F.gelu(F.linear(y, get(layer + "mlp.fc1.weight"), get(layer + "mlp.fc1.bias")))
        x = x + F.linear(y, get(layer + "mlp.fc2.weight"), get(layer + "mlp.fc2.bias")) * get(layer + "ls2")
    return x


def picture_tokens(tensors: dict, states: torch.Tensor) -> torch.Tensor:
    """Return (B, 4, hidden) of states: each 2 x 2 patches side by side (pixel shuffle v2), then the MLP."""
    patches, side = states[:, 1:], SIDE // PATCH
    grid = patches.reshape(len(patches), side, side, -1)
    tokens = []
    for row in range(0, side, 2):
        for column in range(0, side, 2):  # channels of (row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)
            tokens.append(torch.cat([grid[:, row + i, column + j] for i in (0, 1) for j in (0, 1)], -1))
    x = torch.stack(tokens, 1)
    x = F.layer_norm(x, x.shape[-1:], tensors["mlp1.0.weight"], tensors["mlp1.0.bias"], 1e-5)
    x = F.gelu(F.linear(x, tensors["mlp1.1.weight"], tensors["mlp1.1.bias"]))
    return F.linear(x, tensors["mlp1.3.weight"], tensors["mlp1.3.bias"])


def language_logits(tensors: dict, embeddings: torch.Tensor) -> torch.Tensor:
    """Return InternLM2's logits (T, V) of embeddings (T, hidden), within the context (dynamic RoPE scales beyond it only)."""

    def get(name: str) -> torch.Tensor:
        return tensors[f"language_model.{name}"]

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + TEXT["rms_norm_eps"]).sqrt()

    count, hidden, heads = len(embeddings), TEXT["hidden_size"], TEXT["num_attention_heads"]
    groups, head = TEXT["num_key_value_heads"], hidden // heads
    angles = torch.arange(count)[:, None] / TEXT["rope_theta"] ** (torch.arange(0, head, 2) / head)
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]  # (T, 1, d)

    def turn(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-x[..., head // 2 :], x[..., : head // 2]], -1)
        return x * cos + half * sin

    x = embeddings
    mask = torch.full((count, count), float("-inf")).triu(1)
    for n in range(TEXT["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        y = F.linear(rms(x, get(layer + "attention_norm.weight")), get(layer + "attention.wqkv.weight"))
        y = y.reshape(count, groups, heads // groups + 2, head)  # per group its queries, a key, a value
        result = torch.empty(count, heads, head)
        for query in range(heads):
            group = query // (heads // groups)
            q, k, v = y[:, group, query % (heads // groups)], y[:, group, -2], y[:, group, -1]
            q, k = turn(q[:, None])[:, 0], turn(k[:, None])[:, 0]
            result[:, query] = (q @ k.mT * head**-0.5 + mask).softmax(-1) @ v
        x = x + F.linear(result.flatten(1), get(layer + "attention.wo.weight"))
        y = rms(x, get(layer + "ffn_norm.weight"))
        gate, up = (F.linear(y, get(layer + f"feed_forward.{name}.weight")) for name in ("w1", "w3"))
        x = x + F.linear(F.silu(gate) * up, get(layer + "feed_forward.w2.weight"))
    return F.linear(rms(x, get("model.norm.weight")), get("output.weight"))
