"""Temporary files and folders beside what they will become, and their removal when the process that made them was killed.

Their names hold machine and process, so that another process there can tell what nobody will finish.
"""

import hashlib
import os
import platform
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # a folder may be on the disk of several machines


def folder_beside(target: str | Path, kind: str = "") -> Path:
    """Return a new folder beside `target`, for what will take its name or gives it up (`kind` "old"); `sweep` knows it."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(str(target.parent))
    name = f".{target.name}-{kind and kind + '-'}{HOST}.{os.getpid()}-"
    return Path(tempfile.mkdtemp(prefix=name, dir=target.parent))


@cache
def sweep(folder: str) -> None:
    """Remove what killed processes of this machine left in a folder, once a process: files and folders that no name got.

    What gave its name up for something that never came gets it back.
    """
    if os.name != "posix":
        return  # there is no harmless way to ask whether a process lives
    for entry in list(os.scandir(folder)):
        left = re.fullmatch(rf"\..*?(-old)?-{HOST}\.(\d+)-\w{{8}}(\..*)?", entry.name)
        if not left or int(left[2]) == os.getpid() or _lives(int(left[2])):
            continue
        if not entry.is_dir(follow_symlinks=False):
            Path(entry.path).unlink(missing_ok=True)
            continue
        for kept in Path(entry.path).iterdir() if left[1] else ():
            if not (Path(folder) / kept.name).exists():
                os.replace(kept, Path(folder) / kept.name)
        shutil.rmtree(entry.path, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True
