"""Tasks, metrics and loading: metrics by their definitions, the official layout, errors that name the place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

from increlora.errors import ConfigError, IncreLoraError
from increlora.glue import metrics
from increlora.glue.data import Data
from increlora.glue.loading import Examples, TaskData, load_task
from increlora.glue.tasks import TASKS

RANDOM = np.random.default_rng(0)
PAPER = ["mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"]


def score(task: str, predictions: Any, references: Any) -> dict[str, float]:
    return metrics.compute(task, {"validation": list(predictions)}, {"validation": list(references)})


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.8, 1.0])
def test_classification_metrics_are_those_of_scikit_learn(share: float, right: float) -> None:
    """Also where a class is absent from labels, predictions or both."""
    two = (RANDOM.random(300) < share).astype(int)
    for task, gold, classes in (("qqp", two, 2), ("cola", two, 2), ("mnli", RANDOM.integers(3, size=300), 3)):
        guess = np.where(RANDOM.random(300) < right, gold, (gold + 1) % classes)
        found = metrics.of_split(task, guess.tolist(), gold.tolist())
        wanted = {
            "accuracy": sklearn.metrics.accuracy_score(gold, guess),
            "f1": sklearn.metrics.f1_score(gold, guess, zero_division=0.0) if classes == 2 else None,
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(gold, guess),
        }
        assert set(found) == set(TASKS[task].measures)
        assert found == pytest.approx({name: wanted[name] for name in found}, abs=1e-12)


def test_correlations_are_those_of_scipy_with_and_without_ties() -> None:
    gold = np.round(RANDOM.random(200) * 5, 1)
    for guess in (gold + RANDOM.normal(size=200), np.round(gold + RANDOM.normal(size=200)), -gold):
        result = score("stsb", guess, gold)
        assert result["pearson"] == pytest.approx(stats.pearsonr(guess, gold).statistic, abs=1e-12)
        assert result["spearmanr"] == pytest.approx(stats.spearmanr(guess, gold).statistic, abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_and_the_direct_way_give_the_same_bits(task: str) -> None:
    spec = TASKS[task]
    draw = RANDOM.normal if spec.is_regression else lambda size: RANDOM.integers(spec.num_labels, size=size)
    guess, gold = ({split: draw(size=50).tolist() for split in spec.eval_splits} for _ in range(2))
    assert metrics.compute(task, guess, gold) == metrics.recompute(task, guess, gold)
    assert list(metrics.compute(task, guess, gold)) == list(spec.metrics)


def write_pairs(folder: Path, task: str, firsts: list[str]) -> None:
    """A folder in the Hub's layout: one task, whose training and validation split have the same two pairs."""
    import datasets

    rows = {"sentence1": firsts, "sentence2": ["c", "d"], "label": [0, 1], "idx": [0, 1]}
    (folder / task).mkdir(exist_ok=True)
    header = f"---\nconfigs:\n- config_name: {task}\n  data_files:\n"
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(folder / task / f"{split}.parquet")
        header += f"  - split: {split}\n    path: {task}/{split}.parquet\n"
    (folder / "README.md").write_text(f"{header}---\n")


