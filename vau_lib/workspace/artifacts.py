"""Files written whole or not at all, with the facts of what made them, and the search for weights.

- a file is written under a temporary name in the same folder, synced, then renamed: a killed job leaves no half file
- `made_by.json` stands beside every folder of results; a reader states what it expects, and other content is refused
- what is read from disk is not trusted: no pickles, no claim of a header believed before the file's size was compared, no document
  nested or aliased without end; whatever is wrong is one StoreError that names the file. Weights: `checkpoints.load_weights`
"""

import hashlib
import inspect
import json
import math
import os
import re
import subprocess
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import filelock
import numpy as np
import yaml

from vau_lib.workspace import leftovers

ADDRESS = re.compile(r"""(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://(?:[^\s"'<>`]|'(?=\w))+""", re.I)
# a password with a blank in it, or after one slash too few; user:password@host without a scheme
SPOKEN = re.compile(r"((?<![a-z0-9+.-])[a-z][a-z0-9+.-]*:/{1,3})[^\s/?#@:\[]*:(?!\d+(?:[/\s?#]|$))[^@]{0,64}?@(?=[\w.\[])", re.I)
BARE = re.compile(r"(?<![\w/@:.-])[\w.+-]+:[^\s/@]+@(?=\d{1,3}(?:\.\d{1,3}){3}\b|[\w-]+\.[\w.-]+)")
SECRET = re.compile(r"pass|pwd|token|secret|key|auth|user|login|account|credential|sig|session|jwt", re.I)
MAX_DEPTH = 100  # levels of lists and objects in a document; ours have about ten
MAX_JSON, MAX_YAML, MAX_NPZ = 2**31, 2**20, 2**33  # bytes of a document, and of an archive's arrays when unpacked
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # steers a terminal, or no letter
FORMULA = r"'*[=+\-@\t\n]"  # how a cell begins that a spreadsheet runs, and one that was quoted for it
PLAIN = "biufcSUMm"  # kinds of numpy types that hold no Python object
READERS: dict[str, Callable] = {}  # every function that reads what others wrote, "room.module.function": see `reader`
MAKERS = {"features": "03 (05 for CLIP and other picture encoders)", "memtsm": "04", "lshma": "06", "ats": "07", "vlm": "09"}
_last_read: ContextVar[str | Path] = ContextVar("last_read", default="")  # the file that a message names
_within: ContextVar[str | Path] = ContextVar("within", default="")  # the file that a reader called by this one read last
MAPPED_BYTES = 2**26  # files above are mapped, not read: 64 MiB, an hour and a half of 512 features in float32


class StoreError(ValueError):
    """A file that is missing, broken, or made by something else than asked for."""


class MissingWeights(StoreError):
    """Weights that are in none of the places that were searched."""


