"""Attention heads fall in groups: a key/value head goes with all the query heads that read it, or stays with them.

Recognised: q/k/v_proj with o_proj or out_proj (grouped queries or not), and a fused qkv with proj (vision towers). Width of a head
is never touched, since rotary sections must add up to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from vau_lib import surgery


@dataclass(frozen=True)
class Attention:
    """Where one attention's heads are; `groups` key/value heads, each with `queries` query heads of `width` channels."""

    name: str
    output: str  # dotted name of the layer that reads the heads
    groups: int
    queries: int
    width: int
    fused: bool


def attentions(model: nn.Module) -> Iterator[Attention]:
    """Yield every attention that is recognised."""
    for name, part in model.named_modules():
        linears = {child: one for child, one in part.named_children() if type(one) is nn.Linear}
        prefix = f"{name}." if name else ""
        last = next((one for one in ("o_proj", "out_proj") if one in linears), None)
        if last and {"q_proj", "k_proj", "v_proj"} <= set(linears) and hasattr(part, "head_dim"):
            groups = linears["k_proj"].out_features // part.head_dim
            queries = linears["q_proj"].out_features // part.head_dim // groups
            yield Attention(name, prefix + last, groups, queries, part.head_dim, False)
        elif {"qkv", "proj"} <= set(linears) and hasattr(part, "num_heads"):
            width = linears["proj"].in_features // part.num_heads
            yield Attention(name, prefix + "proj", part.num_heads, 1, width, True)


def prune_heads(model: nn.Module, ratio: float, batches: list, *, uniform: bool, bias_repair: bool) -> None:
    """Remove, in place, a share of all groups of heads: those whose channels cost least at their mean (FLAP), relative to
    their attention's average. `uniform` takes the same number from each attention and writes it into its config; ValueError
    where that config cannot say it, and where calibration data reach no attention.
    """
    found = {one.output: one for one in attentions(model)}
    seen = surgery.moments(model, {name: model.get_submodule(name) for name in found}, batches)
    if not seen:
        raise ValueError(f"the calibration data reach no attention of {type(model).__name__} whose heads can be pruned")
    if uniform:
        for name in seen:
            _check_config(model, found[name])
    scores = {}
    for name, (_, variance, _) in seen.items():
        score = surgery.channel_scores(model.get_submodule(name), variance).reshape(found[name].groups, -1).sum(1)
        scores[name] = score / score.mean().clamp(min=1e-30)
    for name, kept in surgery.lowest(scores, ratio, each=uniform).items():
        repair = {"repair": bias_repair, "new_bias": not uniform}
        _cut(model, found[name], kept, seen[name][0], **repair)
        if uniform:
            _tell_config(model, found[name], int(kept.sum()))


def set_heads(part: nn.Module, groups: int, queries: int) -> None:
    """Tell an attention how many heads it has now."""
    for key, value in (("num_heads", groups * queries), ("num_key_value_heads", groups)):
        if hasattr(part, key):
            setattr(part, key, value)


def _cut(model: nn.Module, one: Attention, kept: Tensor, mean: Tensor, *, repair: bool, new_bias: bool) -> None:
    prefix = f"{one.name}." if one.name else ""
    keys = kept.repeat_interleave(one.width)
    asked = kept.repeat_interleave(one.queries * one.width)  # query heads of a group stand side by side
    if one.fused:
        surgery.narrow_rows(model, prefix + "qkv", keys.repeat(3))
    else:
        for child, rows in (("q_proj", asked), ("k_proj", keys), ("v_proj", keys)):
            surgery.narrow_rows(model, prefix + child, rows)
    surgery.narrow_columns(model, one.output, asked, mean, repair=repair, new_bias=new_bias)
    set_heads(model.get_submodule(one.name), int(kept.sum()), one.queries)


def _check_config(model: nn.Module, one: Attention) -> None:
    if one.fused or surgery.config_over(model, one.name, "head_dim", "num_key_value_heads") is None:
        config = surgery.config_over(model, one.name)
        raise ValueError(
            f"{type(config).__name__} cannot express fewer heads in {one.name!r} (a head is hidden_size / heads wide there): "
            "prune heads without uniform=True"
        )


def _tell_config(model: nn.Module, one: Attention, groups: int) -> None:
    config = surgery.config_over(model, one.name, "head_dim", "num_key_value_heads")
    config.head_dim, config.num_key_value_heads = one.width, groups
    config.num_attention_heads = groups * one.queries
