"""The configuration, its expansion to runs, the plan and the check of records."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
import yaml

from increlora.errors import ConfigError, IncreLoraError
from increlora.glue.tasks import TASKS
from increlora.study.cells import Cell, all_cells, artefact_cells, kind_of, make_cell
from increlora.study.config import Study
from increlora.study.grid import best, trials
from increlora.study.inputs import check_inputs
from increlora.study.jobs import config_arguments
from increlora.study.load import changes, load_study, merge, read_config
from increlora.study.settings import all_runs, run_settings
from increlora.study.verify import unexpected, verify
from increlora.training.backbone import load_model
from increlora.training.record import write_record
from increlora.training.settings import RunSettings
from tests.study_helpers import ROOT, ROWS, SMOKE, fake_record, record_on_corpus

LOW_RANK = ("lora", "adalora", "increlora")
CONFIGS = sorted(path for path in (ROOT / "config").glob("*.yaml") if path.stem != "local")


SELECTION = [ROOT / "config/config.yaml", ROOT / "config/overlays/selection.yaml"]


def smoke(**changes: Any) -> Study:
    return load_study(SMOKE, changes)


def settings_of(study: Study, method: str = "lora", task: str = "rte", seed: int = 0) -> RunSettings:
    """Of a variant at rank 2."""
    return run_settings(study, Cell(task, method, 2), seed)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_right_and_follow_the_schema(path: Path) -> None:
    study = load_study(path)
    runs = all_runs(study)
    assert len({run.digest for run in runs}) == len(runs) == len(all_cells(study)) * len(study.seeds)
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(yaml.safe_load(path.read_text()))), schema)


def test_settings_are_selected_on_other_draws_with_as_many_trials_for_every_method() -> None:
    shown = load_study(ROOT / "config/config.yaml")
    selection = load_study(*SELECTION)
    assert not {run.data.seed for run in all_runs(selection)} & {run.data.seed for run in all_runs(shown)}
    assert selection.backbone == shown.backbone
    assert selection.grid is not None
    for kind in ("full_ft", "bitfit", "hadapter", "padapter", *LOW_RANK):
        names = {trial.name for trial in trials(selection, kind)}
        tried = {
            run.method: (run.training.model_dump_json(), json.dumps(run.options, sort_keys=True))
            for run in all_runs(selection)
            if run.method in names
        }
        assert len(tried) == len({*tried.values()}) == 8, kind


def test_schema_is_current() -> None:
    stored = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert stored == Study.model_json_schema(), "run: increlora schema --out workflow/schemas/config.schema.json"


def test_later_layers_win() -> None:
    def settings(**method: Any):
        study = smoke(
            training={"learning_rate": 1e-1},
            tasks={"rte": {"training": {"learning_rate": 2e-1}}},
            methods={"lora": {"options": {"lora_alpha": 1}, **method}},
        )
        run = settings_of(study)
        return run.training.learning_rate, run.options["lora_alpha"]

    def layer(value: int) -> dict[str, Any]:
        return {"training": {"learning_rate": value / 10}, "options": {"lora_alpha": value}}

    assert settings() == (0.2, 1)
    assert settings(**layer(3)) == (0.3, 3)
    assert settings(**layer(3), budgets={2: layer(4)}) == (0.4, 4)
    assert settings(**layer(3), budgets={2: layer(4)}, tasks={"rte": layer(5)}) == (0.5, 5)
    assert settings(**layer(3), tasks={"rte": {**layer(5), "budgets": {2: layer(6)}}}) == (0.6, 6)
    assert settings(**layer(3), tasks={"stsb": layer(5)}, budgets={8: layer(6)}) == (0.3, 3)


def test_child_wins_over_everything_it_inherits() -> None:
    on_task = {"rte": {"options": {"orth_reg_weight": 0.3}}}
    study = smoke(methods={"increlora": {"tasks": on_task}})
    assert settings_of(study, "increlora").options["orth_reg_weight"] == 0.3
    assert settings_of(study, "increlora_raw").options["orth_reg_weight"] == 0.0
    assert kind_of(study, "increlora_orth") == "increlora"


def test_a_ratio_set_later_replaces_steps_set_earlier() -> None:
    study = smoke(methods={"lora": {"training": {"warmup_ratio": 0.5, "epochs": 2}}})
    training = settings_of(study, "lora").training
    assert (training.warmup_steps, training.warmup_ratio) == (None, 0.5)
    assert (training.max_steps, training.epochs) == (None, 2)
    study = smoke(training={"epochs": 1, "warmup_ratio": 0.2})
    training = settings_of(study, "lora").training
    assert (training.max_steps, training.epochs) == (None, 1), "of a later file, too"
    assert (training.warmup_steps, training.warmup_ratio) == (None, 0.2)
    both = settings_of(smoke(training={"epochs": 1, "max_steps": 7}), "lora").training
    assert both.max_steps == 7, "given side by side, the steps win"


def test_cells_are_unique_and_include_sources() -> None:
    study = smoke()
    shown = artefact_cells(study)
    assert set().union(*shown.values()) == set(all_cells(study))
    assert sum(map(len, shown.values())) > len(all_cells(study))
    alone = load_study(
        {**yaml.safe_load(SMOKE.read_text()), "artefacts": {}}, {"artefacts": _only_table3("svd_shuffled")}
    )
    source, retrained = all_cells(alone)
    assert (source.variant, retrained.variant) == ("increlora", "svd_shuffled"), "the source is trained as well"
    assert run_settings(alone, retrained, 0).source_path() == run_settings(alone, source, 0).record_path()


def _only_table3(*rows: str) -> dict[str, Any]:
    return {"table3": {"tasks": ["rte"], "budget": 2, "rows": list(rows)}}


def test_a_method_without_budget_has_none_in_a_table_at_one_budget() -> None:
    study = smoke(artefacts={"table2": {"rows": ["full_ft", "lora"]}})
    assert make_cell(study, "rte", "full_ft", 2).budget is None


def test_a_change_of_the_source_is_a_change_of_the_run_that_starts_from_it() -> None:
    def digest(study: Study, method: str) -> str:
        return settings_of(study, method).digest

    one, other = smoke(), smoke(methods={"increlora": {"training": {"learning_rate": 1e-4}}})
    assert digest(one, "svd_increlora") != digest(other, "svd_increlora")
    assert digest(one, "lora") == digest(other, "lora")


def test_paths_and_names_do_not_decide_a_run(tmp_path: Path) -> None:
    one = settings_of(smoke())
    other = settings_of(smoke(study="other"))
    assert one.digest == other.digest
    folders = {
        settings_of(
            smoke(
                data={"source": "local", "path": str(folder)},
                backbone={"pretrain": None, "path": str(folder)},
            )
        ).digest
        for folder in map(_model_folder, (tmp_path / "here", tmp_path / "there"))
    }
    hub = settings_of(smoke(data={"source": "hub"}, backbone={"pretrain": None})).digest
    assert folders == {hub}
    assert hub != one.digest
    assert one.backbone.path is not None
    assert one.backbone.path.startswith(".increlora/backbones/smoke-deberta-")


def _model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 16}')
    return folder


def test_a_grid_becomes_trials() -> None:
    rates, scales = [1e-3, 2e-3, 4e-3], [16, 32]
    grid = {"methods": {"lora": {"learning_rate": rates, "lora_alpha": scales}}}
    study = smoke(grid=grid, artefacts={"only": ["table1"]})
    found = trials(study, "lora")
    assert [trial.name for trial in found] == [f"lora_{i}_a{alpha}" for alpha in scales for i in (1, 2, 3)]
    assert study.title("lora_2_a32") == "LoRA 2e-3 α 32"
    run = settings_of(study, "lora_2_a32")
    assert (run.kind, run.training.learning_rate, run.options["lora_alpha"]) == ("lora", 2e-3, 32)
    assert [trial.at_edge for trial in found[:3]] == [("learning_rate",), (), ("learning_rate",)]
    assert study.artefacts.table1 is not None
    rows = [row.method for row in study.artefacts.table1.rows]
    assert "lora" not in rows and [row for row in rows if row.startswith("lora")] == [trial.name for trial in found]
    assert {cell.variant for cell in all_cells(study)} >= {trial.name for trial in found}
    # a trial is the run of the same settings under another name
    same = smoke(methods={"lora": {"options": {"lora_alpha": 32}, "training": {"learning_rate": 2e-3}}})
    assert settings_of(same).digest == run.digest


def test_the_rule_of_choice_is_a_field() -> None:
    scores: dict[str, dict[int | None, float]] = {"a": {8: 70.0, 2: 60.0}, "b": {8: 69.0, 2: 63.0}, "c": {8: 99.0}}
    assert best(scores, "budgets") == {8: "b", 2: "b"}
    assert best(scores, "each_budget") == {8: "a", 2: "b"}
    assert best({}, "budgets") == {}


def test_a_second_study_is_twenty_lines(tmp_path: Path) -> None:
    text = """
