"""Most tokens of a fixed camera's video repeat what stood there before; a model can answer without them.

Memories-S0's token compression, training-free: tokens are dropped between the eye and the language model, outside of both.
- those kept stay where they were: positions (M-RoPE's time, row, column, or plain places in the text) are computed for the
  whole prompt and only then cut, so the first generated token too has the position it always had
- nothing is patched: embeddings, positions and mask are made here and handed to the model's own forward and generate
- before the tower (default): the rule looks at pixels, and a temporal patch with no token left is never encoded; exact,
  because a tower's attention never crosses temporal patches. After it: the rule looks at the tower's features
- keeping everything changes nothing; several videos, pictures and prompts of different length in a batch are fine
Which tokens: `keep_mask`, or any rule of `token_selection.RULES` in its place.
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

from vau_lib.compression.token_selection import cells, keep_mask

LOOK = 4  # blocks per token and side that a rule sees of the pixels; 7 pixels each at Qwen2.5-VL's size

IGNORED = -100  # label of a token that is given, not learned

VISUAL = ("pixel_values", "pixel_values_videos")

OURS = ("input_ids", "attention_mask", "labels", "position_ids", "mm_token_type_ids", "second_per_grid_ts")

OURS += ("image_grid_thw", "video_grid_thw", *VISUAL)  # what the pruned inputs replace


@dataclass(frozen=True)
class Scene:
    """One video, or the pictures of one size in one prompt, as a film: where its tokens stand and what they show."""

    kind: str  # "image" or "video": which door of the model encodes it
    row: int  # of the batch
    places: Tensor  # (T * H * W,) columns of the prompt, in order of time, row, column
    grid: tuple[int, int, int]  # T, H, W in tokens
    pixels: Tensor  # (T, ...), as the processor made them, one entry per temporal patch


class Compressed(nn.Module):
    """A model that sees a share of its video: same inputs, same `forward` and `generate`; also a context manager.

    `kept` is the mask of the last call, (B, L): which tokens of the whole prompt were read. `with compressed(...) as small`
    only gives the name a place; nothing is to be undone, the model itself is never changed. Save `small.model`, which is
    an ordinary one; a Trainer that writes checkpoints of the wrapper itself stops at tied embeddings (`save_strategy="no"`).
    """

    def __init__(self, model: nn.Module, rule: Callable[[Tensor], Tensor], *, before_tower: bool, aligned: bool):
        super().__init__()
        self.model, self.rule, self.before_tower, self.aligned = model, rule, before_tower, aligned
        self.kept: Tensor | None = None

    def __enter__(self) -> "Compressed":
        return self

    def __exit__(self, *_) -> None:
        self.kept = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)  # config, device, generation_config, ...

    def forward(self, **inputs) -> Any:
        """Run the model on the kept tokens; its own output. Logits are of those (B, kept, V), labels are cut alike.

        With `aligned`, logits are (B, L, V) in the places of the whole prompt, 0 where a token was dropped.
        """
        if not _sees(inputs):
            return self.model(**inputs)
        short, kept = self.prune(**inputs)
        rest = {name: value for name, value in inputs.items() if name not in OURS}
        short.pop("input_ids")  # the embeddings say it
        output = self.model(**short, **rest)
        if self.aligned and output.logits.shape[1] == short["attention_mask"].shape[1]:
            output.logits = _spread(output.logits, short["attention_mask"], kept)
        return output

    @torch.no_grad()
    def generate(self, **inputs) -> Any:
        """Answer as the model's own generate would: the whole prompt's ids, then the new ones, (B, L + new)."""
        if not _sees(inputs):
            return self.model.generate(**inputs)
        short, _ = self.prune(**inputs)
        rest = {name: value for name, value in inputs.items() if name not in OURS}
        out = self.model.generate(**short, **rest)
        bare = isinstance(out, Tensor)
        said = (out if bare else out.sequences)[:, short["input_ids"].shape[1] :]
        prompt = inputs["input_ids"].repeat_interleave(len(said) // len(inputs["input_ids"]), dim=0)
        whole = torch.cat([prompt, said], dim=1)
        if bare:
            return whole
        out.sequences = whole
        return out

    def prune(self, *, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs) -> tuple[dict, Tensor]:
        """Return the shorter inputs and which tokens of the prompt they are, bool (B, L).

        Inputs hold input_ids, attention_mask, inputs_embeds, position_ids and, where given, labels; padded on the side the
        prompt was. ValueError for no or mismatched pictures, or when what is left exceeds the model's context.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        scenes = _scenes(self.model, input_ids, inputs)
        features, chosen = _see(self.model, scenes, self.rule, before_tower=self.before_tower)
        keep = mask.bool().clone()
        for scene, choice in zip(scenes, chosen, strict=True):
            keep[scene.row, scene.places] = choice.flatten().to(keep.device)
        self.kept = keep
        _fits(self.model, keep)
        whole = self.model.get_input_embeddings()(input_ids)
        for scene, seen, choice in zip(scenes, features, chosen, strict=True):
            places = scene.places[choice.flatten().to(scene.places.device)]
            rows = torch.full_like(places, scene.row)
            whole = whole.index_put((rows, places), seen.to(whole.device, whole.dtype))
        positions = _positions(self.model, input_ids, mask, inputs)
        columns, real = _columns(keep, right=bool((mask[:, -1] == 0).any()))
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        short = {
            "input_ids": input_ids[rows, columns].masked_fill(~real, _padding(self.model)),
            "attention_mask": real.to(mask.dtype),
            "inputs_embeds": whole[rows, columns],
            "position_ids": positions[..., rows, columns].masked_fill(~real, 0),
        }
        if inputs.get("labels") is not None:
            short["labels"] = inputs["labels"][rows, columns].masked_fill(~real, IGNORED)
        return short, keep


