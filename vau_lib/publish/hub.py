"""Models and feature sets to and from the Hugging Face hub, each with a card: data, protocol, seeds, numbers, limits.

- nothing is sent anywhere without a repository's name; the token is the library's own (`hf auth login`), never read here
- only files that cannot run code travel (safetensors, npy, json, csv, txt, md); others are refused by name
- the card says what the folder says: facts of made_by.json, numbers computed from its scores.json; nothing else
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vau_lib.evaluation import metrics
from vau_lib.workspace import artifacts

SAFE = ("safetensors", "npy", "json", "jsonl", "csv", "txt", "md", "jinja", "model")
LEFT_OUT = ("unfinished", "checkpoint-*")  # of a training that stopped
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
KINDS = {"model": "model", "features": "dataset"}  # what is shared -> kind of repository
CARD = "README.md"
LIMITS = {
    "model": "Scores say how unusual a clip is to a model of this training data; on footage of another kind they mean nothing "
    "until they are measured there. Choose the threshold on validation data of the place of use. Not for decisions about people.",
    "features": "Features of one encoder with the settings above: a model reads them only if it was trained on the same. "
    "The videos are not in here, and their licence still holds.",
}


def push(folder: str | Path, repo: str, *, private: bool = True, note: str = "") -> str:
    """Upload a model's or a feature set's folder with its card; return the address of the commit.

    The repository is made where it does not exist. ValueError for a folder without made_by.json, for a file that could run
    code and for a name that is not OWNER/NAME. `note` is a paragraph of yours on the card.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    kind = kind_of(folder)
    _check_name(repo)
    wanted = files(folder)
    text = card(folder, repo, note=note)
    api = HfApi()
    with _one_line(repo):
        api.create_repo(repo, repo_type=KINDS[kind], private=private, exist_ok=True)
        with artifacts.replacing(folder / CARD) as temporary:
            temporary.write_text(text, encoding="utf-8")
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type=KINDS[kind], allow_patterns=[CARD, *wanted],
            commit_message=f"{kind} of vau-lib",
        )  # fmt: skip
    return str(done.commit_url)


def pull(repo: str, target: str | Path, *, kind: str = "model", revision: str | None = None) -> Path:
    """Download a repository of `push` into a folder; return it. Only files that cannot run code are taken.

    ValueError where it is not of this project (no made_by.json), StoreError where `target` holds something else.
    """
    from huggingface_hub import snapshot_download

    _check_name(repo)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    target = Path(target)
    if target.exists() and any(target.iterdir()) and _origin(target) != repo:
        raise artifacts.StoreError(f"{target} holds something else than {repo}: give another folder by --to")
    artifacts.write_json(target / "hub.json", {"repo": repo, "revision": revision or "main"})  # first: a stopped download goes on
    with _one_line(repo):
        patterns = [f"*.{suffix}" for suffix in SAFE]
        snapshot_download(repo, repo_type=KINDS[kind], revision=revision, local_dir=target, allow_patterns=patterns)
    if not (target / "made_by.json").exists():
        raise ValueError(f"{repo} is not of this project: it has no made_by.json")
    return target


def kind_of(folder: Path) -> str:
    """Return "model" or "features"; ValueError for a folder that is neither."""
    if not (folder / "made_by.json").is_file():
        raise ValueError(f"{folder} has no made_by.json: give the folder of one model or one feature set")
    if any(folder.glob("*.safetensors")):
        return "model"
    if next(folder.glob("*.npy"), None):
        return "features"
    raise ValueError(f"{folder} holds neither a model (.safetensors) nor features (.npy)")


