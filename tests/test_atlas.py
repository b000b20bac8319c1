"""The atlas names every table and figure of the four sources, and everything it names exists."""

import re

import pytest
import yaml

from vau_lib.evaluation import atlas
from vau_lib.workspace import presets

PLACE = presets.project() / "data" / "results" / "atlas.yaml"
# what the documents number themselves: Mem-TSM report; Holmes-VAU with supplement
NUMBERED = {
    "MemTSM-Net": [f"Table {n}" for n in range(1, 7)] + ["Fig. 3"],
    "Holmes-VAU": [f"Table {n}" for n in (*range(1, 5), "A")] + [f"Fig. {n}" for n in (*range(1, 7), *"ABCDEFGHIJ")],
}


def numbers(item):
    """Return what an item covers: "Fig. A-D" is four figures, "Fig. 3 a-c" is a part of one."""
    if found := re.fullmatch(r"(Fig\.) ([A-Z])-([A-Z])", item):
        return {f"{found[1]} {chr(code)}" for code in range(ord(found[2]), ord(found[3]) + 1)}
    found = re.match(r"(Table|Fig\.) (\w)", item)
    return {f"{found[1]} {found[2]}"} if found else set()


@pytest.fixture(scope="module")
def items():
    return atlas.read(PLACE)


@pytest.mark.parametrize("source", NUMBERED)
def test_every_numbered_table_and_figure_is_there(items, source):
    covered = set().union(*map(numbers, items.loc[items["source"] == source, "item"]))
    assert covered == set(NUMBERED[source])


def test_all_four_sources_are_there_and_no_item_twice(items):
    assert list(items["source"].unique()) == ["MemTSM-Net", "LSHMA", "Holmes-VAU", "Memories-S0"]
    assert not items.duplicated(["source", "item"]).any()


def test_every_place_exists(items):
    cells = {n[:2]: {cell["id"] for cell in presets.read_notebook(path)["cells"]} for n, path in presets.notebooks().items()}
    for place in items["at"].sum():
        number, hash_sign, cell = place.partition("#")
        if number in cells:
            assert not hash_sign or cell in cells[number], f"{place}: no such cell"
        else:
            assert (presets.project() / place).is_file(), f"{place}: no such file"


def test_every_preset_exists_and_every_command_named(items):
    assert set(items["preset"]) - {""} <= set(presets.presets())
    for preset in re.findall(r"preset (\w+)", " ".join(items["why"])):
        assert preset in presets.presets()


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"item": "T", "state": "maybe"}, "A, T: state must be one of here, data, cannot, got 'maybe'"),
        ({"item": "T", "state": "cannot"}, "A, T: an item that is 'cannot be made' needs 'why'"),
        ({"item": "T", "state": "cannot", "why": "so", "and more": None}, "A, T: no key 'and more'"),
        ({"item": "T", "state": "here", "at": []}, "A, T: an item that is 'made here' needs 'at'"),
    ],
)
def test_an_item_that_says_too_little_is_refused(tmp_path, entry, message):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump([{"source": "A", "items": [entry]}]))
    with pytest.raises(ValueError, match=re.escape(message)):
        atlas.read(tmp_path / "a.yaml")


def test_the_shown_table_links_notebooks_and_escapes_bars(items):
    shown = atlas.as_markdown(items.assign(shows="a|b"), {"04": "04_x.ipynb"})
    lines = shown.splitlines()
    assert len(lines) == len(items) + 2 and all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in lines)
    assert "[04](04_x.ipynb)" in shown and "`data/results/fights/fights.csv`" in shown and "a\\|b" in shown
