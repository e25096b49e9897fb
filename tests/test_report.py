"""The report from fake records of a small study: numbers, what is missing or went wrong, published values, bytes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from increlora.errors import ConfigError
from increlora.glue.tasks import TASKS
from increlora.report import figures, published, tables
from increlora.report.render import Column, Entry, Panel, Table, count, fixed, latex, latex_escape, markdown, terminal
from increlora.report.results import Results, rule_in_words, rule_note
from increlora.report.statistics import gini
from increlora.report.tables import show
from increlora.study import jobs
from increlora.study.cells import Cell
from increlora.study.config import Study
from increlora.study.load import load_study
from increlora.study.settings import all_runs, run_settings
from increlora.training.record import RULES, RecordError
from increlora.training.settings import RunSettings
from tests.report_helpers import PER_RANK, make_record, make_study, write
from tests.study_helpers import ROOT


def is_run(settings: RunSettings, task: str, method: str, budget: int | None, seed: int) -> bool:
    return (settings.task, settings.method, settings.budget, settings.seed) == (task, method, budget, seed)


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="module")
def records(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write(study, root)
    return root


@pytest.fixture(scope="module")
def results(study: Study, records: Path) -> Results:
    return Results(study, records)


def build_all(results: Results, out: Path) -> list[Path]:
    return [*tables.build(results, out), *figures.build(results, out)]


@pytest.fixture(scope="module")
def built(results: Results, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every file of the report, made once."""
    return build_all(results, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def out(built: list[Path]) -> Path:
    return built[0].parent


@pytest.fixture(scope="module")
def table1(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "fake_table1.csv")


def expected(study: Study, task: str, method: str, budget: int | None, keys: tuple[str, ...]) -> np.ndarray:
    """Values per seed straight from the records, in percent."""
    found = [
        make_record(run_settings(study, Cell(task, method, budget), seed))["score"]["history"][0]["metrics"]
        for seed in study.seeds
    ]
    return np.array([100 * np.mean([metrics[key] for key in keys]) for metrics in found])


# ---------------------------------------------------------------- records and frame


def test_frame_has_a_row_per_run_checkpoint_and_metric(study: Study, results: Results) -> None:
    data = results.frame
    assert len(data) == sum(len(RULES) * (len(TASKS[s.task].metrics) + 1) for s in all_runs(study))
    row = data[(data.task == "rte") & (data.method == "lora") & (data.budget == 2) & (data.metric == "accuracy")]
    assert row[row.checkpoint == "best"].value.tolist() == pytest.approx(
        expected(study, "rte", "lora", 2, ("accuracy",)).tolist()
    )
    assert row[row.checkpoint == "last"].value.tolist() == pytest.approx(
        (expected(study, "rte", "lora", 2, ("accuracy",)) - 1).tolist()
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: "{", "not a valid record"),
        (lambda record: json.dumps({**record, "cost": None}), "cost"),
        (lambda record: json.dumps({**record, "run": {**record["run"], "status": "fine"}}), "run.status"),
        (lambda record: json.dumps(make_record(run_settings(make_study(), Cell("rte", "lora", 2), 1))), "seed1"),
        (lambda record: json.dumps(record).replace('"accuracy": 0.', '"accuracy": 9.'), "metrics.accuracy is 9"),
    ],
)
def test_malformed_record_is_an_error_that_names_the_file(
    study: Study, tmp_path: Path, damage: Any, message: str
) -> None:
    settings = run_settings(study, Cell("rte", "lora", 2), 0)
    path = settings.record_path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(damage(make_record(settings)))
    with pytest.raises(RecordError, match=re.escape(message)) as error:
        Results(study, tmp_path)
    assert str(path) in str(error.value)


def test_stale_records_and_those_of_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(make_study(only=("table3", "training")), tmp_path)
    results = Results(make_study(only=("table3",), seeds=[0, 1], training={"learning_rate": 2e-3}), tmp_path)
    assert set(results.frame.seed) == {0, 1}
    assert set(results.frame.task) == {"sst2"}  # and not that of the training curves
    assert results.frame.stale.all()
    assert "10 records are of no run of the study and left out" in caplog.text
    assert "made with other settings" in show(results, "table3")


# ---------------------------------------------------------------- Table 1


def test_cells_equal_numpy(study: Study, table1: pd.DataFrame) -> None:
    for method, budget in (("lora", 2), ("increlora", 4), ("hadapter", 8)):
        for task, spec in TASKS.items():
            for column, keys in spec.columns.items():
                values = expected(study, task, method, budget, keys)
                row = table1[
                    (table1.method == method)
                    & (table1.budget == budget)
                    & (table1.task == task)
                    & (table1.column == column)
                ].iloc[0]
                assert row["mean"] == pytest.approx(values.mean(), abs=1e-4)
                assert row["sd"] == pytest.approx(values.std(ddof=1), abs=1e-4)
                assert (row["seeds"], row["seeds_expected"], row["status"]) == (3, 3, "complete")


