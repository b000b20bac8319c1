"""Answers become labels honestly, scores reproduce the published rows, and each row knows which clips it is over."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from vau_lib.data import answer_parsing, smarthome
from vau_lib.data.smarthome import Clip, Responses, SmartHomeError
from vau_lib.evaluation import smarthome_bench, smarthome_prompts

CLIPS = [
    Clip("a", "Normal", ("Security",), url="https://x/a", alias="old_a"),
    Clip("b", "Abnormal", ("Security", "Wildlife"), url="https://x/b", alias="old_b"),
    Clip("c", "Vague Abnormal", ("Wildlife",), url="privacy url", alias="old_c"),
    Clip("d", "Normal", ("Wildlife",), url="https://x/d", alias="old_d"),
]
YES, NO = '{"anomaly": 1}', '{"anomaly": 0}'
BENCH = "annotations/smarthome_bench"


def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def bench(real_data):
    return smarthome.read_benchmark(real_data / BENCH)


def vila(real_data, method):
    return smarthome.read_responses(real_data / BENCH / f"responses_vila-13b_{method}.json", name="VILA-13b")


def test_an_unreadable_answer_is_the_wrong_class_and_counted():
    found = smarthome_bench.evaluate({"a": NO, "b": YES, "c": "no idea", "d": "no idea"}, CLIPS)
    assert (found["n"], found["unparsed"], found["accuracy"]) == (4, 2, 50.0)
    assert (found["tn"], found["fp"], found["fn"], found["tp"]) == (1, 1, 1, 1)


def test_rates_are_scikit_learns():
    truth, said = rng().integers(0, 2, 200), np.random.default_rng(1).integers(0, 2, 200)
    found = smarthome_bench.rates(np.array(reference.confusion_matrix(truth, said)).ravel())
    wanted = {
        "accuracy": 100 * reference.accuracy_score(truth, said),
        "precision": 100 * reference.precision_score(truth, said),
        "recall": 100 * reference.recall_score(truth, said),
        "f1": 100 * reference.f1_score(truth, said),
        "specificity": 100 * reference.recall_score(truth, said, pos_label=0),
        "balanced_accuracy": 100 * reference.balanced_accuracy_score(truth, said),
        "mcc": reference.matthews_corrcoef(truth, said),
    }
    assert found == pytest.approx(wanted)


def test_a_clip_of_two_categories_counts_in_both():
    found = smarthome_bench.evaluate(dict.fromkeys("abcd", YES), CLIPS)["by_category"]
    assert {kind: part["n"] for kind, part in found.items()} == {"Security": 2, "Wildlife": 3}


def test_a_split_holds_its_clips_only():
    sizes = {name: smarthome_bench.evaluate(dict.fromkeys("abcd", YES), CLIPS, split=name)["n"] for name in smarthome_bench.SPLITS}
    assert sizes == {"all": 4, "public": 3, "no_vague": 3, "public_no_vague": 3}


def test_old_ids_are_the_same_clips():
    old = {f"old_{name}": text for name, text in zip("abcd", (NO, YES, YES, NO), strict=True)}
    assert smarthome_bench.evaluate(old, CLIPS)["accuracy"] == 100


def test_as_released_clips_without_an_answer_disappear_and_the_chain_reads_silence_as_normal():
    chain = Responses("chain", {"a": "?", "b": "?"}, style="trlc")
    found = smarthome_bench.evaluate(chain, CLIPS, as_released=True)
    assert (found["n"], found["missing"], found["tn"], found["fn"]) == (2, 2, 1, 1)


@pytest.mark.parametrize(
    "answers, said",
    [
        ({"a": NO}, "no answer for b \\(3 of 4"),
        (dict.fromkeys("abcdz", NO), "answers 'z', which is no clip"),
        (dict.fromkeys(["a", "b", "c", "d", "old_a"], NO), "answers a twice"),
        (Responses("file", dict.fromkeys("abcd", NO), truths={"a": 1}), "says a is 1, annotated Normal"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answers, said):
    with pytest.raises(SmartHomeError, match=said):
        smarthome_bench.evaluate(answers, CLIPS)


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "cannot read .*r.json"),
        (b"\xff\xfe\x00", "cannot read .*r.json"),
        (b"", "holds no responses"),
        (b'{"id": "a", "pred": "1"}\n{"id": "a", "pred": "0"}\n', "r.json has a more than once"),
        (b'{"id": "a", "pred": "1"}\n{"id": "b"}\n', "line 2 is not an object with id and pred: 'pred'"),
        (b'{"id": "a", "pred": "1"}\n{"id": ', "line 2 is not an object"),
        (b'[{"id": 3, "pred": "1"}]', "row 1 .* must be texts"),
    ],
)
def test_a_broken_response_file_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SmartHomeError, match=said) as refused:
        smarthome.read_responses(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ['[{"id": "a", "pred": "1"}]', '{"a": "1"}', '{"id": "a", "pred": "1"}'])
def test_three_layouts_of_response_files_read_alike_and_are_called_replayed(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    found = smarthome.read_responses(path, name="M")
    assert dict(found.answers) == {"a": "1"} and found.label == "replayed responses of M"


@pytest.mark.parametrize(
    "text, said",
    [
        ("Title,Label\na,Normal\n", "has no column Category"),
        ("Title,Category\na,Pet\n", "no rows with a column Anomaly Tag or Label"),
        ("Title,Category,Label\na,Pet,Odd\n", "line 2: tag must be one of Normal, .* got 'Odd'"),
        ("Title,Category,Label\na,Pet,Normal\na,Pet,Normal\n", "has a more than once"),
        ('Title,Category,Label\na,"{""choices"": ",Normal\n', "neither a list nor JSON choices"),
    ],
)
def test_a_broken_annotation_file_is_refused(tmp_path, text, said):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(SmartHomeError, match=said):
        smarthome.read_annotations(path)


def test_every_style_asks_for_a_label_that_can_be_read():
    for style in smarthome_prompts.PROMPTS.values():
        key = answer_parsing.KEYS.keys() & set(json.dumps(style.steps[-1].text).replace("\\", "").split('"'))
        assert key and "[[taxonomy]]" not in style.text, style.name


def test_the_taxonomy_is_in_the_prompt_of_the_style_that_needs_it():
    assert all(kind in smarthome_prompts.PROMPTS["icl"].text for kind in smarthome_prompts.TAXONOMY)
    assert "Senior Care" not in smarthome_prompts.PROMPTS["cot"].text


class Scripted:
    """A fake model that keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, video, prompt):
        self.asked.append((video, prompt))
        if "numbered rules" in prompt:
            return "1. A stranger at night is odd."
        return '{"updated_anomaly": 1}' if "Another reviewer" in prompt else '{"video_description": "[[rules]]", "anomaly": 0}'


