"""Tables and tensors that others wrote: one reader for each format, as careful as those of documents and arrays in `artifacts`.

- csv is text in UTF-8 of bounded size; a broken one, whatever its parser makes of it, is one StoreError that names the file
- tensors come without code: safetensors, or a torch file by `weights_only`; a torch archive may not unpack to more than it is
- what a configuration claims of a model is compared with the size of its weights while the model is built (`building`)
"""

import csv
import io
import math
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import numpy as np

from vau_lib.workspace import artifacts
from vau_lib.workspace.artifacts import StoreError

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
MOST_MODULES = 100_000  # parts of a model; those with 32 billion weights have some thousands
NUMBERS_A_BYTE = 8  # of weights: 2 at 4 bits, twice that since libraries put each tensor in an empty one's place, and tied ones


def read_table(path: str | Path, **options: object) -> object:
    """Return a csv as a pandas table; `options` are pandas'. What `artifacts.write_table` quoted against spreadsheets is undone."""
    import pandas as pd

    text = artifacts.read_text(path)
    try:
        _check_columns(next(csv.reader(io.StringIO(text, newline=""), delimiter=options.get("sep", ",")), []))
        return pd.read_csv(io.StringIO(text), **options).map(artifacts.as_written)
    except Exception as error:  # its parsers fail in ways of their own
        raise StoreError(f"{path} is no table: {artifacts.one_line(error, 160)}") from error


def _check_columns(names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise StoreError(f"the column {artifacts.one_line(repr(twice[0]), 60)} stands twice")


def csv_rows(path: str | Path, *columns: str) -> list[tuple[int, dict[str, str]]]:
    """Return (line number, {column: text}) of a csv's rows; StoreError where one of `columns` is missing. Blank lines are left out.

    Cells that a short row lacks are "", further ones than there are columns are dropped.
    """
    reader = csv.DictReader(io.StringIO(artifacts.read_text(path), newline=""), restval="")
    name = Path(path).name
    try:
        _check_columns(list(reader.fieldnames or ()))
        if absent := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise StoreError(f"{name} has no column {absent[0]}, it has {', '.join(reader.fieldnames or ['none'])[:160]}")
        return [(reader.line_num, {key: cell for key, cell in row.items() if key is not None}) for row in reader]
    except (csv.Error, StoreError) as error:  # a field of more than 128 KB
        if name in str(error):
            raise
        raise StoreError(f"{name} line {reader.line_num}: {error}") from error


def number_rows(path: str | Path) -> np.ndarray:
    """Return the rows of numbers of a text file, float32 (T, D); StoreError where they are none."""
    try:
        return np.loadtxt(artifacts.text_lines(path), dtype=np.float32, comments=None, ndmin=2)
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{Path(path).name}: not rows of numbers ({artifacts.one_line(error)})") from error


@contextmanager
def safetensors_file(path: str | Path) -> Iterator[object]:
    """Open a safetensors file for reading part by part; StoreError for another file, and for a part that does not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise StoreError(f"no tensors at {path}") from error
    except (SafetensorError, OSError, RuntimeError, MemoryError, OverflowError) as error:
        raise StoreError(f"{path} cannot be read: {artifacts.one_line(error, 160)}") from error


def read_safetensors(path: str | Path, device: str = "cpu") -> dict:
    """Return {name: tensor} of a safetensors file on a device; StoreError for another file."""
    from safetensors.torch import load_file

    try:
        return load_file(path, device=device)
    except Exception as error:  # a broken or hostile file can fail in any way
        raise StoreError(f"{path} cannot be read: {artifacts.one_line(error, 160) or type(error).__name__}") from error


def read_torch(path: str | Path, *, allowed: list | None = None, mmap: bool | None = None) -> object:
    """Return what a torch file holds, on the CPU: tensors, numbers, texts, lists, dicts, types of `allowed`; no code is run."""
    import torch

    path = Path(path)
    try:
        check_archive(path)
        with torch.serialization.safe_globals(allowed or []):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except StoreError:
        raise
    except Exception as error:  # a broken or hostile file can fail in any way
        raise StoreError(f"{path} cannot be read: {artifacts.one_line(error, 160) or type(error).__name__}") from error


def check_archive(path: str | Path) -> None:
    """Raise StoreError for a torch archive with packed members: torch packs none, so such a file unpacks to more than it says."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if packed := [info.filename for info in archive.infolist() if info.file_size > info.compress_size]:
            raise StoreError(
                f"{path} is refused: its part {artifacts.one_line(packed[0], 60)} is compressed, torch compresses none"
            )


@contextmanager
def building(folder: str | Path, *, empty: bool = False) -> Iterator[None]:
    """Refuse, in this block, a model whose configuration claims far more numbers than its folder's weights have bytes for.

    StoreError as soon as a part too many or too large is put into a model, before its memory is touched; and, before that, where an
    index of weights names a file outside the folder. Only parts are counted where the model is built `empty` of weights, and where
    there is no folder (a name on a hub).
    """
    from torch.nn.modules import module

    folder, here = Path(folder), threading.get_ident()
    check_index(folder)
    held = sum(path.stat().st_size for pattern in WEIGHTS for path in folder.glob(pattern) if path.is_file())
    left = {"parts": MOST_MODULES, "numbers": math.inf if empty or not folder.is_dir() else NUMBERS_A_BYTE * held}

    def counted(kind: str, number: int) -> None:
        if threading.get_ident() == here:
            left[kind] -= number
            if left[kind] < 0:
                raise StoreError(f"{folder}: its configuration claims more {kind} than weights of {held:,} bytes have")

    hooks = [
        module.register_module_module_registration_hook(lambda owner, name, part: counted("parts", 1)),
        module.register_module_parameter_registration_hook(
            lambda owner, name, part: counted("numbers", part.numel() if part is not None else 0)
        ),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_index(folder: str | Path) -> None:
    """Raise StoreError where an index of weights (model.safetensors.index.json) names a file that does not lie beside it."""
    for path in sorted(Path(folder).glob("*.index.json")):
        with artifacts.reading(path):
            names = {str(name) for name in artifacts.read_json(path, dict)["weight_map"].values()}
            if odd := sorted(name for name in names if PureWindowsPath(name).name != name):  # both kinds of slashes, drives
                raise StoreError(f"{path.name}: path {artifacts.one_line(repr(odd[0]), 80)} leaves its root {path.parent.name}/")
