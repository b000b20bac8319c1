"""Training, saving and loading of every detector: MemTSM-Net, LSHMA and Holmes-VAU's anomaly scorer.

- a trained detector is a model with its preprocessing and its training curves; the folder's config.json says which model it is
- validation videos choose the epoch that is kept, or there are none and the last is kept; test videos are never passed in
"""

import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vau_lib.detectors import training
from vau_lib.detectors.anomaly_scorer import AnomalyScorer, ScorerConfig
from vau_lib.detectors.lshma import LSHMA
from vau_lib.detectors.lshma_state import LSHMAConfig
from vau_lib.detectors.memtsm import MemTSM, MemTSMConfig
from vau_lib.detectors.preprocessing import Preprocessing, preprocess_splits
from vau_lib.features import checkpoints, devices
from vau_lib.workspace import artifacts

Model = MemTSM | LSHMA | AnomalyScorer
Config = MemTSMConfig | LSHMAConfig | ScorerConfig
DETECTORS = {  # name in config.json: model, its sizes
    "memtsm": (MemTSM, MemTSMConfig),
    "lshma": (LSHMA, LSHMAConfig),
    "anomaly_scorer": (AnomalyScorer, ScorerConfig),
}
MOST_NUMBERS = 2**28  # of a detector's weights, and of what its stream remembers: a gigabyte; published ones have 10^7
LARGEST = {"snippet_frames": 10_000, "side": 4096}  # of what made its features: a stream keeps so many frames, so large


