"""Every table and figure of the four sources, with what this workspace has of each (data/results/atlas.yaml).

- `here`: the same kind is made by a notebook or stands in a table; `data`: a preset makes it from files that are not ours to
  give; `cannot`: no notebook can, for a reason
"""

from pathlib import Path

import pandas as pd

from vau_lib.workspace import artifacts

STATES = {"here": "made here", "data": "needs your data", "cannot": "cannot be made"}
KEYS = {"here": "at", "data": "preset", "cannot": "why"}  # what an item of a state has to say


@artifacts.reader(ValueError)
def read(path: Path) -> pd.DataFrame:
    """Return a row per item: source, item, shows, state, at (list of places), preset, why; ValueError for one that is wrong."""
    rows, content = [], artifacts.read_yaml(path)
    parts = [(part["source"], dict(entry)) for part in content for entry in part["items"]]
    for source, entry in parts:
        name = f"{source}, {entry.get('item')}"
        if unknown := sorted(entry.keys() - {"item", "shows", "state", "at", "preset", "why"}):
            raise ValueError(f"{name}: no key {unknown[0]!r}; a text with a comma needs quotes")
        if entry.get("state") not in STATES:
            raise ValueError(f"{name}: state must be one of {', '.join(STATES)}, got {entry.get('state')!r}")
        if not entry.get(KEYS[entry["state"]]):
            raise ValueError(f"{name}: an item that is {STATES[entry['state']]!r} needs {KEYS[entry['state']]!r}")
        rows.append({"source": source, "at": [], "preset": "", "why": ""} | entry)
    return pd.DataFrame(rows)[["source", "item", "shows", "state", "at", "preset", "why"]]


def as_markdown(items: pd.DataFrame, notebooks: dict[str, str]) -> str:
    """Return the items of `read` as one Markdown table; `notebooks` maps "04" to the file a link opens."""
    lines = ["| source | table or figure | what it shows | here | where or why |", "|---|---|---|---|---|"]
    for item in items.itertuples():
        where = [_place(place, notebooks) for place in item.at]
        where += [f"`vau run {item.preset}`"] * bool(item.preset) + [item.why] * bool(item.why)
        cells = (item.source, item.item, item.shows, STATES[item.state], ", ".join(where))
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _place(place: str, notebooks: dict[str, str]) -> str:
    number, _, cell = place.partition("#")
    return f"[{number}]({notebooks[number]})" if number in notebooks else f"`{place}`"