study: wide                     # LoRA and IncreLoRA on another draw of the corpus, with more room
seeds: [0, 1]
data: {seed: 7, train_rows: 2400}
training: {batch_size: 32}
methods:
  lora_wide:
    title: LoRA, alpha 32
    extends: lora
    options: {lora_alpha: 32}
artefacts:
  only: [table1, figure6]
  table1:
    tasks: [cola, rte]
    rows:
      - {method: lora, budgets: [8]}
      - {method: lora_wide, budgets: [8]}
      - {method: increlora, budgets: [8]}
"""
    assert len(text.strip().splitlines()) <= 20
    (tmp_path / "wide.yaml").write_text(text)
    study = load_study(ROOT / "config/config.yaml", tmp_path / "wide.yaml")
    assert set(artefact_cells(study)) == {"table1", "figure6"}
    assert len(artefact_cells(study)["table1"]) == 6
    assert settings_of(study, "lora_wide").training.weight_decay == 0.01


RANKS = [{"method": "lora", "budgets": [4, 2]}]
GRID = {"methods": {"lora": {"learning_rate": [1e-3, 2e-3]}}}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"tasks": {"rtee": {}}}, "tasks", "did you mean 'rte'"),
    ({"sede": [1]}, "sede", "did you mean 'seeds'"),
    ({"study": "a/b"}, "study", "a/b"),
    ({"seeds": [1, 1]}, "seeds", "more than once"),
    ({"seeds": []}, "seeds", "at least 1"),
    ({"training": {"warmup_stps": 1}}, "training.warmup_stps", "did you mean 'warmup_steps'"),
    ({"methods": {"lora": {"training": {"learning_rate": -1}}}}, "methods.lora.training.learning_rate", "got -1"),
    (
        {"methods": {"lora": {"options": {"lora_alfa": 1}}}},
        "methods.lora.options.lora_alfa",
        "did you mean 'lora_alpha'",
    ),
    ({"methods": {"lora": {"options": {"lora_alpha": "x" * 300}}}}, "methods.lora.options.lora_alpha", "...: input"),
    ({"artefacts": {"claims": 3}}, "artefacts.claims", "got 3: input should be True or must be a list"),
    ({"methods": {"lora": {"kind": "lorra"}}}, "methods.lora.kind", "did you mean 'lora'"),
    ({"methods": {"lora": {"extends": "lorra"}}}, "methods.lora.extends", "did you mean 'lora'"),
    ({"methods": {"lora": {"extends": "lora"}}}, "methods.lora.extends", "circle"),
    ({"methods": {"lora": {"tasks": {"cola": {}}}}}, "methods.lora.tasks", "allowed: rte, stsb"),
    ({"methods": {"lora": {"ranks_from": {"method": "adalora"}}}}, "methods.lora.ranks_from", "takes no ranks"),
    (
        {"methods": {"svd_shuffled": {"ranks_from": {"method": "lora"}}}},
        "methods.svd_shuffled.ranks_from.method",
        "lora",
    ),
    ({"artefacts": {"table2": {"rows": ["increloar"]}}}, "artefacts.table2.rows", "did you mean 'increlora'"),
    ({"artefacts": {"figure4": {"tasks": ["cola"]}}}, "artefacts.figure4.tasks", "allowed: rte, stsb"),
    ({"artefacts": {"figure5": {"task": "cola"}}}, "artefacts.figure5.task", "allowed: rte, stsb"),
    ({"artefacts": {"figure4": {"budgets": [2, 17]}}}, "artefacts.figure4.budgets", "from 1 to 16"),
    ({"artefacts": {"figure6": {"budget": 0}}}, "artefacts.figure6.budget", "got 0"),
    ({"artefacts": {"only": ["table9"]}}, "artefacts.only", "allowed: table1, table2"),
    (
        {
            "artefacts": {
                "table1": {"rows": [{"method": "lora", "budgets": [2]}, {"method": "lora", "budgets": [3, 2]}]}
            }
        },
        "artefacts.table1.rows.1",
        "'lora' is given more than once at budget 2",
    ),
    ({"artefacts": {"table1": {"rows": [{"method": "bitfit"}] * 2}}}, "artefacts.table1.rows.1", "more than once"),
    (
        {"artefacts": {"figure5": {"with_advance": "increlora", "without_advance": "increlora"}}},
        "artefacts.figure5",
        "with itself",
    ),
    ({"methods": {"bitfit": {"budgets": {2: {}}}}}, "methods.bitfit.budgets", "has no budget"),
    (
        {"methods": {"bitfit": {"tasks": {"rte": {"budgets": {2: {}}}}}}},
        "methods.bitfit.tasks.rte.budgets",
        "no budget",
    ),
    ({"execution": {"gpu": True}}, "execution.gpu", "not true or false"),
    ({"data": {"train_rows": True}}, "data.train_rows", "not true or false"),
    ({"backbone": {"pretrain": {"steps": True}}}, "backbone.pretrain.steps", "not true or false"),
    ({"methods": {"lora": {"options": {"lora_alpha": True}}}}, "methods.lora.options.lora_alpha", "not true or false"),
    ({"methods": {"increlora": {"options": {"init_std": float("inf")}}}}, "methods.increlora.options", "finite number"),
    ({"methods": {"lora": 3}}, "methods.lora", "must be a mapping of settings"),
    ({"seeds": 3}, "seeds", "must be a list"),
    ({"training": {"epochs": True}}, "training.epochs", "not true or false"),
    ({"seeds": [True]}, "seeds", "not true or false"),
    ({"training": {"epochs": float("inf")}}, "training.epochs", "finite"),
    ({"training": {"weight_decay": float("nan")}}, "training.weight_decay", "nan"),
    ({"training": {"max_grad_norm": float("inf")}}, "training.max_grad_norm", "finite"),
    *(({"data": {rows: 10**8}}, f"data.{rows}", "up to 100,000") for rows in ("train_rows", "eval_rows", "test_rows")),
    ({"study": "x" * 300}, "study", "..."),
    ({"backbone": {"name": "x$(id)"}}, "backbone.name", "x$(id)"),
    ({"backbone": {"name": "a/../b"}}, "backbone.name", "a/../b"),
    ({"backbone": {"target_modules": "("}}, "backbone.target_modules", "not a valid regular expression"),
    ({"methods": {"lora": {"title": "two\nlines"}}}, "methods.lora.title", "two"),
    ({"grid": {"methods": {"lorra": {"learning_rate": [1]}}}}, "grid.methods", "did you mean 'lora'"),
    ({"grid": {"methods": {"lora": {"learning_rate": []}}}}, "grid.methods.lora.learning_rate", "at least 1"),
    ({"grid": {"methods": {"lora": {"learning_rate": [1, 1]}}}}, "grid.methods.lora.learning_rate", "more than once"),
    (
        {"grid": {"methods": {"lora": {"learning_rate": [-1]}}}},
        "grid.methods.lora.training.learning_rate",
        "greater than 0",
    ),
    (
        {"grid": {"choose": {"metric": "colla"}, "methods": {}}},
        "grid.choose.metric",
        "allowed: rte, stsb",
    ),
    (
        {"grid": {"choose": {"metric": "stsb"}, "methods": {}}, "artefacts": {"table1": {"tasks": ["rte"]}}},
        "grid.choose.metric",
        "'stsb' is no task of Table 1; allowed: rte",
    ),
    (
        {"artefacts": {"table1": {"rows": [{"method": "lora"}]}}},
        "artefacts.table1.rows.0.budgets",
        "needs at least one",
    ),
    (
        {"artefacts": {"table1": {"rows": [{"method": "bitfit", "budgets": [2]}]}}},
        "artefacts.table1.rows.0.budgets",
        "[2]",
    ),
    ({"seeds": [-1]}, "seeds.0", "greater than or equal to 0"),
    ({"seeds": [2**32]}, "seeds.0", "less than"),
    ({"training": {"learning_rate": float("inf")}}, "training.learning_rate", "finite"),
    (
        {"methods": {"lora": {"tasks": {"rte": {"budgets": {99: {"options": {"lora_alfa": 1}}}}}}}},
        "methods.lora.tasks.rte.budgets.99.options.lora_alfa",
        "did you mean 'lora_alpha'",
    ),
    ({"artefacts": {"table1": {"tasks": ["rte", "rte"]}}}, "artefacts.table1.tasks", "more than once"),
    ({"artefacts": {"table2": {"rows": ["lora", "lora"]}}}, "artefacts.table2.rows", "more than once"),
    ({"artefacts": {"figure4": {"methods": ["full_ft"]}}}, "artefacts.figure4.methods", "has no budget"),
    ({"artefacts": {"figure5": {"with_advance": "lora"}}}, "artefacts.figure5.with_advance", "no factors"),
    ({"artefacts": {"figure6": {"methods": ["lora"]}}}, "artefacts.figure6.methods", "allowed: adalora, increlora,"),
    ({"artefacts": {"rank_growth": {"method": "svd_increlora"}}}, "artefacts.rank_growth.method", "allocates no ranks"),
    ({"backbone": {"pretrain": {"stepz": 1}}}, "backbone.pretrain.stepz", "did you mean 'steps'"),
    ({"backbone": {"pretrain": {"hidden_size": "x"}}}, "backbone.pretrain.hidden_size", "got 'x'"),
    ({"backbone": {"pretrain": {"num_heads": 3}}}, "backbone.pretrain", "multiple of num_heads 3"),
    ({"data": {"path": str(ROOT)}}, "data.path", "source 'local'"),
    ({"data": {"evaluate_on": "held_out"}, "report": {"checkpoint": "test"}}, "report.checkpoint", "crossfit"),
    ({"data": {"source": "hub"}, "report": {"checkpoint": "test"}}, "report.checkpoint", "crossfit"),
    (
        {"artefacts": {"table1": {"rows": [*RANKS, {"method": "hadapter", "budgets": [4]}]}}},
        "artefacts.table1.rows",
        "the widths [4] and the low-rank methods the ranks [2, 4]",
    ),
    ({"grid": GRID, "artefacts": {"only": ["table2"]}}, "grid", "needs `artefacts.table1`"),
    (
        {"grid": GRID, "artefacts": {"table1": {"rows": [{"method": "full_ft"}]}}},
        "grid.methods.lora",
        "is no row of `artefacts.table1`",
    ),
    ({"grid": GRID, "methods": {"lora_1": {"extends": "lora"}}}, "methods.lora_1", "the name of a trial of 'lora'"),
    ({"data": {"source": "local"}}, "data", "path"),
    ({"data": {"source": "local", "path": "/no/such/folder"}}, "data.path", "/no/such/folder"),
    ({"backbone": {"pretrain": None, "path": "/no/such/folder"}}, "backbone.path", "/no/such/folder"),
]


@pytest.mark.parametrize(
    ("change", "field", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_mistakes_are_named(change: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(SMOKE, change)
    assert caught.value.field == field
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["$(id)", "`id`", "'; id; '", '"; id; "', "x\nid", "x; id", "{params}", "../x", "x y", "", "x" * 300]
)
def test_nothing_that_a_shell_or_a_path_would_act_upon_is_a_name(text: str) -> None:
    for change in (
        {"study": text},
        {"backbone": {"name": text}},
        {"tasks": {text: {}}},
        {"methods": {text: {"kind": "lora"}}},
        {"methods": {"lora": {"kind": text or "$"}}},
        {"methods": {"lora": {"extends": text or "$"}}},
        {"methods": {"lora": {"tasks": {text: {}}}}},
        {"methods": {"svd_increlora": {"ranks_from": {"method": text}}}},
        {"methods": {"hadapter": {"options": {"activation": text}}}},
        {"backbone": {"pretrain": {"objective": text}}},
        {"execution": {"job": text}},
        {"report": {"checkpoint": text}},
        {"data": {"source": text}},
        {"training": {"precision": text}},
        {"grid": {"choose": {"metric": text}, "methods": {}}},
        {"grid": {"methods": {text: {"learning_rate": [1]}}}},
        {"artefacts": {"only": [text]}},
        {"artefacts": {"table1": {"tasks": [text]}}},
        {"artefacts": {"table2": {"rows": [text]}}},
        {"artefacts": {"rank_growth": {"task": text}}},
    ):
        with pytest.raises(ConfigError) as caught:
            load_study(SMOKE, change)
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_missing_learning_rate_is_named() -> None:
    config = yaml.safe_load(SMOKE.read_text())
    del config["training"]["learning_rate"]
    with pytest.raises(ConfigError, match=r"methods\.bitfit\.training\.learning_rate: is required"):
        load_study(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- 1", "must be a mapping of settings, not list"),
        (None, "cannot be read (No such file"),
        (b"study: \xff", "is not UTF-8 text (byte 7)"),
        (b"study: a\nstudy: b\n", "'study' is given twice"),
        (b"a: {b: 1, b: 2}", "'b' is given twice"),
    ],
    ids=["broken", "list", "missing", "bytes", "keys twice", "inner keys twice"],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.yaml") as caught:
        load_study(path)
    assert message in str(caught.value)


def test_merge_keys_of_yaml_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\n")
    assert read_config(path)["d"] == {"b": 1, "c": 3}


@pytest.mark.parametrize("content", ["{", "[]", None], ids=["broken", "list", "missing"])
def test_a_folder_that_is_no_model_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"backbone\.path: .*config\.json") as caught:
        smoke(backbone={"pretrain": None, "path": str(tmp_path)})
    assert "\n" not in str(caught.value)


def test_changes_undo_merge() -> None:
    base, wanted = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1], "e": 4}
    assert changes(base, wanted) == {"a": {"c": 3}, "e": 4}
    assert merge(base, changes(base, wanted)) == wanted
    assert load_study(SMOKE, "{seeds: [7]}").seeds == (7,)


def test_what_snakemake_makes_of_the_command_line_is_typed_again(tmp_path: Path) -> None:
    """Its --config turns numbers into text; a file's own text stays text."""
    path = tmp_path / "study.yaml"
    path.write_text("{title: '2', rate: 1e-3, budgets: {2: {a: 1}}}")
    assert read_config(path) == {"title": "2", "rate": 1e-3, "budgets": {"2": {"a": 1}}}
    unchanged = {"title": "2", "rate": "1e-3", "budgets": {2: {"a": 1}}}
    assert config_arguments([path], unchanged) == [str(path)]
    given = {**unchanged, "budgets": {2: {"a": 1}, "3": {"b": "0.5", "c": "true", "d": "null", "e": "[1]", "f": ["1"]}}}
    *_, inline = config_arguments([path], given)
    assert json.loads(inline) == {"budgets": {"3": {"b": 0.5, "c": True, "d": None, "e": "[1]", "f": [1]}}}


