"""What strangers send that no mutant is: files in other encodings, keys twice, numbers that no video has, pictures of other kinds,
models as large as a disk, answers that steer a terminal. Each is refused in one line that names it, or read rightly."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from fake_chat_service import FakeChatService
from PIL import Image
from typer.testing import CliRunner

from torture import data, mutants, names
from torture.common import Tally, limited, refused
from torture.kill_models import small_detector
from torture.networks import RawServer
from vau_lib import cli
from vau_lib.data import video
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import finetuning
from vau_lib.vlm import models as vlms
from vau_lib.workspace import artifacts

LINE = b'{"id": "a"}\n'
NAN, INF, FAR = float("nan"), float("inf"), 10**30
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


def npy(array: np.ndarray) -> bytes:
    np.save(out := io.BytesIO(), array)
    return out.getvalue()


def _set(good: bytes, where: str, value: object) -> bytes:
    """Return a JSON text in which the value at a path like facts/features/side is another."""
    content = part = json.loads(good)
    *path, last = where.split("/")
    for name in path:
        part = part[name]
    part[last] = value
    return json.dumps(content).encode()


def _records(good: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(good.splitlines()[0]) | changes).encode() + b"\n"


def _tensors(good: bytes, change: Callable[[dict], object]) -> bytes:
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    text = json.dumps(change(header) or header).encode()
    return struct.pack("<Q", len(text)) + text + good[8 + size :]


def _overlap(header: dict) -> None:
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[first]["data_offsets"] = header[second]["data_offsets"]


def _runs_code(good: bytes) -> bytes:
    """Return a torch file whose pickle would set `mutants.MARK`."""
    source = zipfile.ZipFile(io.BytesIO(good))
    with zipfile.ZipFile(out := io.BytesIO(), "w") as target:
        for name in source.namelist():
            target.writestr(name, pickle.dumps(mutants.Runs()) if name.endswith("data.pkl") else source.read(name))
    return out.getvalue()


def refused_files(rows: np.ndarray) -> dict[str, list[tuple[int, str, Callable[[bytes], bytes]]]]:
    """Return {reader: (which of its files, what is wrong, its bytes from the good ones)} of files that no reader may take."""
    wrong = [("fps", NAN), ("fps", INF), ("fps", 0), ("fps", -25.0), ("fps", 10**400), ("num_frames", -1), ("num_frames", FAR),
             ("label", 7), ("label", "1"), ("classes", "fall"), ("events", [{"start_s": -3, "end_s": 1}]),
             ("events", [{"start_s": 1, "end_s": INF}]), ("events", [{"start_s": NAN, "end_s": 1}]), ("id", None)]  # fmt: skip
    listed = [(0, f"{key} {value!r:.30}", lambda good, k=key, v=value: _records(good, **{k: v})) for key, value in wrong]
    listed += [
        (0, "a key twice", lambda good: good.splitlines()[0][:-1] + b', "id": "other"}'), (0, "an id twice", lambda good: good * 2),
        (0, "UTF-16", lambda good: good.decode().encode("utf-16")), (0, "a list of all", lambda good: b"[" + good + b"]"),
        (0, "an integer of 5,000 digits", lambda good: good.splitlines()[0][:-1] + b', "n": ' + b"9" * 5000 + b"}"),
        (0, "Python's own notation", lambda good: b"{'id': 'a'}"), (0, "carriage returns", lambda good: good.replace(b"\n", b"\r")),
    ]  # fmt: skip
    arrays = {"complex": rows.astype("c8"), "text": rows.astype("U"), "dates": np.zeros(rows.shape, "M8[s]"), "truth": rows > 0.5,
              "not a number": np.where(rows > 0.9, NAN, rows), "infinite": np.where(rows > 0.9, INF, rows), "one row": rows[0],
              "no rows": rows[:0], "three axes": rows[None], "narrow": rows[:, :64]}  # fmt: skip
    features = [(1, name, lambda good, a=array: npy(a)) for name, array in arrays.items()]
    features += [(1, "two arrays", lambda good: good + good), (1, "more bytes", lambda good: good + b"x")]
    table = lambda old, new: lambda good: good.replace(old, new)  # noqa: E731
    facts, scores = "facts/features/", [NAN, INF, -1, 2]
    return {
        "data.records.read_records": listed, "features.extraction.load": features,
        "data.annotation.read_review": [
            (0, "a column twice", table(b"decision", b"id")), (0, "UTF-16", lambda g: g.decode().encode("utf-16"))],
        "data.smarthome.read_annotations": [
            (0, "semicolons", table(b",", b";")), (0, "a column twice", table(b"Category", b"Title"))],
        "data.datasets.clip_folder": [
            (0, "a path out", table(b"a.mp4", b"../../a.mp4")), (0, "a whole path", table(b"a.mp4", b"/etc/a.mp4"))],
        "data.datasets.frame_counts": [
            (0, f"{v!r:.20}", lambda g, v=v: json.dumps({"a": v}).encode()) for v in (NAN, -5, True, 2.5, FAR)],
        "data.hivau.hivau_raw": [(0, f"{key} {value}", lambda g, k=key, v=value: _set(g, f"A/{k}", v))
                                 for key, value in (("fps", 0), ("fps", NAN), ("n_frames", -5), ("events", [[1.2, 0.4]]))],
        "detectors.trained_detector.features_of": [(0, f"{n} {v!r:.20}", lambda g, n=n, v=v: _set(g, facts + n, v)) for n, v in (
            ("snippet_frames", 0), ("snippet_frames", 10**12), ("snippet_frames", "16"), ("side", 10**6), ("side", None))],
        "cascade.validation_threshold": [(0, f"scores {v}", lambda g, v=v: _set(g, "a/scores", [0.5, v])) for v in scores],
        "detectors.trained_detector.load": [(0, f"{n} {v}", lambda g, n=n, v=v: _set(g, f"sizes/{n}", v)) for n, v in (
            ("width", 10**6), ("slots", 10**9), ("in_channels", 10**7), ("dropout", NAN), ("width", 2.5))],
        "features.checkpoints.load_weights": [
            (0, "code in its archive", _runs_code), (0, "code, no archive", lambda g: pickle.dumps(mutants.Runs()))],
        "evaluation.atlas.read": [(0, "code", lambda g: b"- source: !!python/object/apply:os.system ['true']")],
        "detectors.lshma_state.StreamState.load": [(0, "tensors one over the other", lambda g: _tensors(g, _overlap))],
    }  # fmt: skip


def read_files(rows: np.ndarray) -> list[tuple[str, int, str, Callable[[bytes], bytes], Callable[[object], bool]]]:
    """Return (reader, which file, what is odd, its bytes, whether what was read is right)."""
    same = lambda found: np.array_equal(found["a"], rows)  # noqa: E731
    three = lambda found: [record.id for record in found] == list("abc")  # noqa: E731
    swapped, listed = "features.extraction.load", "data.records.read_records"
    return [
        (swapped, 1, "columns first", lambda good: npy(np.asfortranarray(rows)), same),
        (swapped, 1, "big endian", lambda good: npy(rows.astype(">f4")), same),
        (swapped, 1, "float64", lambda good: npy(rows.astype(float)), same),
        (listed, 0, "byte order mark", lambda good: b"\xef\xbb\xbf" + good, three),
        (listed, 0, "line ends of Windows", lambda good: good.replace(b"\n", b"\r\n"), three),
        (
            listed,
            0,
            "a separator of lines in a name",
            lambda g: _records(g, id="a\u2028b"),
            lambda found: found[0].id == "a\u2028b",
        ),
    ]


def _pictures(root: Path) -> dict[str, tuple[Callable[[Path, int], object], tuple[int, ...], list[int]]]:
    """Return {kind: (how picture k is written, shape, first pixel's value of each)}; names are 1, 2 and 10."""
    half = np.zeros((48, 64), np.uint8)
    half[:24] = 200
    plain, turned = Image.fromarray(np.stack([half] * 3, -1)), Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    return {
        "16 bits": (lambda p, k: Image.fromarray(half.astype(np.uint16) * 257).save(p), (48, 64, 3), [200] * 3),
        "turned by Exif": (lambda p, k: plain.save(p, format="JPEG", exif=turned, quality=100), (64, 48, 3), [0] * 3),
        "order of numbers": (lambda p, k: Image.fromarray(half * 0 + k).save(p), (48, 64, 3), [1, 2, 10]),
        "four inks": (lambda p, k: plain.convert("CMYK").save(p, format="JPEG", quality=100), (48, 64, 3), [200] * 3),
    }


def run(root: Path) -> list[Tally]:
    files, films, models, answers = (Tally(f"strangers: {name}") for name in ("files", "videos", "models", "answers"))
    warnings.simplefilter("ignore")
    data.import_all()
    made = data.cases(root / "cases", slow=False)
    for reader, bad in refused_files(data.ROWS).items():
        case = made[reader]
        for place, name, change in bad:
            with files.one(f"{reader}: {name}"), limited(30), _changed(case.files[place], change):
                try:
                    found = case.call()
                except Exception as error:
                    refused(error, *case.names)
                else:
                    raise AssertionError(f"read as {found!r:.200}")
                finally:
                    assert os.environ.pop(mutants.MARK, None) is None, "code of the file was run"
    for reader, place, name, change, right in read_files(data.ROWS):
        with files.one(f"{reader}: {name}"), limited(30), _changed(made[reader].files[place], change):
            assert right(made[reader].call()), "read wrongly"
    for cut in range(1, len(LINE)):
        with files.one(f"a line cut off after {cut} bytes, then the run goes on"):
            (root / "cut.jsonl").write_bytes(LINE + LINE[:cut])
            artifacts.append_json_line(root / "cut.jsonl", {"id": "next"})
            kept = [row for _, row in artifacts.json_lines(root / "cut.jsonl", skip_broken=True)]
            assert kept[0] == {"id": "a"} and kept[-1] == {"id": "next"}, kept
    with files.one("links in a circle"):
        os.symlink(root / "b", root / "a"), os.symlink(root / "a", root / "b")
        assert artifacts.inside(root, "a") == root / "a"
    for name, (write, shape, values) in _pictures(root).items():
        with films.one(name):
            folder = root / name
            folder.mkdir()
            for k in (1, 2, 10):
                write(folder / f"{k}.png", k)
            frames = video.read_frames(folder, [0, 1, 2])
            assert frames.shape[1:] == shape and frames[:, 2, 2, 0].tolist() == values, (frames.shape, frames[:, 2, 2, 0])
    clip, runner, asked = root / "clip.mp4", CliRunner(), RawServer(lambda: iter([b"HTTP/1.1 404 No\r\n\r\n"]))
    video.write_video(clip, np.random.default_rng(0).integers(0, 255, (34, 64, 64, 3), dtype=np.uint8), fps=10)
    detector = small_detector(root / "detector")

    def typed(tally: Tally, name: str, *words: object, ends_well: bool = False) -> None:
        with tally.one(name), limited(60):
            done = runner.invoke(cli.app, [str(word) for word in words])
            assert done.exit_code == 0 or isinstance(done.exception, SystemExit), f"raw {done.exception!r}"
            assert done.exit_code == 0 if ends_well else len(done.stderr.strip().splitlines()) == 1, done.stderr[-300:]
            assert not CONTROLS.search(done.stdout), f"controls in {done.stdout[-200:]!r}"

    lists = {
        "playlist of an address": f"#EXTM3U\n#EXTINF:1,\n{asked.url}/a.ts\n",
        "list of a file": f"ffconcat version 1.0\nfile '{clip}'",
        "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in lists.items():
        (root / "list.mp4").write_text(text)
        typed(films, name, "watch", root / "list.mp4", "--model", detector)
    for name, answer in {"a playlist that leads to a file": f"200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n\r\n#EXTM3U\n#EXTINF:1,\nfile://{clip}\n",
                         "sent on to a file": f"302 Found\r\nLocation: file://{clip}\r\n\r\n"}.items():  # fmt: skip
        server = RawServer(lambda answer=answer: iter([f"HTTP/1.1 {answer}".encode()]))
        typed(films, name, "watch", f"{server.url}/x", "--model", detector)
        server.close()
    for address in (f"file://{clip}", f"concat://{clip}", "-"):
        typed(films, address[:9], "watch", address, "--model", detector)
    assert not asked.seen, f"a playlist led to {asked.seen}"
    asked.close()
    for name, value in {
        "layers": 10**6,
        "width": 10**9,
        "window": 10**9,
        "memory": 10**9,
        "self_weight": INF,
        "exit_threshold": NAN,
    }.items():
        place = shutil.copytree(detector, root / f"detector {name}")
        (place / "config.json").write_bytes(_set((place / "config.json").read_bytes(), f"sizes/{name}", value))
        typed(models, f"{name} {value:g}", "watch", clip, "--model", place)
    for number, text in enumerate(
        ['\ud800 {"anomaly": 1}', "\x1b]0;owned\x07 yes", "\u202egnp", "[" * 100_000, "=1+1", '{"anomaly": NaN}']
    ):
        chat = FakeChatService(text)
        end = "--server", chat.url, "--model", "m", "--out"
        typed(answers, f"guard, {text[:20]!r}", "guard", clip, *end, root / f"{number}.jsonl", ends_well=True)
        typed(
            answers,
            f"analyse, {text[:20]!r}",
            "analyse",
            clip,
            "--detector",
            detector,
            "--threshold",
            "0",
            *end,
            root / f"{number}",
            ends_well=True,
        )
        chat.close()
    _built(root, models)
    return [files, films, models, answers, names.run(root / "names")]


def _built(root: Path, tally: Tally) -> None:
    """Load models and adapters whose configurations claim more than their weights hold, or name layers by patterns without end."""
    fresh = lambda: tiny_vlm.tiny("internvl", sizes=names.SMALL)  # noqa: E731
    vlm = fresh()
    vlms.save(vlm, root / "vlm")
    finetuning.save_adapter(vlm.replace(model=finetuning.lora(vlm.model)), root / "adapter")
    model = root / "vlm" / "config.json", lambda: vlms.load(root / "vlm", local_only=True)
    adapter = root / "adapter" / "adapter_config.json", lambda: finetuning.load_adapter(fresh().model, root / "adapter")
    slow, large, endless = "(.*)*(.*)*(.*)*x", "claims more numbers", "never end"
    wrong = [
        (model, "text_config/vocab_size", 10**6, large), (model, "text_config/intermediate_size", 10**6, large),
        (model, "text_config/head_dim", 10**5, large), (model, "vision_config/hidden_size", 10**6, large),
        (model, "vision_config/num_hidden_layers", 10**5, large), (model, "vision_config/patch_size", 10**4, large),
        (adapter, "r", 10**5, large), (adapter, "target_modules", slow, endless), (adapter, "rank_pattern", {slow: 4}, endless),
        (adapter, "exclude_modules", ".*.*.*.*.*.*.*.*x", endless), (adapter, "alpha_pattern", {slow: 4}, endless),
    ]  # fmt: skip
    for (file, load), key, value, words in wrong:
        with tally.one(f"{file.name}: {key} {value}"), limited(20), _changed(file, partial(_set, where=key, value=value)):
            _refused(load, words)


def _refused(read: Callable[[], object], words: str) -> None:
    try:
        found = read()
    except artifacts.StoreError as error:
        refused(error)
        assert words in str(error), str(error)
    else:
        raise AssertionError(f"read as {found!r:.100}")


class _changed:
    """A file that holds other bytes for a while."""

    def __init__(self, path: Path, change: Callable[[bytes], bytes]):
        self.path, self.good = path, path.read_bytes()
        path.write_bytes(change(self.good))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.path.write_bytes(self.good)
