"""Names of files that strangers give, in records, lists, labels, archives and models: none leads out of its folder."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from torture.common import Tally, limited, refused
from vau_lib import guard
from vau_lib.data import annotation, datasets, download, records, video
from vau_lib.features import extraction, released
from vau_lib.synthetic import captions
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import instruction_data, models

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
OUT = {"up": "../out/x", "up later": "a/../../out/x", "whole": "{out}/x"}  # {out}: the folder beside, as a whole path
LINKED = OUT | {"a link": "link/x"}
ANY = LINKED | {"zero byte": "a\0x", "too long": "n" * 300, "no text": "a\udce9x"}
PACKED = OUT | {"drive": "C:/x", "slashes of Windows": "..\\out\\x"}


def _record(**changes: object) -> records.VideoRecord:
    return records.VideoRecord(**{"id": "a", "path": "a.mp4", "dataset": "own", "split": "train", "label": 0} | changes)


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _zip(path: Path, name: str, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
    return path


def _tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = int(kind == tarfile.REGTYPE), kind, "../out"
        file.addfile(info, io.BytesIO(b"x"))
    return path


def _annotated(here: Path, name: str) -> None:
    for line in annotation.run([_record(id=name)], here, lambda record: []).values():
        raise ValueError(line)


def _guarded(here: Path, name: str) -> None:
    records.write_records(here / "records.jsonl", [_record(path=f"{name}.mp4")])
    guard.sources(here / "records.jsonl")


def _instructed(here: Path, name: str) -> None:
    row = {"split": "train", "task": "judgement", "video": f"{name}.mp4"}
    instruction_data.read_rows({_text(here / "rows.jsonl", json.dumps(row) + "\n"): here})


def _labelled(here: Path, name: str) -> None:
    for part in ("training", "testing"):
        shutil.copytree(here.with_name("out") / "x", here / part / "frames" / "01")
    np.save(values := io.BytesIO(), np.zeros(1, np.uint8))
    _zip(here / "frame_gt.npz", f"{name}.npy", values.getvalue())
    datasets.ucsd_ped2(here)


def _features(here: Path, name: str) -> None:
    released.import_features([_text(here / "list.csv", f"path,label\n{name}.npy,Abuse\n")], here.with_name("out"), here / "to")


def _weights(here: Path, name: str) -> None:
    shutil.copytree(here.with_name("out") / "model", here / "model")
    tensors = load_file(here / "model" / "model.safetensors")
    (here / "model" / "model.safetensors").unlink()
    content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, f"{name}.safetensors")}
    _text(here / "model" / "model.safetensors.index.json", json.dumps(content))
    models.load(here / "model", local_only=True)


READ = {  # what names a file: (names that it must refuse, how they are read in a folder)
    "a record's path": (ANY, lambda here, name: video.probe(records.locate(_record(path=f"{name}.mp4"), here))),
    "a record of guard": (ANY, _guarded),
    "an id of features": (ANY, lambda here, name: extraction.feature_path(here, name)),
    "an id of annotations": (ANY, _annotated),
    "an id of truth": (ANY, lambda here, name: captions.CaptionTemplates(here.parent, None)._truth(_record(id=name))),
    "an instruction's video": (ANY, _instructed),
    "a list of clips": (OUT, lambda here, name: datasets.clip_folder(here, _text(here / "l.csv", f"clip,label\n{name}.mp4,1\n"))),
    "labels of frames": (OUT, _labelled), "a list of features": ({"up": "../x"}, _features), "an index of weights": (OUT, _weights),
    "a zip": (PACKED, lambda here, name: download.unpack(_zip(here / "x.zip", name), here / "to")),
    "a tar": (PACKED, lambda here, name: download.unpack(_tar(here / "x.tar", name), here / "to")),
    "a tar's link": ({"inside": "a"}, lambda here, name: download.unpack(_tar(here / "x.tar", name, tarfile.SYMTYPE), here / "to")),
}  # fmt: skip


def run(root: Path) -> Tally:
    """Give each reader names that lead to good files beside its folder: each is one line, nothing is read or written there."""
    tally, out, here = Tally("strangers: names"), root / "out", root / "truth"
    out.mkdir(parents=True)
    models.save(tiny_vlm.tiny("internvl", sizes=SMALL), out / "model")
    weights = load_file(out / "model" / "model.safetensors")
    save_file(weights, out / "x.safetensors", metadata={"format": "pt"})
    video.write_video(out / "x.mp4", np.zeros((20, 64, 64, 3), np.uint8), fps=10)
    np.save(out / "x.npy", np.ones((4, 512), np.float32))
    facts = dict(boxes=np.zeros((1, 1, 4)), kinds=np.array(["person"]), scenario=np.array('{"event": "fall"}'))
    np.savez(out / "x.npz", **facts)
    (out / "x").mkdir()
    (out / "x" / "1.jpg").write_bytes(b"x")
    before = sorted(path for path in root.rglob("*"))
    for reader, (names, read) in READ.items():
        for kind, name in names.items():
            here.mkdir()
            (here / "link").symlink_to(out)
            with tally.one(f"{reader}: {kind}"), limited(30):
                try:
                    found = read(here, name.format(out=out))
                except Exception as error:
                    refused(error)
                else:
                    raise AssertionError(f"read as {found!r:.200}")
                finally:
                    shutil.rmtree(here)
                assert sorted(path for path in root.rglob("*")) == before, "something was written outside"
    return tally