def test_reading_a_study_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "peft", "pandas", "datasets", "numpy", "scipy")
    code = f"""
import sys
from increlora.study.load import load_study
from increlora.study import jobs, verify
import increlora.cli
jobs.jobs(load_study({str(SMOKE)!r}))
sys.exit(", ".join(name for name in {heavy} if name in sys.modules) or 0)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_of_the_study_or_the_report_imports_in_a_circle() -> None:
    import ast

    def imported(path: Path) -> set[str]:
        tree = ast.parse(path.read_text())
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        plain = {f"{node.module}.{name.name}" for node in found for name in node.names}
        return plain | {str(node.module) for node in found}

    for room in ("study", "report"):
        files = {f"increlora.{room}.{path.stem}": path for path in (ROOT / "increlora" / room).glob("[!_]*.py")}
        graph = {name: imported(path) & set(files) for name, path in files.items()}
        for name in graph:
            seen, todo = set(), list(graph[name])
            while todo:
                seen.add(one := todo.pop())
                todo += [other for other in graph[one] if other not in seen]
            assert name not in seen, f"{name} imports itself by way of {sorted(seen)}"
        if room == "study":
            assert not any("increlora.report" in found for path in files.values() for found in imported(path))


def test_plan_counts_runs_steps_and_parameters() -> None:
    from increlora.study.plan import as_text, plan

    rows = {(row.method, row.budget): row for row in plan(load_study(ROOT / "config" / "paper.yaml"))}
    assert rows["lora", 8].parameters == 1_327_104
    assert rows["bitfit", None].parameters == 102_912
    assert rows["hadapter", 32].parameters == 1_198_848
    assert rows["full_ft", None].parameters == 184_423_682
    assert rows["increlora", 2].runs == 40
    assert rows["increlora", 4].steps == 5 * (78 * 50 + 180 * 25)
    assert rows["increlora", 2].artefacts == "table1 table2 table3 figure4 figure6 rank_growth"
    assert as_text(list(rows.values())).count("\n") == len(rows) + 2


def test_budgets_are_checked_on_the_real_shapes() -> None:
    from increlora.study.budgets import check_budgets

    check_budgets(smoke())
    with pytest.raises(ConfigError, match=r"methods\.increlora\.options\.growth_end: .*rte/increlora/2"):
        check_budgets(smoke(methods={"increlora": {"options": {"growth_end": 0.01}}}))
    with pytest.raises(ConfigError, match=r"methods\.full_ft\.training\.warmup_steps: 20 leave none of the 20"):
        check_budgets(smoke(training={"warmup_steps": 20}))


def test_sequences_need_positions(tmp_path: Path) -> None:
    from increlora.study.budgets import check_budgets

    shape = json.loads((ROOT / "increlora/study/shapes/sentence-transformers--all-MiniLM-L6-v2.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 64}))
    targets = r"bert\.encoder\.layer\.\d+\.attention\.self\.(query|key)"
    backbone = {"pretrain": None, "path": str(tmp_path), "target_modules": targets}
    check_budgets(smoke(backbone=backbone))
    with pytest.raises(ConfigError, match=r"training\.max_length: got 65; allowed: up to 64"):
        check_budgets(smoke(backbone=backbone, training={"max_length": 65}))


def test_local_data_are_read_before_anything_is_trained(tmp_path: Path, glue_folder: Path) -> None:
    from increlora.study.budgets import check_budgets

    local = {"source": "local", "path": str(tmp_path / "glue"), "train_rows": None, "eval_rows": None}
    shutil.copytree(glue_folder, tmp_path / "glue")
    # the rows that are there decide about steps, not the official ones
    more = {"training": {"max_steps": None, "epochs": 1, "batch_size": 1200}, "data": local}
    with pytest.raises(ConfigError, match="warmup_steps: 2 leave none of the 1"):
        check_budgets(smoke(**more))
    train = next((tmp_path / "glue").rglob("rte/train*.parquet"))
    train.write_bytes(train.read_bytes()[:1000])
    with pytest.raises(IncreLoraError, match=r"data of rte: .* could not be loaded \(Arrow"):
        check_budgets(smoke(data=local))


def test_verify_tells_what_is_wrong_with_each_record(tmp_path: Path) -> None:
    table1 = {"tasks": ["rte"], "rows": [{"method": "lora", "budgets": [2]}]}
    study = smoke(seeds=[0, 1, 2, 3, 4, 5], artefacts={"only": ["table1"], "table1": table1})
    ok, stale, protocol, unreadable, edited, missing = all_runs(study)
    other = settings_of(smoke(training={"max_steps": 7}), seed=stale.seed)
    for settings, stored in ((ok, ok), (stale, other), (protocol, protocol.model_copy(update={"protocol": 0}))):
        write_record(settings.record_path(tmp_path), record_on_corpus(stored))
    unreadable.record_path(tmp_path).write_text('{"run": ')
    text = ok.record_path(tmp_path).read_text().replace('"accuracy": 1.0', '"accuracy": 99.9')
    edited.record_path(tmp_path).write_text(text)
    write_record(tmp_path / "smoke" / "rte" / "lora" / "2" / "seed9.json", fake_record(ok))
    found = {finding.settings.seed: finding.state for finding in verify(study, tmp_path)}
    expected = ["ok", "stale", "protocol", "unreadable", "unreadable", "missing"]
    assert [found[seed].status for seed in range(6)] == expected
    assert found[1].detail == "training.max_steps: 7 -> 20"
    assert "accuracy is 99.9" in found[4].detail
    assert missing.seed == 5
    assert [path.name for path in unexpected(study, tmp_path)] == ["seed9.json"]


def test_verify_holds_every_draw_against_the_corpus(tmp_path: Path) -> None:
    """Labels and predictions edited together leave a record that agrees with itself; the corpus does not."""
    table1 = {"tasks": ["rte"], "rows": [{"method": "lora", "budgets": [2]}, {"method": "increlora", "budgets": [2]}]}
    study = smoke(seeds=[0, 1], artefacts={"only": ["table1"], "table1": table1})
    runs = all_runs(study)
    assert [run.data.seed for run in runs] == [run.seed for run in runs]
    records = [record_on_corpus(run) for run in runs]
    assert records[0].provenance.data.fingerprint != records[1].provenance.data.fingerprint
    for run, record in zip(runs, records, strict=True):
        write_record(run.record_path(tmp_path), record)
    assert {finding.state.status for finding in verify(study, tmp_path)} == {"ok"}

    gold = list(records[0].score.labels["validation"][0])
    edited = {"validation": [1 - gold[0], *gold[1:]]}
    origin = records[0].provenance.data.model_dump()
    write_record(
        runs[0].record_path(tmp_path), fake_record(runs[0], [edited], labels=edited, provenance={"data": origin})
    )
    other = {**records[1].provenance.data.model_dump(), "fingerprint": "f" * 16}
    write_record(
        runs[1].record_path(tmp_path),
        fake_record(runs[1], provenance={"data": {**other, "rows": {"validation": ROWS}}}),
    )
    first, second, *others = (finding.state for finding in verify(study, tmp_path))
    assert (first.status, first.detail) == ("stale", "score.labels are not the labels of the corpus")
    assert (second.status, "fingerprint is ffffffffffffffff" in second.detail) == ("stale", True)
    assert {state.status for state in others} == {"ok"}


def test_verify_holds_runs_against_each_other(tmp_path: Path) -> None:
    """Of data that cannot be generated anew, those that most runs saw are right."""
    table1 = {"tasks": ["rte"], "rows": [{"method": name, "budgets": [2]} for name in LOW_RANK]}
    study = smoke(data={"source": "hub", "test_rows": None}, artefacts={"only": ["table1"], "table1": table1})
    runs = all_runs(study)
    for run in runs:
        write_record(run.record_path(tmp_path), fake_record(run))
    assert {finding.state.status for finding in verify(study, tmp_path)} == {"ok"}
    origin = {"source": "hub", "revision": None, "fingerprint": "f" * 16, "rows": {"validation": ROWS}}
    write_record(runs[3].record_path(tmp_path), fake_record(runs[3], provenance={"data": origin}))
    found = [finding.state for finding in verify(study, tmp_path)]
    assert [state.status for state in found] == ["ok"] * 3 + ["stale"] + ["ok"] * 2
    assert found[3].detail == "provenance.data.fingerprint is ffffffffffffffff; most runs have 0000000000000000"


@pytest.mark.parametrize(("wanted", "there"), [(1, 0), (2, 1)])
def test_gpus_that_are_not_there(wanted: int, there: int, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    study = smoke(execution={"gpu": wanted}, backbone={"pretrain": None, "path": str(tiny_backbone)})
    told = f"execution.gpu: a run asks for {wanted} and PyTorch sees {there or 'none'}; set execution.gpu to 0"
    with pytest.raises(ConfigError, match=told):
        check_inputs(study, here=True)
    check_inputs(study, here=False)


def test_a_disk_has_room_for_two_checkpoints_of_full_fine_tuning(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCRELORA_CHECKPOINTS", str(tmp_path / "not/there/yet"))
    study = smoke(backbone={"pretrain": None, "path": str(tiny_backbone)})
    model = load_model(study.backbone, TASKS["rte"])
    needed = 2 * 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
    asked = []

    def disk_usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    free = needed
    check_inputs(study, here=True)
    free = needed - 1
    with pytest.raises(
        ConfigError, match=r"disk: checkpoints of a run take up to .* free some, or set INCRELORA_CHECK"
    ):
        check_inputs(study, here=True)
    check_inputs(study, here=False)
    assert asked == [tmp_path, tmp_path]