def test_the_chain_asks_for_rules_once_and_reflects_without_the_video(tmp_path):
    model, path = Scripted(), tmp_path / "out.json"
    found = smarthome_bench.collect(
        model, {"a": "A", "b": "B"}, smarthome_prompts.PROMPTS["trlc"], name="fake", path=path, progress=False
    )
    assert [video for video, _ in model.asked] == [None, "A", None, "B", None]
    assert "A stranger at night" in model.asked[2][1] and '"anomaly": 0' in model.asked[2][1]
    assert "stranger at night" not in model.asked[1][1]  # the first guess does not know the rules
    assert '"[[rules]]"' in model.asked[2][1]  # what a model says is not filled in again
    assert answer_parsing.parse_verdict(found.answers["a"]) == 1 and not found.replayed
    assert smarthome.read_responses(path).answers == found.answers


def test_collecting_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "out.json"
    smarthome.write_responses(path, {"a": YES})
    model = Scripted()
    found = smarthome_bench.collect(
        model, {"a": 1, "b": 2}, smarthome_prompts.PROMPTS["cot"], name="fake", path=path, progress=False
    )
    assert [video for video, _ in model.asked] == [2] and found.answers["a"] == YES


def test_prompts_can_come_from_a_file(tmp_path):
    path = tmp_path / "p.json"
    steps = [{"name": "first", "text": "Look."}, {"name": "second", "text": "So: [[first]]", "sees_video": False}]
    path.write_text(json.dumps({"short": "Odd?", "two": steps}))
    found = smarthome_prompts.read_prompts(path)
    assert found["short"].text == "Odd?"
    assert smarthome_prompts.ask(lambda video, prompt: f"<{prompt}>", "v", found["two"])["second"] == "<So: <Look.>>"


