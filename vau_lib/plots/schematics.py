"""One drawing per system: what goes in, what is frozen, what is trained, what comes out.

A system is a few boxes on a grid and arrows between them; boxes of one kind have one colour in every drawing.
"""

from dataclasses import dataclass

from matplotlib.patches import FancyBboxPatch, Patch

from vau_lib.plots import style

KINDS = {  # kind -> (fill, edge, words of the legend)
    "data": ("#FFFFFF", style.QUIET, "data"),
    "frozen": ("#E6EAEE", style.QUIET, "frozen network"),
    "trained": ("#CFE5F2", style.NORMAL, "trained"),
    "rule": ("#FBEBC4", style.TRUTH, "rule, nothing to train"),
    "out": ("#F8DCCB", style.ANOMALOUS, "answer"),
}
BOX = (1.62, 0.78)  # width and height; a column is 2 wide, a row 1.25 high
COLUMN, ROW = 2.0, 1.25


@dataclass(frozen=True)
class Box:
    """A box at a column and a row (0 is on top), with its words and its kind."""

    column: float
    row: float
    words: str
    kind: str


@dataclass(frozen=True)
class System:
    """A drawing: its title, its boxes by name and its arrows (from, to, words beside it)."""

    title: str
    boxes: dict[str, Box]
    arrows: tuple[tuple[str, str, str], ...]


SYSTEMS = {
    "memtsm": System(
        "MemTSM-Net: a memory of normal patterns under a temporal-shift head",
        {
            "x": Box(0, 0, "XFeat features\n(T, D)", "data"),
            "change": Box(1, 0, "temporal\ndifference (ours)", "rule"),
            "blocks": Box(2, 0, "2 × shift, conv,\ngate", "trained"),
            "squeeze": Box(3, 0, "squeeze and\nexcitation", "trained"),
            "memory": Box(4, 0, "memory bank\n100 slots", "trained"),
            "scorer": Box(5, 0, "scorer", "trained"),
            "score": Box(6, 0, "score of snippet\nand video", "out"),
            "decoder": Box(5, 1, "decoder", "trained"),
            "rebuilt": Box(6, 1, "rebuilt features,\nerror", "out"),
        },
        (("x", "change", ""), ("change", "blocks", ""), ("blocks", "squeeze", ""), ("squeeze", "memory", ""),
         ("memory", "scorer", ""), ("scorer", "score", ""), ("memory", "decoder", ""), ("decoder", "rebuilt", "")),
    ),
    "lshma": System(
        "LSHMA: a stream with a memory of constant size",
        {
            "frames": Box(0, 0, "frames as\nthey arrive", "data"),
            "encoder": Box(1, 0, "image encoder\n(CLIP)", "frozen"),
            "clip": Box(2, 0, "clip of\nfeatures", "data"),
            "attention": Box(3.2, 0, "memory attention,\nseveral layers", "trained"),
            "head": Box(4.4, 0, "head", "trained"),
            "score": Box(5.4, 0, "score of this clip,\nno look ahead", "out"),
            "key": Box(2, 1.15, "key clip?\ndiffers enough", "rule"),
            "memory": Box(3.2, 1.15, "memory: new kept,\nold compressed", "trained"),
        },
        (("frames", "encoder", ""), ("encoder", "clip", ""), ("clip", "attention", ""), ("attention", "head", ""),
         ("head", "score", ""), ("clip", "key", ""), ("key", "memory", "yes"), ("memory", "attention", "past")),
    ),
    "holmes_vau": System(
        "Holmes-VAU: look more densely where scores are high, then explain",
        {
            "video": Box(0, 0, "video", "data"),
            "scorer": Box(1, 0, "anomaly scorer,\none frame in 16", "trained"),
            "ats": Box(2, 0, "ATS: N equal parts\nof score + tau", "rule"),
            "frames": Box(3, 0, "N frames with\ntheir times", "data"),
            "tower": Box(4, 0, "vision tower,\nprojector", "frozen"),
            "llm": Box(5, 0, "language model\n+ LoRA", "trained"),
            "answer": Box(6, 0, "judgement, what\nhappens, why", "out"),
            "question": Box(4, 1, "question", "data"),
        },
        (("video", "scorer", ""), ("scorer", "ats", ""), ("ats", "frames", ""), ("frames", "tower", ""), ("tower", "llm", ""),
         ("llm", "answer", ""), ("question", "llm", "")),
    ),
    "memories_s0": System(
        "Memories-S0: data by scenarios, fewer tokens and weights, order as a reward",
        {
            "scenarios": Box(0, 0, "scenarios, drawn\nor generated", "data"),
            "rows": Box(1, 0, "videos with truth,\ninstructions", "data"),
            "tokens": Box(2.2, 0, "token selection:\nwhat moves, is new", "rule"),
            "model": Box(3.4, 0, "VLM + LoRA", "trained"),
            "small": Box(4.6, 0, "pruned and\ndistilled", "trained"),
            "answer": Box(5.7, 0, "alert or not,\nand why", "out"),
            "shuffle": Box(2.2, 1.15, "pieces cut at\nevents, shuffled", "rule"),
            "reward": Box(3.4, 1.15, "reward: right order,\nright judgement", "rule"),
        },
        (("scenarios", "rows", ""), ("rows", "tokens", ""), ("tokens", "model", ""), ("model", "small", ""),
         ("small", "answer", ""), ("rows", "shuffle", ""), ("shuffle", "reward", ""), ("reward", "model", "GRPO")),
    ),
}  # fmt: skip


