"""Vision-language models with their processors: load from a folder or the hub, save as one folder.

- only the native transformers classes of InternVL (the `-hf` checkpoints of 2.5, 3 and 3.5), Qwen2.5-VL and Qwen3-VL; code that
  comes with weights never runs, and InternVL2-2B or HolmesVAU-2B is converted once (`holmesvau.convert`)
- every tensor of a folder is used and every one of the model is there, or nothing is loaded
- a compressed model is loaded from the folder that `compression.pruning.save` wrote, and its kind says so
- Qwen2.5-VL reads text behind a video at the positions it was trained with, where transformers 5.3 to 5.23 lay it among the frames
- a folder written by `save` holds made_by.json: the model's name, what its answers are worth, and the question it was tuned on
"""

import functools
import hashlib
import inspect
import itertools
import os
import shutil
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

from vau_lib.compression import pruning
from vau_lib.workspace import artifacts, formats, leftovers

FAMILIES = ("internvl", "qwen2_5_vl")  # there are tiny models of these
FINGERPRINT_VALUES = 16  # of each tensor
LOADED = (*FAMILIES, "qwen3_vl")  # with token pruning, but not reinforced so


@dataclass(frozen=True)
class VLM:
    """A loaded model with its processor; `kind` says what its answers are worth, "" for real weights.

    `question` is how a judgement was asked for in its tuning, "" for a model that was tuned on no judgements; `num_frames` is how
    many frames a question showed then, 0 where that varied or is unknown.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    family: str
    name: str
    kind: str = ""
    question: str = ""
    num_frames: int = 0

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def label(self) -> str:
        """Name and kind, to print beside an answer."""
        return f"{self.name} ({self.kind})" if self.kind else self.name

    @property
    def context_length(self) -> int:
        """Tokens the language model was made for."""
        return self.model.config.get_text_config().max_position_embeddings

    @property
    def visual_token_ids(self) -> list[int]:
        """Ids that stand for images and videos in a prompt."""
        ids = {getattr(self.processor, name, None) for name in ("image_token_id", "video_token_id")}
        return sorted(ids - {None})

    def replace(self, **changes) -> "VLM":
        """Return a copy with another model, kind or name."""
        return replace(self, **changes)


RELEASED = "internvl_chat"  # the type of InternVL2-2B and HolmesVAU-2B, which come with code of their own
CONVERT = "{} is an internvl_chat, which comes with code of its own: run `vau convert holmesvau {} OUT` once, and take OUT"


@artifacts.reader()
def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "auto",
    attention: str = "auto",
    bits: int | None = None,
    revision: str | None = None,
    local_only: bool = False,
) -> VLM:
    """Load a model and its processor from a folder or the hub, in evaluation mode.

    Args:
        name_or_path: a folder with config.json, weights and processor files, or a name on the hub.
        dtype: "auto" is bfloat16 on an accelerator and float32 on the CPU.
        device: "auto" spreads the model over the accelerators there are; under a launcher (torchrun, accelerate) each process has a
            whole model on its own.
        attention: "auto" is FlashAttention where it is installed, else torch's own (SDPA).
        bits: 4 or 8 quantises with bitsandbytes; None does not.
        revision: the commit of the hub's repository.
        local_only: never ask the hub.

    Raises StoreError where weights are missing or of another family, ValueError for what cannot run here.
    """
    if not Path(name_or_path).exists() and Path(name_or_path).parent.is_dir():
        leftovers.sweep(os.fspath(Path(name_or_path).parent))  # a kill may have taken its name
    source = dict(trust_remote_code=False, revision=revision, local_files_only=local_only)
    config = _config(name_or_path, source)
    family = config.model_type
    if family not in LOADED:
        raise artifacts.StoreError(f"{name_or_path} is a {family}, need one of {', '.join(LOADED)}")
    options = _options(dtype, device, attention, bits)
    if (Path(name_or_path) / "generation_config.json").is_file():  # transformers would take its defaults, and other end tokens
        artifacts.read_json(Path(name_or_path) / "generation_config.json", dict)
    compressed = (Path(name_or_path) / "compression.json").is_file()
    try:
        if compressed:
            model, report = _load_compressed(Path(name_or_path), options), {}
        else:
            with formats.building(name_or_path):  # a tensor of another shape is named by the report, not by this call
                model, report = AutoModelForImageTextToText.from_pretrained(
                    name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **options, **source
                )
        processor = AutoProcessor.from_pretrained(name_or_path, **source)
    except artifacts.StoreError:
        raise
    except Exception as error:  # also safetensors' own error of a file cut short, a pickle that is refused
        raise artifacts.StoreError(f"{name_or_path} cannot be loaded: {artifacts.one_line(error)}") from error
    model = model.eval()
    if misfit := loading_problem(report):
        raise artifacts.StoreError(f"{name_or_path} does not fit its config.json: {misfit}")
    facts = _made_by(Path(name_or_path))
    kind = facts.get("kind", "compressed, of unknown origin" if compressed else "")
    if compressed:
        kind = _with("compressed", kind)
    if untrained(model):
        kind = _with("random weights", kind)
    if family == "qwen2_5_vl" and not kind.startswith("toy"):  # the toys were trained with the library's
        _text_behind_video(model.model)
    name, tuning = facts.get("name", Path(name_or_path).name), (facts.get("question", ""), facts.get("num_frames", 0))
    return VLM(model, processor, family, name, kind, *tuning)


def _text_behind_video(core: nn.Module) -> None:
    """Let what follows a picture or a video begin one behind its greatest position, as Qwen2.5-VL was trained.

    transformers 5.3.0 to 5.23.0 begin behind the longer side of its grid: of a video with more moments than that (seven seconds
    of 14 x 14 tokens, two positions a second), question and answer lie among the frames. Source: Qwen's
    `get_rope_index` as first published (huggingface/transformers#35569); #45381 there shows 5.2.0 and 5.3.0 side by side.
    """
    library = type(core).get_rope_index

    @functools.wraps(library)
    def get_rope_index(self, *args, **options):
        positions, _ = library(self, *args, **options)
        given = inspect.signature(library).bind(self, *args, **options).arguments
        mask, ends = given.get("attention_mask"), []
        for row, kinds in enumerate(given["mm_token_type_ids"]):
            places = torch.arange(len(kinds), device=kinds.device) if mask is None else mask[row].nonzero()[:, 0]
            kinds, own, end = kinds[places], positions[:, row, places], 0
            edges = [0, *(kinds.diff().nonzero()[:, 0] + 1).tolist(), len(kinds)]  # runs of text, of a picture, of a video
            for first, last in itertools.pairwise(edges):
                own[:, first:last] += end - own[:, first:last].min()
                end = int(own[:, first:last].max()) + 1
            positions[:, row, places] = own
            ends.append(end - len(kinds))
        return positions, torch.tensor(ends, device=positions.device)[:, None]

    core.get_rope_index = types.MethodType(get_rope_index, core)


def _made_by(folder: Path) -> dict:
    path = folder / "made_by.json"
    facts = artifacts.read_json(path, dict) if path.is_file() else {}
    if not all(isinstance(facts.get(key, ""), str) for key in ("name", "kind", "question")):
        raise artifacts.StoreError(f"{path} does not say name and kind of a model")
    return facts


def _with(word: str, kind: str) -> str:
    return kind if word in kind else ", ".join(part for part in (kind, word) if part)


def untrained(model: nn.Module) -> bool:
    """Return whether every normalisation still has the weights 1 it began with: nobody trained more than an adapter of it."""
    scales = [part for name, part in model.named_parameters() if "norm" in name and name.endswith("weight") and part.ndim == 1]
    return bool(scales) and not any(part.is_meta for part in scales) and all(bool((part == 1).all()) for part in scales)


def _load_compressed(folder: Path, options: dict) -> PreTrainedModel:
    """Return what `pruning.save` wrote, in the number format and on the device of `options`."""
    if "quantization_config" in options:
        raise artifacts.StoreError(f"{folder} is compressed; bits are for models that are not")
    model = pruning.load(folder)
    for part in model.parameters():  # not `.to`: tables of frequencies stay float32
        part.data = part.data.to(options["dtype"])
    if device := options.get("device_map"):
        model = model.to("cuda" if device == "auto" else device[""] if isinstance(device, dict) else device)
    return model


def loading_problem(report: Mapping) -> str:
    """Return in one line what transformers' loading report says does not fit, "" where every tensor does."""
    kinds = {
        "missing_keys": "lacks",
        "mismatched_keys": "has other shapes of",
        "unexpected_keys": "has unknown",
        "error_msgs": "fails:",
    }
    problems = []
    for kind, word in kinds.items():
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in report.get(kind) or ())
        if names:
            problems.append(f"it {word} {len(names)} tensors, the first is {artifacts.one_line(names[0], 120)}")
    return "; ".join(problems)