@dataclass(frozen=True)
class TrainedDetector:
    """A model in eval mode, how features are preprocessed for it, and its training curves, one row per epoch."""

    model: Model
    preprocessing: Preprocessing
    curves: pd.DataFrame

    def score_video(self, features: np.ndarray, **options: object) -> tuple[float, np.ndarray]:
        """Return the video's score and the scores of its snippets (T,), all in [0, 1], of features (T, D).

        `options` are the model's own: MemTSM-Net has `hop` and `causal`.
        """
        return self.model.score_video(features, self.preprocessing, **options)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return the scores of the snippets, (T,) in [0, 1], of features (T, D)."""
        return self.score_video(features)[1]


def train(
    features: Mapping[str, np.ndarray],
    targets: Mapping[str, int | np.ndarray],
    val: Collection[str] | None,
    *,
    config: Config,
    plan: training.TrainingPlan,
    steps: int | None = 32,
    temporal_difference: bool = True,
    standardise: bool = True,
    loss_weights: Mapping[str, float] | None = None,
    folder: Path | None = None,
    progress: bool = False,
) -> TrainedDetector:
    """Train the detector that `config` belongs to; every draw is seeded by the plan.

    Args:
        features: {id: (T, D)} of training and validation videos.
        targets: {id: 0 or 1}; for the anomaly scorer {id: (T,) in {0, 1}}. With labels all 0, MemTSM-Net learns to rebuild
            only (one-class) and the epoch with the lowest validation loss is kept.
        val: ids of the validation videos, which choose the epoch; None trains on all videos and keeps the last epoch.
        config: the model's sizes; its type says which model.
        plan: epochs, learning rate, seed and the like.
        steps: length every training sequence is brought to; None takes whole videos (LSHMA).
        temporal_difference: read |x[t] - x[t - 1]| in place of the features.
        standardise: bring every channel to mean 0 and std 1 of the training videos; the released MemTSM code does not.
        loss_weights: weights of the anomaly scorer's loss parts, in place of `anomaly_scorer.LOSS_WEIGHTS`.
        folder: where the checkpoints of an unfinished training stay, so that it can be resumed.
        progress: show a progress bar.
    """
    training.seed_everything(plan.seed)
    fitted, *sets = preprocess_splits(
        features, targets, val, steps=steps, temporal_difference=temporal_difference, standardise=standardise
    )
    model = next(made for made, sizes in DETECTORS.values() if type(config) is sizes)(config)
    options = {} if loss_weights is None else {"loss_weights": loss_weights}
    network, objective = model.for_training(sets[0].labels, **options)
    curves = training.fit(network, objective, *sets, plan=plan, folder=folder, progress=progress)
    return TrainedDetector(model.eval(), fitted, curves)


def save(folder: str | Path, trained: TrainedDetector, **made_by: object) -> None:
    """Write what `load` reads: config.json, model.safetensors, made_by.json, and curves.json where there are curves."""
    name = next(name for name, (made, _) in DETECTORS.items() if type(trained.model) is made)
    for left in ("scores.json", "made_by.json"):  # of the model that was here: a kill from here on leaves no stale result
        (Path(folder) / left).unlink(missing_ok=True)
    config = {"detector": name, "sizes": asdict(trained.model.settings), "preprocessing": asdict(trained.preprocessing)}
    if trained.curves is not None:
        artifacts.write_json(Path(folder) / "curves.json", trained.curves.to_dict("list"))
    checkpoints.save_model(Path(folder), trained.model, config, **made_by)
    shutil.rmtree(Path(folder) / "unfinished", ignore_errors=True)


@artifacts.reader()
def load(folder: str | Path, kind: type[Model] | None = None, *, device: str = "auto") -> TrainedDetector:
    """Return a saved detector in eval mode, on a device (see `devices.choose`).

    StoreError for anything else, and for another model than `kind`, where given.
    """
    folder = Path(folder)
    trained = untrained(folder)
    if kind is not None and type(trained.model) is not kind:
        raise artifacts.StoreError(f"{folder} holds {type(trained.model).__name__}, not {kind.__name__}")
    path = folder / "model.safetensors"
    checkpoints.load_strictly(trained.model, checkpoints.load_weights(path), path)
    curves = folder / "curves.json"
    with artifacts.reading(curves):
        table = pd.DataFrame(artifacts.read_json(curves, dict) if curves.exists() else {})
    return TrainedDetector(trained.model.to(devices.choose(device)).eval(), trained.preprocessing, table)


@artifacts.reader()
def untrained(folder: str | Path) -> TrainedDetector:
    """Return a saved detector's model with random weights, and its preprocessing: what its config.json says."""
    config = artifacts.read_json(Path(folder) / "config.json")
    try:
        made, sizes = DETECTORS[config["detector"]]
        chosen = sizes(**config["sizes"])
        _check_sizes(made, chosen)
        return TrainedDetector(made(chosen).eval(), Preprocessing(**config["preprocessing"]), pd.DataFrame())
    except Exception as error:  # sizes of other types fail in the layers they reach
        raise artifacts.StoreError(
            f"{folder}/config.json is not of a trained detector: {artifacts.one_line(repr(error), 160)}"
        ) from error


def _check_sizes(made: type[Model], chosen: Config) -> None:
    """Raise ValueError for numbers that are none, and for a model or a state that would fill the memory, before it is built."""
    numbers = {name: value for name, value in asdict(chosen).items() if isinstance(value, int | float)}
    held = math.prod(max(1, numbers.get(name, 1)) for name in ("layers", "memory", "window", "slots", "width"))
    if not all(map(math.isfinite, numbers.values())) or numbers.get("layers", 1) > 100 or held > MOST_NUMBERS:
        raise ValueError(f"sizes that no detector has: {numbers}")
    with torch.device("meta"):
        if (count := sum(value.numel() for value in made(chosen).parameters())) > MOST_NUMBERS:
            raise ValueError(f"a model of {count:,} numbers")


@artifacts.reader()
def features_of(folder: str | Path) -> dict:
    """Return what a trained detector's made_by.json says of its features, {} where it says nothing."""
    facts = artifacts.read_json(Path(folder) / "made_by.json", dict).get("facts")
    features = facts.get("features") if isinstance(facts, dict) else None
    features = features if isinstance(features, dict) else {}
    for name, most in LARGEST.items():
        if name in features and not (type(features[name]) is int and 0 < features[name] <= most):
            raise artifacts.StoreError(f"{folder}: {name} of its features must be 1 to {most:,}, got {features[name]!r:.40}")
    return features