def one_line(text: object, limit: int = 300) -> str:
    """Return any text or error as one line of at most `limit` characters, no passwords, no controls; a wordless error its type."""
    line = CONTROL.sub(lambda found: repr(found[0])[1:-1], " ".join(without_secrets(str(text)).split()))
    line = line or (type(text).__name__ if isinstance(text, BaseException) else "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def without_secrets(content: object) -> object:
    """Return a text, or lists and dicts of texts, where no address holds a user, a password or a token; other values are kept.

    A query, and a part of a path, go where they hold a secret by their name, and always where the address is no web page's.
    """
    if isinstance(content, str):
        if "@" in content:
            content = BARE.sub("", SPOKEN.sub(r"\1", content))
        return ADDRESS.sub(lambda found: address_shown(found[0]), content) if "://" in content else content
    if isinstance(content, Mapping):
        return {without_secrets(key): without_secrets(value) for key, value in content.items()}
    return [without_secrets(value) for value in content] if isinstance(content, list | tuple) else content


def address_shown(address: str) -> str:
    """Return an address (scheme://...) without what may be a secret in it."""
    scheme, _, rest = address.partition("://")
    first = re.split(r"[/?#]", rest)[0]
    if "@" in first or (":" in first and not re.fullmatch(r"[^:]*:\d*|\[.*\](:\d*)?", first)):  # else @ is part of a page's path
        rest = rest.rpartition("@")[2]  # the last one: a password may hold one, and a slash
    where, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", rest, re.S).groups()
    where = re.sub(r"(?<=/).*[^/]@", "…@", where, flags=re.S)  # a user with a slash in it: http://h/SECRET@x; /@name is a page's
    page = scheme.lower() in ("http", "https")
    host, *parts = where.split("/")
    hidden = [bool(re.search("[=&;]", part)) and not (page and not SECRET.search(part)) for part in parts]
    where = "/".join([host, *("…" if hide else part for part, hide in zip(parts, hidden, strict=True))])
    opaque = mark == "?" and any("=" not in part for part in query.split("&"))
    return f"{scheme}://{where}" + (mark + query if page and not opaque and not SECRET.search(query) else "")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); on success it takes the place of `path` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    leftovers.sweep(str(path.parent))
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem[:40]}-{leftovers.HOST}.{os.getpid()}-", suffix=path.suffix, dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files private to the user; results are not
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what libraries raise in this block where a disk is full (safetensors, torch, tokenizers) into one StoreError."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "SafetensorError" or any(part in str(error) for part in ("PytorchStreamWriter", "(os error ")):
            raise StoreError(f"cannot write {path}: {one_line(error, 160)}") from error
        raise


def write_json(path: str | Path, content: object) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        temporary.write_bytes((text if _encodes(text) else json.dumps(content, indent=1)).encode() + b"\n")


def json_line(row: dict) -> str:
    """Return one row as a line of JSON. Names that are not UTF-8 (surrogates of a file name) become escapes, which read back."""
    line = json.dumps(row, ensure_ascii=False)
    return (line if _encodes(line) else json.dumps(row)) + "\n"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_json_lines(path: str | Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes("".join(map(json_line, rows)).encode())


def append_json_line(path: str | Path, row: dict) -> None:
    """Add one row to a file of JSON lines; it begins a new line where a kill cut the last one short."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json_line(row).encode())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def only_one(path: str | Path) -> Iterator[None]:
    """Hold the lock file at `path`; StoreError at once where another process holds it. A killed process lets go of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=0):
            yield
    except filelock.Timeout as error:
        raise StoreError(f"another run is at work in {path.parent}") from error


def key_from(name: str) -> str:
    """Return the key in an environment variable, "" where it is not set; StoreError, without it, where it is no header's text."""
    key = os.environ.get(name, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise StoreError(f"the key in {name} holds a character that no key has (a blank, a line end, a letter outside ASCII)")
    return key


def masked(text: object, *keys: str, limit: int = 300) -> str:
    """Return any text or error as one line in which no key stands, as it is or as URL or JSON write it; masked before it is cut."""
    text = str(text)
    for key in filter(None, keys):
        for form in {key, quote(key, safe=""), quote(key), json.dumps(key)[1:-1]}:
            text = text.replace(form, "***")
    return one_line(text, limit)


def text_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file, cut at newlines only (str.splitlines cuts at U+2028, U+2029 and U+0085 too).

    A byte order mark and the \\r of \\r\\n are left out; the text after the last newline counts where there is any. StoreError as
    `read_text`.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_text(path: str | Path, encoding: str = "utf-8-sig") -> str:
    """Return a file's text, without a byte order mark; StoreError in one line where there is none, too much, or no UTF-8."""
    return _document(Path(path), f"a text in {encoding.upper().removesuffix('-SIG')}", MAX_JSON, lambda raw: raw.decode(encoding))


def json_lines(path: str | Path, *, cut_off: bool = False, skip_broken: bool = False) -> Iterator[tuple[int, object]]:
    """Yield (line number, value) of a file of JSON lines; blank lines say nothing.

    With `cut_off` a last line without its newline that is no JSON is left out: a kill cut it. StoreError names any other
    line that is no JSON, unless `skip_broken` leaves those out.
    """
    raw = _bytes(Path(path), "a text", MAX_JSON)
    pieces = [piece.removeprefix(b"\xef\xbb\xbf") for piece in raw.split(b"\n")]  # joined files hold a mark in the middle
    for number, piece in enumerate(pieces, start=1):
        if not piece.strip():
            continue
        try:
            yield number, parse_json(piece)
        except ValueError as error:
            if skip_broken or (cut_off and number == len(pieces)):
                continue
            raise StoreError(f"{Path(path).name} line {number} is not JSON: {one_line(error, 120)}") from error


def parse_json(text: str | bytes) -> object:
    """Return the value of a JSON text; ValueError where it is no JSON, no UTF-8, nested too deep, or gives a key two values."""
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    level, depth = [value], 0
    while level and text.count("[") + text.count("{") > MAX_DEPTH:  # fewer brackets cannot be deeper
        level = [part for parts in map(_parts, level) for part in parts if isinstance(part, dict | list)]
        if (depth := depth + 1) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def _object(pairs: Sequence[tuple[str, object]]) -> dict:
    if len(found := dict(pairs)) < len(pairs) and (other := [name for name, value in pairs if found[name] != value]):
        name = other[0]  # the same value twice, as some published configurations have it, loses nothing
        raise ValueError(f"the key {one_line(repr(name), 60)} stands twice: the second would replace the first")
    return found


def _parts(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_json(path: str | Path, kind: type | None = None) -> object:
    """Read a JSON file; StoreError in one line where it is missing or broken, or holds no `kind` (dict, list) where asked."""
    path = Path(path)
    value = _document(path, "JSON", MAX_JSON, parse_json)
    if kind is not None and not isinstance(value, kind):
        wanted = {dict: "an object", list: "a list"}[kind]
        raise StoreError(f"{path} must hold {wanted}, got {one_line(repr(value), 60)}")
    return value


def _document(path: Path, what: str, limit: int, parse: Callable[[bytes], object]) -> object:
    raw = _bytes(path, what, limit)
    try:
        return parse(raw)
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{path} is not {what}: {one_line(error, 160)}") from error


def _bytes(path: Path, what: str, limit: int) -> bytes:
    _last_read.set(path)
    try:
        if not path.is_file():
            raise StoreError(f"{path} is no file" if path.exists() else f"no file at {path}")  # a pipe would be waited for
        if (size := path.stat().st_size) > limit:
            raise StoreError(f"{path} is too large for {what.removeprefix('a ')}: {size:,} bytes, at most {limit:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{one_line(path)} cannot be read: {one_line(error)}") from error


def _no_pipe(path: Path) -> None:
    """Raise OSError for a pipe or a device: who opens one waits for ever."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file")


@contextmanager
def reading(path: str | Path, kind: type[Exception] = StoreError) -> Iterator[None]:
    """Turn what a well-formed file of another shape raises in this block (a missing key, a number for a list) into one line.

    `kind` is the error that is raised, with the names of the files read last, here and by a reader within; errors that say so pass.
    """
    token, _ = _last_read.set(path), _within.set("")
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        name, inner, text = Path(_last_read.get()).name, Path(_within.get()).name, str(error)
        named = any(part and part in text for part in (name, inner, Path(path).name))
        name += f" (with {inner})" if inner not in ("", name) else ""
        ours = [*traceback.walk_tb(error.__traceback__)][-1][0].f_globals.get("__name__", "").startswith("vau_lib.")
        if isinstance(error, ValueError) and (type(error).__module__.startswith("vau_lib.") or named or ours):
            line = one_line(text if named else f"{name}: {text}", 600)
            if line == text:
                raise
            raise (kind if type(error) is ValueError else type(error))(line) from error
        reason = one_line(f"no {error}" if isinstance(error, KeyError) else error, 160)
        raise kind(f"{name} does not hold what is read from it: {reason}") from error
    finally:
        _within.set(_within.get() or _last_read.get())
        _last_read.reset(token)


def reader(kind: type[Exception] = StoreError) -> Callable[[Callable], Callable]:
    """Mark a function that reads a file or a folder which others may have written, its first text or path.

    Whatever such a file makes it raise is one line of `kind` with the file's name (`reading`), and READERS knows it: `make torture`
    gives it damaged files, and fails where it has no good one to damage.
    """

    def marked(function: Callable) -> Callable:
        READERS[f"{function.__module__.removeprefix('vau_lib.')}.{function.__qualname__}"] = function

        def path_of(args: tuple, options: Mapping) -> str | Path:
            return next((value for value in (*args, *options.values()) if isinstance(value, str | Path)), function.__name__)

        @wraps(function)
        def read(*args, **options):
            with reading(path_of(args, options), kind):
                return function(*args, **options)

        @wraps(function)
        def read_parts(*args, **options):  # one part at a time: what the caller does between them is not a reader's
            parts = function(*args, **options)
            while True:
                with reading(path_of(args, options), kind):
                    try:
                        part = next(parts)
                    except StopIteration:
                        return
                yield part

        return read_parts if inspect.isgeneratorfunction(function) else read

    return marked


class _Yaml(yaml.SafeLoader):
    """Plain values only, no aliases (a page of them stands for gigabytes), MAX_DEPTH levels."""

    depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, *{self.peek_event().anchor}: write the value out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        _object([(key.value, place) for place, (key, _) in enumerate(node.value) if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes) -> object:
    """Return the value of a YAML text: plain values without aliases; ValueError in one line for anything else."""
    try:
        return yaml.load(text, Loader=_Yaml)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError, OverflowError) as error:  # also a list as key
        raise ValueError(one_line(error, 160)) from error


def read_yaml(path: str | Path) -> object:
    """Read a YAML file of at most MAX_YAML bytes; StoreError in one line for anything else."""
    return _document(Path(path), "YAML", MAX_YAML, parse_yaml)


def save_array(path: str | Path, array: np.ndarray) -> None:
    """Write one array as .npy, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: str | Path) -> np.ndarray:
    """Read one .npy array, a large one as a memory map; StoreError where it is missing, broken, or holds Python objects."""
    path = Path(path)
    _last_read.set(path)
    try:
        _no_pipe(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # an .npz is a zip file
                raise ValueError(f"{path.name} holds several arrays, one .npy is needed")
            file.seek(0)
            _check_header(file, size)
        return np.load(path, allow_pickle=False, mmap_mode="r" if size > MAPPED_BYTES else None)  # a map keeps a file open
    except FileNotFoundError as error:
        raise StoreError(f"no array at {path}") from error
    except (ValueError, OSError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise StoreError(f"{path} is not a plain array: {one_line(error, 160)}") from error


def _check_header(file: object, size: int) -> None:
    """Read an array's header; ValueError for Python objects, and for a shape that is not just what `size` bytes hold."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = read(file)
    if dtype.kind not in PLAIN:
        raise ValueError(f"Python objects or records: {dtype}"[:80])
    claimed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or claimed != left or max(shape, default=0) >= 2**62:
        raise ValueError(f"its header claims {str(shape)[:60]} of {dtype}, {left:,} bytes follow")


def load_arrays(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Read the named arrays of an .npz, all where none is named; StoreError as `load_array`, and where one is missing."""
    path = Path(path)
    _last_read.set(path)
    try:
        _no_pipe(path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in names if name not in members]:
                raise ValueError(f"no array {missing[0]!r}, it has {', '.join(sorted(members))[:80] or 'none'}")
            if (total := sum(members[name].file_size for name in names or members)) > MAX_NPZ:
                raise ValueError(f"it unpacks to {total:,} bytes, at most {MAX_NPZ:,}")
            found = {}
            for name in names or members:
                with archive.open(members[name]) as file:
                    _check_header(file, members[name].file_size)
                with archive.open(members[name]) as file:
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
            return found
    except FileNotFoundError as error:
        raise StoreError(f"no arrays at {path}") from error
    except (ValueError, OSError, EOFError, OverflowError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"{path} is not an archive of plain arrays: {one_line(error, 160)}") from error


def inside(root: str | Path, name: str | Path) -> Path:
    """Return the place of `name` below `root`, for an id or a path that a file holds.

    StoreError where it would leave the root (`..`, absolute, a link out), or is no name of a file: empty, a zero byte, bytes that
    are no text, a part of more than 255 bytes.
    """
    text, root = str(name), Path(root)
    shown = one_line(text, 280)
    try:
        parts = [len(part.encode()) for part in text.split("/")]
    except UnicodeEncodeError:
        raise StoreError(f"{shown}: the name is no text") from None
    problems = {"empty": not text, "a zero byte": "\0" in text, "name too long": max(parts) > 255}
    if problem := next((problem for problem, holds in problems.items() if holds), ""):
        raise StoreError(f"{shown!r} is no name of a file: {problem}")
    place = root / PurePosixPath(text)
    # realpath: links in a circle are a RuntimeError of Path.resolve until Python 3.12; whoever opens one gets an OSError
    if PurePosixPath(text).is_absolute() or not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root)):
        raise StoreError(f"path {shown!r} leaves its root {root.name}/")
    return place


def write_table(path: str | Path, table: object, **options: object) -> None:
    """Write a pandas table as csv in UTF-8, whole or not at all; a text that a spreadsheet would run as a formula gets a '."""
    with replacing(path) as temporary:
        inert = table.map(_no_formula).rename(columns=_no_formula)
        inert.to_csv(temporary, **{"index": False, "errors": "backslashreplace"} | options)


def _no_formula(cell: object) -> object:
    cell = re.sub(r"\r\n?", "\n", cell) if isinstance(cell, str) else cell  # a lone \r is no line end to its writer, but to readers
    if not isinstance(cell, str) or not re.match(FORMULA, cell) or re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell, re.I):
        return cell
    return "'" + cell


def as_written(cell: object) -> object:
    """Return a cell of `write_table` as it was before."""
    return cell[1:] if isinstance(cell, str) and re.match(f"'{FORMULA}", cell) else cell


def sha256(path: str | Path) -> str:
    """Return the file's sha256 in hex."""
    _no_pipe(Path(path))
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_made_by(folder: str | Path, **facts: object) -> None:
    """Write what made `folder`: the caller's facts, the commit and the versions of the libraries that matter."""
    write_json(Path(folder) / "made_by.json", {**without_secrets(facts), "commit": commit(), "versions": versions()})


def check_made_by(folder: str | Path, **wanted: object) -> dict:
    """Return what made `folder`; StoreError when it does not say, or says otherwise than `wanted`."""
    if not (Path(folder) / "made_by.json").exists():
        makers = next((MAKERS[part] for part in reversed(Path(folder).parts) if part in MAKERS), "one under Needs")
        raise StoreError(f"{folder} is not made yet: notebook {makers} makes it (vau run PRESET NN --with-needs runs it first)")
    made_by = read_json(Path(folder) / "made_by.json", dict)
    for key, value in without_secrets(wanted).items():
        if made_by.get(key) != value:
            was = f"{folder} was made with {key}={made_by.get(key)!r}, asked for {value!r}"
            raise StoreError(f"{was}: remove it or use another folder")
    return made_by


def last_checkpoint(folder: Path | None) -> str | None:
    """Return the newest whole `checkpoint-NUMBER` of a folder, None without one.

    One that a kill cut short has no trainer_state.json yet, which Trainer writes last, or half of it; other names
    (checkpoint-best) do not count.
    """
    whole = {}
    for path in Path(folder).glob("checkpoint-*/trainer_state.json") if folder else ():
        with suppress(ValueError):
            read_json(path)
            whole[int(path.parent.name[11:])] = path.parent
    return str(whole[max(whole)]) if whole else None


def check_sha256(path: str | Path, expected: str) -> Path:
    """Return the path; StoreError shows both checksums where the file has another one."""
    if (found := sha256(path)) != expected:
        raise StoreError(f"{path} is refused: sha256 {found}, expected {expected}")
    return Path(path)


def torch_cache() -> Path:
    """Return the folder where torch hub keeps weights; without a home below the working directory, as torch has it."""
    return Path(os.environ.get("TORCH_HOME") or os.path.expanduser("~/.cache/torch")) / "hub" / "checkpoints"


def find_weights(
    filename: str | Sequence[str], explicit: str | Path | None = None, *, packaged: Callable[[], Path | None] = lambda: None
) -> Path:
    """Return a weights file: the explicit path, else below $VAU_WEIGHTS, else what `packaged` finds, else in torch hub's cache.

    `filename` is like "xfeat/xfeat.pt", or several such names, best first; `packaged` looks into an installed package.
    MissingWeights says which file to put where.
    """
    if explicit:
        if Path(explicit).is_file():
            return Path(explicit)
        raise MissingWeights(f"no weights at {explicit}")
    names = [filename] if isinstance(filename, str) else list(filename)
    hub = torch_cache()
    if folder := os.environ.get("VAU_WEIGHTS"):
        for name in names:
            if (place := Path(folder) / name).is_file():
                return place
    if place := packaged():
        return place
    for name in names:
        if (place := hub / Path(name).name).is_file():
            return place
    raise MissingWeights(
        f"no weights {names[0]}: put the file there under the folder named by VAU_WEIGHTS, or at {hub / Path(names[0]).name}"
    )


@cache
def commit() -> str:
    """Return the short git commit of the project, "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def versions(names: tuple[str, ...] = ("torch", "kornia", "transformers", "numpy", "decord", "av")) -> dict[str, str]:
    """Return the installed versions of `names`, "missing" for what is not installed; imports none of them."""
    installed = {}
    for name in names:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "missing"
    return installed
