"""Jobs to be killed that train or ask models: SFT, GRPO, analyse, generate, and a preset's notebooks side by side."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import torch
from fake_chat_service import FakeChatService
from fake_video_service import FakeVideoService
from safetensors.numpy import load_file
from tiny_project import write_notebook, write_params

from torture.common import ANY, Job, content
from vau_lib import analyse, cascade, tune
from vau_lib.detectors import lshma, lshma_state, preprocessing, trained_detector
from vau_lib.features import extraction
from vau_lib.synthetic import scenarios, text_to_video, veo
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import clients, finetuning, grpo
from vau_lib.workspace import artifacts, notebook_runs

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
FEW = dict(duration_s=1.0, fps=5.0, height=48, width=64)
CELL = """
import time
from pathlib import Path
import numpy as np
from vau_lib.workspace import artifacts, notebook_runs
rng = np.random.default_rng(seed)
for part in range(4):
    time.sleep(0.1)
    artifacts.save_array(Path("../data") / name / f"{part}.npy", rng.random(3))
notebook_runs.record(total=float(rng.random()))
"""


def adapter(*names: str) -> Callable[[Path], dict[str, str]]:
    """Return how to read a folder of a training: its adapter's numbers to six digits, and the tables of these names."""

    def read(folder: Path) -> dict[str, str]:
        found = {"made_by.json": content(folder)["made_by.json"]}
        for name, tensor in load_file(folder / "adapter_model.safetensors").items():
            found[name] = str(np.round(tensor.astype(np.float64), 6).tolist())
        for name in names:
            found[name] = pd.read_csv(folder / name).round(5).to_csv()
        return found

    return read


def report(folder: Path) -> dict[str, str]:
    """Return the scores and events of reports, without what they took."""
    found = {}
    for path in sorted(folder.rglob("scores.csv")):
        name, page = path.parent.relative_to(folder).as_posix(), json.loads(path.with_name("report.json").read_text())
        found[f"{name}/scores.csv"] = pd.read_csv(path).drop(columns="known_s").to_csv()
        events = [{key: row[key] for key in ("start_s", "end_s", "peak", "shown_s")} for row in page["events"]]
        texts = [row["answer"]["texts"] for row in page["events"]]
        found[f"{name}/report.json"] = json.dumps([events, texts, page["asked"], page["rolling"]])
        found[f"{name}/report.html"] = str(b"</html>" in path.with_name("report.html").read_bytes()[-20:])
    return found | {"index.html": (folder / "index.html").read_text().count("report.html")}


def generated(folder: Path) -> dict[str, str]:
    """Return what a run that makes videos leaves; its ledger tells what happened on the way, so of that the end only."""
    rows = [row for _, row in artifacts.json_lines(folder / "ledger.jsonl", skip_broken=True)]
    last = {row["id"]: row.get("status") for row in rows}
    files = {name: digest for name, digest in content(folder).items() if name != "ledger.jsonl"}
    return files | {"status": json.dumps(sorted(last.items()))}


