"""InternLM2's tokenizer (sentencepiece) as one of `tokenizers`, with InternVL's picture tokens and chat template.

- pieces, scores and the treatment of spaces come from tokenizer.model through sentencepiece, names of added tokens from
  tokenizer_config.json and added_tokens.json (they rename unused pieces, or follow the last one)
- what was made is compared with sentencepiece on texts of several scripts before it is handed out
Source: pipixin321/HolmesVAU, internvl_chat/internvl/model/internlm2/tokenization_internlm2.py and tokenization_internlm2_fast.py;
internvl/conversation.py:371-387 for the template `internlm2-chat`.
"""

from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from vau_lib.workspace import artifacts

SPACE = "▁"  # sentencepiece's sign of a space
ENDS = ("</s>", "<|im_start|>", "<|im_end|>")  # an answer ends at any; ids 2, 92543, 92542 of the release
PICTURE = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
UNUSED = "[UNUSED_TOKEN_"  # how InternLM2 names pieces that no text contains
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
TEMPLATE = (
    "{% if not messages or messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part['type'] == 'video' %}<video>\n{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROBES = (  # texts on which both must agree; spaces, lines, digits, scripts, bytes that no piece holds
    "Are there any anomaly events detected in the video?", "  Frame1 at 2.5s: \nFrame12: \n", SYSTEM, "user\nWhy?\n\nBecause.",
    "An anomaly exists, specifically, the anomaly is named \"Animal Abuse\".", "1234567.89 %", "\t{'anomaly': 1}\n",
    "a   b", "assistant\n", "Größe ñandú été", "видео: драка", "異常が検出された。", "한국어", "🙂🚨 x²",
)  # fmt: skip


