"""What JupyterLab does after a save (`make lab`): a notebook whose code is unchanged does not show up in `git status`.

Git leaves outputs out of what it compares (the filter that `make env` installs), but `git status` calls every file of another size
modified without looking inside. Staging what differs in nothing corrects its notes; a notebook with real changes is left alone.
"""

import subprocess
from pathlib import Path


def after_save(*, os_path: str, model: dict, **_) -> None:
    """Let git look again at a notebook that was just saved to `os_path`; a Jupyter server's `post_save_hook`."""
    place = Path(os_path)
    if model["type"] == "notebook" and _git(place, "diff", "--quiet") == 0:
        _git(place, "add", "--update")


def _git(place: Path, *words: str) -> int:
    """Return the exit code of a git command on one file; 1 where there is no git."""
    try:
        return subprocess.run(["git", *words, "--", place.name], cwd=place.parent, capture_output=True, timeout=20).returncode
    except (OSError, subprocess.TimeoutExpired):
        return 1
