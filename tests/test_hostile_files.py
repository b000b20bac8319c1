"""Files that anybody may have made: each bad one is one line that names it, the good ones are done, nothing leaves its folder."""

import io
import json
import os
import shutil
import signal
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import moving_square
from PIL import Image
from safetensors.torch import save_file
from tiny_project import make_project, write_notebook, write_params
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.data import datasets, records, video
from vau_lib.features import checkpoints, extraction
from vau_lib.workspace import artifacts, notebook_runs, parallel

RECIPE = extraction.Recipe("xfeat", options=(("weights", "random"), ("side", 64)))
DEEP = "[" * 3000 + "]" * 3000


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and 0 < len(str(error)) < 600


# Documents


@pytest.mark.parametrize(
    "text", [DEEP, "[" * 10**6, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 150 + "]" * 150, '{"a": 1', "1" * 5000, "\x00", "\ud800"]
)
def test_a_document_nested_without_end_is_one_line(text, tmp_path):
    path = tmp_path / "deep.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(artifacts.StoreError, match="deep.json") as caught:
        artifacts.read_json(path)
    assert one_line(caught.value)
    with pytest.raises(artifacts.StoreError, match="deep.json line 1 ") as caught:
        list(artifacts.json_lines(path))
    assert one_line(caught.value)


def test_levels_that_a_document_may_have_are_read(tmp_path):
    artifacts.write_json(tmp_path / "a.json", json.loads("[" * 100 + "]" * 100))
    assert artifacts.read_json(tmp_path / "a.json")
    wide = {str(n): [n] for n in range(500)}
    artifacts.write_json(tmp_path / "b.json", wide)
    assert artifacts.read_json(tmp_path / "b.json", dict) == wide
    with pytest.raises(artifacts.StoreError, match=r"b.json must hold a list, got \{'0'"):
        artifacts.read_json(tmp_path / "b.json", list)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [(BOMB, "alias"), ("a: &a {<<: *a}", "alias"), (DEEP, "nested deeper"), ("- " * 3000, "nested deeper"),
     ("a: 2026-99-99", "month"), ("a: !!python/object/apply:os.system ['true']", "python/object"),
     ("a: [", "flow"), ("\x00", "special"),
     ("? [a]\n: 1", "unhashable")],
)  # fmt: skip
def test_yaml_is_plain_values(text, reason, tmp_path):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(artifacts.StoreError, match=f"bad.yaml is not YAML.*{reason}") as caught:
        artifacts.read_yaml(tmp_path / "bad.yaml")
    assert one_line(caught.value)
    (tmp_path / "large.yaml").write_bytes(b"#" * (artifacts.MAX_YAML + 1))
    with pytest.raises(artifacts.StoreError, match="too large"):
        artifacts.read_yaml(tmp_path / "large.yaml")


# Arrays


def header(text: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text.encode()


def npy(shape: str, kind: str = "<f4") -> bytes:
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n") + b"\x00" * 64


BAD_ARRAYS = {
    "claims a petabyte": npy("(1000000000000000,)"),
    "claims gigabytes": npy("(1000, 1000, 1000)"),
    "negative": npy("(-1, -16)"),
    "overflows": npy("(4611686018427387904, 4)"),
    "objects": npy("(1,)", "|O"),
    "deep header": header("(" * 5000 + ")" * 5000 + "\n"),
    "long header": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }" + " " * 60_000),
    "no dict": header("[1, 2]\n"),
    "version": header("{}\n", 2)[:6] + b"\x09\x00" + b"\x00" * 40,
    "cut": npy("(32,)")[:90],
    "empty": b"",
    "text": b"1,2,3\n",
}