def test_a_ninth_task_is_an_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its data load, its metrics come out under its own headings, and the paper's eight stay the paper's eight."""
    wnli = replace(TASKS["rte"], name="wnli", title="WNLI", labels=("no", "yes"), in_all=False, generator=None)
    monkeypatch.setitem(TASKS, "wnli", wnli)
    write_pairs(tmp_path, "wnli", ["a", "b"])
    assert len(load_task("wnli", Data(source="local", path=str(tmp_path))).train) == 2
    assert metrics.recompute("wnli", {"validation": [1, 1]}, {"validation": [0, 1]}) == {"accuracy": 0.5}
    assert [name for name, task in TASKS.items() if task.in_all] == PAPER
    with pytest.raises(ConfigError, match="wnli' is not in the built-in corpus"):
        load_task("wnli", Data(source="builtin"))


def test_constant_predictions() -> None:
    assert score("cola", [1] * 6, [0, 1, 1, 0, 1, 1]) == {"matthews_correlation": 0.0}
    assert score("mrpc", [0] * 4, [0, 1, 1, 0]) == {"accuracy": 0.5, "f1": 0.0}
    assert score("stsb", [2.0] * 4, [0.0, 1.0, 2.0, 3.0]) == {"pearson": 0.0, "spearmanr": 0.0}


def test_mnli_has_both_splits() -> None:
    result = metrics.compute(
        "mnli",
        {"validation_matched": [0, 1, 2, 0], "validation_mismatched": [0, 0]},
        {"validation_matched": [0, 1, 2, 1], "validation_mismatched": [0, 1]},
    )
    assert result == {"accuracy": 0.75, "accuracy_mm": 0.5}
    assert TASKS["mnli"].column_scores(result) == {"m": 75.0, "mm": 50.0}
    assert TASKS["mnli"].score(result) == 62.5


def test_scores_are_the_papers() -> None:
    assert TASKS["qqp"].score({"accuracy": 0.9, "f1": 0.8}) == pytest.approx(85.0)
    assert TASKS["mrpc"].score({"accuracy": 0.9, "f1": 0.8}) == pytest.approx(90.0)
    assert TASKS["stsb"].score({"pearson": 0.9, "spearmanr": 0.8}) == pytest.approx(85.0)
    assert list(TASKS) == PAPER
    assert all(task.in_all for task in TASKS.values())


def test_baseline_is_the_best_constant() -> None:
    assert metrics.baseline("rte", {"validation": [0, 0, 1]}) == pytest.approx(200 / 3)
    assert metrics.baseline("stsb", {"validation": [0.0, 5.0]}) == 0.0
    # always "duplicate": accuracy 2/3, F1 4/5
    assert metrics.baseline("qqp", {"validation": [0, 1, 1]}) == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)


@pytest.mark.parametrize("task", TASKS)
def test_builtin_corpus_loads_like_a_folder_of_parquet_files(task: str, glue_folder: Path) -> None:
    limits = {"train_rows": 40, "eval_rows": 20, "test_rows": 30}
    built = load_task(task, Data(source="builtin", **limits))
    read = load_task(task, Data(source="local", path=str(glue_folder), **limits))
    assert read.train.texts == built.train.texts
    assert read.train.labels == pytest.approx(built.train.labels)  # GLUE keeps STS-B's scores as float32
    assert tuple(read.evaluation) == tuple(built.evaluation) == tuple(built.test) == TASKS[task].eval_splits
    assert all(len(examples) == 20 for examples in read.evaluation.values())
    assert all(len(examples) == 30 for examples in built.test.values())
    assert not read.test, "the labels of GLUE's own test splits are not public"


def pairs(*parts: Examples) -> set[tuple[str, ...]]:
    """The texts of examples, row by row."""
    return {row for part in parts for row in zip(*part.texts, strict=True)}


def test_every_draw_of_the_corpus_is_another_one() -> None:
    draws = [
        load_task("rte", Data(source="builtin", seed=seed, train_rows=50, eval_rows=50, test_rows=50))
        for seed in (0, 1)
    ]
    assert draws[0].fingerprint != draws[1].fingerprint
    for part in ("evaluation", "test"):
        first, second = (pairs(getattr(data, part)["validation"]) for data in draws)
        assert len(first & second) < 5
    again = load_task("rte", Data(source="builtin", train_rows=50, eval_rows=50, test_rows=50))
    assert again.fingerprint == draws[0].fingerprint, "0 where none is given"


@pytest.mark.parametrize("source", ["builtin", "local"])
@pytest.mark.parametrize("task", ["rte", "mnli"])
def test_the_held_out_fifth_is_never_trained_on(task: str, source: str, glue_folder: Path) -> None:
    """Whatever the limits: what is held out at one of them is in training at none."""

    def load(**limits: int) -> TaskData:
        place = {"path": str(glue_folder)} if source == "local" else {}
        return load_task(task, Data(source=source, evaluate_on="held_out", **place, **limits))

    whole = load()
    splits = TASKS[task].eval_splits
    sizes = [len(part) for part in whole.evaluation.values()]
    assert tuple(whole.evaluation) == splits and not whole.test
    assert (len(whole.train), sizes) == (960, [240 // len(splits)] * len(splits))
    held = pairs(*whole.evaluation.values())
    assert len(held) + len(pairs(whole.train)) == 1200, "nothing twice, and nothing lost"
    if source == "builtin":
        assert held | pairs(whole.train) == pairs(load_task(task, Data(source="builtin")).train)
    for limits in ({"train_rows": 400}, {"eval_rows": 17}, {"train_rows": 701, "eval_rows": 40}):
        data = load(**limits)
        assert pairs(*data.evaluation.values()) <= held
        assert pairs(data.train) <= pairs(whole.train)
        assert len(data.train) <= limits.get("train_rows", 960)
        assert all(len(part) <= limits.get("eval_rows", 240) for part in data.evaluation.values())
        assert data.train.texts[0] == whole.train.texts[0][: len(data.train)]


def test_too_few_rows_to_hold_a_fifth_out() -> None:
    with pytest.raises(IncreLoraError, match="data of mnli: 9 training examples are too few to hold a fifth out"):
        load_task("mnli", Data(source="builtin", evaluate_on="held_out", train_rows=9))


def test_a_folder_is_read_as_it_is_now(tmp_path: Path) -> None:
    found = []
    for firsts in (["a", "b"], ["b", "a"]):
        write_pairs(tmp_path, "rte", firsts)
        found.append(load_task("rte", Data(source="local", path=str(tmp_path))).fingerprint)
    assert found[0] != found[1]


def test_hub_name_is_resolved_like_a_folder(glue_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`source: hub` hands the name to `load_dataset`; a folder in the Hub's layout stands in for the Hub."""
    import datasets

    asked = []
    load = datasets.load_dataset

    def from_hub(name: str, config: str, revision: str | None) -> Any:
        asked.append((name, config, revision))
        return load(str(glue_folder), config)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    data = load_task("rte", Data(source="hub", name="nyu-mll/glue", revision="v1", train_rows=5, eval_rows=5))
    assert asked == [("nyu-mll/glue", "rte", "v1")]
    assert len(data.train) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 2}, r"split train, row 1: label is 2; allowed: 0 to 1"),
        ({"label": -1}, r"row 1: label is -1"),
        ({"sentence1": 3}, r"row 1: sentence1 is 3, not a text"),
        ({"sentence2": None}, r"row 1: sentence2 is None"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0}
    rows = {"train": [good, {**good, **row}], "validation": [good]}
    monkeypatch.setattr("increlora.glue.corpus.generate", lambda *_, **__: rows)
    with pytest.raises(IncreLoraError, match=message):
        load_task("rte", Data(source="builtin"))


def test_an_empty_text_is_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """QQP's training split has two."""
    good = {"question1": "a", "question2": "b", "label": 0}
    rows = {"train": [good, {**good, "question2": ""}], "validation": [good], "test": [good]}
    monkeypatch.setattr("increlora.glue.corpus.generate", lambda *_, **__: rows)
    assert load_task("qqp", Data(source="builtin")).train.texts[1] == ["b", ""]


def test_missing_column_and_split_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"sentence1": "a", "sentence2": "b", "label": 0}
    monkeypatch.setattr("increlora.glue.corpus.generate", lambda *_, **__: {"train": [good]})
    with pytest.raises(IncreLoraError, match="split 'validation' is missing"):
        load_task("rte", Data(source="builtin"))
    short = {"sentence1": "a", "label": 0}
    monkeypatch.setattr("increlora.glue.corpus.generate", lambda *_, **__: {"train": [short], "validation": [short]})
    with pytest.raises(IncreLoraError, match="column 'sentence2' is missing"):
        load_task("rte", Data(source="builtin"))
