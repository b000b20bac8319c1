"""Training-free pruning of video tokens in a vision-language model (Memories-S0's token compression).

Tokens are removed between the vision tower and the language model; the model itself is not changed.
- Kept tokens keep their positions: M-RoPE's time, row and column, or plain positions, are computed for the whole prompt and
  only then cut. The first generated token has the position it always had.
- Embeddings, positions and mask are made here and handed to the model's own `forward` and `generate`.
- By default the rule looks at pixels, before the vision tower. A temporal patch that keeps no token is then not encoded; this
  is exact, because the tower's attention never crosses temporal patches. With `before_tower=False` the rule looks at the
  tower's features.
- Qwen3-VL's language model also takes features of some layers of the tower (deepstack). They stand behind a token's own,
  (1 + layers) times as wide, are cut with it, and go to the model as the output of its tower.
- A keep ratio of 1 changes nothing. Several videos, images and prompts of different lengths in a batch are fine.
The rule is `keep_mask` or any other of `token_selection.RULES`.
Source: Memories-S0 names "input token compression" and publishes no formula; the rule is ours.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vau_lib.compression.token_selection import check_amount, keep_mask, patchify

BLOCKS_PER_SIDE = 4  # averaged blocks of pixels per token and side that a rule sees; 7 pixels each at Qwen2.5-VL's size
IGNORE_INDEX = -100  # label of a token without loss
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}

# what the pruned inputs replace
REPLACED = {
    "input_ids", "attention_mask", "labels", "position_ids", "mm_token_type_ids", "second_per_grid_ts", "image_grid_thw",
    "video_grid_thw", "selection", *PIXELS.values(),
}  # fmt: skip


@dataclass(frozen=True)
class VisualInput:
    """One video, or the images of one size in one prompt as frames: where its tokens stand, and its pixels."""

    kind: str  # "image" or "video": which entrance of the model encodes it
    row: int  # of the batch
    columns: Tensor  # (T * H * W,) places in the prompt, in order of time, row, column
    grid: tuple[int, int, int]  # T, H, W in tokens
    pixels: Tensor  # (T, ...), as the processor made them, one entry per temporal patch


@dataclass(frozen=True)
class Selection:
    """Which tokens of a batch are read, known before the vision tower runs: what a prompt will cost."""

    masks: list[Tensor]  # bool (T, H, W), one per visual input
    keep: Tensor  # bool (B, L)
    read: int  # tokens of the longest row
    visual: int  # visual tokens that are read
    encoded: int  # visual tokens that the tower makes


class TokenPrunedModel(nn.Module):
    """A model that reads only the visual tokens a rule keeps, with the same inputs, `forward` and `generate`.

    `token_mask` is that of the last call, bool (B, L): which tokens of the whole prompt were read. Save `wrapper.model`, an
    ordinary model; a Trainer that writes checkpoints of the wrapper itself stops at tied embeddings (`save_strategy="no"`).
    """

    def __init__(self, model: nn.Module, rule: Callable[[Tensor], Tensor], *, before_tower: bool):
        super().__init__()
        self.model, self.rule, self.before_tower = model, rule, before_tower
        self.token_mask: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)  # config, device, generation_config, ...

    def forward(self, **inputs) -> Any:
        """Run the model on the kept tokens; return its own output. Logits are (B, kept, V), labels are cut alike."""
        if not _has_visual_input(inputs):
            return self.model(**inputs)
        pruned, _ = self.prune(**inputs)
        if "inputs_embeds" in pruned:
            del pruned["input_ids"]  # the embeddings hold them
        return self.model(**pruned, **_others(inputs))

    @torch.no_grad()
    def generate(self, **inputs) -> Any:
        """Generate as the model itself would: ids of the whole prompt, then the new ones, (B, L + new)."""
        if not _has_visual_input(inputs):
            return self.model.generate(**inputs)
        pruned, _ = self.prune(**inputs)
        output = self.model.generate(**pruned, **_others(inputs))
        ids = output if isinstance(output, Tensor) else output.sequences
        new = ids[:, pruned["input_ids"].shape[1] :]
        prompt = inputs["input_ids"].repeat_interleave(len(new) // len(inputs["input_ids"]), dim=0)
        ids = torch.cat([prompt, new], dim=1)
        if isinstance(output, Tensor):
            return ids
        output.sequences = ids
        return output

    @torch.no_grad()
    def select(self, *, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs) -> Selection | None:
        """Return which tokens will be read, without the vision tower; None without pixels, or where the rule needs features.

        `generate` and `prune` take it as `selection`, so that nothing is chosen twice.
        """
        if not self.before_tower or not _has_visual_input(inputs):
            return None
        visual = _visual_inputs(self.model, input_ids, inputs)
        masks = [_choose(self.rule, part, lambda part=part: _pixel_tokens(self.model, part)) for part in visual]
        keep = _kept(input_ids, attention_mask, visual, masks)
        encoded = sum(int(mask.flatten(1).any(1).sum()) * mask[0].numel() for mask in masks)
        return Selection(masks, keep, int(keep.sum(1).max()), sum(int(mask.sum()) for mask in masks), encoded)

    def prune(
        self, *, input_ids: Tensor, attention_mask: Tensor | None = None, selection: Selection | None = None, **inputs
    ) -> tuple[dict, Tensor]:
        """Return the shorter inputs and which tokens of the prompt they hold, bool (B, L).

        The inputs are input_ids, attention_mask, position_ids and, where given, labels, padded on the side the prompt was, and
        inputs_embeds; of a model with deepstack mm_encoder_outputs instead, good for one call of generate. ValueError for no or
        mismatched images, or when what is left exceeds the model's context.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        visual = _visual_inputs(self.model, input_ids, inputs)
        given = selection.masks if selection else None
        features, chosen = _select_features(self.model, visual, self.rule, before_tower=self.before_tower, masks=given)
        self.token_mask = keep = _kept(input_ids, attention_mask, visual, chosen)
        _check_length(self.model, keep)
        positions = prompt_positions(self.model, input_ids, mask, inputs)
        columns, real = kept_columns(keep, right=bool((mask[:, -1] == 0).any()))
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        pruned = {
            "input_ids": input_ids[rows, columns].masked_fill(~real, _pad_token_id(self.model)),
            "attention_mask": real.to(mask.dtype),
            "position_ids": positions[..., rows, columns].masked_fill(~real, 0),
        }
        if deepstack_layers(self.model):
            pruned["mm_encoder_outputs"] = _tower_outputs(self.model, visual, features)
        else:
            pruned["inputs_embeds"] = _embedded(self.model, input_ids, visual, features, chosen)[rows, columns]
        if inputs.get("labels") is not None:
            pruned["labels"] = inputs["labels"][rows, columns].masked_fill(~real, IGNORE_INDEX)
        return pruned, keep