def test_all_is_the_mean_of_eight(study: Study, table1: pd.DataFrame) -> None:
    per_task = [
        np.mean([expected(study, task, "lora", 2, keys) for keys in spec.columns.values()], axis=0)
        for task, spec in TASKS.items()
    ]
    row = table1[(table1.method == "lora") & (table1.budget == 2) & (table1.column == "All")].iloc[0]
    assert len(per_task) == 8
    assert row["mean"] == pytest.approx(np.mean(per_task), abs=1e-4)
    assert row["sd"] == pytest.approx(np.mean(per_task, axis=0).std(ddof=1), abs=1e-4)
    assert row["ci_low"] < row["mean"] < row["ci_high"]


def test_rows_are_grouped_by_budget(results: Results) -> None:
    measured, differences = tables.table1(results).panels
    assert [row[0].text for row in measured.rows][:3] == ["Full FT", "HAdapter (d = 32)", "LoRA (r = 4)"]
    assert measured.rules == {1, 4}
    assert [row[0].text for row in differences.rows][:2] == ["Full FT", "HAdapter (d = 32)"]
    assert differences.rules == {1, 3}


def test_bold_is_what_the_corrected_interval_sets_apart(tmp_path: Path) -> None:
    """At r = 2 IncreLoRA is 20 points above LoRA on every task, give or take one; all else differs by chance alone."""

    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any]:
        is_better = (settings.method, settings.budget) == ("increlora", 2)
        noise = np.random.default_rng([settings.seed, *map(ord, settings.label)]).normal(0, 0.01)
        return make_record(settings, 0.6 + 0.2 * is_better + noise)

    study = make_study(only=("table1",), seeds=range(5))
    write(study, tmp_path, change)
    table = tables.table1(Results(study, tmp_path))
    measured, differences = table.panels
    bold = {row[0].text: [entry.bold for entry in row] for row in measured.rows}
    assert {label for label, marks in bold.items() if any(marks)} == {"IncreLoRA (r = 2)"}
    assert bold["IncreLoRA (r = 2)"][-1]  # All
    rows = table.tidy[table.tidy["column"] == "difference"].set_index(["method", "budget", "task"])
    one = rows.loc[("increlora - lora", 2, "all")]
    assert one["params_ratio"] == 1.0
    assert one["p"] < one["p_corrected"] < 0.05
    assert 0 < one["corrected_low"] < one["ci_low"] < one["mean"] < one["ci_high"] < one["corrected_high"]
    assert one["visible"] < one["mean"]
    excludes = (rows["corrected_low"] > 0) | (rows["corrected_high"] < 0)
    assert (excludes == (rows["p_corrected"] <= 0.05)).all()
    assert not excludes[excludes.index.get_level_values("method") != "increlora - lora"].any()
    assert differences.rows[-1][-3].text.startswith("[+")


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    """Tables 1 to 3 on the paper's backbone and data."""
    artefacts = make_study().model_dump(mode="json", exclude_unset=True)["artefacts"]
    for row in artefacts["table1"]["rows"][2:]:
        row["budgets"] = [8, 2]
    study = make_study(published.BACKBONE, "hub", artefacts={**artefacts, "only": ("table1", "table2", "table3")})
    root = tmp_path_factory.mktemp("paper")
    write(study, root)
    return {table.name: table for table in tables.tables(Results(study, root))}


def test_published_values_only_on_their_rows(paper: dict[str, Table]) -> None:
    table1 = paper["fake_table1"].tidy

    def cell(method: str, budget: int | None, task: str, column: str = "Acc") -> str:
        rows = table1[(table1.method == method) & (table1.task == task) & (table1.column == column)]
        return rows[rows.budget.isna() if budget is None else rows.budget == budget].iloc[0]["published"]

    assert cell("lora", 8, "rte") == "85.20"
    assert cell("lora", 2, "rte") == "85.56"
    assert cell("hadapter", 8, "mrpc") == "89.25"
    assert cell("full_ft", None, "rte") == "83.75"  # what was read, not what was inferred
    assert cell("increlora", 2, "sst2") == "96.26"
    known = table1[(table1.method == "increlora") & table1.published.notna()]
    assert set(known.task) == {"sst2", "rte"}
    assert set(known.budget) == {2}
    assert table1.published_source[table1.published.notna()].str.len().min() > 10


def test_a_budget_that_the_paper_lacks_has_no_published_value(tmp_path: Path) -> None:
    """Nor does the larger of two stand for the paper's larger one."""
    rows = [{"method": "lora", "budgets": [16, 4]}, {"method": "increlora", "budgets": [16, 4]}]
    study = make_study(published.BACKBONE, "hub", artefacts={"table1": {"rows": rows, "tasks": ["rte"]}}, seeds=[0])
    write(study, tmp_path)
    assert tables.table1(Results(study, tmp_path)).tidy.published.isna().all()