def _config(name_or_path, source: dict):
    path = Path(name_or_path)
    is_folder = path.is_absolute() or str(name_or_path).startswith(".") or path.is_dir()
    if is_folder and not (path / "config.json").is_file():
        raise artifacts.StoreError(f"no model at {name_or_path}: a folder with config.json, weights and processor files is needed")
    try:
        return AutoConfig.from_pretrained(name_or_path, **source)
    except ValueError as error:
        content = artifacts.read_json(path / "config.json") if path.is_dir() else {}
        model_type = content.get("model_type") if isinstance(content, Mapping) else None
        if model_type == RELEASED or "trust_remote_code" in str(error):
            raise artifacts.StoreError(CONVERT.format(name_or_path, name_or_path)) from error
        raise artifacts.StoreError(f"{name_or_path} has no readable config.json: {artifacts.one_line(error)}") from error
    except OSError as error:
        why = "no such folder, and no name of a hub" if "Repo id must be" in str(error) else artifacts.one_line(error)
        raise artifacts.StoreError(f"no model {name_or_path} here or on the hub: {why}") from error
    except Exception as error:  # a config whose values are of other types: each class fails in its own way
        raise artifacts.StoreError(f"{name_or_path} has no readable config.json: {artifacts.one_line(error)}") from error


def _options(dtype, device: str, attention: str, bits: int | None) -> dict:
    cuda = torch.cuda.is_available()
    if attention == "auto":
        attention = "flash_attention_2" if cuda and is_flash_attn_2_available() else "sdpa"
    if dtype == "auto":
        dtype = torch.bfloat16 if cuda else torch.float32
    options = dict(dtype=dtype, attn_implementation=attention)
    rank = os.environ.get("LOCAL_RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    if device == "auto" and cuda and rank is not None:
        options["device_map"] = {"": int(rank)}  # spread over all, several processes would share and split every one
    elif device != "auto" or cuda:
        options["device_map"] = device
    if bits is not None:
        if bits not in (4, 8):
            raise ValueError(f"bits must be 4, 8 or None, got {bits}")
        if not is_bitsandbytes_available():
            raise ValueError(f"bits={bits} needs the package bitsandbytes, which is not installed: pip install -e '.[bits]'")
        if not cuda and "cpu" not in _quantised_on():
            raise ValueError(f"bits={bits} needs a CUDA device, there is none here")
        four = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True)
        options["quantization_config"] = BitsAndBytesConfig(**(four if bits == 4 else dict(load_in_8bit=True)))
    return options


