"""What others wrote is read in few places, each safe, and every function that goes on with it is known to the torture campaign."""

import ast
from pathlib import Path

import numpy as np
import pytest

from vau_lib.data import records
from vau_lib.detectors import experiments
from vau_lib.workspace import artifacts, formats

LIBRARY = Path(__file__).parents[1] / "vau_lib"
MODULES = {".".join(path.relative_to(LIBRARY).with_suffix("").parts): path for path in sorted(LIBRARY.rglob("[a-z]*.py"))}
RAW = {  # what reads a file's bytes, or makes objects of them, by the last two names of a call
    "json.load", "np.load", "np.loadtxt", "np.genfromtxt", "np.fromfile", "np.memmap", "torch.load", "yaml.load", "yaml.safe_load",
    "pd.read_csv", "pandas.read_csv", "pd.read_json", "csv.reader", "csv.DictReader", "DictReader", "safe_open", "load_file",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "zipfile.ZipFile", "ZipFile", "tarfile.open", "Image.open", "cv2.imread",
    "nbformat.read", "loads", "json.loads", "open", "read_text", "read_bytes", "joblib.load", "torch.jit.load", "torchvision.io",
}  # fmt: skip
DOORS = {  # where that may stand, and why
    "workspace.artifacts": "the readers of documents and arrays", "workspace.formats": "the readers of tables and tensors",
    "data.video_index": "opens videos, by PyAV", "data.video": "opens videos and pictures", "data.video_worker": "reads its pipes",
    "data.download": "parts of a download, and archives member by member", "data.smarthome": "csv of a text that artifacts read",
    "data.datasets": "csv of lines that artifacts read", "evaluation.class_metrics": "a pickle of plain lists only",
    "publish.book": "the pages of this project and pictures that the gallery encoded anew",
    "plots.player": "a clip that it has just written",
    "workspace.gallery": "pictures in executed copies, decoded and encoded anew",
}  # fmt: skip
WHOLE = {
    f"artifacts.{name}"
    for name in ("read_json", "read_yaml", "json_lines", "load_array", "load_arrays", "text_lines", "read_text", "check_made_by")
} | {f"formats.{name}" for name in ("read_table", "csv_rows", "number_rows", "safetensors_file", "read_safetensors", "read_torch")}
NO_READER = {  # functions that read and are no `reader`, and why that is enough
    "cli.import_features": "hands the numbers of frames on to import_lists, which is one",
    "data.annotation.run": "compares, and every error of an item is its line",
    "data.datasets._lines": "lines of text; what they mean is checked line by line",
    "data.datasets._arrays": "plain arrays, their lengths are counted",
    "data.download._noted": "None for whatever it does not know",
    "data.fetch.arrange_ped2": "a checked download's text", "data.fetch.arrange_fights": "a checked download's text",
    "features.extraction.extract": "compares what made the folder", "features.extraction.extract_together": "compares",
    "features.extraction.made_folders": "hands on what made each folder",
    "features.extraction.merge": "compares what made the folders",
    "features.extraction._sources": "rows without an id are left out",
    "features.released._opened": "checks shape and kind of every array",
    "features.released._list_lines": "lines of text, each checked",
    "detectors.released_evaluation._cut": "checks shape and values", "detectors.training._load_rng_state": "of our own checkpoint",
    "evaluation.class_metrics._plain_lists": "refuses all but plain lists",
    "evaluation.result_tables.write_results": "the template's text", "evaluation.result_tables.write_front": "our own README",
    "workspace.timings.state": "our own files, and a note that timings wrote",
    "synthetic.dataset._is_complete": "compares", "toy.benchmark.measure": "its own folder",
    "toy.pretraining.read_frames_and_truth": "a data set of its own making",
    "toy.dataset.make_dataset": "a data set of its own making", "vlm.holmesvau._tensor": "called by convert, which is one",
    "vlm.holmesvau._files": "called by convert", "vlm.holmesvau._read_names": "called by convert",
    "features.feature_lists._array": "plain numbers; what they mean is checked",
    "synthetic.text_to_video.__init__": "rows without an id are left out",
    "tune._claim": "compares", "vlm.models.check_free": "looks for one key",
    "tune.reinforce": "a table of its own making", "vlm.finetuning._claim": "compares",
    "vlm.finetuning.fit": "of its own checkpoint", "vlm.finetuning._configuration": "checks that it is an object",
    "compression.pruning.factorise": "of its own making", "compression.pruning._save_company": "the model's own folder",
    "workspace.presets._read_yaml": "checks that it is a mapping", "workspace.presets._guessed": "a value of the command line",
    "workspace.gallery._results": "a table becomes escaped text",
    "analyse._done": "compares", "publish.hub._origin": "one value becomes text",
    "cli_models._as_video": "reads made_by.json of an adapter and a model that were just loaded",
    "detectors.exports.export": "copies the config.json of a detector that was just loaded",
    "vlm.holmesvau._bin": "called by convert",
    "cli_models.explain": "reads made_by.json of a scorer's folder that is loaded next",
}  # fmt: skip


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def calls(tree: ast.AST):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def reads_raw(call: ast.Call) -> bool:
    parts = name_of(call).split(".")
    if parts[-1] == "open" and any(isinstance(value, ast.Constant) and str(value.value)[:1] in "wxa" for value in call.args[-1:]):
        return False  # writes
    if (
        parts[-1] == "loads"
        and call.args
        and isinstance(call.args[0], ast.Call)
        and name_of(call.args[0]).endswith(("dumps", "to_str"))
    ):
        return False  # of a text made just here
    if parts[-1] in ("open", "read_text", "read_bytes") and parts[0] in ("artifacts", "formats"):
        return False
    return ".".join(parts[-2:]) in RAW or parts[-1] in RAW - {"loads"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_text_is_read_and_written_in_utf8_on_every_system(module):
    """A call of open, read_text or write_text says its encoding, or is of bytes."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        of = getattr(getattr(node.func, "value", None), "id", "")
        words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        foreign = of in ("av", "Image", "archive", "tarfile", "artifacts")  # open other things than text
        opens = name == "open" and words and all(isinstance(word, str) and "b" not in word for word in words)
        if foreign or not (opens or (name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute))):
            continue
        assert any(k.arg == "encoding" for k in node.keywords), f"{module}, line {node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("module", [name for name in MODULES if name not in DOORS])
def test_files_are_read_through_one_reader_for_each_format(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    allowed = {"features.frame_features": 2, "guard": 1, "evaluation.online_metrics": 1}.get(module, 0)  # see below
    found = [f"line {call.lineno}: {name_of(call)}" for call in calls(tree) if reads_raw(call)]
    # frame_features writes into its own temporary file, guard looks at its own file's last byte, online_metrics reads /proc
    assert len(found) <= allowed, f"{module} reads {found}: use artifacts or formats"


def names_called(tree: ast.AST) -> set[str]:
    return {name_of(call).split(".")[-1] for call in calls(tree)}


def marked(function: ast.FunctionDef) -> bool:
    return any("reader(" in ast.unparse(decorator) for decorator in function.decorator_list)


def in_with(function: ast.FunctionDef, call: ast.Call) -> bool:
    blocks = [node for node in ast.walk(function) if isinstance(node, ast.With) and "reading(" in ast.unparse(node.items[0])]
    return any(call in list(calls(block)) for block in blocks)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("workspace.artifacts", "workspace.formats")])
def test_who_goes_on_with_a_file_is_a_reader(module):
    """A new function that reads is marked `@artifacts.reader()`, is a helper of one in its module, or stands above."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    safe = {name for name, function in functions.items() if marked(function)}
    named = {name: names_called(function) for name, function in functions.items()}
    users = {name: {user for user, called in named.items() if user != name and name in called} for name in functions}
    private = {name for name in functions if name.startswith("_") and users[name]}
    while more := {name for name in private - safe if users[name] <= safe}:  # helpers that only readers call
        safe |= more
    for name, function in functions.items():
        direct = [call for call in calls(function) if name_of(call) in WHOLE and not in_with(function, call)]
        if direct and name not in safe:
            assert f"{module}.{name}" in NO_READER, f"{module}.{name} reads (line {direct[0].lineno}) and is no artifacts.reader"


def test_a_reader_names_the_file_whatever_goes_wrong(tmp_path):
    for number, error in enumerate(
        [KeyError("a"), TypeError("b\nc"), AttributeError("d"), RecursionError(), MemoryError(), ValueError("e")]
    ):

        @artifacts.reader()
        def one(path, error=error):
            artifacts.write_json(path / "inner.json", {})
            artifacts.read_json(path / "inner.json")
            raise error

        @artifacts.reader(records.RecordError)
        def parts(path, error=error):
            yield 1
            raise error

        with pytest.raises(artifacts.StoreError, match=r"^inner\.json does not hold") as caught:
            one(tmp_path)
        assert "\n" not in str(caught.value)
        stream = parts(tmp_path / f"x{number}")
        assert next(stream) == 1
        with pytest.raises(records.RecordError, match=f"^x{number} does not hold"):
            next(stream)
        name = f"{one.__module__}.{one.__qualname__}"
        assert artifacts.READERS.pop(name) and artifacts.READERS.pop(name.replace(".one", ".parts"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'a,b\n"x', b"a,b\n" + b"x" * 200_000 + b",1\n", b"a\x00,b\n1,2"])
def test_a_table_is_read_or_refused_in_one_line(content, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    for read in (formats.read_table, lambda path: formats.csv_rows(path, "a", "b")):
        try:
            read(path)
        except artifacts.StoreError as error:
            assert "bad.csv" in str(error) and "\n" not in str(error)


def test_a_packed_torch_file_is_a_bomb(tmp_path):
    import io
    import zipfile

    import torch

    torch.save({"a": torch.zeros(3_000_000)}, tmp_path / "w.pt")
    assert formats.read_torch(tmp_path / "w.pt")["a"].shape == (3_000_000,)
    packed = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "w.pt") as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    (tmp_path / "w.pt").write_bytes(packed.getvalue())
    assert len(packed.getvalue()) < 100_000
    with pytest.raises(artifacts.StoreError, match="w.pt is refused: its part .* is compressed"):
        formats.read_torch(tmp_path / "w.pt")


def test_every_row_of_a_feature_counts():
    features = np.zeros((500, 4), np.float32)
    record = records.VideoRecord("a", "a.mp4", "own", "train", 0)
    before = experiments.training_facts({}, [record], {"a": features})
    for row in (1, 250, 499):
        other = features.copy()
        other[row, 2] = 1e-3
        assert experiments.training_facts({}, [record], {"a": other}) != before
    assert experiments.training_facts({}, [record], {"a": np.asfortranarray(features)}) == before


def test_one_run_at_a_time_on_every_system(tmp_path, monkeypatch):
    import subprocess
    import sys

    hold = f"with artifacts.only_one({str(tmp_path / 'x.lock')!r}): print('in', flush=True); input()"
    code = f"from vau_lib.workspace import artifacts\n{hold}"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(artifacts.StoreError, match="another run is at work in"):
        with artifacts.only_one(tmp_path / "x.lock"):
            pass
    other.kill()
    other.wait()
    with artifacts.only_one(tmp_path / "x.lock"):
        pass
    assert "fcntl" not in (LIBRARY / "workspace" / "artifacts.py").read_text(encoding="utf-8")