def test_published_values_only_on_the_papers_backbone_and_data(paper: dict[str, Table], table1: pd.DataFrame) -> None:
    table = paper["fake_table1"]
    shown = table.tidy[table.tidy.minus_published.notna()]
    assert len(table.panels) == 4
    assert (shown["mean"] - shown.published.astype(float)).tolist() == pytest.approx(shown.minus_published.tolist())
    assert table1.published.isna().all()
    assert table1.minus_published.isna().all()
    assert published.why_not_comparable(make_study(published.BACKBONE, "builtin"))
    assert published.why_not_comparable(make_study("other", "hub"))
    for data, reason in (
        ({"eval_rows": 100}, "only a part"),
        ({"evaluate_on": "held_out"}, "held-out training rows"),
        ({"name": "someone/else"}, "the data are someone/else"),
    ):
        other = make_study(published.BACKBONE, data={"source": "hub", **data})
        assert reason in str(published.why_not_comparable(other))


def test_missing_partial_collapsed_and_diverged_are_said(study: Study, tmp_path: Path) -> None:
    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any] | None:
        if (settings.task, settings.method, settings.budget) == ("cola", "lora", 2):
            return None
        if is_run(settings, "rte", "lora", 2, 1):
            return None
        if is_run(settings, "mrpc", "lora", 2, 0):
            record = make_record(settings, 0.5)
            record["run"]["status"] = "collapsed"
        if is_run(settings, "qnli", "lora", 2, 2):
            record["run"]["status"] = "diverged"
            record["score"] |= {"history": [], "best_step": None, "test": None}
            record["score"] |= {"predictions": {}, "test_labels": {}, "test_predictions": {}}
        return record

    write(study, tmp_path, change)
    paths = tables.build(Results(study, tmp_path), tmp_path / "out")
    data = pd.read_csv(tmp_path / "out" / "fake_table1.csv")
    data = data[(data.method == "lora") & (data.budget == 2) & (data.column != "difference")]
    data = data[data.column.isin(["Acc", "Mcc", "All"])].set_index("task")
    assert data.loc["cola", "status"] == "missing"
    assert data["mean"].isna()["cola"]
    assert data.loc["all", "status"] == "missing"
    assert data.loc["rte", "status"] == "partial"
    assert "seed 1 no record" in str(data.loc["rte", "note"])
    values = expected(study, "mrpc", "lora", 2, ("accuracy",))
    assert data.loc["mrpc", "mean"] == pytest.approx(np.mean([50.0, *values[1:]]), abs=1e-4)
    assert data.loc["mrpc", "collapsed"] == 1
    assert (data.loc["qnli", "diverged"], data.loc["qnli", "seeds"]) == (1, 2)
    text = next(path for path in paths if path.name == "fake_table1.md").read_text()
    for said in (
        "Missing: LoRA (r = 2), CoLA.",
        "LoRA (r = 2), RTE: seed 1 no record.",
        "LoRA (r = 2), MRPC: seed 0 collapsed to constant predictions, score counted.",
        "LoRA (r = 2), QNLI: seed 2 diverged, no score.",
        "‡ a run collapsed",
    ):
        assert said in text


def test_notes_say_how_the_table_was_made(study: Study, records: Path, results: Results) -> None:
    notes = " ".join(tables.table1(results).notes)
    for said in (
        "Study fake",
        "tiny",
        "built-in",
        "Checkpoint: best",
        "preset paper",
        "Seeds: 0, 1, 2",
        "not comparable",
    ):
        assert said in notes
    last = make_study(report={"checkpoint": "last"})
    table = tables.table1(Results(last, records))
    assert "Checkpoint: last" in " ".join(table.notes)
    row = table.tidy[(table.tidy.method == "lora") & (table.tidy.budget == 2) & (table.tidy.task == "rte")].iloc[0]
    assert row["mean"] == pytest.approx(expected(study, "rte", "lora", 2, ("accuracy",)).mean() - 1)


def test_notes_are_about_the_rows_of_their_table(tmp_path: Path) -> None:
    methods = make_study().model_dump(mode="json", exclude_unset=True)["methods"]
    methods["sqrt"]["options"] = {"score_reduction": "sum_sqrt"}
    study = make_study(methods=methods)
    write(study, tmp_path)
    results = Results(study, tmp_path)
    said = {name: " ".join(tables.MADE_BY[name](results).notes) for name in ("table1", "table3", "cost", "variants")}
    assert {name: "authors' code" in notes for name, notes in said.items()} == {
        **{"table1": False, "table3": False, "cost": False, "variants": True}
    }


def test_checkpoints_chosen_on_training_rows_are_said_to_be() -> None:
    study = make_study(data={"source": "hub", "evaluate_on": "held_out"}, report={"checkpoint": "crossfit"})
    assert "chosen on one half of the held-out training rows" in rule_note(study)
    assert "the same held-out training rows, which" in rule_in_words(study, "best")
    assert "the same development rows as in the papers, which" in rule_in_words(make_study(), "best")