@pytest.mark.parametrize("kind", [*BAD_ARRAYS, "archive", "folder"])
def test_an_array_that_claims_too_much_is_one_line(kind, tmp_path):
    path = tmp_path / "bad.npy"
    if kind == "archive":
        np.savez(tmp_path / "x.npz", a=np.zeros(3))
        (tmp_path / "x.npz").rename(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(BAD_ARRAYS[kind])
    with pytest.raises(artifacts.StoreError, match="bad.npy is not a plain array") as caught:
        artifacts.load_array(path)
    assert one_line(caught.value)
    assert ("its header claims" in str(caught.value)) == (
        kind in ("claims a petabyte", "claims gigabytes", "negative", "overflows", "cut")
    )


@pytest.mark.parametrize("kind", [*BAD_ARRAYS, "missing", "crc", "half"])
def test_an_archive_of_arrays_is_read_as_carefully(kind, tmp_path):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, a=np.arange(1000), b=np.zeros(3))
    assert artifacts.load_arrays(path, "b")["b"].tolist() == [0, 0, 0] and set(artifacts.load_arrays(path)) == {"a", "b"}
    if kind == "half":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "crc":
        data = bytearray(path.read_bytes())
        data[60:90] = bytes(30)
        path.write_bytes(data)
    elif kind != "missing":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", BAD_ARRAYS[kind])
    with pytest.raises(artifacts.StoreError, match="bad.npz is not an archive of plain arrays") as caught:
        artifacts.load_arrays(path, *(["c"] if kind == "missing" else ["a"]))
    assert one_line(caught.value)
    with pytest.raises(records.RecordError, match="bad.npz") if kind != "missing" else io.StringIO():
        datasets.frame_counts(path)


