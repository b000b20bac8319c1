"""A file is whole or absent, and what made a folder is checked."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from vau_lib.workspace import artifacts


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), artifacts.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert artifacts.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]


def test_a_killed_write_leaves_no_half_file(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from vau_lib.workspace import artifacts\n"
        "with artifacts.replacing(Path(sys.argv[1])) as t:\n t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.npy")])
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "x.npy").exists()


def test_a_full_disk_is_one_line_whichever_library_meets_it(tmp_path):
    """Texts of safetensors, torch and tokenizers 0.22 under RLIMIT_FSIZE; a defect of ours still raises."""
    for text in (
        "No space left on device (os error 28)",
        "PytorchStreamWriter failed writing file data/0",
        "File too large (os error 27)",
    ):
        with pytest.raises(artifacts.StoreError, match=f"^cannot write {tmp_path}: "), artifacts.writing(tmp_path):
            raise Exception(text)
    with pytest.raises(KeyError), artifacts.writing(tmp_path):
        raise KeyError("os error")


def test_arrays_with_objects_are_refused(tmp_path):
    with (tmp_path / "bad.npy").open("wb") as file:
        np.lib.format.write_array(file, np.array([{"a": 1}], dtype=object))
    with pytest.raises(artifacts.StoreError, match="bad.npy is not a plain array"):
        artifacts.load_array(tmp_path / "bad.npy")
    with pytest.raises(artifacts.StoreError, match="no array"):
        artifacts.load_array(tmp_path / "none.npy")


def test_a_folder_made_otherwise_is_refused(tmp_path):
    artifacts.write_made_by(tmp_path, encoder="xfeat", side=224)
    assert artifacts.check_made_by(tmp_path, encoder="xfeat")["side"] == 224
    with pytest.raises(artifacts.StoreError, match="encoder='xfeat', asked for 'clip'"):
        artifacts.check_made_by(tmp_path, encoder="clip")
    with pytest.raises(artifacts.StoreError, match="is not made yet"):
        artifacts.check_made_by(tmp_path / "elsewhere")


def test_weights_are_looked_for_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("VAU_WEIGHTS", raising=False)
    with pytest.raises(artifacts.StoreError, match="no weights a/w.pt: put the file there under the folder named by VAU_WEIGHTS"):
        artifacts.find_weights("a/w.pt")
    cached = tmp_path / "hub" / "hub" / "checkpoints" / "w.pt"
    own = tmp_path / "own" / "a" / "w.pt"
    for path in (cached, own):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    assert artifacts.find_weights("a/w.pt") == cached
    monkeypatch.setenv("VAU_WEIGHTS", str(tmp_path / "own"))
    assert artifacts.find_weights("a/w.pt") == own
    with pytest.raises(artifacts.StoreError, match="no weights at"):
        artifacts.find_weights("a/w.pt", tmp_path / "nothing.pt")


ODD_TEXT = "a\u2028b\u2029c\u0085d\x1ce\x0bf\x0cg caf\udce9.mp4"  # separators str.splitlines cuts at, and a name that is not UTF-8


def test_json_lines_read_back_whatever_a_text_holds(tmp_path):
    rows = [{"id": "a", "text": ODD_TEXT}, {"id": "b", "text": "x\r\ny"}]
    artifacts.write_json_lines(tmp_path / "a.jsonl", rows)
    assert [row for _, row in artifacts.json_lines(tmp_path / "a.jsonl")] == rows
    foreign = "\ufeff" + "\r\n\r\n".join(f'{{"id": {n}, "text": "u\u2028v"}}' for n in range(2)) + "\r\n\n"
    (tmp_path / "b.jsonl").write_bytes(foreign.encode())
    assert list(artifacts.json_lines(tmp_path / "b.jsonl")) == [(n, {"id": m, "text": "u\u2028v"}) for n, m in ((1, 0), (3, 1))]
    artifacts.write_json(tmp_path / "c.json", ODD_TEXT)
    assert artifacts.read_json(tmp_path / "c.json") == ODD_TEXT


def test_a_line_that_a_kill_cut_short_neither_stops_a_reader_nor_spoils_the_next_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"id": 1}\n{"id": "é'.encode()[:-1])  # cut inside a letter
    assert [row for _, row in artifacts.json_lines(path, cut_off=True)] == [{"id": 1}]
    with pytest.raises(artifacts.StoreError, match="^a.jsonl line 2 is not JSON: "):
        list(artifacts.json_lines(path))
    path.write_bytes(b'{"id": 1}\n{"id": 2}')  # whole, only its newline is missing
    artifacts.append_json_line(path, {"id": 3})
    assert [row["id"] for _, row in artifacts.json_lines(path)] == [1, 2, 3]
    path.write_bytes(b'{"id": 1}\n{"id\n{"id": 2}\n')
    with pytest.raises(artifacts.StoreError, match="line 2 is not JSON"):
        list(artifacts.json_lines(path, cut_off=True))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0c"])
def test_every_reader_of_json_lines_takes_a_separator_a_mark_and_blank_lines(tmp_path, separator):
    from vau_lib.data import hivau, records, smarthome
    from vau_lib.vlm import clients

    text, path = f"one{separator}two", tmp_path / "a.jsonl"

    def spoiled() -> None:
        path.write_bytes(b"\xef\xbb\xbf\r\n" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))

    kept = [records.VideoRecord(name + separator, "a.mp4", "own", "test", 0, (text,)) for name in "ab"]
    records.write_records(path, kept)
    spoiled()
    assert records.read_records(path) == kept
    smarthome.write_responses(path, {"a": text, "b": None})
    spoiled()
    assert smarthome.read_responses(path).answers == {"a": text, "b": None}
    artifacts.write_json_lines(path, [{"id": "a", "answer": text}])
    spoiled()
    assert clients.replay(path, source="me").texts == {"a": text}
    row = {"id": 1, "type": "clip", "task": "caption", "video": "ucf-crime/clips/train/Abuse001_x264_E0C0.mp4"}
    row |= {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": text}]}
    artifacts.write_json_lines(path, [row])
    spoiled()
    read = hivau.hivau_instructions(path)
    assert [r.answer for r in read] == [text], read.problems
    hivau.write_samples(path, read)
    spoiled()
    assert [r.answer for r in hivau.read_samples(path)] == [text]


def test_files_of_json_lines_joined_with_their_marks_are_read(tmp_path):
    mark = "\ufeff".encode()
    (tmp_path / "joined.jsonl").write_bytes(mark + b'{"a": "x\xc2\x85y"}\r\n \r\n' + mark + b'{"a": 2}\n' + mark + b"\n")
    assert list(artifacts.json_lines(tmp_path / "joined.jsonl")) == [(1, {"a": "x\x85y"}), (3, {"a": 2})]


def test_a_key_that_stands_twice_in_yaml_is_refused():
    assert artifacts.parse_yaml("a: {b: 1}\nc: {b: 2}") == {"a": {"b": 1}, "c": {"b": 2}}
    for text in ("a: 1\nb: 2\na: 3\n", "a: {b: 1, b: 2}"):
        with pytest.raises(ValueError, match="the key '[ab]' stands twice"):
            artifacts.parse_yaml(text)


def test_a_key_that_stands_twice_in_json_is_refused_where_its_values_differ():
    """Configurations on the hub have a line twice; nothing is lost by reading them."""
    assert artifacts.parse_json('{"a": {"b": 1, "b": 1}, "a": {"b": 1}}') == {"a": {"b": 1}}
    for text in ('{"a": 1, "b": 2, "a": 3}', '{"b": {"a": 1, "a": null}}'):
        with pytest.raises(ValueError, match="the key 'a' stands twice"):
            artifacts.parse_json(text)


def test_a_folder_that_is_missing_names_the_notebook_that_makes_it(tmp_path):
    for folder, notebook in (
        ("features/fights/flow", "03"),
        ("models/lshma/synthetic/intended", "06"),
        ("models/vlm/x/merged", "09"),
    ):
        with pytest.raises(artifacts.StoreError, match=f"notebook {notebook}.* makes it"):
            artifacts.check_made_by(tmp_path / "data" / folder)