def test_a_ninth_task_adds_a_column_and_changes_no_other_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ninth = dataclasses.replace(TASKS["rte"], name="wnli", title="WNLI", in_all=False)
    monkeypatch.setitem(TASKS, "wnli", ninth)  # type: ignore[arg-type]
    rows = [{"method": "full_ft"}, {"method": "lora", "budgets": [8, 2]}]
    wanted = {"rows": rows, "tasks": list(TASKS)}
    nine = make_study(published.BACKBONE, "hub", artefacts={"table1": wanted})
    eight = make_study(published.BACKBONE, "hub", artefacts={"table1": {**wanted, "tasks": list(TASKS)[:8]}})
    write(nine, tmp_path)
    before, after = (tables.table1(Results(study, tmp_path)) for study in (eight, nine))
    columns = [(column.group, column.title) for column in after.panels[0].columns]
    assert columns[-2:] == [("WNLI", "Acc"), ("", "All")]
    same = after.tidy[after.tidy["task"] != "wnli"].reset_index(drop=True)
    pd.testing.assert_frame_equal(before.tidy, same)
    assert same.published[same.column == "All"].tolist() == ["88.09", "88.34", "88.15"]
    assert len(after.tidy) == len(same) + 3 + 1


def test_published_values_are_a_table_of_their_own(results: Results, paper: dict[str, Table]) -> None:
    """Beside measured values they stand only where backbone and data are the paper's."""

    def headings(table: Table) -> set[str]:
        return {column.title for panel in table.panels for column in panel.columns}

    for table in tables.tables(results):
        assert "published" not in headings(table)
    assert "published" in headings(paper["fake_table2"]) & headings(paper["fake_table3"])
    text = markdown(published.table())
    for value in ("88.09", "96.26", "+1.81", "> 0, large", "Two values, Full FT, RTE: 83.75", "+0.979"):
        assert value in text


def test_what_choosing_on_the_rows_shown_is_worth(study: Study, out: Path) -> None:
    """The best checkpoint is 1 point above the last, and the same on development and test split."""
    rows = pd.read_csv(out / "fake_checkpoints.csv").set_index(["method", "budget", "task", "checkpoint"]).sort_index()
    one = rows.loc[("lora", 2, "rte")]
    assert one["best_minus"]["last"] == pytest.approx(1.0)
    assert one["best_minus"]["test"] == pytest.approx(0.0)
    assert one["mean"]["crossfit"] == pytest.approx(one["mean"]["best"], abs=1e-3)
    assert one["mean"]["last"] == pytest.approx(expected(study, "rte", "lora", 2, ("accuracy",)).mean() - 1)
    assert rows.loc[("increlora", 2, "all", "last"), "mean"] < rows.loc[("increlora", 2, "all", "best"), "mean"]


def test_headroom_is_points_and_errors_of_the_paired_difference(tmp_path: Path) -> None:
    """RTE has room, CoLA has too few points; LoRA's budget matters on RTE."""
    better = {"rte": {"full_ft": 0.2, "lora": 0.0}, "cola": {"full_ft": 0.03}}

    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any]:
        gain = better[settings.task].get(settings.method, 0.0) + 0.05 * (settings.budget == 4)
        return make_record(settings, 0.6 + gain + 0.01 * settings.seed * (settings.method in ("full_ft", "lora")))

    study = make_study(only=("headroom",))
    write(study, tmp_path, change)
    table = {table.name: table for table in tables.tables(Results(study, tmp_path))}["fake_headroom"]
    rows = table.tidy.set_index(["row", "task"])
    gains = rows.loc[("Full FT − Head only", "rte")]
    assert gains["difference"] == pytest.approx(21.0)  # 20, 21 and 22 points
    assert gains["error"] == pytest.approx(1 / np.sqrt(3))
    assert gains["errors"] == pytest.approx(21 * np.sqrt(3))
    assert rows["room"].tolist() == [True, False, None]  # no spread between LoRA's budgets: nothing is known
    assert "No room: Full FT − Head only, CoLA." in table.notes


def test_selection_marks_the_trial_taken_and_the_edges(tmp_path: Path) -> None:
    """LoRA's third rate is best at both budgets, and the last that was tried; the second seed decides nothing."""
    grid = {
        "choose": {"metric": "rte", "over": "budgets"},
        "methods": {"lora": {"learning_rate": [1e-3, 2e-3, 4e-3]}, "increlora": {"learning_rate": [1e-3, 2e-3, 4e-3]}},
    }
    rows = [{"method": method, "budgets": [4, 2]} for method in ("lora", "increlora")]
    study = make_study(grid=grid, artefacts={"table1": {"tasks": ["rte", "stsb"], "rows": rows}})
    scores = {"lora_1": 0.5, "lora_2": 0.6, "lora_3": 0.7, "increlora_1": 0.5, "increlora_2": 0.9, "increlora_3": 0.7}

    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any]:
        if settings.task == "rte":
            value = scores[settings.method] + (0.25 if (settings.method, settings.budget) == ("increlora_3", 4) else 0)
            return make_record(settings, value)
        return record

    write(study, tmp_path, change)
    table = {table.name: table for table in tables.tables(Results(study, tmp_path))}["fake_selection"]
    rows_by = table.tidy.set_index("trial")
    assert rows_by.index[rows_by["chosen"].notna()].tolist() == ["lora_3", "increlora_2"]
    # IncreLoRA's last rate is not taken, but it is the best at one of the budgets
    assert rows_by.index[rows_by["at_edge"].notna()].tolist() == ["lora_3", "increlora_3"]
    assert "LoRA 4e-3 (learning_rate)" in " ".join(table.notes)
    assert "Effort: LoRA 3 trials, 36 runs, 0.02 hours" in " ".join(table.notes)
    assert "the trial with the highest RTE, mean over the method's budgets" in " ".join(table.notes)


