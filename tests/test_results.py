"""What is committed in results/: records belong to the configs, tables come from the records, and everything learns."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from increlora import IncreLoraConfig
from increlora.glue.tasks import TASKS
from increlora.report import figures, published, tables
from increlora.report.results import Results
from increlora.study import jobs
from increlora.study.config import Study
from increlora.study.grid import trials
from increlora.study.load import load_study
from increlora.study.plan import plan, write_csv
from increlora.study.settings import all_runs
from increlora.study.verify import unexpected, verify
from increlora.training.record import as_bytes, read_record
from tests.study_helpers import ROOT

RECORDS = ROOT / "results/runs"
DEFAULT = ROOT / "config/config.yaml"
SELECTION = (DEFAULT, ROOT / "config/overlays/selection.yaml")
SETTINGS = (DEFAULT, ROOT / "config/overlays/settings.yaml")
MINILM = ROOT / "config/minilm.yaml"
MINILM_SELECTION = (MINILM, ROOT / "config/overlays/minilm_selection.yaml")
MPNET = ROOT / "config/mpnet.yaml"
MPNET_SELECTION = (MPNET, ROOT / "config/overlays/mpnet_selection.yaml")
MINILM_BUDGETS = (MINILM, ROOT / "config/overlays/minilm_budgets.yaml")
MPNET_AUTHORS = (MPNET, ROOT / "config/overlays/mpnet_authors.yaml")
PAPER_SELECTION = (ROOT / "config/paper.yaml", ROOT / "config/overlays/paper_selection.yaml")
SHIPPED = [
    *((path,) for path in (ROOT / "config").glob("*.yaml") if path.stem != "local"),
    *(SELECTION, SETTINGS, MINILM_SELECTION, MINILM_BUDGETS, MPNET_SELECTION, MPNET_AUTHORS, PAPER_SELECTION),
]
STUDIES = {load_study(*files).study: files for files in SHIPPED}
COMMITTED = sorted(path.name for path in RECORDS.glob("*") if path.is_dir())


@pytest.fixture(scope="module", params=COMMITTED)
def study(request: pytest.FixtureRequest) -> Study:
    return load_study(*STUDIES[request.param])


@pytest.fixture(scope="module")
def results(study: Study) -> Results:
    return Results(study, RECORDS)


def test_the_default_study_and_the_choice_of_its_settings_are_committed() -> None:
    assert {load_study(*files).study for files in ((DEFAULT,), SELECTION)} <= {*COMMITTED} <= {*STUDIES}


@pytest.mark.slow
def test_records_belong_to_the_config_and_are_written_to_the_same_bytes(study: Study) -> None:
    assert unexpected(study, RECORDS) == []
    for finding in verify(study, RECORDS):
        assert finding.state.status == "ok" and finding.state.record is not None
        assert as_bytes(finding.state.record) == finding.path.read_bytes(), finding.path


@pytest.mark.slow
def test_tables_come_from_the_records(results: Results, tmp_path: Path) -> None:
    write_csv(plan(results.study), tmp_path / f"{results.study.study}_plan.csv")
    tables.build(results, tmp_path)
    published.table().write(tmp_path)
    built = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(built) > 10
    committed = {path.name: path.read_bytes() for path in (ROOT / "results").glob("*.*")}
    assert {name for name in built if built[name] != committed.get(name)} == set()


@pytest.mark.slow
def test_numbers_of_figures_come_from_the_records(results: Results, tmp_path: Path) -> None:
    for path in figures.build(results, tmp_path):
        if path.suffix == ".csv":
            assert path.read_bytes() == (ROOT / "figures" / path.name).read_bytes(), path.name
        assert (ROOT / "figures" / path.name).exists()


def test_no_table_or_figure_is_left_over() -> None:
    """Everything committed belongs to a study of today."""
    studies = [load_study(*STUDIES[name]) for name in COMMITTED]
    known = {f"{study.study}_{name}" for study in studies for name in ("plan", "runs")} | {"published"}
    known |= {
        Path(stem).name for study in studies for stem in (*jobs.tables(study).values(), *jobs.figures(study).values())
    }
    found = {path.stem for folder in ("results", "figures") for path in (ROOT / folder).glob("*.*")}
    assert found == known


@pytest.mark.parametrize("task", load_study(DEFAULT).tasks)
def test_everything_learns_in_the_default_study(task: str) -> None:
    """Full fine-tuning beats the best constant answer by 15 points, every other method by 5, on every task.

    What a head on the frozen backbone learns is what they are measured by.
    """
    study = load_study(DEFAULT)
    gains: dict[tuple[str, int | None], list[float]] = defaultdict(list)
    for run in (run for run in all_runs(study) if run.task == task and run.kind != "head"):
        score = read_record(run.record_path(RECORDS)).score
        assert score.best is not None
        gains[run.method, run.budget].append(score.best.score - score.baseline)
    assert {len(seeds) for seeds in gains.values()} == {len(study.seeds)}
    for (method, budget), seeds in gains.items():
        assert statistics.fmean(seeds) >= (15 if method == "full_ft" else 5), (method, budget, seeds)


def test_tasks_of_the_default_study_have_room() -> None:
    """Full fine-tuning is 10 points and 5 standard errors above a head, and rank is worth 3 on the task of Figure 4."""
    study = load_study(DEFAULT)
    table = pd.read_csv(ROOT / "results/mini_headroom.csv")
    full = table[table.row == "Full FT − Head only"]
    assert {*full.task} == {*study.tasks}
    assert (full.difference >= 10).all()
    assert (full.errors >= 5).all()
    assert study.artefacts.figure4 is not None
    by_rank = table[table.row == "LoRA (r = 24) − LoRA (r = 2)"].set_index("task").errors
    assert (by_rank[list(study.artefacts.figure4.tasks)] >= 3).all()


def test_the_default_study_has_the_papers_eight_tasks() -> None:
    assert {run.task for run in all_runs(load_study(DEFAULT))} == {task.name for task in TASKS.values() if task.in_all}


def test_the_default_study_uses_the_trials_that_were_chosen() -> None:
    """Every run of the default study has the settings of the trial that the selection study's table marks."""
    selection = load_study(*SELECTION)
    shown, tried = (
        {(run.method, run.task, run.budget): run for run in all_runs(study)}
        for study in (load_study(DEFAULT), selection)
    )
    table = pd.read_csv(ROOT / "results/mini_selection_selection.csv").set_index("trial")
    assert selection.grid is not None
    for origin in selection.grid.methods:
        marked = table["chosen"][(table["method"] == origin) & table["chosen"].notna()]
        chosen = {budget: trial for trial, budgets in marked.items() for budget in str(budgets).split(", ")}
        runs = {
            (task, budget): run
            for (trial, task, budget), run in tried.items()
            if trial == chosen.get(str(budget), chosen.get("✓"))
        }
        assert {budget for _, budget in runs} == {budget for name, _, budget in tried if name in marked.index}
        for (task, budget), run in runs.items():
            assert shown[origin, task, budget].training == run.training
            assert shown[origin, task, budget].options == run.options


@pytest.mark.parametrize(
    ("base", "files"), [(MINILM, MINILM_SELECTION), (MPNET, MPNET_SELECTION)], ids=["minilm", "mpnet"]
)
def test_a_study_of_glue_uses_the_trials_that_were_chosen(base: Path, files: tuple[Path, ...]) -> None:
    """On its own tasks it has what its selection varied on others or on the same."""
    selection, shown = load_study(*files), all_runs(load_study(base))
    table = pd.read_csv(ROOT / f"results/{selection.study}_selection.csv")
    assert selection.grid is not None
    for origin in selection.grid.methods:
        (chosen,) = table["trial"][(table["method"] == origin) & table["chosen"].notna()]
        values = {trial.name: trial.values for trial in trials(selection, origin)}[chosen]
        (budget,) = {run.budget for run in all_runs(selection) if run.method == chosen}
        runs = [run for run in shown if (run.method, run.budget) == (origin, budget)]
        assert runs
        for run in runs:
            unset = {"lambda_lr_ratio": IncreLoraConfig().lambda_lr_ratio} if run.kind == "increlora" else {}
            settings = {**unset, **run.options, **run.training.model_dump()}
            assert {name: settings[name] for name in values} == values