@artifacts.reader()
def convert(folder: str | Path, *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a released folder; `vocab_size` is the number of the model's embeddings.

    StoreError in one line where tokenizer.model is missing, is none, or gives other ids than the result.
    """
    folder = Path(folder)
    pieces = _load(folder / "tokenizer.model")
    size = pieces.get_piece_size()
    added = _added(folder, size)
    names = [added.get(place, pieces.id_to_piece(place)) for place in range(size)]
    names += [added[place] for place in sorted(added) if place >= size]
    if added and max(added) != max(size, len(names)) - 1 and max(added) >= size:
        raise artifacts.StoreError(f"{folder}: added tokens leave ids out between {size} and {max(added)}")
    if len(names) > vocab_size:
        raise artifacts.StoreError(f"{folder}: {len(names)} tokens, the model has {vocab_size} embeddings")
    if len(set(names)) < len(names):
        raise artifacts.StoreError(f"{folder}: the tokenizer holds a token twice among {len(names)}")
    if absent := [token for token in (*PICTURE.values(), *ENDS) if token not in names]:
        raise artifacts.StoreError(f"{folder}: the tokenizer has no {absent[0]}")
    video = next((name for name in names[:size] if name.startswith(UNUSED)), PICTURE["context_image_token"])
    special = set(added) | {names.index(token) for token in (*PICTURE.values(), *ENDS)} | {0, 1, 2}
    misread = ""
    for model in (_byte_pairs, _unigrams):  # the file does not say through sentencepiece which of the two it is
        fast = PreTrainedTokenizerFast(
            tokenizer_object=_backend(model(pieces, names, special), pieces, names, special), bos_token="<s>",
            eos_token="<|im_end|>", unk_token="<unk>", pad_token="</s>", padding_side="left", clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"], extra_special_tokens=PICTURE | {"video_token": video},
            chat_template=TEMPLATE.replace("<video>", video),
        )  # fmt: skip
        difference = _difference(pieces, fast)
        if not difference:
            return fast
        misread = misread or difference
    raise artifacts.StoreError(f"{folder}: {misread}")


def _load(path: Path):
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ImportError("a tokenizer.model needs the package sentencepiece, which is not installed") from error
    if not path.is_file():
        raise artifacts.StoreError(f"no tokenizer.model in {path.parent}")
    try:
        pieces = SentencePieceProcessor(model_file=str(path))
        first = [pieces.id_to_piece(place) for place in range(3)]
    except (OSError, RuntimeError, IndexError) as error:
        raise artifacts.StoreError(f"{path} is no sentencepiece model: {artifacts.one_line(error, 120)}") from error
    if first != ["<unk>", "<s>", "</s>"]:
        raise artifacts.StoreError(f"{path} begins with {first}, InternLM2's with <unk>, <s>, </s>")
    return pieces


def _added(folder: Path, size: int) -> dict[int, str]:
    """Return {id: content} of added tokens; both files of the release are read and must agree."""
    added: dict[int, str] = {}
    path = folder / "tokenizer_config.json"
    config = artifacts.read_json(path) if path.is_file() else {}
    pairs = [(int(place), token) for place, token in (config.get("added_tokens_decoder") or {}).items()]
    if (folder / "added_tokens.json").is_file():
        pairs += [(int(place), token) for token, place in artifacts.read_json(folder / "added_tokens.json").items()]
    for place, token in pairs:
        content = token["content"] if isinstance(token, Mapping) else token
        if added.setdefault(place, content) != content:
            raise artifacts.StoreError(f"{folder}: id {place} is both {added[place]!r} and {content!r}")
    if len(set(added.values())) < len(added):
        raise artifacts.StoreError(f"{folder}: an added token has two ids")
    return added


def _byte_pairs(pieces, names: list[str], special: set[int]) -> BPE:
    size = pieces.get_piece_size()
    normal = {
        names[place]: pieces.get_score(place)
        for place in range(size)
        if place not in special
        and not (pieces.is_control(place) or pieces.is_unknown(place) or pieces.is_unused(place) or pieces.is_byte(place))
        and not names[place].startswith(UNUSED)
    }
    vocab = {name: place for place, name in enumerate(names)}
    return BPE(vocab, _merges(normal), unk_token="<unk>", fuse_unk=True, byte_fallback=_has_bytes(pieces))


def _unigrams(pieces, names: list[str], special: set[int]) -> Unigram:
    scores = [pieces.get_score(place) for place in range(pieces.get_piece_size())]
    scores += [0.0] * (len(names) - len(scores))
    return Unigram(list(zip(names, scores, strict=True)), unk_id=0, byte_fallback=_has_bytes(pieces))


def _has_bytes(pieces) -> bool:
    return any(pieces.is_byte(place) for place in range(pieces.get_piece_size()))


def _backend(model: BPE | Unigram, pieces, names: list[str], special: set[int]) -> Tokenizer:
    """Return a tokenizer that prepares text as the file says: seen in what sentencepiece makes of some texts."""
    tokenizer, prefixed = Tokenizer(model), pieces.normalize("a").startswith(SPACE)
    steps = [normalizers.Nmt()] if "\n" not in pieces.normalize("a\nb") else []
    if pieces.normalize("ｆ").endswith("f"):
        steps.append(normalizers.NFKC())
    if pieces.normalize("a  b").count(SPACE) == 1 + prefixed:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" +"), " ")]
    steps += [normalizers.Prepend(SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    tokenizer.add_special_tokens([AddedToken(names[place], normalized=False, special=True) for place in sorted(special)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", names.index("<s>"))]
    )
    return tokenizer


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the pairs that sentencepiece joins, first those whose result scores highest."""
    pairs = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                pairs.append((-score, cut, left, right))
    return [(left, right) for _, _, left, right in sorted(pairs)]


def _difference(pieces, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return in one line the first text that is not read as sentencepiece reads it, "" where there is none."""
    for text in PROBES:
        wanted, found = pieces.encode(text), tokenizer.encode(text, add_special_tokens=False)
        if wanted != found:
            return f"the converted tokenizer reads {text[:40]!r} as {found[:8]}, sentencepiece as {wanted[:8]}"
    return ""