def compressed(
    model: nn.Module,
    *,
    share: float | None = None,
    threshold: float | None = None,
    rule: Callable[..., Any] = keep_mask,
    before_tower: bool = True,
    aligned: bool = False,
) -> Compressed:
    """Return the model reading only the tokens `rule` keeps; `generate`, `forward` and training go through it.

        with token_pruning.compressed(model, share=0.3) as small:
            answer = small.generate(**inputs, max_new_tokens=32)

    `share` and `threshold` are `keep_mask`'s, exactly one of them. A still picture is never cut. `before_tower=False` encodes
    everything and lets the rule look at the tower's features. ValueError for a share outside (0, 1] or a model that sees nothing.
    """
    if (share is None) == (threshold is None):
        raise ValueError(f"give either share or threshold, got share={share} and threshold={threshold}")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    if not hasattr(_core(model), "get_image_features"):
        raise ValueError(f"{type(model).__name__} has no vision tower: there are no video tokens to drop")
    amount = {"share": share} if threshold is None else {"threshold": threshold}
    return Compressed(model, partial(rule, **amount), before_tower=before_tower, aligned=aligned)


def _sees(inputs: Mapping[str, Any]) -> bool:
    """Whether there is something to see. Later steps of a dialogue with a cache have none, and need positions given."""
    seen = any(inputs.get(name) is not None for name in VISUAL)
    if not seen and inputs.get("past_key_values") is not None and inputs.get("position_ids") is None:
        raise ValueError(
            "past_key_values of a shortened prompt need position_ids: its length no longer tells the next one"
        )
    return seen