def files(folder: Path) -> list[str]:
    """Return what of a folder is shared, relative to it, sorted.

    ValueError names a file that could run code and a link that leads out.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in name.parts) or any(name.match(each) for each in LEFT_OUT):
            continue
        if any(Path(part).match(each) for part in name.parts for each in LEFT_OUT) or str(name) in (CARD, "hub.json"):
            continue
        if path.suffix.lstrip(".") not in SAFE:
            raise ValueError(f"{name} is not shared: only {', '.join(SAFE)} are; move it out of {folder}")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name} is a link out of {folder}")
        found.append(name.as_posix())
    return found


@artifacts.reader()
def card(folder: Path, repo: str, *, note: str = "") -> str:
    """Return the card of a model or a feature set, Markdown with the hub's front matter."""
    kind, made_by = kind_of(folder), artifacts.read_json(folder / "made_by.json", dict)
    given = made_by.get("facts")
    facts = {
        **(given if isinstance(given, dict) else {}),
        **{k: v for k, v in made_by.items() if k not in ("facts", "versions", "commit")},
    }
    seeds = sorted({str(value) for value in _values(facts, "seed")})
    numbers = measured(folder)
    lines = [
        "---", "library_name: vau-lib", "license: apache-2.0", "tags:", "- video-anomaly-detection", f"- {kind}", "---",
        f"# {repo.partition('/')[2]}", *([note] * bool(note)),
        "## Data and protocol",
        "\n".join(f"- {_text(key)}: {_text(value)}" for key, value in facts.items()) or "- made_by.json says nothing of it",
        f"- commit {_text(made_by.get('commit', 'unknown'))}; "
        + ", ".join(f"{_text(name)} {_text(version)}" for name, version in dict(made_by.get("versions") or {}).items()),
        "## Seeds", ", ".join(seeds) or "none is stated",
        "## Numbers",
        "\n".join([*(f"- {name}: {value:.4f}" for name, value in numbers.items() if name != "videos"),
                   f"- on {numbers['videos']} test videos, one training; its split is this data set's own"])
        if numbers else "None was measured with this folder.",
        "## Limits", LIMITS[kind],
        "## Use", f"```bash\nvau pull {repo}" + (" --kind features" if kind == "features" else "") + "\n```",
    ]  # fmt: skip
    head = lines.index("---", 1) + 1
    return "\n".join(lines[:head]) + "\n\n" + "\n\n".join(lines[head:]) + "\n"


def measured(folder: Path) -> dict[str, float]:
    """Return what a detector's scores.json is worth on its test videos: video_auc, video_ap and their number; {} without it."""
    path = folder / "scores.json"
    if not path.exists():
        return {}
    with artifacts.reading(path, ValueError):
        test = {name: row for name, row in artifacts.read_json(path, dict).items() if row["split"] == "test"}
        scores = {name: float(row["video"]) for name, row in test.items()}
        labels = {name: int(row["label"]) for name, row in test.items()}
    if len(set(labels.values())) < 2:
        return {}
    return {"video_auc": metrics.video_auc(scores, labels), "video_ap": metrics.video_ap(scores, labels), "videos": len(test)}


def _values(content: object, key: str) -> list:
    if isinstance(content, Mapping):
        return [each for name, value in content.items() for each in ([value] if name == key else _values(value, key))]
    found = re.findall(rf"\b{key}=(\d+)", content) if isinstance(content, str) else []
    return found + [each for value in (content if isinstance(content, list) else ()) for each in _values(value, key)]


def _text(value: object) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", artifacts.one_line(value, 1200))


@contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one line that names the repository and no token."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ValueError(f"{repo}: no token on this machine; log in by `hf auth login`") from error
    except (OSError, ValueError) as error:  # a server's answer, a name that leaves its folder or is none
        raise ValueError(f"{repo}: {artifacts.one_line(error, 240)}") from error


def _check_name(repo: str) -> None:
    if not NAME.fullmatch(repo):
        raise ValueError(f"a repository is named OWNER/NAME, got {repo!r}")


def _origin(folder: Path) -> str:
    path = folder / "hub.json"
    return str(artifacts.read_json(path, dict).get("repo")) if path.exists() else ""
