"""TRL's trainer learns from rows shown as videos, whole or with holes, and leaves an adapter that loads."""

import pytest
import torch

from vau_lib import closeups, supervised, tokens, vlm

SMALL = vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
PLAN = vlm.LoraPlan(max_steps=5, batch_size=4, log_steps=1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    found = closeups.make_dataset(root, num_videos=4, seed=3, splits={"train": 1.0})
    return root, closeups.instructions(found)


@pytest.mark.parametrize(("family", "holes"), [("internvl", False), ("qwen2_5_vl", True)])
def test_loss_falls_and_only_the_adapter_changes(lessons, family, holes, tmp_path):
    root, rows = lessons
    twin = vlm.tiny(family, sizes=SMALL)
    speaker = twin.but(model=vlm.lora(twin.model, r=4, alpha=8, seed=0))
    frozen = {n: p.clone() for n, p in speaker.model.named_parameters() if not p.requires_grad}
    samples = vlm.Samples(rows, root, speaker, num_frames=4)

    def cut(model):
        return tokens.compressed(model, share=0.5)

    losses = supervised.tune(speaker, samples, plan=PLAN, folder=tmp_path / "adapter", cut=cut if holes else None)
    assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]
    assert all(torch.equal(frozen[n], p) for n, p in speaker.model.named_parameters() if n in frozen)
    again = vlm.load_adapter(vlm.tiny(family, sizes=SMALL).model, tmp_path / "adapter")
    ours, theirs = dict(speaker.model.named_parameters()), dict(again.named_parameters())
    assert all(torch.allclose(ours[n], theirs[n]) for n in ours if "lora" in n)


def test_nothing_to_train_is_said(lessons):
    root, rows = lessons
    twin = vlm.tiny("internvl", sizes=SMALL)
    for part in twin.model.parameters():
        part.requires_grad_(False)
    with pytest.raises(ValueError, match="^nothing to train: every weight of tiny-internvl is frozen$"):
        supervised.tune(twin, vlm.Samples(rows, root, twin), plan=PLAN)