def _core(model: nn.Module) -> nn.Module:
    """Return what holds the tower: the model without its head and without an adapter's wrapping."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(bare, "model", bare)


def _fits(model: nn.Module, keep: Tensor) -> None:
    longest, context = int(keep.sum(1).max()), model.config.get_text_config().max_position_embeddings
    if longest > context:
        raise ValueError(
            f"a prompt of {keep.shape[1]} tokens keeps {longest}, the model was made for {context}: "
            "lower the share or show fewer frames"
        )


def _padding(model: nn.Module) -> int:
    named = (getattr(model.config.get_text_config(), "pad_token_id", None), getattr(model.config, "pad_token_id", None))
    return next((token for token in named if token is not None), 0)


# Where the tokens of each scene stand


def _scenes(model: nn.Module, input_ids: Tensor, inputs: Mapping[str, Any]) -> list[Scene]:
    """Return the films of a batch: every video, and the pictures of one size that follow each other in a prompt."""
    config, scenes = model.config, []
    for kind, pixels in (("image", inputs.get("pixel_values")), ("video", inputs.get("pixel_values_videos"))):
        if pixels is None:
            continue
        rows, columns = (input_ids == getattr(config, f"{kind}_token_id")).nonzero(as_tuple=True)
        grids, parts = _grids(config, pixels, inputs.get(f"{kind}_grid_thw"), len(rows))
        sizes = [math.prod(grid) for grid in grids]
        if not sizes or 0 in sizes or len(rows) != sum(sizes):
            raise ValueError(f"the prompt holds {len(rows)} {kind} tokens, its {len(grids)} {kind}s make {sum(sizes)}")
        found = [
            Scene(kind, int(row[0]), place, grid, part)
            for row, place, grid, part in zip(rows.split(sizes), columns.split(sizes), grids, parts, strict=True)
        ]
        scenes += _joined(found) if kind == "image" else found
    return scenes


def _grids(
    config, pixels: Tensor, grid_thw: Tensor | None, count: int
) -> tuple[list[tuple[int, int, int]], list[Tensor]]:
    """Return each picture's grid in tokens and its pixels by temporal patch.

    With `grid_thw` (patches, Qwen's way) the pixels are flat rows of patches; without, pictures (N, 3, S, S) of square grids.
    """
    if grid_thw is None:
        side = math.isqrt(count // max(1, len(pixels)))
        if len(pixels) * side * side != count:
            raise ValueError(f"{count} picture tokens are no square grid for each of {len(pixels)} pictures")
        return [(1, side, side)] * len(pixels), list(pixels.split(1))
    merge = config.vision_config.spatial_merge_size
    sizes = [math.prod(grid) for grid in grid_thw.tolist()]
    if sum(sizes) != len(pixels):
        raise ValueError(f"{len(pixels)} patches of pixels for a grid of {sum(sizes)}: an empty or broken video")
    parts = [
        part.view(grid[0], -1, part.shape[-1])
        for part, grid in zip(pixels.split(sizes), grid_thw.tolist(), strict=True)
    ]
    return [(t, h // merge, w // merge) for t, h, w in grid_thw.tolist()], parts


def _joined(pictures: list[Scene]) -> list[Scene]:
    """Join pictures of one size into a film; tiles of one picture, which touch in the prompt, are no film and stay whole."""
    films: list[Scene] = []
    for picture in pictures:
        last = films[-1] if films else None
        if (
            last
            and (last.row, last.grid[1:]) == (picture.row, picture.grid[1:])
            and last.places[-1] + 1 < picture.places[0]
        ):
            grid = (last.grid[0] + picture.grid[0], *picture.grid[1:])
            both = (torch.cat(pair) for pair in ((last.places, picture.places), (last.pixels, picture.pixels)))
            films[-1] = Scene("image", picture.row, next(both), grid, next(both))
        else:
            films.append(picture)
    return films


# What is seen of them


def _see(
    model: nn.Module, scenes: list[Scene], rule: Callable[[Tensor], Tensor], *, before_tower: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return per scene the features of the kept tokens (K, D) and the mask (T, H, W)."""
    if before_tower:
        masks = [_choose(rule, scene, lambda scene=scene: _pixel_tokens(model, scene)) for scene in scenes]
        alive = [mask.flatten(1).any(1).to(scene.pixels.device) for mask, scene in zip(masks, scenes, strict=True)]
    else:
        alive = [torch.ones(len(scene.pixels), dtype=torch.bool, device=scene.pixels.device) for scene in scenes]
    features = _encode(model, scenes, alive)  # (T', H * W, D) each
    if not before_tower:
        masks = [
            _choose(rule, scene, lambda scene=scene, seen=seen: seen.detach().view(*scene.grid, -1))
            for scene, seen in zip(scenes, features, strict=True)
        ]
    kept = [
        seen[mask.flatten(1).to(seen.device)[some.to(seen.device)]]
        for seen, mask, some in zip(features, masks, alive, strict=True)
    ]
    return kept, masks


def _choose(rule: Callable[[Tensor], Tensor], scene: Scene, tokens: Callable[[], Tensor]) -> Tensor:
    if scene.grid[0] == 1:  # nothing to compare with
        return torch.ones(scene.grid, dtype=torch.bool)
    return torch.as_tensor(rule(tokens()))


def _pixel_tokens(model: nn.Module, scene: Scene) -> Tensor:
    """Return a scene's pixels as plain tokens (T, H, W, D): means of LOOK x LOOK blocks, of the frames of a patch too."""
    frames, height, width = scene.grid
    pixels = scene.pixels.detach().float()
    if pixels.ndim == 4:  # pictures
        return cells(F.adaptive_avg_pool2d(pixels, (LOOK * height, LOOK * width)), height, width)
    vision = model.config.vision_config
    merge, side = vision.spatial_merge_size, vision.patch_size
    # a row of patches is ordered (H, W, merge, merge), a patch (colour, frame, y, x)
    pixels = pixels.view(frames * height * width, merge * merge, -1, vision.temporal_patch_size, side, side).mean(3)
    return F.adaptive_avg_pool2d(pixels.flatten(1, 2), LOOK // merge).view(frames, height, width, -1)


def _encode(model: nn.Module, scenes: list[Scene], alive: list[Tensor]) -> list[Tensor]:
    """Run the tower once per kind on the temporal patches that are `alive` (T,); return (T', H * W, D) per scene."""
    core, features = _core(model), [None] * len(scenes)
    for kind in ("image", "video"):
        mine = [number for number, scene in enumerate(scenes) if scene.kind == kind]
        if not mine:
            continue
        parts = [scenes[number].pixels[alive[number]] for number in mine]
        if parts[0].ndim == 4:
            seen = core.get_image_features(pixel_values=torch.cat(parts), **_layers(core)).pooler_output
        else:
            merge = model.config.vision_config.spatial_merge_size
            grids = [
                grid
                for number, part in zip(mine, parts, strict=True)
                for grid in _boxes(scenes[number], len(part), merge)
            ]
            grids = torch.tensor(grids, device=parts[0].device)
            encode = core.get_image_features if kind == "image" else core.get_video_features
            seen = encode(torch.cat([part.flatten(0, 1) for part in parts]), grids).pooler_output
        flat = torch.cat([part.reshape(-1, part.shape[-1]) for part in seen])
        sizes = [len(part) * math.prod(scenes[number].grid[1:]) for number, part in zip(mine, parts, strict=True)]
        for number, part, count in zip(mine, flat.split(sizes), [len(part) for part in parts], strict=True):
            features[number] = part.view(count, -1, part.shape[-1])
    return features


def _boxes(scene: Scene, frames: int, merge: int) -> list[tuple[int, int, int]]:
    """Return what the tower is told of a scene's temporal patches: one video, or that many pictures, in patches."""
    size = (scene.grid[1] * merge, scene.grid[2] * merge)
    return [(1, *size)] * frames if scene.kind == "image" or not frames else [(frames, *size)]


def _layers(core: nn.Module) -> dict[str, Any]:
    """Return which layer the model reads, where its tower asks for it (InternVL)."""
    names = ("vision_feature_layer", "vision_feature_select_strategy")
    return {name: getattr(core.config, name) for name in names if hasattr(core.config, name)}


# Where the kept tokens stand


def _positions(model: nn.Module, input_ids: Tensor, mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return the positions of the whole prompt, (3, B, L) time, row, column, or (B, L) for a model with plain ones."""
    given = inputs.get("position_ids")
    if given is not None:  # a fourth row, of places in the text, would read as several prompts once it has gaps
        return given[1:] if given.ndim == 3 and len(given) == 4 else given
    core = _core(model)
    if not hasattr(core, "get_rope_index"):
        return (mask.long().cumsum(-1) - 1).clamp_min(0)
    kinds = inputs.get("mm_token_type_ids")
    if kinds is None:  # 0 text, 1 image, 2 video
        kinds = (input_ids == model.config.image_token_id).int() + 2 * (input_ids == model.config.video_token_id).int()
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    known = {name: inputs[name] for name in names if inputs.get(name) is not None}
    wanted = inspect.signature(core.get_rope_index).parameters  # Qwen2-VL knows no seconds
    known = {name: value for name, value in known.items() if name in wanted}
    return core.get_rope_index(input_ids, mm_token_type_ids=kinds, attention_mask=mask, **known)[0]


def _columns(keep: Tensor, *, right: bool) -> tuple[Tensor, Tensor]:
    """Return which columns each row keeps, (B, longest), and which of these are real, not padding, bool (B, longest)."""
    longest = int(keep.sum(1).max())
    order = keep.int().argsort(dim=1, descending=right, stable=True)  # kept ones in order, at the end or the beginning
    columns = order[:, :longest] if right else order[:, -longest:]
    return columns, keep.gather(1, columns)


def _spread(logits: Tensor, real: Tensor, kept: Tensor) -> Tensor:
    """Put logits of kept tokens (B, kept, V) back to their places, (B, L, V), 0 elsewhere."""
    whole = logits.new_zeros(*kept.shape, logits.shape[-1])
    return whole.index_put(kept.nonzero(as_tuple=True), logits[real.bool()])
