"""What a preset may say: every mistake is one line with the file, the key and the nearest name."""

import pytest
from tiny_project import make_project, write_notebook, write_params

from vau_lib.workspace import presets
from vau_lib.workspace.presets import RunError


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(make_project(tmp_path)))
    return tmp_path


def test_the_tagged_cell_declares_names_types_and_defaults(project):
    found = presets.declared("01_first")
    assert [(p.name, p.type, p.default) for p in found.values()] == [
        ("count", "int", 3), ("rate", "float", 0.5), ("note", "str", ""),
    ]  # fmt: skip
    assert found["rate"].help == "how fast" and presets.declared("03") == {}


def test_a_type_comes_from_the_default_where_none_is_written(project):
    cell = "a = 3\nb = 'x # y'  # a hash inside\nc = [1]\nd = None\ne: dict = {\n    'k': 1,\n}\nf = list(range(3))"
    write_notebook(project, "04_bare", cell)
    found = presets.declared("04_bare")
    assert {name: p.type for name, p in found.items()} | {"d": "", "f": ""} == {
        "a": "int", "b": "str", "c": "list", "d": "", "e": "dict", "f": "",
    }  # fmt: skip
    assert found["b"].default == "x # y" and found["e"].default == {"k": 1} and found["f"].default is ...


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("depth: int | None = None", "04_odd.ipynb: papermill drops 'depth': no | in its type, one = on its line"),
        ("depth: int = 3  # k = 3", "04_odd.ipynb: papermill drops 'depth'"),
        ("depth: int = 0.5", "04_odd.ipynb: depth is declared int, its default is 0.5"),
        ("depth: int = ", "04_odd.ipynb: line 1 of the parameters cell is not Python"),
    ],
)
def test_a_cell_papermill_would_misread_is_refused(project, cell, message):
    write_notebook(project, "04_odd", cell)
    with pytest.raises(RunError, match=message.replace("|", r"\|")):
        presets.declared("04")


def test_shared_values_go_to_whoever_declares_them(project):
    write_params(project, "tiny", "02_second", "broken: true\n")
    assert presets.load_preset("tiny", "01") == {"count": 5}
    assert presets.load_preset("tiny", "02_second") == {"count": 5, "broken": True}
    assert presets.load_preset("tiny", 3) == {}


def test_demo_needs_no_folder_and_means_the_cells_defaults(project):
    assert presets.load_preset("demo", "01") == {} and presets.members("demo") == ["01_first", "02_second", "03_third"]


def test_a_notebooks_own_value_wins_over_the_shared_one(project):
    write_params(project, "tiny", "01_first", "count: 7")
    assert presets.load_preset("tiny", "01") == {"count": 7}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("01_first", "cuont: 3", "params/tiny/01_first.yaml: nobody declares 'cuont'; the nearest name is 'count'"),
        ("01_first", "seeds: [1]", "params/tiny/01_first.yaml: nobody declares 'seeds'"),
        ("_shared", "brokn: true", "params/tiny/_shared.yaml: nobody declares 'brokn'; the nearest name is 'broken'"),
        ("_shared", "count: many", "params/tiny/_shared.yaml: count must be int, got str 'many'"),
        ("01_first", "count: true", "count must be int, got bool True"),
        ("01_first", "count: 3.0", "count must be int, got float 3.0"),
        ("01_first", "count:", "count must be int, got NoneType None"),
        ("01_first", "note: 3", "note must be str, got int 3"),
        ("01_first", "rate: 1e-4", "rate must be float, got str '1e-4'; YAML wants a point, like 1.0e-4"),
        ("01_first", "- count", r"params/tiny/01_first.yaml must hold lines of `name: value`, got \['count'\]"),
        ("01_first", "count: [3", "params/tiny/01_first.yaml is not YAML"),
        ("01_frist", "count: 3", "01_frist.yaml: no notebook has that name; the nearest name is '01_first.yaml'"),
    ],
)
def test_a_mistake_in_a_preset_is_one_line_with_the_nearest_name(project, file, text, message):
    write_params(project, "tiny", file, text)
    with pytest.raises(RunError, match=message) as caught:
        presets.load_preset("tiny", "01")
    assert "\n" not in str(caught.value)


def test_an_int_does_where_a_float_is_asked_and_lists_are_looked_into(project):
    write_params(project, "tiny", "01_first", "rate: 1")
    write_params(project, "tiny", "02_second", "seeds: [0, one]")
    assert presets.load_preset("tiny", "01")["rate"] == 1
    with pytest.raises(RunError, match=r"seeds must be list\[int\], got list \[0, 'one'\]"):
        presets.load_preset("tiny", "02")


def test_an_unknown_preset_or_notebook_is_refused(project):
    with pytest.raises(RunError, match="no preset 'tyni' in params/; the nearest name is 'tiny'"):
        presets.members("tyni")
    with pytest.raises(RunError, match="no notebook 09; there are 01_first, 02_second, 03_third"):
        presets.members("tiny", ["9"])


