"""Local change (ours): how much the places of a network's map change from frame to frame, the few that change most kept apart.

- a map pooled over the whole picture says what a place looks like; a small person in it is averaged away
- change is measured per place, at several lags, before anything is averaged
- causal: a frame is compared with frames before it, and what a later part of a video needs is handed back
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("pooled", "local_change")
LAGS = (1, 2, 4)  # frames: how far back a map is compared
TOP_FRACTION = 0.02  # of the places; at 224 pixels 16 of 28 x 28, about what a person fills in a distant camera's picture


def local_change(
    dense: Tensor, past: Tensor | None = None, *, lags: Sequence[int] = LAGS, top_fraction: float = TOP_FRACTION,
    unit: bool = True, whole: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return how much the places of maps change, (T, 2 C L) or, without `whole`, (T, C L), and the maps the next part needs.

    With u[t] the map, by default with descriptors made unit length, and u[t] = u[0] for t < 0 (a video begins as if it had
    stood still), the change at a lag is c[t] = |u[t] - u[t - lag]|, (C, h, w). A frame's row holds for each of the L lags, in
    their order: the mean of c[t] over all places (C), then its mean over the k places where c[t] is longest, the L2 norm over
    channels, of places equally long any (C); k = max(1, round(top_fraction h w)). Everything is at least 0; a still picture
    gives zeros. Device and dtype are those of `dense`. ValueError for another shape, a lag below 1 or a fraction outside (0, 1].

    Args:
        dense: (T, C, h, w), the maps of T frames in order, all of a video or its next part.
        past: None at a video's start, then what the call before returned, (max(lags), C, h, w), however the video is cut.
        lags: frames, each 1 or more.
        top_fraction: of the places, in (0, 1].
        unit: make descriptors unit length first, for XFeat's; a classifier's map says how strongly it sees by its length.
        whole: keep the mean over all places beside that over the top ones.
    """
    check_options("local_change", lags, top_fraction)
    longest = max(lags)
    maps = F.normalize(dense, dim=1) if unit else dense
    if past is None:
        past = maps[:1].expand(longest, *[-1] * (dense.ndim - 1))
    if dense.ndim != 4 or not len(dense) or past.shape != (longest, *dense.shape[1:]):
        raise ValueError(
            f"maps must be (T, {dense.shape[1] if dense.ndim > 1 else 'C'}, h, w) and past ({longest}, C, h, w), "
            f"got {tuple(dense.shape)}, {tuple(past.shape)}"
        )
    maps = torch.cat([past, maps]).flatten(2)  # (longest + T, C, N), N places
    top, parts = max(1, round(top_fraction * maps.shape[2])), []
    for lag in lags:
        change = (maps[longest:] - maps[longest - lag : len(maps) - lag]).abs()
        places = change.square().sum(1, keepdim=True).topk(top, dim=2, sorted=False).indices  # (T, 1, k)
        parts += [change.mean(2)] if whole else []
        parts += [change.gather(2, places.expand(-1, change.shape[1], -1)).mean(2)]
    kept = maps[len(maps) - longest :].unflatten(2, dense.shape[2:]).clone()  # a view would hold all maps
    return torch.cat(parts, dim=1), kept


def check_options(pooling: str, lags: Sequence[int], top_fraction: float) -> None:
    """Refuse a pooling that is none of `POOLINGS`, a lag below 1 and a fraction outside (0, 1]: ValueError."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if not len(lags) or any(int(lag) != lag or lag < 1 for lag in lags):
        raise ValueError(f"lags must be whole frames, each 1 or more, got {tuple(lags)}")
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction must be in (0, 1], got {top_fraction}")
