"""A project of three small notebooks, made on the spot, for the tests of presets, runs and cli."""

from pathlib import Path

import nbformat


def write_notebook(folder: Path, name: str, parameters: str, *code: str, title: str = "# 01 · A question?") -> Path:
    """Write one notebook: a title, the cell tagged `parameters` where there are any, then code cells."""
    cells = [nbformat.v4.new_markdown_cell(title)]
    if parameters:
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source) for source in code]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def write_params(folder: Path, preset: str, name: str, text: str) -> None:
    """Write params/<preset>/<name>.yaml."""
    path = folder / "params" / preset / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_project(folder: Path) -> Path:
    """Write three notebooks (the second can be told to fail) and the preset `tiny`, which lists all of them."""
    imports = "import os\nfrom pathlib import Path\n\nimport numpy as np\n\nfrom vau_lib.workspace import notebook_runs"
    told = "backend=os.environ['MPLBACKEND'], cwd=Path.cwd().name"
    write_notebook(
        folder, "01_first", "count: int = 3  # how many\nrate: float = 0.5  # how fast\nnote: str = ''", imports,
        f"notebook_runs.record(doubled=np.int64(2 * count), half=np.float32(0.5), {told})",
    )  # fmt: skip
    write_notebook(
        folder, "02_second", "count: int = 3\nbroken: bool = False  # fails when true\nseeds: list[int] = [0]",
        imports, "if broken:\n    raise ValueError(f'clip {count} is empty')", "kept = notebook_runs.record(tripled=3 * count)",
    )  # fmt: skip
    write_notebook(folder, "03_third", "", "1 + 1", title="# 03 · Does it end?")
    write_params(folder, "tiny", "_shared", "notebooks: [01, 2, '03']\ncount: 5\n")
    return folder
