"""A camera's user, password and token are in nothing that is shown, recorded or kept."""

import json

import pytest
from tiny_project import make_project, write_notebook, write_params
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.data import video
from vau_lib.workspace import artifacts, notebook_runs
from vau_lib.workspace.presets import RunError

ADDRESS = "rtsp://admin:pa'ssw/ord@10.0.0.1:554/ch1?channel=1&token=t0psecret"
PAGES = "see https://example.org/@user/a?page=2#top (and http://h:80/x)"
SECRETS = ("admin", "ssw", "t0psecret", "pa'")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(make_project(tmp_path)))
    write_params(tmp_path, "tiny", "_shared", "notebooks: [01]")
    return tmp_path


def kept(folder):
    """Everything that lies in a folder, names too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join([*map(str, files), *(path.read_text(errors="replace") for path in files)])


def clean(text: str) -> bool:
    return "10.0.0.1" in text and not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("broken", [False, True])
def test_an_executed_copy_and_its_table_hold_no_password_but_the_notebook_gets_it(broken, project):
    use = [
        "from pathlib import Path",
        "Path('../got').write_text(camera)",
        "Path('../during').write_text(next(Path('../data').rglob('*.ipynb')).read_text())",
    ]
    last = "raise OSError(f'{camera} and {cameras}')" if broken else "print(camera, repr(camera), cameras)"
    write_notebook(project, "01_first", "camera: str = ''\ncameras: list[str] = []", "\n".join(use), last)
    wanted = {"camera": ADDRESS, "cameras": [ADDRESS]}
    if broken:
        with pytest.raises(RunError) as caught:
            notebook_runs.run("tiny", overrides=wanted)
        assert clean(str(caught.value))
    else:
        notebook_runs.run("tiny", overrides=wanted)
        assert notebook_runs.plan("tiny", overrides=wanted)[0].why == ""
        assert notebook_runs.plan("tiny", overrides=wanted | {"camera": "rtsp://10.0.0.2/"})[0].why == "its parameters changed"
    assert (project / "got").read_text() == ADDRESS
    assert clean(kept(project / "data")) and clean(notebook_runs.table().to_csv())
    assert clean((project / "during").read_text())  # a kill while it runs leaves none either


def test_a_sweep_names_its_copies_without_passwords(project):
    write_notebook(project, "01_first", "camera: str = ''", "1")
    ran = notebook_runs.sweep("tiny", 1, {"camera": ["rtsp://admin:t0psecret@10.0.0.1/a", "rtsp://admin:t0psecret@10.0.0.1/b"]})
    assert [error for _, error in ran] == [None, None] and clean(kept(project / "data"))


def test_no_printed_line_holds_a_password(project):
    write_notebook(project, "01_first", "camera: str = ''\ncount: int = 1", "1")
    for arguments in (["-p", f"camera={ADDRESS}", "--dry-run"], ["-p", f"count={ADDRESS}"], ["-p", f":{ADDRESS}"]):
        result = CliRunner().invoke(cli.app, ["run", "tiny", *arguments])
        assert clean(f"{result.output} {result.exception or ''}"), result.output


def test_made_by_and_error_lines_hold_no_password(tmp_path):
    artifacts.write_made_by(
        tmp_path, source="rtsp://admin:t0psecret@10.0.0.1/a", more=[{"at": "http://10.0.0.1/v?token=t0psecret"}]
    )
    assert clean((tmp_path / "made_by.json").read_text())
    artifacts.check_made_by(
        tmp_path, source="rtsp://admin:t0psecret@10.0.0.1/a", more=[{"at": "http://10.0.0.1/v?token=t0psecret"}]
    )
    assert clean(artifacts.one_line(OSError("no answer of rtsp://admin:t0psecret@10.0.0.1:554/a?token=t0psecret, timed out")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "see https://example.org/@user/a?page=2#top (and http://h:80/x)",
            "see https://example.org/@user/a?page=2#top (and http://h:80/x)",
        ),
        ("rtsp://u:p@h/x, rtsp://[::1]:554/y", "rtsp://h/x, rtsp://[::1]:554/y"),
        ("https://u:p@h/a?X-Amz-Signature=1&b=2", "https://h/a"),
        ("http://h/v.cgi?8f3a9c", "http://h/v.cgi"),
        ("rtsp://h/live?8f3a9c", "rtsp://h/live"),
        ("no address: a@b.org ://", "no address: a@b.org ://"),
        ("rtsp://u:a b@h/x failed", "rtsp://h/x failed"),
        ("rtsp://u:a\nb@h/x", "rtsp://h/x"),
        ("rtsp:/u:pa@10.0.0.1/x", "rtsp:/10.0.0.1/x"),
        ("admin:pa@10.0.0.1 is away", "10.0.0.1 is away"),
        ("rtsp://u:p@a@h/x, http://h:80/y and bob@b.org", "rtsp://h/x, http://h:80/y and bob@b.org"),
        ("rtsp://h/user=a_password=b_channel=1", "rtsp://h/…"),
    ],
)
def test_an_address_in_a_text_loses_what_is_secret_and_a_web_page_nothing(text, shown):
    assert artifacts.without_secrets(text) == shown
    assert json.dumps(artifacts.without_secrets({"a": [text, 1, None]})) == json.dumps({"a": [shown, 1, None]})


def test_a_source_with_blanks_in_its_password_is_shown_without_it():
    assert video.source_name(ADDRESS.replace("ss", ' "')) == "rtsp://10.0.0.1:554/ch1"