# ---------------------------------------------------------------- Tables 2, 3 and cost


def test_ablation_differences_are_paired_and_beside_the_published(study: Study, paper: dict[str, Table]) -> None:
    table = paper["fake_table2"]
    rows = table.tidy[(table.tidy.column == "difference") & (table.tidy.task == "rte")].set_index("method")
    assert set(rows.index) == {"raw - lora", "orth - raw", "orth_advance - orth", "orth_advance - raw", *MORE}
    assert rows.published["orth - raw"] == "+1.81"
    assert rows.published["raw - lora"] == "< 0"
    assert pd.isna(rows.published["increlora - lora"])
    paired = expected(study, "rte", "orth", 2, ("accuracy",)) - expected(study, "rte", "raw", 2, ("accuracy",))
    assert rows["mean"]["orth - raw"] == pytest.approx(paired.mean())
    assert rows["sd"]["orth - raw"] == pytest.approx(paired.std(ddof=1))
    variants = table.tidy[(table.tidy.column != "difference") & table.tidy.published.notna()]
    assert set(variants.method) == {"lora", "increlora"}  # a variant of IncreLoRA is not the paper's row


MORE = ("increlora - orth_advance", "increlora - lora")


def test_budgets_are_held_against_the_reference_and_the_smallest(out: Path) -> None:
    """Figure 4 in numbers: four comparisons on two tasks and in their mean, corrected together."""
    study, rows = make_study(), pd.read_csv(out / "fake_budgets.csv")
    rows = rows[rows.column == "difference"].set_index(["row", "task"])
    names = ["IncreLoRA (r = 2) − LoRA (r = 2)", "IncreLoRA (r = 4) − LoRA (r = 4)"]
    names += [f"{title} (r = 4) − {title} (r = 2)" for title in ("IncreLoRA", "LoRA")]
    assert list(dict.fromkeys(rows.index.get_level_values("row"))) == names
    one, other = (expected(study, "rte", method, 4, ("accuracy",)) for method in ("increlora", "lora"))
    found = rows.loc[(names[1], "rte")]
    assert found["mean"] == pytest.approx((one - other).mean(), abs=1e-3)
    smallest = expected(study, "rte", "lora", 2, ("accuracy",))
    assert rows.loc[(names[3], "rte"), "mean"] == pytest.approx((other - smallest).mean(), abs=1e-3)
    assert (rows["p_corrected"] >= rows["p"]).all()
    assert len(rows) == 4 * 3


def test_variants_are_held_against_the_first(out: Path) -> None:
    rows = pd.read_csv(out / "fake_variants.csv")
    assert set(rows[rows.column == "difference"].method) == {"sqrt - increlora"}
    assert set(rows[rows.column == "difference"].task) == {"rte", "cola", "all"}


def test_a_pair_needs_both_seeds(tmp_path: Path) -> None:
    """Seeds 0 and 1 of one method, 1 and 2 of the other: one pair, and no spread."""
    right = {("lora", 0): 0.61, ("lora", 1): 0.62, ("adalora", 1): 0.64, ("adalora", 2): 0.68}

    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any] | None:
        good = right.get((settings.method, settings.seed))
        return None if good is None else make_record(settings, good)

    rows = [{"method": method, "budgets": [2]} for method in ("lora", "adalora")]
    study = make_study(artefacts={"table1": {"rows": rows, "tasks": ["rte"]}})
    write(study, tmp_path, change)
    cells = ([Cell("rte", method, 2)] for method in ("adalora", "lora"))
    found = Results(study, tmp_path).scores.difference(*cells)
    assert (found.estimate.n, found.estimate.mean, found.estimate.sd) == (1, pytest.approx(2.0), None)
    assert found.missing == (0, 2)


def test_retrained_distributions_beside_the_dynamic_runs(paper: dict[str, Table]) -> None:
    table = paper["fake_table3"]
    rows = table.tidy[table.tidy.column == "difference"].set_index("method")
    assert rows.published.to_dict() == {"svd - svd_ada": "> 0", "increlora - svd": "> 0", "adalora - svd_ada": "> 0"}


def test_the_form_without_found_ranks_is_held_against_lora(tmp_path: Path) -> None:
    base = make_study().model_dump(mode="json", exclude_unset=True)
    uniform = {"title": "Uniform", "kind": "svd_lora", "ranks_from": {"method": "increlora", "transform": "uniform"}}
    base["artefacts"]["table3"]["rows"] = ["lora", "increlora", "uniform"]
    study = make_study(methods={**base["methods"], "uniform": uniform}, artefacts=base["artefacts"])
    write(study, tmp_path)
    rows = tables.table3(Results(study, tmp_path)).tidy
    assert set(rows[rows.column == "difference"].method) == {"uniform - lora"}