def test_numbers_choose_notebooks_however_yaml_reads_them(project):
    assert presets.members("tiny") == ["01_first", "02_second", "03_third"]
    write_params(project, "tiny", "_shared", "notebooks: [03, 01]")
    assert presets.members("tiny") == ["01_first", "03_third"]
    assert presets.members("tiny", [2, "03_third"]) == ["02_second", "03_third"]


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ("/videos/Cam #2/clip.mp4", "str", "/videos/Cam #2/clip.mp4"),
        ("a # b", "str", "a # b"),
        ("rtsp://cam/a?b=c&d=e", "str", "rtsp://cam/a?b=c&d=e"),
        ("", "str", ""),
        ("010", "str", "010"),
        ("2026-01-01", "str", "2026-01-01"),
        ("12:30:45", "str", "12:30:45"),
        ("yes", "str", "yes"),
        ("null", "str", "null"),
        ("[a]", "str", "[a]"),
        ("key: value", "str", "key: value"),
        ('"quoted # text"', "str", "quoted # text"),
        ("010", "int", 10),
        ("-07", "int", -7),
        ("1_000", "int", 1000),
        ("0o10", "int", "0o10"),
        ("1e-4", "float", 0.0001),
        (".5", "float", 0.5),
        ("010.5", "float", 10.5),
        ("3", "float", 3),
        ("no", "bool", False),
        ("On", "bool", True),
        ("TRUE", "bool", True),
        ("maybe", "bool", "maybe"),
        ("[00, 010]", "list[int]", [0, 10]),
        ("[1e-3, 1]", "list[float]", [0.001, 1]),
        ("[yes, 2026-01-01, Cam #2]", "list[str]", ["yes", "2026-01-01", "Cam #2"]),
        ("['a, b', c]", "list[str]", ["a, b", "c"]),
        ("[[0], [1, 2]]", "list[list[int]]", [[0], [1, 2]]),
        ("[]", "list[int]", []),
        ("none", "Optional[int]", None),
        ("08", "Optional[int]", 8),
        ("{k: 1}", "dict", {"k": 1}),
        ("010", "", 10),
        ("it's", "", "it's"),
    ],
)
def test_a_value_of_the_command_line_is_what_its_parameter_declares(given, kind, value):
    found = presets.typed(presets.parse_values([f"name={given}"])["name"], kind)
    assert found == value and type(found) is type(value)


def test_values_of_a_sweep_are_cut_at_commas_outside_brackets_and_quotes():
    swept = presets.parse_values(["seed=00,010", "rate=1e-3,0.5", "seeds=[0],[1, 2]", "note='a, b',c # d", "none="], split=True)
    assert swept == {
        "seed": ["00", "010"], "rate": ["1e-3", "0.5"], "seeds": ["[0]", "[1, 2]"], "note": ["'a, b'", "c # d"], "none": [],
    }  # fmt: skip
    with pytest.raises(RunError, match="give a parameter as name=value, got 'count'"):
        presets.parse_values(["count"])


def test_a_value_that_is_not_of_the_declared_type_is_refused(project):
    known = presets.declared("01")
    assert presets.checked(presets.parse_values(["count=010", "note=a # b"]), known, "-p") == {"count": 10, "note": "a # b"}
    for text, message in (("count=1.5", "count must be int, got float|Given|str '1.5'"), ("count=yes", "count must be int")):
        with pytest.raises(RunError, match=f"-p: {message}"):
            presets.checked(presets.parse_values([text]), known, "-p")


def test_a_path_does_not_depend_on_the_working_directory(project, monkeypatch, tmp_path_factory):
    before = presets.project_path("data/raw")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert presets.project_path("data/raw") == before == project / "data" / "raw"
    assert presets.project_path(project / "x") == project / "x"
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(presets.project_path("~/x")) == "/somewhere/x"


def test_a_path_may_start_with_a_variable_and_says_which_one_is_missing(project, monkeypatch):
    monkeypatch.setenv("VAU_REAL_DATA", "/videos")
    assert str(presets.project_path("$VAU_REAL_DATA/ucsd_ped2")) == "/videos/ucsd_ped2"
    monkeypatch.setenv("VAU_REAL_DATA", "../beside")
    assert presets.project_path("${VAU_REAL_DATA}/a") == project / "../beside/a"
    monkeypatch.delenv("VAU_REAL_DATA")
    with pytest.raises(RunError, match="ped2 needs the environment variable VAU_REAL_DATA: export VAU_REAL_DATA="):
        presets.project_path("$VAU_REAL_DATA/ucsd_ped2")
    with pytest.raises(RunError, match="a path is empty"):
        presets.project_path("")


def test_a_notebook_needs_what_is_told_and_what_that_needs_or_all_before_it(project):
    assert presets.needs("03") == {"01_first", "02_second"} and presets.needs("01") == set()
    needs = project / "params" / "needs.yaml"
    needs.write_text('"02": []\n"03": ["02"]\n')
    assert presets.needs("03") == {"02_second"} and presets.needs("02") == set()
    for text, said in (
        ("17: []", "no notebook 17; there are 01_first"),
        ('"03": "02"', "03 must hold a list"),
        ('"03": [9]', "no notebook 09"),
    ):
        needs.write_text(text)
        with pytest.raises(RunError, match=f"^params/needs.yaml: {said}"):
            presets.needs("03")
    needs.write_text('"01": ["02"]\n')
    with pytest.raises(RunError, match="^params/needs.yaml: 01 cannot need 02, which runs after it$"):
        presets.needs("01")


def test_a_presets_own_lines_of_needs_replace_the_others_there_only(project):
    write_params(project, "tiny", "_shared", "")
    needs = project / "params" / "needs.yaml"
    needs.write_text('"02": []\n"03": ["02"]\ntiny: {"03": ["01"]}\n')
    assert presets.needs("03", "tiny") == {"01_first"} and presets.needs("02", "tiny") == set()
    assert presets.needs("03") == presets.needs("03", "demo") == {"02_second"}
    needs.write_text("tiny: [1]\n")
    with pytest.raises(RunError, match=r"^params/needs.yaml: tiny must hold lines like .*, got \[1\]$"):
        presets.needs("03", "tiny")