def _quantised_on() -> set[str]:
    """Return the kinds of devices that the installed bitsandbytes quantises on; old ones say nothing and need CUDA."""
    import bitsandbytes  # an extra, slow to import

    return set(getattr(bitsandbytes, "supported_torch_devices", ()))


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's tensors: names, shapes and some values of each, so that another training has another."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        if value.numel() and not value.is_meta:
            some = value.detach().flatten()[:: max(1, value.numel() // FINGERPRINT_VALUES)]
            plain = some.to(torch.bfloat16)  # alike on every device and in every dtype
            digest.update(plain.view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save(vlm: VLM, folder: str | Path, **facts: object) -> Path:
    """Write model, processor and made_by.json (with `facts`) as one folder that `load` reads, whole or not at all.

    ValueError where the folder exists and holds something else.
    """
    compressed = pruning.is_compressed(vlm.model)
    kind = _with("compressed", vlm.kind) if compressed else vlm.kind
    with artifacts.writing(folder), new_folder(folder) as scratch:
        if compressed:
            pruning.save(vlm.model, scratch, processor=vlm.processor)
        else:
            vlm.model.save_pretrained(scratch)
            vlm.processor.save_pretrained(scratch)
        facts = dict(name=vlm.name, kind=kind, family=vlm.family, question=vlm.question) | facts
        artifacts.write_made_by(scratch, **facts)
    return Path(folder)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a scratch folder beside `folder`; on success it takes its place in one step, with made_by.json in it.

    ValueError where the folder exists and holds something else than a model that was written so; StoreError where it cannot be
    written, by its own name: the scratch folder's means nothing to anybody.
    """
    folder = Path(folder)
    check_free(folder)
    try:
        scratch = leftovers.folder_beside(folder)
    except OSError as error:
        raise artifacts.StoreError(f"cannot write {folder}: {error.strerror}") from error
    try:
        yield scratch
        _default_modes(scratch)
        if not folder.exists():
            os.replace(scratch, folder)
            return
        old = leftovers.folder_beside(folder, "old")
        try:
            os.replace(folder, old / folder.name)
            os.replace(scratch, folder)
        except BaseException:
            if not folder.exists():
                os.replace(old / folder.name, folder)  # the model before stays where the new one cannot stand
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:  # a disk that is full, a folder that is a mount or filled meanwhile
        if f".{folder.name}-" not in f"{error.filename} {error.filename2}":
            raise
        raise artifacts.StoreError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_free(folder: str | Path) -> None:
    """Raise ValueError unless a model may be written to `folder`: it is not there, is empty, or holds a model that `save` wrote."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder to write")
    if not folder.exists() or not any(folder.iterdir()):
        return
    made_by = folder / "made_by.json"
    facts = artifacts.read_json(made_by, dict) if made_by.is_file() else {"made by": "somebody"}
    if facts and "family" not in facts:  # features and detectors have a made_by.json as well
        raise ValueError(f"{folder} exists and holds something else than a model written here: name another folder, or empty it")


def _default_modes(folder: Path) -> None:
    """Give a temporary folder and its files the modes that new files have."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)
