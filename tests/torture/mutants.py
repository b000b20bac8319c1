"""Damaged files: bytes, JSON and YAML values, tables, headers of arrays and tensors; and payloads that would run code."""

import io
import json
import pickle
import struct
import zipfile
from random import Random

MARK = "VAU_TORTURE_CODE_RAN"  # an environment variable that no reader may set
VALUES = [
    None, True, 0, -1, 1, 1e400, float("nan"), 2**80, "", "x", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "a\nb",
    "=1+1", [], {}, [[]],
    [None], {"a": 1}, "x" * 500, [1, 2, 3], [1e12] * 3, {"": {}},
]  # fmt: skip


class Runs:
    def __reduce__(self):
        return (exec, (f"import os; os.environ[{MARK!r}] = '1'",))


def damaged_bytes(data: bytes, rng: Random) -> bytes:
    """Return a file with bits flipped, cut, zeroed, a part repeated, or something else in its place."""
    data, way = bytearray(data), rng.randrange(8)
    if way == 0 or not data:
        return bytes(data[: rng.randrange(len(data) + 1)])
    place = rng.randrange(len(data))
    if way == 1:
        data[place : place + rng.randrange(1, 64)] = b""
    elif way == 2:
        data[place : place + 16] = bytes(16)
    elif way == 3:
        data[place:place] = data[: rng.randrange(1, 200)]
    elif way == 4:
        data[place : place + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1]))
    elif way == 5:
        return rng.choice(
            [b"", b"\0" * 64, b"[" * 5000, b"\xff\xfe\xfd", b"null", b"[]", b"{}", b'"x"', b"0", pickle.dumps(Runs())]
        )
    else:
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(min(len(data), rng.choice([64, len(data)])))] ^= 1 << rng.randrange(8)
    return bytes(data)


def damaged_value(value: object, rng: Random) -> object:
    """Return a JSON value in which one place holds something else, is missing, or is there twice."""
    holders = []

    def walk(part):
        if isinstance(part, dict | list) and part:
            holders.append(part)
            for inner in part.values() if isinstance(part, dict) else part:
                walk(inner)

    value = json.loads(json.dumps(value))
    walk(value)
    if not holders or rng.random() < 0.05:
        return rng.choice(VALUES)
    part = rng.choice(holders)
    key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
    way = rng.randrange(4)
    if way == 0:
        del part[key]
    elif way == 1 and isinstance(part, dict):
        part["unknown"] = part.pop(key)
    elif way == 2 and isinstance(part, list):
        part.append(part[key])
    else:
        part[key] = rng.choice(VALUES)
    return value


def damaged_json(data: bytes, rng: Random) -> bytes:
    return json.dumps(damaged_value(json.loads(data), rng)).encode(errors="replace")


def damaged_lines(data: bytes, rng: Random) -> bytes:
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = rng.choice(
        [b"", b"null", b"[", b"3", damaged_json(lines[place], rng), damaged_json(lines[place], rng), lines[0] * 2]
    )
    return b"\n".join(lines)


def damaged_table(data: bytes, rng: Random) -> bytes:
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    cells = lines[place].split(b",")
    cell = rng.randrange(len(cells))
    odd = [b"", b"x", b'"', b"-1", b"1e999", b"nan", b"=1+1", b"\xff", b"a\0b", b"9" * 5000, b"z" * 200_000, b'"\n\n"']
    cells[cell : cell + rng.randrange(2)] = [rng.choice(odd)]
    lines[place] = b",".join(cells)
    return b"\n".join(lines[rng.random() < 0.2 :])


def damaged_array(data: bytes, rng: Random) -> bytes:
    kind = rng.choice(["<f4", "<f8", "|O", "<U4", "|b1", "<i8", "<c16", "<M8[s]", "x", "[('a', '<f4')]"])
    shape = rng.choice([(), (0,), (1,), (3, 0), (10**12,), (-1, 4), (2**62, 4), (2, 3, 4), (10**6, 10**6), (40, 128)])
    text = f"{{'descr': '{kind}', 'fortran_order': {rng.random() < 0.3}, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data[128:]


def _payload(data: bytes, rng: Random) -> bytes:
    return pickle.dumps(Runs())


def _bomb(data: bytes, rng: Random) -> bytes:
    return data + bytes(2**24)


def damaged_archive(data: bytes, rng: Random) -> bytes:
    """Return an .npz or a torch file with one member damaged, missing, in another's place, or a bomb."""
    out, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(data))
    names = source.namelist()
    chosen, way = rng.choice(names), rng.randrange(5)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if way == 4 else zipfile.ZIP_STORED) as target:
        for name in names:
            part = source.read(name)
            if name == chosen:
                if way == 0:
                    continue
                part = [None, damaged_bytes, damaged_array, _payload, _bomb][way](part, rng)
            target.writestr(name, part)
    return out.getvalue()


def damaged_safetensors(data: bytes, rng: Random) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header = damaged_value(json.loads(data[8 : 8 + size]), rng)
    text = json.dumps(header).encode(errors="replace")
    claimed = rng.choice([len(text), len(text), 2**60, 0, len(text) - 1])
    return struct.pack("<Q", claimed) + text + data[8 + size :]


WAYS = {
    ".json": [damaged_json] * 4, ".ipynb": [damaged_json] * 4, ".jsonl": [damaged_lines] * 4, ".csv": [damaged_table] * 3,
    ".npy": [damaged_array] * 2, ".npz": [damaged_archive] * 3, ".pt": [damaged_archive] * 2, ".pth": [damaged_archive] * 2,
    ".safetensors": [damaged_safetensors] * 2,
}  # fmt: skip
YAML = [
    b"a: !!python/object/apply:os.system ['true']", b"- &a [x]\n- *a", b"a: [", b"? [a]\n: 1", b"- " * 3000, b"a: 1\na: 2",
    b"\x00", b"3", b"",
    b"- source: 1\n  items: 2", b"- {source: x, items: [[]]}", b"- {source: x, items: [{item: a, state: here, at: 3}]}",
]  # fmt: skip


def mutant(suffix: str, data: bytes, rng: Random) -> bytes:
    """Return one damaged version of a good file of this kind."""
    if suffix in (".yaml", ".yml") and rng.random() < 0.6:
        return rng.choice(YAML)
    way = rng.choice([*WAYS.get(suffix, []), damaged_bytes, damaged_bytes])
    try:
        return way(data, rng)
    except (ValueError, IndexError, struct.error, zipfile.BadZipFile, KeyError):
        return damaged_bytes(data, rng)