@pytest.mark.parametrize("content, said", [([], "an object of styles"), ({"x": [{"nme": 1}]}, "style 'x'"), ({"x": []}, "no step")])
def test_a_broken_prompt_file_is_refused(tmp_path, content, said):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        smarthome_prompts.read_prompts(path)


@pytest.mark.real
@pytest.mark.parametrize(
    "method, split, row",  # all: the paper's row; public: re-scored independently for the spec
    [
        ("few", "all", [67.17, 69.18, 70.57, 69.87]),
        ("0shot", "all", [46.05, 0, 0, 0]),
        ("few", "public", [68.23, 77.12, 70.54, 73.68]),
    ],
)
def test_released_responses_give_the_published_row(real_data, bench, method, split, row):
    found = smarthome_bench.evaluate(vila(real_data, method), bench, split=split)
    assert [round(found[name], 2) for name in ("accuracy", "precision", "recall", "f1")] == row
    assert found["unparsed"] == (13 if method == "few" else 0)


@pytest.mark.real
@pytest.mark.parametrize("split, row", [("all", [53.95, 53.95, 100, 70.09]), ("public", [63.05, 63.05, 100, 77.34])])
def test_always_abnormal_is_a_row_to_beat(bench, split, row):
    found = smarthome_bench.evaluate(smarthome_bench.constant(bench, 1), bench, split=split)
    assert [round(found[name], 2) for name in ("accuracy", "precision", "recall", "f1")] == row
    assert found["balanced_accuracy"] == 50


@pytest.mark.real
def test_the_benchmark_has_the_sizes_it_says(bench):
    tags = [clip.tag for clip in bench]
    assert [tags.count(tag) for tag in smarthome.TAGS] == [554, 558, 91]
    public = [clip.label for clip in bench if clip.public]
    assert (len(public), sum(public)) == (1023, 645)


@pytest.mark.real
def test_all_29_published_rows_fit_all_clips_and_memories_s0_only_the_public_ones(bench):
    assert len(smarthome_bench.PUBLISHED) == 29
    assert {smarthome_bench.measured_on(row, bench)[0] for row in smarthome_bench.PUBLISHED} == {"all"}
    assert smarthome_bench.measured_on(smarthome_bench.MEMORIES_S0, bench) == ("public, one clip missing", (171, 206, 87, 558))


@pytest.mark.real
def test_the_published_row_gets_the_scores_it_never_printed(bench):
    """45.4 % and 65.9 (63.1-68.8), F1 interval 76.8-81.5: computed independently for the spec by resampling videos."""
    row = smarthome_bench.published_rows(bench, rng=rng())[0]
    assert (row["n"], round(row["specificity"], 1), round(row["balanced_accuracy"], 1)) == (1022, 45.4, 65.9)
    ends = [row[name] for name in ("f1_low", "f1_high", "balanced_accuracy_low", "balanced_accuracy_high")]
    assert ends == pytest.approx([76.8, 81.5, 63.1, 68.8], abs=0.3)


@pytest.mark.real
def test_the_table_has_constants_and_shuffled_answers(real_data, bench):
    rows = smarthome_bench.table([vila(real_data, "few")], bench, rng=rng(), splits=["all", "public"], resamples=200)
    named = {(row["row"], row["split"]): row for row in rows}
    assert len(named) == 8
    assert abs(named["replayed responses of VILA-13b, shuffled", "all"]["balanced_accuracy"] - 50) < 2
    assert named["always abnormal", "public"]["f1"] > named["replayed responses of VILA-13b", "public"]["f1"]