def test_costs_beside_the_papers_formulas(out: Path) -> None:
    rows = pd.read_csv(out / "fake_cost.csv").set_index(["method", "budget"])
    assert rows.paper_numbers[("lora", 2)] == 3 * PER_RANK * 2
    assert rows.paper_numbers[("increlora", 2)] == 3 * PER_RANK * 3
    assert rows.state_without_head[("lora", 2)] == 2 * PER_RANK * 2  # the head's moments are taken off
    assert rows.together[("lora", 2)] == rows.paper_numbers[("lora", 2)]
    assert rows.formula_ratio[("increlora", 2)] == pytest.approx(2 / 3, abs=1e-3)
    assert rows.step_ratio[("increlora", 4)] == 1.5
    assert rows.step_more_ms[("increlora", 4)] == 5.0
    assert rows.step_ratio[("hadapter", 32)] == 1.0


def test_times_of_different_devices_are_not_compared(tmp_path: Path) -> None:
    rows = [{"method": "lora", "budgets": [2]}, {"method": "increlora", "budgets": [2]}]
    study = make_study(artefacts={"table1": {"rows": rows, "tasks": ["rte", "stsb"]}})

    def elsewhere(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any]:
        if (settings.task, settings.kind) == ("rte", "lora"):
            record["cost"] |= {"device": "a GPU", "step_ms": 1.0, "peak_memory_mb": 1.0, "train_seconds": 0.1}
        return record

    write(study, tmp_path / "runs", elsewhere)
    tables.build(Results(study, tmp_path / "runs"), tmp_path)
    costs = pd.read_csv(tmp_path / "fake_cost.csv").set_index("method")
    assert costs.loc["lora", ["step_ms", "peak_memory_mb", "train_seconds"]].isna().all()  # of both devices
    assert costs.step_ms["increlora"] == 15.0
    assert (costs.step_ratio["increlora"], costs.step_more_ms["increlora"]) == (1.5, 5.0)  # STS-B's alone
    assert "different devices are not compared" in (tmp_path / "fake_cost.md").read_text()


def test_artefacts_that_are_left_out_are_skipped(records: Path, tmp_path: Path) -> None:
    rows = {"rows": [{"method": "lora", "budgets": [2]}], "tasks": ["rte"]}
    small = Results(make_study(artefacts={"table1": rows}), records)
    built = {path.name for path in tables.build(small, tmp_path)}
    names = (f"fake_{name}.{suffix}" for name in ("table1", "checkpoints", "cost") for suffix in ("csv", "md", "tex"))
    assert built == {"fake_runs.csv", *names}
    assert figures.build(small, tmp_path) == []


@pytest.mark.parametrize(
    ("artefacts", "message"),
    [
        ({"headroom": {"full": "lora"}}, "artefacts.headroom.full: 'lora' has a budget; allowed: full_ft, head"),
        ({"headroom": {"head": "heads"}}, "artefacts.headroom.head: 'heads' is unknown (did you mean 'head'?)"),
        (
            {"headroom": {"over_budgets": {"tasks": ["rte"], "method": "lora", "budgets": [4, 2]}}},
            "artefacts.headroom.over_budgets.budgets: got [4, 2]; the smallest comes first",
        ),
        ({"training": {"method": "lora"}}, "artefacts.training.method: 'lora' allocates no ranks; allowed:"),
        ({"variants": {"rows": ["increlora", "sqr"]}}, "artefacts.variants.rows: 'sqr' is unknown"),
        ({"only": ["claims"]}, "artefacts: `claims` has no runs of its own"),
    ],
)
def test_an_artefact_that_cannot_be_is_refused(study: Study, artefacts: dict[str, Any], message: str) -> None:
    given = study.artefacts.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    changed = {name: {**given[name], **new} if name in given else new for name, new in artefacts.items()}
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_study(artefacts={**given, **changed})


# ---------------------------------------------------------------- rendering