def prune_tokens(
    model: nn.Module,
    *,
    keep_ratio: float | None = None,
    threshold: float | None = None,
    rule: Callable[..., Any] = keep_mask,
    before_tower: bool = True,
) -> TokenPrunedModel:
    """Return the model reading only the tokens `rule` keeps; `generate`, `forward` and training go through it.

        small = token_pruning.prune_tokens(model, keep_ratio=0.3)
        answer = small.generate(**inputs, max_new_tokens=32)

    `keep_ratio` and `threshold` are those of the rule, exactly one of them. A single image is never cut. ValueError for a ratio
    outside (0, 1] and for a model without a vision tower.
    """
    check_amount(keep_ratio, threshold)
    if not hasattr(_core(model), "get_image_features"):
        raise ValueError(f"{type(model).__name__} has no vision tower: there are no video tokens to drop")
    amount = {"keep_ratio": keep_ratio} if threshold is None else {"threshold": threshold}
    return TokenPrunedModel(model, partial(rule, **amount), before_tower=before_tower)


def deepstack_layers(model: nn.Module) -> int:
    """Return how many layers of its tower a model reads besides the last (Qwen3-VL)."""
    return len(getattr(getattr(model.config, "vision_config", None), "deepstack_visual_indexes", None) or ())


def _kept(input_ids: Tensor, attention_mask: Tensor | None, visual: list[VisualInput], masks: list[Tensor]) -> Tensor:
    """Return which tokens of a batch are read, bool (B, L)."""
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool().clone()
    for part, mask in zip(visual, masks, strict=True):
        keep[part.row, part.columns] = mask.flatten().to(keep.device)
    return keep