@pytest.mark.parametrize("keep", [0, 8, 100, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_cut_anywhere_are_one_line(suffix, keep, tmp_path):
    path = tmp_path / f"w{suffix}"
    weights = {"a": torch.arange(1000.0)}
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(artifacts.StoreError, match=f"w{suffix} is refused") as caught:
        checkpoints.load_weights(path)
    assert one_line(caught.value)


# Names


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\0b", "n" * 256, "\udce9", "", "link/x"])
def test_a_name_from_a_file_stays_in_its_folder(name, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    for place in (artifacts.inside, lambda root, name: records.inside(name, root)):
        with pytest.raises(ValueError) as caught:
            place(root, name)
        assert one_line(caught.value) and str(caught.value).encode()
    assert artifacts.inside(root, "a/b..c").name == "b..c"


def test_one_bad_id_or_path_ends_no_batch(tmp_path):
    video.write_video(tmp_path / "a.mp4", moving_square(20, 64, 64))
    odd = [("nul\0", "a.mp4"), ("s\udce9", "a.mp4"), ("n" * 300, "a.mp4"), ("../up", "a.mp4"), ("p", "x\0.mp4"),
           ("q", "\udce9.mp4"),
           ("r", "/etc/passwd"), ("s", "n" * 300)]  # fmt: skip
    rows = [records.VideoRecord(name, path, "own", "test", 0) for name, path in [*odd, ("good", "a.mp4")]]
    done = extraction.extract(rows, tmp_path, tmp_path / "out", RECIPE)
    assert done.encoded == 1 and len(done.skipped) == len(odd) and not any("\n" in line for line in done.skipped)
    assert [path.name for path in (tmp_path / "out").rglob("*.npy")] == ["good.npy"]
    json.dumps(done.skipped).encode()


# Pictures and videos


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bad_pictures(folder: Path) -> dict[str, bytes]:
    Image.fromarray(moving_square(1)[0]).save(folder / "x.png")
    good = (folder / "x.png").read_bytes()
    (folder / "x.png").unlink()
    crc = bytearray(good)
    crc[60] ^= 255
    bomb = (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + png_chunk(b"IEND", b"")
    )
    other = io.BytesIO()
    Image.new("RGB", (40, 30)).save(other, "PNG")
    return {
        "cut": good[: len(good) // 2],
        "crc": bytes(crc),
        "bomb": bomb,
        "size": other.getvalue(),
        "text": b"hello",
        "empty": b"",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_is_waited_for_by_nobody(tmp_path, clip):
    for name in ("a.mp4", "x.npy", "x.npz", "x.json", "x.safetensors"):
        os.mkfifo(tmp_path / name)
    shutil.copy(clip, tmp_path / "good.mp4")
    reads = {
        "a.mp4": [video.probe, lambda path: next(video.live(path)), artifacts.sha256], "x.json": [artifacts.read_json],
        "x.npy": [artifacts.load_array], "x.npz": [artifacts.load_arrays], "x.safetensors": [checkpoints.load_weights],
    }  # fmt: skip
    signal.alarm(20)
    try:
        for name, functions in reads.items():
            for read in functions:
                with pytest.raises((ValueError, OSError)) as caught:
                    read(tmp_path / name)
                assert one_line(caught.value)
        found = [records.VideoRecord(name, f"{name}.mp4", "own", "test", 0) for name in ("a", "good")]
        assert len(extraction.extract(found, tmp_path, tmp_path / "rows", RECIPE).skipped) == 1
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("kind", ["cut", "crc", "bomb", "size", "text", "empty"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_folder_with_one_bad_picture_is_one_line(kind, place, tmp_path):
    for number in range(3):
        Image.fromarray(moving_square(3)[number]).save(tmp_path / f"{number}.png")
    (tmp_path / f"{place}.png").write_bytes(bad_pictures(tmp_path)[kind])
    for read in (lambda: video.read_frames(tmp_path, [0, 1, 2]), lambda: list(video.gray_frames(tmp_path)),
                 lambda: list(video.live(tmp_path))):  # fmt: skip
        with pytest.raises(video.VideoError) as caught:
            video.probe(tmp_path)
            read()
        assert one_line(caught.value)


def test_what_a_killed_copy_left_is_no_picture_and_no_video(tmp_path, clip):
    Image.fromarray(moving_square(1)[0]).save(tmp_path / "0.png")
    (tmp_path / ".0-x3f.png").write_bytes(b"half")
    assert video.probe(tmp_path).num_frames == 1
    assert video.is_video_name(Path("a/b.MP4")) and not video.is_video_name(Path("a/.b-x3f.mp4"))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\n{clip}\n",
        "ffconcat version 1.0\nfile '{clip}'\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ts"])
def test_a_list_of_other_files_opens_none(text, suffix, clip, tmp_path):
    path = tmp_path / f"list{suffix}"
    path.write_text(text.format(clip=clip))
    for read in (video.probe, lambda path: next(video.live(path))):
        with pytest.raises(video.VideoError, match="not a readable video: (a playlist or|Invalid data)") as caught:
            read(path)
        assert one_line(caught.value)


def test_a_healthy_video_with_a_latin1_tag_is_read(tmp_path, clip):
    with av.open(str(clip)) as source, av.open(str(tmp_path / "tag.mp4"), "w") as target:
        target.metadata["title"] = "caf@"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = (tmp_path / "tag.mp4").read_bytes()
    assert b"caf@" in data
    (tmp_path / "tag.mp4").write_bytes(data.replace(b"caf@", b"caf\xe9"))
    assert video.probe(tmp_path / "tag.mp4").num_frames == 50
    assert len(video.read_frames(tmp_path / "tag.mp4", [0, 49], reader="pyav")) == 2
    assert sum(1 for _ in video.live(tmp_path / "tag.mp4")) == 50


def too_large(item):
    if item == "memory":
        raise MemoryError
    if item == "deep":
        return json.loads("[" * 10**5)
    return item


def test_an_item_that_needs_too_much_memory_is_one_line():
    found = {item: (result, error) for item, result, error in parallel.map_videos(too_large, ["memory", "deep", "good"])}
    assert found["good"] == ("good", None) and found["memory"][1] and found["deep"][1]


# Answers of other inputs


def test_features_follow_the_bytes_of_their_video(tmp_path):
    for name in ("a", "b"):
        video.write_video(tmp_path / f"{name}.mp4", moving_square(34, 64, 64))
    rows = [records.VideoRecord(name, f"{name}.mp4", "own", "test", 0) for name in ("a", "b")]

    def extract():
        return extraction.extract(rows, tmp_path, tmp_path / "out", RECIPE)

    assert extract().encoded == 2 and extract().already_done == 2
    before, status = artifacts.load_array(tmp_path / "out" / "a.npy"), (tmp_path / "a.mp4").stat()
    video.write_video(tmp_path / "a.mp4", 255 - moving_square(34, 64, 64)[:, ::-1])
    os.utime(tmp_path / "a.mp4", ns=(status.st_atime_ns, status.st_mtime_ns))  # the date tells nothing
    again = extract()
    assert (again.encoded, again.already_done) == (1, 1)
    assert not np.allclose(before, artifacts.load_array(tmp_path / "out" / "a.npy"))
    (tmp_path / "b.mp4").touch()  # another date, the same bytes
    assert extract().already_done == 2
    (tmp_path / "a.mp4").write_bytes(b"broken")
    assert len(extract().skipped) == 1 and not (tmp_path / "out" / "a.npy").exists()  # no answer rather than another's


def test_features_of_a_folder_of_pictures_follow_each_picture(tmp_path):
    (tmp_path / "p").mkdir()
    for number, frame in enumerate(moving_square(20, 64, 64)):
        Image.fromarray(frame).save(tmp_path / "p" / f"{number:02}.png")
    rows = [records.VideoRecord("p", "p", "own", "test", 0)]
    assert extraction.extract(rows, tmp_path, tmp_path / "out", RECIPE).encoded == 1
    assert extraction.extract(rows, tmp_path, tmp_path / "out", RECIPE).already_done == 1
    Image.fromarray(moving_square(1, 64, 64)[0][::-1].copy()).save(tmp_path / "p" / "07.png")
    assert extraction.extract(rows, tmp_path, tmp_path / "out", RECIPE).encoded == 1


# Executed copies and tables


ODD = [
    "[]", "{}", '{"cells": 1}', '{"cells": [1]}', '{"cells": [{"cell_type": "code"}]}', '{"cells": [{}]}', DEEP,
    '{"cells": [{"cell_type": "code", "source": 1, "outputs": []}]}',
    '{"cells": [{"cell_type": "code", "source": "x =", "metadata": {"tags": ["parameters"]}, "outputs": []}]}',
    '{"cells": [{"cell_type": "code", "source": [], "metadata": [], "outputs": []}]}',
    '{"cells": [{"cell_type": "code", "source": [], "metadata": {"papermill": 3}, "outputs": []}]}',
    '{"cells": [{"cell_type": "code", "source": [], "outputs": [{"output_type": "error"}]}]}',
    '{"cells": [{"cell_type": "code", "source": [], "outputs": [{"output_type": "x", "data": 4}]}]}',
    '{"cells": [{"cell_type": "code", "source": [], "outputs": [{"output_type": "x", "data": {"RECORD": 7}}]}]}',
    '{"cells": [], "metadata": {"vau": 3}}', '{"cells": [], "metadata": {"vau": {"ended": 1}, "papermill": {"end_time": 1}}}',
    '{"cells": [], "metadata": {"papermill": {"parameters": [1], "duration": {}, "end_time": "x", "start_time": []}}}',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ODD)))
def test_one_odd_copy_kills_neither_table_nor_list(number, tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(make_project(tmp_path)))
    write_params(tmp_path, "tiny", "_shared", "notebooks: [01]")
    write_notebook(tmp_path, "01_first", "count: int = 1", "1")
    copies = notebook_runs.copies("tiny")
    copies.mkdir(parents=True)
    (copies / "01_first.ipynb").write_text(ODD[number].replace("RECORD", notebook_runs.RECORD))
    for words in (["table"], ["list"], ["run", "tiny", "--dry-run"]):
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, (words, done.output, done.exception)


def test_without_a_home_weights_are_looked_for_and_missed_in_one_line(tmp_path, monkeypatch):
    for name in ("HOME", "TORCH_HOME", "VAU_WEIGHTS", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "pwd", None)  # a container's user is in no list either
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError("no home"))))
    with pytest.raises(artifacts.MissingWeights):
        artifacts.find_weights("nowhere/w.pt")
    monkeypatch.setenv("VAU_PROJECT", "~/x")
    from vau_lib.workspace import presets

    assert presets.project().name == "x"


