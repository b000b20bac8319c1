"""What a file may be called, what may not be opened as one, damaged headers, and what may be shown of a camera's address."""

import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from vau_lib.data import video

READERS = ("auto", "decord", "pyav")


@pytest.mark.parametrize(
    "name", ["cam:1.mp4", "cam_2026-01-01T10:00:00.mp4", "file:x.mp4", "Cam #2 100%.mp4", os.fsdecode(b"b_caf\xe9.mp4")]
)
def test_a_file_opens_whatever_it_is_called(name, clip, tmp_path, monkeypatch):
    shutil.copy(clip, tmp_path / name)
    monkeypatch.chdir(tmp_path)  # relative: `cam:` in front is no protocol
    expected = video.read_frames(clip, [0, 31, 49])
    for reader in READERS:
        assert np.array_equal(video.read_frames(name, [0, 31, 49], reader=reader), expected)
    assert video.probe(name) == video.probe(clip) and len(list(video.gray_frames(name))) == len(list(video.live(name))) == 50


def test_a_broken_file_with_such_a_name_gives_a_line_that_can_be_written(tmp_path):
    path = tmp_path / os.fsdecode(b"b_caf\xe9.mp4")
    path.write_bytes(b"no film")
    with pytest.raises(video.VideoError, match=r"b_caf\\xe9\.mp4: not a readable video") as caught:
        video.probe(path)
    str(caught.value).encode()


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:2.0,\n{film}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{film}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{film}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", ["own", "mp4", "ts"])
def test_a_playlist_is_no_video_whatever_its_suffix(kind, suffix, clip, tmp_path):
    path = tmp_path / f"list.{kind if suffix == 'own' else suffix}"
    path.write_text(PLAYLISTS[kind].format(film=clip.resolve()))
    for use in (
        video.probe,
        lambda p: video.read_frames(p, [0]),
        lambda p: list(video.live(p)),
        lambda p: list(video.gray_frames(p)),
    ):
        with pytest.raises(video.VideoError, match=rf"list\.{path.suffix[1:]}: not a readable video") as caught:
            use(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["file", "concat", "subfile", "cache:file", "crypto+file", "data"])
def test_an_address_is_a_network_address(scheme, clip):
    with pytest.raises(video.VideoError, match="an address begins with one of .*rtsp"):
        next(video.live(f"{scheme}://{clip}"))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.1:554/h264/ch1", "rtsp://10.0.0.1:554/h264/ch1"),
        ("rtsp://admin:se/cr@et@10.0.0.1/ch1", "rtsp://10.0.0.1/ch1"),
        ("rtsp://admin:secret?x@10.0.0.1/ch1", "rtsp://10.0.0.1/ch1"),
        ("http://10.0.0.1/video.cgi?user=admin&pwd=secret", "http://10.0.0.1/video.cgi"),
        ("rtsp://10.0.0.1:554/user=admin_password=secret_channel=1_stream=0.sdp", "rtsp://10.0.0.1:554/…"),
        ("0", "camera 0"),
        ("films/cam:1.mp4", "films/cam:1.mp4"),
    ],
)
def test_what_is_shown_of_a_source_holds_no_password(address, shown):
    assert video.source_name(address) == shown


def test_a_camera_that_does_not_answer_takes_its_password_along():
    with pytest.raises(video.VideoError) as caught:
        next(video.live("http://admin:se/cr@et@127.0.0.1:9/x?key=secret", timeout_s=2))
    error, seen = caught.value, ""
    while error is not None:  # a traceback prints causes and contexts too
        seen += repr(error)
        error = error.__cause__ or error.__context__
    assert "127.0.0.1" in seen and "secret" not in seen and "cr@et" not in seen


def _claims(source, path, count):
    """Rewrite the time table of an mp4 to claim `count` frames."""
    raw = bytearray(source.read_bytes())
    at = raw.index(b"stts") + 12
    raw[at : at + 4] = count.to_bytes(4, "big")
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("count", [0xFFFFFFFF, 0x7FFFFFFF, 50_000_000])
def test_a_time_table_that_claims_too_much_is_one_line_in_little_memory(count, clip, tmp_path):
    _refused_in_little_memory(_claims(clip, tmp_path / "huge.mp4", count))


def _refused_in_little_memory(path):
    program = """
        import resource, sys
        from vau_lib.data import video
        free = 600 << 20
        used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + free, used + free))
        for reader in ("auto", "decord", "pyav"):
            try:
                video.read_frames(sys.argv[1], [0], reader=reader)
            except video.VideoError as error:
                print(error)
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux, which limits a process's memory")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("damaged, its header claims") == done.stdout.count("\n") == 3


@pytest.fixture
def cases(real_data):
    folder = real_data.parent / "cases" / "videos"
    if not folder.is_dir():
        pytest.skip("needs the folder cases/videos beside the real data")
    return folder


def number(frame):
    """As cases/README.md says."""
    width = frame.shape[1] // 8
    return sum(1 << b for b in range(8) if frame[60:84, b * width + 4 : (b + 1) * width - 4].mean() > 140)


RIGHT = {
    "base.mp4": range(60), "hevc8.mp4": range(60), "short.ts": range(60), "interlaced.mp4": range(60),
    "editlist_cut.mp4": range(21, 60), "joined.ts": [*range(30), *range(30)],
}  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize("name", RIGHT)
def test_a_case_shows_the_frames_its_readme_says(name, cases):
    path, truth = cases / name, list(RIGHT[name])
    assert video.probe(path).num_frames == len(truth) == len(video.frame_times(path)) == len(list(video.gray_frames(path)))
    for reader in READERS:
        places = range(0, len(truth), 4)
        together = video.read_frames(path, places, reader=reader)
        assert [number(frame) for frame in together] == truth[::4]
        assert [number(video.read_frames(path, [p], reader=reader)[0]) for p in places] == truth[::4]
        assert np.array_equal(together, video.read_frames(path, places, reader="pyav"))
    assert video.probe(path).fps == pytest.approx(30) and (np.diff(video.frame_times(path)) > 0).all()
    assert [number(frame) for _, frame in video.live(path)] == truth


@pytest.mark.real
def test_a_phone_video_stands_upright_everywhere(cases):
    path = cases / "rot270.mp4"
    info = video.probe(path)
    assert (info.width, info.height) == (96, 128)
    frames = [video.read_frames(path, range(60), reader=reader) for reader in READERS]
    assert frames[0].shape == (60, 128, 96, 3) and all(np.array_equal(frames[0], other) for other in frames)
    assert next(video.gray_frames(path)).shape == (128, 96) and next(video.live(path))[1].shape == (128, 96, 3)
    assert [number(np.rot90(frame)) for frame in frames[0]] == list(range(60))  # turned back, its bars are read again


@pytest.mark.real
def test_old_and_broken_headers(cases):
    assert video.read_frames(cases / "camera_latin1.avi", [0, 29]).shape == (2, 64, 96, 3)
    for reader in READERS:
        with pytest.raises(video.VideoError, match="unknown_codec.mp4: damaged"):
            video.read_frames(cases / "unknown_codec.mp4", [0], reader=reader)
    _refused_in_little_memory(cases / "huge_stts.mp4")


@pytest.mark.real
def test_eight_frames_of_a_camera_recording_come_by_every_reader(cases):
    places = video.sample_index(video.probe(cases / "cam.ts").num_frames, 8)
    whole = video.read_frames(cases / "cam.ts", range(600), reader="pyav")[places]
    assert all(np.array_equal(video.read_frames(cases / "cam.ts", places, reader=reader), whole) for reader in READERS)