def _others(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in REPLACED}


def _has_visual_input(inputs: Mapping[str, Any]) -> bool:
    """Return whether pixels are given. Later steps of a conversation with a cache have none, and need positions."""
    visual = any(inputs.get(name) is not None for name in PIXELS.values())
    if not visual and inputs.get("past_key_values") is not None and inputs.get("position_ids") is None:
        raise ValueError("past_key_values of a shortened prompt need position_ids: its length no longer tells the next one")
    return visual


def _core(model: nn.Module) -> nn.Module:
    """Return the part with the vision tower: the model without its head and without an adapter's wrapping."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(bare, "model", bare)


def _check_length(model: nn.Module, keep: Tensor) -> None:
    longest, context = int(keep.sum(1).max()), model.config.get_text_config().max_position_embeddings
    if longest > context:
        raise ValueError(
            f"a prompt of {keep.shape[1]} tokens keeps {longest}, the model's context is {context}: "
            "lower keep_ratio or show fewer frames"
        )


def _pad_token_id(model: nn.Module) -> int:
    named = (getattr(model.config.get_text_config(), "pad_token_id", None), getattr(model.config, "pad_token_id", None))
    return next((token for token in named if token is not None), 0)


# Where visual tokens stand


def _visual_inputs(model: nn.Module, input_ids: Tensor, inputs: Mapping[str, Any]) -> list[VisualInput]:
    """Return the visual inputs of a batch: every video, and the images of one size that follow each other in a prompt."""
    config, result = model.config, []
    for kind, name in PIXELS.items():
        pixels = inputs.get(name)
        if pixels is None:
            continue
        rows, columns = (input_ids == getattr(config, f"{kind}_token_id")).nonzero(as_tuple=True)
        grids, parts = _grids(config, pixels, inputs.get(f"{kind}_grid_thw"), len(rows))
        sizes = [math.prod(grid) for grid in grids]
        if not sizes or 0 in sizes or len(rows) != sum(sizes):
            raise ValueError(f"the prompt holds {len(rows)} {kind} tokens, its {len(grids)} {kind}s make {sum(sizes)}")
        visual = [
            VisualInput(kind, int(row[0]), place, grid, part)
            for row, place, grid, part in zip(rows.split(sizes), columns.split(sizes), grids, parts, strict=True)
        ]
        result += _images_as_frames(visual) if kind == "image" else visual
    return result


def _grids(config, pixels: Tensor, grid_thw: Tensor | None, count: int) -> tuple[list[tuple[int, int, int]], list[Tensor]]:
    """Return each image's or video's grid in tokens and its pixels by temporal patch.

    With `grid_thw` (in patches, Qwen's way) the pixels are flat rows of patches; without, images (N, 3, S, S) of square grids.
    """
    if grid_thw is None:
        side = math.isqrt(count // max(1, len(pixels)))
        if len(pixels) * side * side != count:
            raise ValueError(f"{count} image tokens are no square grid for each of {len(pixels)} images")
        return [(1, side, side)] * len(pixels), list(pixels.split(1))
    merge, grids = config.vision_config.spatial_merge_size, grid_thw.tolist()
    sizes = [math.prod(grid) for grid in grids]
    if sum(sizes) != len(pixels):
        raise ValueError(f"{len(pixels)} patches of pixels for a grid of {sum(sizes)}: an empty or broken video")
    parts = [part.view(grid[0], -1, part.shape[-1]) for part, grid in zip(pixels.split(sizes), grids, strict=True)]
    return [(t, h // merge, w // merge) for t, h, w in grids], parts


def _images_as_frames(images: list[VisualInput]) -> list[VisualInput]:
    """Join images of one size into one input; tiles of one image, which touch in the prompt, are no frames and stay whole."""
    result: list[VisualInput] = []
    for image in images:
        last = result[-1] if result else None
        same_size = last and (last.row, last.grid[1:]) == (image.row, image.grid[1:])
        if same_size and last.columns[-1] + 1 < image.columns[0]:
            grid = (last.grid[0] + image.grid[0], *image.grid[1:])
            columns, pixels = torch.cat([last.columns, image.columns]), torch.cat([last.pixels, image.pixels])
            result[-1] = VisualInput("image", image.row, columns, grid, pixels)
        else:
            result.append(image)
    return result


# Choosing and encoding


def _select_features(
    model: nn.Module,
    visual: list[VisualInput],
    rule: Callable[[Tensor], Tensor],
    *,
    before_tower: bool,
    masks: list[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return, per visual input, the features of the kept tokens (K, D) and the mask (T, H, W): `masks` where they are known."""
    if before_tower:
        masks = masks or [_choose(rule, part, lambda part=part: _pixel_tokens(model, part)) for part in visual]
        encoded = [mask.flatten(1).any(1).to(part.pixels.device) for mask, part in zip(masks, visual, strict=True)]
        features = _encode(model, visual, encoded)  # (T', H * W, D) each
    else:
        encoded = [torch.ones(len(part.pixels), dtype=torch.bool, device=part.pixels.device) for part in visual]
        features = _encode(model, visual, encoded)
        width = model.config.get_text_config().hidden_size  # behind it stand features of other layers
        masks = [
            _choose(rule, part, lambda part=part, feature=feature: feature.detach().view(*part.grid, -1)[..., :width])
            for part, feature in zip(visual, features, strict=True)
        ]
    selected = [
        feature[mask.flatten(1).to(feature.device)[moments.to(feature.device)]]
        for feature, mask, moments in zip(features, masks, encoded, strict=True)
    ]
    return selected, masks


def _choose(rule: Callable[[Tensor], Tensor], part: VisualInput, tokens: Callable[[], Tensor]) -> Tensor:
    if part.grid[0] == 1:  # nothing to compare with
        return torch.ones(part.grid, dtype=torch.bool)
    return torch.as_tensor(rule(tokens()))


def _pixel_tokens(model: nn.Module, part: VisualInput) -> Tensor:
    """Return pixels as plain tokens (T, H, W, D): means of BLOCKS_PER_SIDE^2 blocks, over the frames of a patch too."""
    frames, height, width = part.grid
    pixels = part.pixels.detach().float()
    if pixels.ndim == 4:  # images
        return patchify(F.adaptive_avg_pool2d(pixels, (BLOCKS_PER_SIDE * height, BLOCKS_PER_SIDE * width)), height, width)
    vision = model.config.vision_config
    merge, side = vision.spatial_merge_size, vision.patch_size
    # a row of patches is ordered (H, W, merge, merge), a patch (colour, frame, y, x)
    pixels = pixels.view(frames * height * width, merge * merge, -1, vision.temporal_patch_size, side, side).mean(3)
    return F.adaptive_avg_pool2d(pixels.flatten(1, 2), BLOCKS_PER_SIDE // merge).view(frames, height, width, -1)


def _encode(model: nn.Module, visual: list[VisualInput], encoded: list[Tensor]) -> list[Tensor]:
    """Run the tower once per kind on the temporal patches marked in `encoded` (T,); return (T', H * W, D) per input."""
    core, features = _core(model), [None] * len(visual)
    for kind in PIXELS:
        numbers = [number for number, part in enumerate(visual) if part.kind == kind]
        if not numbers:
            continue
        pixels = [visual[number].pixels[encoded[number]] for number in numbers]
        if pixels[0].ndim == 4:
            output = core.get_image_features(pixel_values=torch.cat(pixels), **_layer_options(core))
        else:
            merge = model.config.vision_config.spatial_merge_size
            grids = [_patch_grids(visual[number], len(part), merge) for number, part in zip(numbers, pixels, strict=True)]
            grids = torch.tensor(sum(grids, []), device=pixels[0].device)
            encode = core.get_image_features if kind == "image" else core.get_video_features
            output = encode(torch.cat([part.flatten(0, 1) for part in pixels]), grids)
        deep = [torch.cat(layer) for layer in getattr(output, "deepstack_features", None) or ()]
        flat = torch.cat([torch.cat([part.reshape(-1, part.shape[-1]) for part in output.pooler_output]), *deep], -1)
        sizes = [len(part) * math.prod(visual[number].grid[1:]) for number, part in zip(numbers, pixels, strict=True)]
        for number, part, tokens in zip(numbers, pixels, flat.split(sizes), strict=True):
            features[number] = tokens.view(len(part), -1, tokens.shape[-1])
    return features


def _embedded(
    model: nn.Module, input_ids: Tensor, visual: list[VisualInput], features: list[Tensor], masks: list[Tensor]
) -> Tensor:
    """Return the embeddings of a batch (B, L, C), the features (K, C) of the kept tokens in their places."""
    embeddings = model.get_input_embeddings()(input_ids)
    for part, feature, mask in zip(visual, features, masks, strict=True):
        columns = part.columns[mask.flatten().to(part.columns.device)]
        rows = torch.full_like(columns, part.row)
        embeddings = embeddings.index_put((rows, columns), feature.to(embeddings.device, embeddings.dtype))
    return embeddings


def _tower_outputs(model: nn.Module, visual: list[VisualInput], features: list[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Return the features (K, (1 + layers) C) of the kept tokens as the output of the tower, by kind."""
    outputs = {}
    for kind in dict.fromkeys(part.kind for part in visual):
        chunks = [f.chunk(1 + deepstack_layers(model), -1) for f, part in zip(features, visual, strict=True) if part.kind == kind]
        own, *deep = zip(*chunks, strict=True)
        outputs[kind] = BaseModelOutputWithPooling(pooler_output=own)
        outputs[kind].deepstack_features = list(deep)
    return outputs


def _patch_grids(part: VisualInput, frames: int, merge: int) -> list[tuple[int, int, int]]:
    """Return the grid, in patches, that the tower gets for some temporal patches: one video, or that many images."""
    size = (part.grid[1] * merge, part.grid[2] * merge)
    return [(1, *size)] * frames if part.kind == "image" or not frames else [(frames, *size)]


def _layer_options(core: nn.Module) -> dict[str, Any]:
    """Return which layer the model reads, where its tower needs to be told (InternVL)."""
    names = ("vision_feature_layer", "vision_feature_select_strategy")
    return {name: getattr(core.config, name) for name in names if hasattr(core.config, name)}


# Positions of the kept tokens


def prompt_positions(model: nn.Module, input_ids: Tensor, mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return the positions of the whole prompt, (3, B, L) time, row, column, or (B, L) for a model with plain ones."""
    positions = inputs.get("position_ids")
    if positions is not None:  # a fourth row, of places in the text, would read as several prompts once it has gaps
        return positions[1:] if positions.ndim == 3 and len(positions) == 4 else positions
    core = _core(model)
    if not hasattr(core, "get_rope_index"):
        return (mask.long().cumsum(-1) - 1).clamp_min(0)
    kinds = inputs.get("mm_token_type_ids")
    if kinds is None:  # 0 text, 1 image, 2 video
        kinds = (input_ids == model.config.image_token_id).int() + 2 * (input_ids == model.config.video_token_id).int()
    accepted = inspect.signature(core.get_rope_index).parameters  # Qwen2-VL takes no seconds
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    options = {name: inputs[name] for name in names if inputs.get(name) is not None and name in accepted}
    return core.get_rope_index(input_ids, mm_token_type_ids=kinds, attention_mask=mask, **options)[0]


def kept_columns(keep: Tensor, *, right: bool) -> tuple[Tensor, Tensor]:
    """Return which columns each row keeps, (B, longest), and which of these are no padding, bool (B, longest)."""
    longest = int(keep.sum(1).max())
    order = keep.int().argsort(dim=1, descending=right, stable=True)  # kept ones in order, at the end or the beginning
    columns = order[:, :longest] if right else order[:, -longest:]
    return columns, keep.gather(1, columns)