def test_latex_escapes_and_is_balanced(built: list[Path]) -> None:
    assert latex_escape("50 % & #1 a_b {x}") == r"50 \% \& \#1 a\_b \{x\}"
    assert latex_escape("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert latex_escape("< −1 ± †") == r"\textless{} $-$1 $\pm$ \textdagger{}"
    for path in built:
        if path.suffix == ".tex":
            text = path.read_text()
            assert text.isascii() or not set(text) & set("–±−×†‡§¶✓")
            assert text.count(r"\begin{") == text.count(r"\end{")
            assert r"Raw \& bare" in text or "table2" not in path.name
            assert not re.search(r"(?<!\\)#", text)


def test_markdown_escapes() -> None:
    panel = Panel("a*b", (Column("x|y", left=True),), ((Entry("a|b"),), (Entry("<i>", "0.10", "†", bold=True),)))
    text = markdown(Table("t", "T", (panel,), ("p < q",), pd.DataFrame(), {}))
    lines = [re.sub(r" +", " ", line) for line in text.splitlines()]
    assert lines[2:4] == ["**a\\*b**", ""]
    assert [lines[4], *lines[6:]] == ["| x\\|y |", "| a\\|b |", "| **\\<i>** ± 0.10 † |", "", "- p \\< q"]


def test_numbers_as_printed() -> None:
    assert [count(v) for v in (512, 1536, 331_776, 999_960, 1_327_104, 184_423_682, None)] == [
        *("512", "1.5K", "331.8K", "1.00M", "1.33M", "184M", "–"),
    ]
    assert [fixed(v, 2, sign=True) for v in (0.001, -0.001, 1.5, -1.5, None)] == ["0.00", "0.00", "+1.50", "−1.50", "–"]


def test_show_fits_the_terminal(results: Results) -> None:
    text = show(results, width=120)
    assert max(map(len, text.splitlines())) <= 120
    assert "\033[" not in text  # not a terminal here
    one = show(results, "table1", bold=True)
    assert "\033[1m" in one
    assert "Table 2" not in one
    assert "Claims of the paper" in show(results, "claims")
    with pytest.raises(ConfigError, match="table1"):
        show(results, "tabel1")


def test_too_wide_a_panel_is_continued_below() -> None:
    columns = (Column("Method", left=True), *(Column(f"column {i}") for i in range(30)))
    row = (Entry("name"), *(Entry("12.34", "0.56") for _ in range(30)))
    table = Table("t", "Title", (Panel("caption", columns, (row,)),), (), pd.DataFrame(), {})
    lines = terminal(table, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("12.34" in line for line in lines) == sum("name" in line for line in lines) > 1
    assert r"\resizebox" in latex(table)


def test_latex_has_no_character_that_it_does_not_know(out: Path, built: list[Path]) -> None:
    """Not those of `results` either: pdflatex stops at one."""
    for path in (*(path for path in built if path.suffix == ".tex"), *(ROOT / "results").glob("*.tex")):
        assert path.read_text(encoding="utf-8").isascii(), path.name


@pytest.mark.parametrize("config", ["config", "minilm", "paper", "smoke"])
def test_whatever_is_shown_has_a_caption_in_the_report(config: str) -> None:
    shown = load_study(ROOT / f"config/{config}.yaml")
    for name in (*jobs.tables(shown), *jobs.figures(shown)):
        assert (ROOT / f"workflow/report/{name}.rst").is_file()


# ---------------------------------------------------------------- figures


def test_variants_of_one_method_differ_in_colour_and_marker() -> None:
    variants = ("lora", "increlora", "increlora_raw", "increlora_orth", "increlora_orth_advance")
    looks = figures._looks(load_study(ROOT / "config/smoke.yaml"), variants).values()
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(variants)


def test_figures_come_with_their_numbers(study: Study, built: list[Path], out: Path) -> None:
    names = map(Path, (*jobs.tables(study).values(), *jobs.figures(study).values()))
    assert {path.stem for path in built} == {name.name for name in names} | {"fake_runs"}
    names = jobs.figures(study)
    assert {f"fake_{n}.{suffix}" for n in names for suffix in ("csv", "png", "pdf")} <= {path.name for path in built}
    four = pd.read_csv(out / "fake_figure4.csv").set_index(["task", "method", "budget"])
    assert four["mean"]["rte", "lora", 2] == pytest.approx(expected(study, "rte", "lora", 2, ("accuracy",)).mean())
    six = pd.read_csv(out / "fake_figure6.csv").set_index(["method", "layer", "matrix"])
    found = [make_record(run_settings(study, Cell("sst2", "increlora", 2), seed))["allocation"] for seed in study.seeds]
    ranks = [one["ranks"]["deberta.encoder.layer.1.output.dense"] for one in found]
    assert six["rank"]["increlora", 2, "W_f2"] == pytest.approx(np.mean(ranks), abs=1e-4)
    assert six.groupby("method")["rank"].sum().tolist() == pytest.approx([24.0, 24.0], abs=1e-2)
    five = pd.read_csv(out / "fake_figure5.csv")
    five = five.set_index(["measure", "components", "advance", "step"])
    start = five.loc[("A", "active", "with", 0)]
    assert (start["low"], start["high"]) == pytest.approx((10 / 3, 10.0))
    assert five.loc[("norm", "with reserve", "without", 20), "mean"] == pytest.approx(1.03)
    assert {step for measure, *_, step in five.index if measure == "event"} == {10, 11, 12}
    spread = six.loc[("increlora", 1, "W_q")]
    assert spread["gini"] == pytest.approx(np.mean([gini(list(one["ranks"].values())) for one in found]), abs=1e-6)
    assert spread["largest"] == pytest.approx(np.mean([max(one["ranks"].values()) for one in found]), abs=1e-2)
    training = pd.read_csv(out / "fake_training.csv")
    quantities = training.groupby("method").quantity.agg(set).to_dict()
    assert quantities == {"increlora": {"total_rank", "penalty", "score", "event"}, "lora": {"score"}}
    total = training[training.quantity == "total_rank"].set_index("step")
    assert total.index.tolist() == [0, 10, 11, 12, 20]  # seeds grow at 10, 11 and 12; training ends at 20
    assert total["mean"].tolist() == pytest.approx([12, 16, 20, 24, 24])
    assert total["seeds"].tolist() == [3] * 5
    growth = pd.read_csv(out / "fake_rank_growth.csv").groupby("step")["rank"].sum()
    assert growth.index.tolist() == [0, 10, 11, 12, 20]
    assert growth.tolist() == pytest.approx([12, 16, 20, 24, 24], abs=1e-2)
    pdf = (out / "fake_figure6.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"CreationDate" not in pdf


def test_legend_is_no_wider_than_the_figure() -> None:
    fig = figures.Figure((figures.SINGLE, 3.0))
    handles = [figures.Line2D([], [], label=f"a variant with a long name, number {number}") for number in range(4)]
    figures._legend(fig, handles, "mean of 5 seeds")
    (legend,) = fig.legends
    assert legend.get_window_extent().width <= fig.bbox.width
    short = figures.Figure((figures.SINGLE, 3.0))
    figures._legend(short, [figures.Line2D([], [], label=name) for name in "ab"], "mean of 5 seeds")
    assert short.legends[0]._ncols == 2


def test_figure_without_records_says_so(study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing = Results(study, tmp_path / "none")
    built = figures.build(nothing, tmp_path / "out")
    assert all(path.stat().st_size > 0 for path in built)
    for name in ("figure4", "figure5", "figure6", "rank_growth", "training", "claims"):
        assert f"fake_{name}: no records for" in caplog.text
    assert tables.build(nothing, tmp_path / "out")


@pytest.mark.slow
def test_titles_are_no_formulas(records: Path, tmp_path: Path) -> None:
    """Matplotlib would take what stands between two dollar signs for a formula, LaTeX and Markdown have signs too."""
    title = r"$x_$ \n {0} `b` | *c* <d> %"
    methods = make_study().model_dump(mode="json", exclude_unset=True)["methods"]
    methods["increlora"]["title"] = title
    results = Results(make_study(methods=methods, only=("table1", "figure6", "rank_growth", "training")), records)
    assert figures.build(results, tmp_path)
    assert title in show(results, "cost", width=300)
    text = markdown(tables.table1(results))
    assert r"$x_$ \\n {0} \`b\` \| \*c\* \<d> %" in text


def test_claims_none_of_which_the_paper_has_a_number_for_are_drawn(tmp_path: Path) -> None:
    study = make_study(only=("variants", "claims"))
    write(study, tmp_path / "records")
    figures.build(Results(study, tmp_path / "records"), tmp_path / "out")
    drawn = pd.read_csv(tmp_path / "out" / "fake_claims.csv")
    assert drawn["name"].tolist() == ["sqrt"]
    assert drawn["paper"].isna().all()


@pytest.mark.slow
def test_figures_with_a_part_of_the_records(study: Study, tmp_path: Path) -> None:
    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any] | None:
        gone = settings.task == "stsb" or settings.method in ("adalora", "orth")
        return None if gone or settings.seed else record

    write(study, tmp_path, change)
    assert len(figures.build(Results(study, tmp_path), tmp_path / "out")) == 18
    assert pd.read_csv(tmp_path / "out" / "fake_figure4.csv").ci_low.isna().all()


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(study: Study, records: Path, built: list[Path], tmp_path: Path) -> None:
    again = build_all(Results(study, records), tmp_path)
    assert len(built) == 9 * 3 + 6 * 3 + 1
    assert [a.name for a, b in zip(built, again, strict=True) if a.read_bytes() != b.read_bytes()] == []


# ---------------------------------------------------------------- published values


def test_published_values_are_well_formed() -> None:
    for row in published.load():
        assert row.kind in ("read", "inferred", "recorded", "ordering", "unpublished")
        assert row.source.strip()
        assert (row.number is None) == (row.kind in ("ordering", "unpublished"))
        if row.artefact == "table1":
            assert row.task == published.ALL or row.column in TASKS[row.task].columns
    assert len(published.find("table1", "lora", "0.3M", "qqp", "F1")) == 1
    assert [row.kind for row in published.find("table1", "full_ft", "none", "rte", "Acc")] == ["read", "inferred"]


def test_published_all_is_the_mean_of_its_row() -> None:
    """The column "All" of the AdaLoRA paper's twelve rows checks our definition of it, and the transcription."""
    printed_rows = [(row.method, row.budget_label) for row in published.load() if row.task == published.ALL]
    printed_rows = [row for row in printed_rows if published.printed_params(*row)]
    assert len(printed_rows) == 12
    for method, label in printed_rows:
        scores = [
            np.mean([published.find("table1", method, label, task, column)[0].number for column in spec.columns])
            for task, spec in TASKS.items()
        ]
        printed = published.find("table1", method, label, published.ALL, "All")[0].number
        assert printed == pytest.approx(np.mean(scores), abs=0.011)