def test_a_camera_whose_clock_starts_again_goes_on_in_time():
    clock = video._rising_clock()
    next(clock)
    given = [5.0, 5.5, 6.0, 0.0, 0.5, None, 1.5, 9.0]
    assert [clock.send(moment) for moment in given] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.5, 11.0]


def test_a_camera_that_stalls_is_said_to():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes the call and says nothing
        with pytest.raises(video.VideoError, match=r"^tcp://127.0.0.1:\d+: no pictures from there: nothing came for 0.3 s$"):
            next(video.live(f"tcp://user:secret@127.0.0.1:{server.getsockname()[1]}", timeout_s=0.3))


def test_dollars_in_a_name_are_dollars(tmp_path):
    from matplotlib import pyplot

    from vau_lib.plots import style

    figure, axis = style.subplots()
    axis.plot([1, 10, 100], label=r"$\nonsense{$ and $x$")
    axis.set(title=r"$5 to $\frac{", xlabel="a $^$ b", yscale="log")
    axis.legend()
    figure.suptitle(r"camera $\left( at $9")
    assert all(path.stat().st_size for path in style.save(figure, tmp_path / "x.png"))
    svg = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert r"$\nonsense{$" in svg  # its comment holds what is drawn
    assert "<!-- 100 -->" in svg and "mathdefault" not in svg  # the powers of a logarithmic axis are numbers
    pyplot.close("all")
