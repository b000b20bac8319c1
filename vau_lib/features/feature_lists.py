"""Features of other families by their lists: I3D of RTFM, UR-DMU and XDVioDet, C3D of Sultani et al., X3D of STEAD.

- a list names one .npy or .txt file a line, on another machine; files are found by name below one folder
- RTFM: one `<video>_i3d.npy` (T, 10, 2048), ten crops inside. UR-DMU, XDVioDet: one file (T, 1024) per crop,
  `<video>__0.npy` to `__9.npy` (UCF-Crime) or `__4.npy` (XD-Violence, the centre first). Some share (10, T, 2048)
- Sultani: `<video>_C.txt`, 32 lines of 4,096 numbers, each an equal part of the video and not 16 frames. STEAD: (192, 16, 10, 10)
  per video, channels first, the largest response over all clips: its 16 rows are places in a clip, not moments of the video
- a mean over the wrong axis keeps a plausible shape: the axis of the crops must be the only one of 5 or 10, or be named
- crops are averaged before any test, or kept as samples of their video (`<video>__0`, ...) whose scores are averaged
Source: the lists, loaders and extractors of those repositories, read for facts.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from vau_lib.data import datasets
from vau_lib.data.records import SNIPPET_FRAMES, VideoRecord, write_records
from vau_lib.workspace import artifacts, formats

CROPS = (5, 10)  # of XD-Violence, of UCF-Crime and ShanghaiTech
PARTS = 32  # equal parts of a video in Sultani's files
X3D_WIDTH = 192  # channels of STEAD's features, whose rows are no moments of the video
WAYS = ("mean", "samples")


class ListedVideo(NamedTuple):
    """A video of a feature list: its name, its label ("Normal", a UCF class, XD's codes), its files by crop."""

    name: str
    label: str
    files: tuple[Path, ...]


@artifacts.reader()
def feature_list(path: str | Path, folder: str | Path, *, anomalous_first: int | None = None) -> list[ListedVideo]:
    """Return the videos of a list, in its order, with their files below `folder`.

    The label is read from the name: "Normal...", XD-Violence's `_label_A`, a UCF class before digits. ShanghaiTech's names
    tell nothing: there the first `anomalous_first` videos of the list are "Anomalous" and the rest "Normal". StoreError says
    how many files are missing, names a line without .npy or .txt, a file listed twice, a video whose crops are not as many as
    the others', or one whose label nothing tells.
    """
    path, grouped, missing, listed = Path(path), defaultdict(list), [], set()
    places = _places(Path(folder))
    stems = _stems(path)
    whole = {stem for _, stem, _ in stems}
    for where, stem, place in stems:
        if place in listed:
            raise artifacts.StoreError(f"{where}: {place} is listed twice")
        listed.add(place)
        found = [one for one in places.get(place[-1], []) if len(place) < 2 or one.parent.name == place[-2]]
        found = found or places.get(place[-1], [])
        if len(found) != 1:
            missing.append(f"{'/'.join(place)} is {'more than once' if found else 'not'} below {folder}")
            continue
        grouped[_video_of(stem, whole)].append(found[0])
    if missing:
        raise artifacts.StoreError(f"{path.name}: {len(missing):,} of {len(stems):,} files missing, first: {missing[0]}")
    most = max(map(len, grouped.values()), default=0)
    for name, files in grouped.items():
        if len(files) != most:
            raise artifacts.StoreError(f"{path.name}: {name} has {len(files)} crops where others have {most}")
    names = list(grouped)
    labels = [_label(path, name, place, anomalous_first) for place, name in enumerate(names)]
    return [ListedVideo(n, label, tuple(sorted(grouped[n]))) for n, label in zip(names, labels, strict=True)]


def read_crops(files: Sequence[Path], *, width: int, crop_axis: int | None = None) -> np.ndarray:
    """Return a video's features by crop, (K, T, width) float32; StoreError names a file that does not read so.

    Files are (T, width) each, or one (T, K, width) or (K, T, width) with K 5 or 10. `crop_axis` names the axis of the crops, 0 or
    1, and is needed where both have 5 or 10. One (width, T, H, W) is averaged over its places; a .txt holds (T, width).
    """
    if not files:
        raise ValueError("features are read from at least one file, got none")
    parts = [_by_crop(path, _array(path), width, crop_axis) for path in files]
    for path, part in zip(files, parts, strict=True):
        if len(files) > 1 and len(part) > 1:
            raise artifacts.StoreError(f"{path.name}: {len(part)} crops inside a file that is itself one of {len(files)} crops")
        if part.shape[1] != parts[0].shape[1]:
            raise artifacts.StoreError(f"{path.name}: {part.shape[1]} features where {files[0].name} has {parts[0].shape[1]}")
        if not np.isfinite(part).all():
            raise artifacts.StoreError(f"{path.name}: NaN or infinity")
    return np.concatenate(parts)


@artifacts.reader()
def import_lists(
    lists: Sequence[str | Path], source_dir: str | Path, folder: str | Path, *, width: int, crops: str = "mean",
    crop_axis: int | None = None, num_frames: Mapping[str, int] | None = None, anomalous_first: int | None = None,
) -> dict[str, int]:  # fmt: skip
    """Write `<folder>/<video>.npy` (T, width) float32 and `records.jsonl` for the videos of lists; return {id: T}.

    A list with "test" in its name is the test split. Records hold labels of videos only; frame truth comes from `data.datasets`,
    with the frames.json written here (rows that are no moments of the video have no entry). A folder made otherwise is refused
    (StoreError).

    Args:
        lists: feature lists, see `feature_list`.
        source_dir: folder with the files, at any depth.
        folder: where to write, data/features/DATASET/released.
        width: of a feature: 2048 or 1024 (I3D), 4096 (C3D), 192 (X3D).
        crops: "mean" averages them; "samples" writes each as `<video>__<k>`, grouped by video, see `mean_over_crops`.
        crop_axis: 0 or 1, where the arrays do not tell.
        num_frames: {video: frames}; 32 equal parts become a feature per 16 frames with it, and stay 32 without.
        anomalous_first: how many videos of each list are anomalous, where names do not tell.
    """
    if crops not in WAYS:
        raise ValueError(f"crops must be one of {', '.join(WAYS)}, got {crops!r}")
    folder = Path(folder)
    made_by = {
        "encoder": "released", "lists": {Path(path).name: artifacts.sha256(path) for path in lists}, "crops": crops, "width": width,
        "crop_axis": crop_axis, "frames_known": num_frames is not None, "snippet_frames": SNIPPET_FRAMES,
        "weights_sha256": "their authors'",
    }  # fmt: skip
    if (folder / "made_by.json").exists():
        artifacts.check_made_by(folder, **made_by)
    else:
        artifacts.write_made_by(folder, **made_by)
    counts, frames, found = {}, {}, []
    for split, video in tqdm(list(_videos(lists, source_dir, anomalous_first)), desc="feature lists"):
        rows = read_crops(video.files, width=width, crop_axis=crop_axis)  # (K, T, D)
        parts = video.files[0].suffix == ".txt" or rows.shape[1:] == (PARTS, 4096)
        if parts and num_frames is not None:
            rows = _as_snippets(video.name, rows, num_frames)
        timed = (num_frames is not None) if parts else width != X3D_WIDTH
        kept = {video.name: rows.mean(0)} if crops == "mean" else {f"{video.name}__{k}": crop for k, crop in enumerate(rows)}
        for name, features in kept.items():
            artifacts.save_array(folder / f"{name}.npy", features.astype(np.float32))
            counts[name] = len(features)
            frames |= {name: SNIPPET_FRAMES * len(features)} if timed else {}
            found.append(_record(video, name, split, folder.parent.name, frames.get(name, 0)))
    artifacts.write_json(folder / "frames.json", frames)
    write_records(folder / "records.jsonl", found)
    return counts


def mean_over_crops(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return {video: (T,)}, the mean over its samples `<video>__<k>`: how RTFM and UR-DMU score ten crops.

    ValueError names a video whose crops differ in length, or that has other crops than the first video.
    """
    grouped = defaultdict(dict)
    for name, values in scores.items():
        video, _, crop = name.rpartition("__")
        if not video or not crop.isdigit():
            raise ValueError(f"{name} is no sample <video>__<crop>")
        grouped[video][int(crop)] = np.asarray(values, float)
    wanted = set(next(iter(grouped.values()), {}))
    for video, crops in grouped.items():
        if set(crops) != wanted or len({values.shape for values in crops.values()}) > 1:
            shapes = {crop: values.shape for crop, values in sorted(crops.items())}
            raise ValueError(f"{video}: crops must be {sorted(wanted)} of one length, got {shapes}")
    return {video: np.mean([crops[k] for k in sorted(crops)], axis=0) for video, crops in grouped.items()}


# Lists: one file a line, on somebody's machine.


def _videos(lists: Sequence[str | Path], folder: str | Path, first: int | None) -> Iterator[tuple[str, ListedVideo]]:
    seen = {}
    for path in lists:
        split = "test" if "test" in Path(path).name.lower() else "train"
        for video in feature_list(path, folder, anomalous_first=first):
            if seen.setdefault(video.name, path) != path:
                raise artifacts.StoreError(f"{video.name} is in {Path(seen[video.name]).name} and in {Path(path).name}")
            yield split, video


def _stems(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (`file line n`, stem, (folder, file name)) of every line."""
    lines = artifacts.text_lines(path)
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = PureWindowsPath(line.strip())  # reads both kinds of slashes
            if place.suffix not in (".npy", ".txt"):
                raise artifacts.StoreError(f"{path.name} line {number}: a file .npy or .txt is needed, got {line.strip()}")
            found.append((f"{path.name} line {number}", place.stem, place.parts[-2:]))
    if not found:
        raise artifacts.StoreError(f"{path.name} lists no file")
    return found


def _video_of(stem: str, stems: set[str]) -> str:
    """Return the video of a file's stem: without `__<crop>`, `_<crop>` where crops 0 to 4 are all there, `_i3d`, `_C`."""
    if parts := re.fullmatch(r"(.+)__\d", stem):
        return parts[1]
    if (parts := re.fullmatch(r"(.+)_\d", stem)) and {f"{parts[1]}_{k}" for k in range(min(CROPS))} <= stems:
        return parts[1]
    return re.sub(r"(_i3d|_C|_x3d)$", "", stem)


def _label(path: Path, name: str, place: int, first: int | None) -> str:
    if first is not None:
        return "Anomalous" if place < first else "Normal"
    if name.startswith("Normal"):
        return "Normal"
    if parts := re.search(r"_label_(.+)$", name):
        return parts[1]
    if parts := re.match(r"([A-Z][A-Za-z]+)\d", name):  # Abuse028_x264
        return parts[1]
    raise artifacts.StoreError(f"{path.name}: the name {name} does not tell its label; say how many come first (anomalous_first)")


def _record(video: ListedVideo, name: str, split: str, dataset: str, num_frames: int) -> VideoRecord:
    codes = [code for code in video.label.split("-") if code not in ("0", "Normal", "A", "Anomalous")]
    classes = tuple(dict.fromkeys(datasets.UCF_CLASSES.get(code) or datasets.XD_CLASSES.get(code, code) for code in codes))
    anomalous = int(video.label not in ("Normal", "A"))
    source = video.name.partition("__#")[0]  # XD-Violence's film or address
    return VideoRecord(name, f"{video.name}.mp4", dataset, split, anomalous, classes, num_frames=num_frames, group=source)


def _places(folder: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".npy", ".txt"):
            found[path.name].append(path)
    return found


# Arrays: which axis is which.


def _array(path: Path) -> np.ndarray:
    if path.suffix != ".txt":
        return artifacts.load_array(path)
    return formats.number_rows(path)


def _by_crop(path: Path, found: np.ndarray, width: int, crop_axis: int | None) -> np.ndarray:
    """Return (K, T, width) float32 of one file; every axis is accounted for or the file is refused."""

    def refused(why: str) -> artifacts.StoreError:
        return artifacts.StoreError(f"{path.name}: {why}, got {found.shape} of {found.dtype}")

    if crop_axis not in (None, 0, 1):
        raise ValueError(f"crop_axis must be 0 or 1, got {crop_axis}")
    if found.dtype.kind != "f" or not found.size or found.ndim not in (2, 3, 4):
        raise refused(f"features must be floats (T, {width}), with crops (T, K, {width}), or ({width}, T, H, W)")
    if found.ndim == 4:  # X3D, channels first
        if found.shape[0] != width:
            raise refused(f"the first of four axes must be the {width} channels")
        return found.astype(np.float32).mean((2, 3)).T[None]  # (1, T, D)
    if found.shape[-1] != width:
        raise refused(f"the last axis must be the {width} channels")
    if found.ndim == 2:
        return found.astype(np.float32)[None]
    possible = [axis for axis in (0, 1) if found.shape[axis] in CROPS]
    if crop_axis is None and len(possible) != 1:
        raise refused("either axis may be the crops, name crop_axis" if possible else "no axis has 5 or 10 crops")
    axis = possible[0] if crop_axis is None else crop_axis
    if axis not in possible:
        raise refused(f"axis {axis} is to be the crops and must have 5 or 10")
    return np.moveaxis(found.astype(np.float32), axis, 0)


def _as_snippets(name: str, rows: np.ndarray, num_frames: Mapping[str, int]) -> np.ndarray:
    """Return (K, ceil(F / 16), D): each snippet takes the part its middle frame lies in, bounds as in `expand_evenly`."""
    if name not in num_frames:
        raise artifacts.StoreError(f"{name}: {rows.shape[1]} parts and no number of frames")
    frames = int(num_frames[name])
    bounds = np.round(np.linspace(0, frames, rows.shape[1] + 1))
    starts = np.arange(0, frames, SNIPPET_FRAMES)
    middle = (starts + np.minimum(starts + SNIPPET_FRAMES, frames) - 1) / 2
    return rows[:, np.searchsorted(bounds, middle, side="right") - 1]