def draw(system: str):
    """Draw a system of SYSTEMS by name: memtsm, lshma, holmes_vau or memories_s0. ValueError names another one."""
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, got {system!r}")
    shown = SYSTEMS[system]
    right = max(box.column for box in shown.boxes.values()) * COLUMN + BOX[0] / 2
    low = max(box.row for box in shown.boxes.values()) * ROW + BOX[1] / 2
    figure, axis = style.subplots(figsize=(11, 11 * (low + BOX[1] / 2 + 1.0) / (right + BOX[0] / 2 + 0.2)))
    axis.set(xlim=(-BOX[0] / 2 - 0.1, right + 0.1), ylim=(low + 0.55, -BOX[1] / 2 - 0.15))
    axis.set_aspect("equal")
    axis.axis("off")
    for start, end, words in shown.arrows:
        _arrow(axis, shown.boxes[start], shown.boxes[end], words)
    for box in shown.boxes.values():
        fill, edge, _ = KINDS[box.kind]
        corner = (box.column * COLUMN - BOX[0] / 2, box.row * ROW - BOX[1] / 2)
        axis.add_patch(FancyBboxPatch(corner, *BOX, boxstyle="round,pad=0,rounding_size=0.12", fc=fill, ec=edge, lw=1.4, zorder=2))
        axis.text(box.column * COLUMN, box.row * ROW, box.words, ha="center", va="center", fontsize=7.2, zorder=3)
    used = {box.kind for box in shown.boxes.values()}
    patches = [Patch(fc=fill, ec=edge, label=words) for kind, (fill, edge, words) in KINDS.items() if kind in used]
    axis.legend(handles=patches, ncols=len(patches), fontsize=8, loc="lower left", bbox_to_anchor=(0, -0.06), borderaxespad=0)
    figure.suptitle(shown.title)
    return figure


def _arrow(axis, start: Box, end: Box, words: str) -> None:
    """Draw an arrow from edge to edge: sideways between columns, up or down within one."""
    x0, y0, x1, y1 = start.column * COLUMN, start.row * ROW, end.column * COLUMN, end.row * ROW
    if abs(x1 - x0) > BOX[0] / 2:
        tail, head = (x0 + BOX[0] / 2, y0), (x1 - BOX[0] / 2, y1)
    else:
        down = 1 if y1 > y0 else -1
        tail, head = (x0, y0 + down * BOX[1] / 2), (x1, y1 - down * BOX[1] / 2)
    line = {"arrowstyle": "-|>", "color": style.INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 1}
    axis.annotate("", head, tail, arrowprops=line, zorder=1)
    if words:
        axis.text((tail[0] + head[0]) / 2 + 0.06, (tail[1] + head[1]) / 2 - 0.05, words, fontsize=7.2, va="bottom")
