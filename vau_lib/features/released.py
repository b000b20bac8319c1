"""Released CLIP features of UCF-Crime and XD-Violence, read by the lists of VadCLIP and LSHMA.

- files are found by name below one folder, since the lists hold paths of other machines
- lists are `path,label` csv files, one file per video and crop; a crop is chosen, or all are averaged, before any test
- `.npy` features are (T, 512) half precision, 16 frames each; whatever does not read so is refused by its file name
- `import_features` writes them in this project's layout, so that every notebook reads them like its own
Source: the lists and features of VadCLIP and LSHMA (read for facts); UCF-Crime, XD-Violence.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm.auto import tqdm

from vau_lib.data.records import SNIPPET_FRAMES
from vau_lib.workspace import artifacts

RELEASED_WIDTH = 512  # CLIP ViT-B/16's joint space


def released_features(folder: str | Path, name: str, crops: Sequence[int] = (0,), *, width: int = RELEASED_WIDTH) -> np.ndarray:
    """Return a video's released features, (T, width) float32, the mean over `crops` of `<name>__<crop>.npy` below `folder`.

    No crops at all means `<name>.npy`; a name that starts with its folder ("longterm_normal/39") is read from no other.
    """
    names = [PurePosixPath(f"{name}__{which}.npy") for which in crops] or [PurePosixPath(f"{name}.npy")]
    try:
        paths = [_find(folder, wanted, anywhere=False) for wanted in names]
    except artifacts.StoreError:
        _below.cache_clear()  # it may have come since
        paths = [_find(folder, wanted, anywhere=False) for wanted in names]
    return read_features(paths, width=width)


def read_features(paths: Sequence[Path], *, width: int = RELEASED_WIDTH) -> np.ndarray:
    """Return (T, width) float32, the mean over files; StoreError names the file and what is wrong with it."""
    return np.mean([_single(values, path) for path, values in zip(paths, _opened(paths, width), strict=True)], axis=0)


def feature_parts(paths: Sequence[Path], rows: int, *, width: int = RELEASED_WIDTH) -> Iterator[np.ndarray]:
    """Yield the files' features side by side, (files, n, width) float32 with n at most `rows`; errors as in `read_features`.

    Large files are memory maps, so that no more than a part of a long video is in memory.
    """
    opened = _opened(paths, width)
    for first in range(0, len(opened[0]), rows):
        yield np.stack([_single(x[first : first + rows], path, first) for path, x in zip(paths, opened, strict=True)])


def _opened(paths: Sequence[Path], width: int) -> list[np.ndarray]:
    """Return the arrays of files of one video, (T, width) floats each."""
    if not len(paths):
        raise ValueError("features are read from at least one file, got none")
    loaded = [artifacts.load_array(path) for path in paths]
    for path, features in zip(paths, loaded, strict=True):
        if features.ndim != 2 or not len(features) or features.shape[1] != width or features.dtype.kind != "f":
            raise artifacts.StoreError(
                f"{path.name}: features must be (T, {width}) floats, got {features.shape} of {features.dtype}"
            )
        if len(features) != len(loaded[0]):
            raise artifacts.StoreError(f"{path.name}: {len(features)} features where {paths[0].name} has {len(loaded[0])}")
    return loaded


def _single(features: np.ndarray, path: Path, first: int = 0) -> np.ndarray:
    """Return features (n, D) in single precision; StoreError where some are not finite, or then would not be."""
    finite = np.isfinite(features).all(1)
    if not finite.all():
        raise artifacts.StoreError(f"{path.name}: NaN or infinity, first in snippet {first + finite.argmin()}")
    with np.errstate(over="ignore"):
        single = features.astype(np.float32)
    if not np.isfinite(single).all():
        raise artifacts.StoreError(f"{path.name}: numbers too large for single precision, up to {np.abs(features).max():g}")
    return single


def list_videos(csv: str | Path) -> dict[str, str]:
    """Return {video: label} of a list `path,label` in its order, named as in `released_list`; no file is looked for."""
    return {key: label for key, label, _ in _list_places(Path(csv))}


def released_list(csv: str | Path, folder: str | Path, *, partial: bool = False) -> list[tuple[str, str, list[Path]]]:
    """Return (video, label, its files below `folder` by crop) for each video of a list `path,label`, in its order.

    A video is called as its files without `__<crop>.npy`; without a crop, with its folder, for the long-term list has
    39.npy twice. StoreError names a line that does not read so, or says how many files are missing and the first;
    `partial` leaves out videos that lack a file.
    """
    _below.cache_clear()
    labels, files, taken, missing, listed = {}, {}, {}, {}, 0
    for key, label, place in _list_places(Path(csv)):
        labels[key], listed = label, listed + 1
        try:
            file = _find(folder, place)
            if taken.setdefault(file, place) != place:  # longterm_normal/39.npy is no longterm_abnormal/39.npy
                raise artifacts.StoreError(f"{place} is not below {folder}, {file.name} there is {taken[file]}")
            files.setdefault(key, []).append(file)
        except artifacts.StoreError as error:
            missing.setdefault(key, []).append(str(error))
    if missing and not partial:
        count, first = sum(map(len, missing.values())), next(iter(missing.values()))[0]
        raise artifacts.StoreError(f"{Path(csv).name}: {count:,} of {listed:,} files missing, first: {first}")
    kept = (key for key in labels if key not in missing)
    return [(key, labels[key], sorted(files[key], key=lambda path: path.name)) for key in kept]


@artifacts.reader()
def import_features(
    lists: Sequence[str | Path],
    source_dir: str | Path,
    folder: str | Path,
    *,
    crops: Sequence[int] = (),
    width: int = RELEASED_WIDTH,
    partial: bool = False,
) -> dict[str, int]:
    """Write `<folder>/<video>.npy` (T, width) float32 for every video of the lists; return {video: number of features}.

    With `partial` videos that lack a file are left out, in place of an error; notebook 01 says how many of a list are there.

    `crops` are averaged, those a video has; none takes every file its list names. Finished videos are kept; a folder made
    from other lists or crops is refused (StoreError), and so is a video that none of the crops has. frames.json says how
    many frames each video's features stand for, which is what its ground truth is built with.
    """
    made_by = {
        "encoder": "released", "lists": {Path(csv).name: artifacts.sha256(csv) for csv in lists}, "crops": list(crops),
        "snippet_frames": SNIPPET_FRAMES, "weights_sha256": "their authors'",
    }  # fmt: skip
    if (Path(folder) / "made_by.json").exists():
        artifacts.check_made_by(folder, **made_by)
    else:
        artifacts.write_made_by(folder, **made_by)
    counts = {}
    for name, _, files in tqdm(
        [row for csv in lists for row in released_list(csv, source_dir, partial=partial)], desc="released features"
    ):
        target, ending = artifacts.inside(folder, f"{name}.npy"), tuple(f"__{which}.npy" for which in crops)
        chosen = [path for path in files if not crops or path.name.endswith(ending)]
        if not chosen:
            raise artifacts.StoreError(f"{name}: none of the crops {list(crops)} among its {len(files)} files")
        if not target.exists():
            artifacts.save_array(target, read_features(chosen, width=width))
        counts[name] = len(artifacts.load_array(target))
    artifacts.write_json(Path(folder) / "frames.json", {name: SNIPPET_FRAMES * count for name, count in counts.items()})
    return counts


def _list_places(csv: Path) -> Iterator[tuple[str, str, PurePosixPath]]:
    """Yield (video, label, its file with the folder it lies in) per line; StoreError names a line that does not read so."""
    labels, listed = {}, set()
    for where, path, label in _list_lines(csv):
        place = PurePosixPath(*PurePosixPath(path).parts[-2:])  # the rest is somebody's machine
        parts = re.fullmatch(r"(.+?)(__\d)?\.npy", place.name)
        key = (parts[1] if parts[2] else str(place.with_suffix(""))) if parts else ""
        if not key or not label or labels.setdefault(key, label) != label or place in listed:
            raise artifacts.StoreError(f"{where}: expected a new file of a video and its one label, got {path},{label}")
        listed.add(place)
        yield key, label, place


def _list_lines(csv: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (`file line n`, path, label) of a csv `path,label`."""
    try:
        lines = artifacts.text_lines(csv)
    except artifacts.StoreError as error:
        raise artifacts.StoreError(f"{csv}: not a readable list ({error})") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered or numbered[0][1] != "path,label":
        raise artifacts.StoreError(f"{csv.name}: a list starts with path,label, got {[line for _, line in numbered[:1]]}")
    if not numbered[1:]:
        raise artifacts.StoreError(f"{csv.name} lists no file")
    for number, line in numbered[1:]:
        path, _, label = line.rpartition(",")
        yield f"{csv.name} line {number}", path.replace("\\", "/").strip(), label.strip()  # a list of Windows too


def _find(folder: str | Path, wanted: PurePosixPath, *, anywhere: bool = True) -> Path:
    """Return the file of that name below `folder`; the name of its own folder decides where several, or not `anywhere`."""
    places = _below(str(folder)).get(wanted.name, [])
    inside = [path for path in places if path.parent.name == wanted.parent.name]
    places = inside if inside or (wanted.parent.name and not anywhere) else places
    if len(places) != 1:
        raise artifacts.StoreError(f"{wanted} is {'more than once' if places else 'not'} below {folder}")
    return places[0]


@lru_cache(maxsize=4)
def _below(folder: str) -> dict[str, list[Path]]:
    found = {}
    for path in sorted(Path(folder).rglob("*.npy")):
        found.setdefault(path.name, []).append(path)
    return found