def runs(folder: Path) -> dict[str, str]:
    """Return the data of a project and the outputs of its executed copies."""
    found = {name: digest for name, digest in content(folder).items() if name.startswith("data/") and name.endswith(".npy")}
    for path in sorted((folder / "data" / "runs" / "tiny").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        found[path.name] = str([output.get("data") for cell in cells for output in cell.get("outputs", [])])
    return found


def small_detector(folder: Path) -> Path:
    """Save an untrained stream over small XFeat features with random weights."""
    recipe = extraction.Recipe("xfeat", 4, (("weights", "random"), ("side", 64)))
    fitted = preprocessing.Preprocessing.fit(
        {"a": np.random.default_rng(0).random((40, 128))}, steps=None, temporal_difference=False
    )
    torch.manual_seed(0)
    model = lshma.LSHMA(lshma_state.LSHMAConfig.xd(width=128, window=2)).eval()
    trained_detector.save(folder, trained_detector.TrainedDetector(model, fitted, None), facts={"features": recipe.made_by()})
    return folder


def jobs(root: Path, films: Path, found: list) -> tuple[dict[str, Job], list]:
    """Return {name: job} of models, notebooks and services, and what must be closed."""
    world = root / "world"
    drawn = toy_dataset.make_dataset(world, num_videos=6, seed=3, splits={"train": 0.7, "test": 0.3})
    rows = toy_dataset.instructions(drawn)
    artifacts.write_json_lines(world / "instructions.jsonl", rows)
    chat = FakeChatService('A man falls. {"anomaly": 1}')
    service = FakeVideoService((films / "0.mp4").read_bytes())
    os.environ["GOOGLE_API_KEY"] = "torture-key"
    detector = small_detector(root / "detector")
    shown, files = tune.Shown(frames=2), {world / "instructions.jsonl": world}

    def sft(folder: Path) -> None:
        plan = finetuning.LoraPlan(max_steps=4, batch_size=2, save_steps=1, log_steps=1, learning_rate=1e-2)
        model = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
        _, losses = finetuning.tune_lora(model, rows, world, plan=plan, r=4, alpha=8, num_frames=2, folder=folder)
        artifacts.write_table(folder / "losses.csv", losses)

    def tuned(folder: Path) -> None:
        plan = finetuning.LoraPlan(max_steps=3, batch_size=2, save_steps=2, log_steps=1, learning_rate=1e-2)
        tune.tune(tiny_vlm.tiny("internvl", sizes=SMALL), files, folder, plan=plan, shown=shown, rank=4)

    def reinforced(folder: Path) -> None:
        plan = grpo.GRPOPlan(steps=3, questions=2, group_size=2, max_new_tokens=4, learning_rate=1e-2, warmup_steps=1, save_steps=1)
        model = tiny_vlm.tiny("internvl", sizes=SMALL)
        model = model.replace(model=finetuning.lora(model.model, r=4, alpha=8, seed=0))
        tune.reinforce(model, files, folder, plan=plan, shown=shown)

    def look(folder: Path) -> None:
        of = cascade.load_detector(detector, threshold=0.0)
        vlm = clients.Endpoint(chat.url, "m", timeout_s=20)
        looked = analyse.analyse_folder(films, of, folder, plan=cascade.AnalysisPlan(num_frames=2), vlm=vlm, log=lambda _: None)
        assert not any(row["error"] for row in looked), [row["error"] for row in looked]

    def draw(folder: Path) -> None:
        chosen = scenarios.covering_scenarios(4, 0, **FEW)
        done = text_to_video.run(text_to_video.Procedural(), chosen, folder, workers=2, progress=False)
        assert set(done["status"]) == {"done"}, done["detail"].tolist()

    def pay(folder: Path) -> None:
        chosen, backend = (
            scenarios.covering_scenarios(4, 1, **FEW),
            veo.Veo(price_per_second=0.1, base_url=service.url, poll_s=0.02),
        )
        for _ in range(3):  # what a kill left as "may be paid" is asked for again, by a new yes
            done = text_to_video.run(backend, chosen, folder, confirm=lambda _: True, progress=False)
            if set(done["status"]) == {"done"}:
                return
        raise AssertionError(str(done["detail"].tolist()))

    def paid(kills: int) -> None:
        twice = sum(service.submitted.values()) - len(service.submitted)
        assert twice <= kills, f"{service.submitted} for 4 videos and {kills} kills"  # a kill between paying and noting costs one

    def notebooks(folder: Path) -> None:
        os.environ["VAU_PROJECT"] = str(folder)
        if not (folder / "params" / "tiny" / "_shared.yaml").exists():  # a project is there before it is run
            for number in range(3):
                write_notebook(folder, f"0{number}_x", f"seed: int = {number}\nname: str = 'n{number}'", CELL)
            write_params(folder, "tiny", "_shared", "notebooks: [0, 1, 2]")
            (folder / "params" / "needs.yaml").write_text('"00": []\n"01": []\n"02": ["00"]\n')
        notebook_runs.run("tiny", workers=2, log=lambda _: None)

    return {
        "SFT": Job(sft, adapter("losses.csv"), lock=".lock"), "tune": Job(tuned, adapter(), lock=".lock"),
        "GRPO": Job(reinforced, adapter("exam.csv", "rewards.csv"), lock=".lock"), "analyse": Job(look, report),
        "generate": Job(draw, generated, whom=ANY, lock="ledger.lock"),
        "generate, paid": Job(pay, generated, service.submitted.clear, paid, lock="ledger.lock"),
        "vau run --workers 2": Job(notebooks, runs, whom=ANY, lock="data/runs/tiny/.lock"),
    }, [chat, service]  # fmt: skip
