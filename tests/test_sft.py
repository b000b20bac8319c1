"""TRL's trainer learns from rows shown as videos, whole or with holes, and leaves an adapter that loads."""

import json
from dataclasses import replace

import pytest
import torch

from vau_lib.compression import token_pruning, token_selection
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import finetuning, instruction_data
from vau_lib.workspace import artifacts

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
PLAN = finetuning.LoraPlan(max_steps=5, batch_size=4, log_steps=1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    found = toy_dataset.make_dataset(root, num_videos=4, seed=3, splits={"train": 1.0})
    return root, toy_dataset.instructions(found)


@pytest.mark.parametrize(("family", "holes"), [("internvl", False), ("qwen2_5_vl", True)])
def test_loss_falls_and_only_the_adapter_changes(lessons, family, holes, tmp_path):
    root, rows = lessons
    twin = tiny_vlm.tiny(family, sizes=SMALL)
    vlm = twin.replace(model=finetuning.lora(twin.model, r=4, alpha=8, seed=0))
    frozen = {n: p.clone() for n, p in vlm.model.named_parameters() if not p.requires_grad}
    samples = instruction_data.InstructionSamples(rows, root, vlm, num_frames=4)

    def cut(model):
        return token_pruning.compressed(model, share=0.5)

    losses = finetuning.tune(vlm, samples, plan=PLAN, folder=tmp_path / "adapter", cut=cut if holes else None)
    assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]
    assert all(torch.equal(frozen[n], p) for n, p in vlm.model.named_parameters() if n in frozen)
    again = finetuning.load_adapter(tiny_vlm.tiny(family, sizes=SMALL).model, tmp_path / "adapter")
    ours, theirs = dict(vlm.model.named_parameters()), dict(again.named_parameters())
    assert all(torch.allclose(ours[n], theirs[n]) for n in ours if "lora" in n)


def test_nothing_to_train_is_said(lessons):
    root, rows = lessons
    twin = tiny_vlm.tiny("internvl", sizes=SMALL)
    for part in twin.model.parameters():
        part.requires_grad_(False)
    with pytest.raises(ValueError, match="^nothing to train: every weight of tiny-internvl is frozen$"):
        finetuning.tune(twin, instruction_data.InstructionSamples(rows, root, twin), plan=PLAN)


def _stops_after(count):
    """Return a `__getitem__` that is interrupted after so many items, and the list of what it gave."""
    asked, given = [], instruction_data.InstructionSamples.__getitem__

    def item(self, place):
        if len(asked) == count:
            raise KeyboardInterrupt
        asked.append(place)
        return given(self, place)

    return item, asked


@pytest.mark.parametrize("holes", [False, True])
def test_a_stopped_run_goes_on_where_it_was(lessons, tmp_path, holes):
    root, rows = lessons
    cut = (lambda model: token_pruning.compressed(model, share=0.5)) if holes else None

    def learn(folder, *stops):
        for steps in stops:
            twin = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
            vlm = twin.replace(model=finetuning.lora(twin.model, r=4, alpha=8, dropout=0.0, seed=0))
            samples, plan = (
                instruction_data.InstructionSamples(rows, root, vlm, num_frames=4),
                replace(PLAN, max_steps=6, save_steps=3),
            )
            item, asked = _stops_after(steps * plan.batch_size)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(instruction_data.InstructionSamples, "__getitem__", item)
                if steps == plan.max_steps:
                    losses = finetuning.tune(vlm, samples, plan=plan, folder=folder, cut=cut)
                    continue
                with pytest.raises(KeyboardInterrupt):
                    finetuning.tune(vlm, samples, plan=plan, folder=folder, cut=cut)
        adapted = finetuning.load_adapter(tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL).model, folder)
        return losses["loss"].tolist(), adapted.state_dict(), len(asked)

    once, twice = learn(tmp_path / "once", 6), learn(tmp_path / "twice", 4, 6)
    assert once[0] == pytest.approx(twice[0], abs=1e-5)
    assert (once[2], twice[2]) == (20, 10), "what was learned before the last checkpoint is not shown again"
    assert all(torch.allclose(value, twice[1][name], atol=1e-6) for name, value in once[1].items())


def test_a_finished_run_is_loaded_and_another_one_refused(lessons, tmp_path):
    root, rows = lessons

    def learn(part=rows, plan=PLAN, **facts):
        twin = tiny_vlm.tiny("internvl", sizes=SMALL)
        vlm = twin.replace(model=finetuning.lora(twin.model, r=4, alpha=8, dropout=0.0, seed=0))
        samples = instruction_data.InstructionSamples(part, root, vlm, num_frames=4)
        losses = finetuning.tune(vlm, samples, plan=plan, folder=tmp_path, facts=facts)
        return losses, vlm.model.state_dict()

    first, again = learn(share=1), learn(share=1)
    assert first[0].equals(again[0]) and all(torch.equal(value, again[1][name]) for name, value in first[1].items())
    for other in ({"part": rows[:3]}, {"plan": replace(PLAN, learning_rate=1e-3)}, {"share": 0.5}):
        with pytest.raises(artifacts.StoreError, match=" was made with "):
            learn(**{"share": 1} | other)


def test_a_checkpoint_cut_short_is_passed_over(lessons, tmp_path):
    for step, whole in ((3, True), (12, True), (20, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert finetuning.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    assert finetuning.last_checkpoint(tmp_path / "none") is finetuning.last_checkpoint(None) is None


def test_rows_of_several_files_keep_their_own_folders(lessons, tmp_path):
    root, rows = lessons
    film = rows[0]["video"]
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({**row, "video": film}) for row in rows[:3]))
    (tmp_path / film).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / film).write_bytes((root / film).read_bytes())
    found = finetuning.read_rows({tmp_path / "one.jsonl": root, tmp_path / "two.jsonl": tmp_path})
    assert [row["video"] for row in found] == [str(root / film)] * 3 + [str(tmp_path / film)] * 3
    with pytest.raises(ValueError, match=r"one.jsonl: none of 3 rows is of split 'val'"):
        finetuning.read_rows({tmp_path / "one.jsonl": root}, split="val")
    with pytest.raises(ValueError, match="one.jsonl: 1 videos are not under .*nowhere"):
        finetuning.read_rows({tmp_path / "one.jsonl": tmp_path / "nowhere"})
    (tmp_path / "out.jsonl").write_text(json.dumps({**rows[0], "video": "../away.mp4"}) + "\n")
    with pytest.raises(ValueError, match="out.jsonl line 1 is no instruction row: .*leaves its root"):
        finetuning.read_rows({tmp_path / "out.jsonl": root})
    (tmp_path / "broken.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="broken.jsonl line 1 is no instruction row: "):
        finetuning.read_rows({tmp_path / "broken.jsonl": root})


def test_films_are_cut_to_shares_drawn_between_two():
    torch.manual_seed(1)
    film, rule = torch.randn(8, 4, 4, 3), token_selection.random_ratio(0.25)
    shares = [rule(film, share=1.0).float().mean().item() for _ in range(40)]
    assert min(shares) >= 0.24 and max(shares) > 0.6 and len(set(shares)) > 20
