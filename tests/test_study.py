"""The configuration, its expansion to runs, the plan and the check of records."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from increlora.errors import ConfigError, IncreLoraError
from increlora.study.config import Study, load_study, merge, overrides
from increlora.study.expand import artefact_cells, cell, cell_settings, sources, variant
from increlora.study.verify import unexpected, verify
from increlora.training.job import settings_of_seed
from increlora.training.store import write_record
from tests.study_helpers import ROOT, SMOKE, fake_record

LOW_RANK = ("lora", "adalora", "increlora")
CONFIGS = sorted(path for path in (ROOT / "config").glob("*.yaml") if path.stem != "local")


def smoke(**changes: Any) -> Study:
    return load_study(SMOKE, changes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_right_and_follow_the_schema(path: Path) -> None:
    study = load_study(path)
    assert len({run.digest for run in study.runs()}) == len(study.runs()) == len(study.cells()) * len(study.seeds)
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(yaml.safe_load(path.read_text()))), schema)


def test_settings_are_selected_on_other_data_with_as_many_trials_for_every_low_rank_method() -> None:
    shown = load_study(ROOT / "config/config.yaml")
    trials = load_study(ROOT / "config/config.yaml", ROOT / "config/overlays/selection.yaml")
    assert trials.data.seed != shown.data.seed and not {*trials.seeds} & {*shown.seeds}
    assert trials.backbone == shown.backbone
    tried = {(run.kind, run.method, run.training.learning_rate, run.options.get("lora_alpha")) for run in trials.runs()}
    count = Counter(kind for kind, *_ in tried)
    assert count == dict.fromkeys(("full_ft", "bitfit", "hadapter", "padapter"), 4) | dict.fromkeys(LOW_RANK, 8)
    for kind in count:
        settings = [setting for k, _, *setting in tried if k == kind]
        assert len({*map(tuple, settings)}) == len(settings)


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
        run = study.settings("rte", "lora", 2, 0)
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
    assert study.settings("rte", "increlora", 2, 0).options["orth_reg_weight"] == 0.3
    assert study.settings("rte", "increlora_raw", 2, 0).options["orth_reg_weight"] == 0.0
    assert variant(study, "increlora_orth").kind == "increlora"


def test_a_ratio_set_later_replaces_steps_set_earlier() -> None:
    study = smoke(methods={"lora": {"training": {"warmup_ratio": 0.5, "epochs": 2}}})
    training = study.settings("rte", "lora", 2, 0).training
    assert (training.warmup_steps, training.warmup_ratio) == (None, 0.5)
    assert (training.max_steps, training.epochs) == (None, 2)


def test_cells_are_unique_and_include_sources() -> None:
    study = smoke()
    shown = artefact_cells(study)
    assert set().union(*shown.values()) == set(study.cells())
    assert sum(map(len, shown.values())) > len(study.cells())
    alone = load_study(
        {**yaml.safe_load(SMOKE.read_text()), "artefacts": {}}, {"artefacts": _only_table3("svd_shuffled")}
    )
    assert [one.method for one in alone.cells()] == ["increlora", "svd_shuffled"], "the source is trained as well"
    assert sources(alone, alone.cells()[1]) == (alone.cells()[0],)


def _only_table3(*rows: str) -> dict[str, Any]:
    return {"table3": {"tasks": ["rte"], "budget": 2, "rows": list(rows)}}


def test_a_method_without_budget_has_none_in_a_table_at_one_budget() -> None:
    study = smoke(artefacts={"table2": {"rows": ["full_ft", "lora"]}})
    assert cell(study, "rte", "full_ft", 2).budget is None


def test_a_change_of_the_source_is_a_change_of_the_run_that_starts_from_it() -> None:
    def digest(study: Study, method: str) -> str:
        return study.settings("rte", method, 2, 0).digest

    one, other = smoke(), smoke(methods={"increlora": {"training": {"learning_rate": 1e-4}}})
    assert digest(one, "svd_increlora") != digest(other, "svd_increlora")
    assert digest(one, "lora") == digest(other, "lora")


def test_paths_and_names_do_not_decide_a_run(tmp_path: Path) -> None:
    one = smoke().settings("rte", "lora", 2, 0)
    other = smoke(study="other").settings("rte", "lora", 2, 0)
    assert one.digest == other.digest
    folders = {
        smoke(
            data={"source": "local", "path": str(folder)},
            backbone={"pretrain": None, "path": str(folder)},
        )
        .settings("rte", "lora", 2, 0)
        .digest
        for folder in map(_model_folder, (tmp_path / "here", tmp_path / "there"))
    }
    hub = smoke(data={"source": "hub"}, backbone={"pretrain": None}).settings("rte", "lora", 2, 0).digest
    assert folders == {hub}
    assert hub != one.digest
    assert one.backbone.path is not None
    assert one.backbone.path.startswith(".increlora/backbones/smoke-deberta-")


def _model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 16}')
    return folder


def test_cell_settings_lead_back_to_each_run() -> None:
    study = smoke()
    for chosen in study.cells():
        plain = json.loads(json.dumps(cell_settings(study, chosen)))
        for seed in chosen.seeds:
            assert settings_of_seed(plain, seed) == study.settings(chosen.task, chosen.method, chosen.budget, seed)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"tasks": {"rtee": {}}}, "tasks", "did you mean 'rte'"),
    ({"sede": [1]}, "config", "did you mean 'seeds'"),
    ({"study": "a/b"}, "study", "a/b"),
    ({"seeds": [1, 1]}, "seeds", "more than once"),
    ({"seeds": []}, "seeds", "at least 1"),
    ({"training": {"warmup_stps": 1}}, "training", "did you mean 'warmup_steps'"),
    ({"methods": {"lora": {"training": {"learning_rate": -1}}}}, "methods.lora.training.learning_rate", "got -1"),
    (
        {"methods": {"lora": {"options": {"lora_alfa": 1}}}},
        "methods.lora.options.lora_alfa",
        "did you mean 'lora_alpha'",
    ),
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
    ({"artefacts": {"figure4": {"budgets": [2, 17]}}}, "artefacts.figure4.budgets", "from 1 to 16"),
    ({"artefacts": {"figure6": {"budget": 0}}}, "artefacts.figure6.budget", "got 0"),
    (
        {"artefacts": {"table1": {"rows": [{"method": "lora"}]}}},
        "artefacts.table1.rows[0].budgets",
        "needs at least one",
    ),
    (
        {"artefacts": {"table1": {"rows": [{"method": "bitfit", "budgets": [2]}]}}},
        "artefacts.table1.rows[0].budgets",
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
    ({"artefacts": {"growth": {"method": "svd_increlora"}}}, "artefacts.growth.method", "allocates no ranks"),
    ({"backbone": {"pretrain": {"stepz": 1}}}, "backbone.pretrain", "did you mean 'steps'"),
    ({"backbone": {"pretrain": {"hidden_size": "x"}}}, "backbone.pretrain.hidden_size", "got 'x'"),
    ({"backbone": {"pretrain": {"num_heads": 3}}}, "backbone.pretrain", "multiple of num_heads 3"),
    ({"data": {"path": str(ROOT)}}, "data.path", "source 'local'"),
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


def test_missing_learning_rate_is_named() -> None:
    config = yaml.safe_load(SMOKE.read_text())
    del config["training"]["learning_rate"]
    with pytest.raises(ConfigError, match=r"methods\.bitfit\.training\.learning_rate: is required"):
        load_study(config)


@pytest.mark.parametrize("text", ["a: [", "- 1", None], ids=["broken", "list", "missing"])
def test_unreadable_files_are_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"study\.yaml"):
        load_study(path)


def test_overrides_undo_merge() -> None:
    base, wanted = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1], "e": 4}
    assert overrides(base, wanted) == {"a": {"c": 3}, "e": 4}
    assert merge(base, overrides(base, wanted)) == wanted
    assert load_study(SMOKE, "{seeds: [7]}").seeds == (7,)


def test_reading_a_study_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "peft", "pandas", "datasets", "numpy")
    code = f"""
import sys
from increlora.study.config import load_study
from increlora.study import verify
import increlora.cli, increlora.training.job
load_study({str(SMOKE)!r}).runs()
sys.exit(", ".join(name for name in {heavy} if name in sys.modules) or 0)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plan_counts_runs_steps_and_parameters() -> None:
    from increlora.study.plan import as_text, plan

    rows = {(row.method, row.budget): row for row in plan(load_study(ROOT / "config" / "paper.yaml"))}
    assert rows["lora", 8].parameters == 1_327_104
    assert rows["bitfit", None].parameters == 102_912
    assert rows["hadapter", 32].parameters == 1_198_848
    assert rows["full_ft", None].parameters == 184_423_682
    assert rows["increlora", 2].runs == 40
    assert rows["increlora", 4].steps == 5 * (78 * 50 + 180 * 25)
    assert rows["increlora", 2].artefacts == "table1 table2 table3 figure4 figure6 growth"
    assert as_text(list(rows.values())).count("\n") == len(rows) + 2


def test_budgets_are_checked_on_the_real_shapes() -> None:
    from increlora.study.plan import check

    check(smoke())
    with pytest.raises(ConfigError, match=r"methods\.increlora\.options\.growth_end: .*rte/increlora/2"):
        check(smoke(methods={"increlora": {"options": {"growth_end": 0.01}}}))
    with pytest.raises(ConfigError, match=r"methods\.full_ft\.training\.warmup_steps: 20 leave none of the 20"):
        check(smoke(training={"warmup_steps": 20}))


def test_sequences_need_positions(tmp_path: Path) -> None:
    from increlora.study.plan import check

    shape = json.loads((ROOT / "increlora/study/shapes/sentence-transformers--all-MiniLM-L6-v2.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 64}))
    targets = r"bert\.encoder\.layer\.\d+\.attention\.self\.(query|key)"
    backbone = {"pretrain": None, "path": str(tmp_path), "target_modules": targets}
    check(smoke(backbone=backbone))
    with pytest.raises(ConfigError, match=r"training\.max_length: got 65; allowed: up to 64"):
        check(smoke(backbone=backbone, training={"max_length": 65}))


def test_local_data_are_read_before_anything_is_trained(tmp_path: Path, glue_folder: Path) -> None:
    from increlora.study.plan import check

    local = {"source": "local", "path": str(tmp_path / "glue"), "train_rows": None, "eval_rows": None}
    shutil.copytree(glue_folder, tmp_path / "glue")
    # the rows that are there decide about steps, not the official ones
    more = {"training": {"max_steps": None, "epochs": 1, "batch_size": 1200}, "data": local}
    with pytest.raises(ConfigError, match="warmup_steps: 2 leave none of the 1"):
        check(smoke(**more))
    train = next((tmp_path / "glue").rglob("rte/train*.parquet"))
    train.write_bytes(train.read_bytes()[:1000])
    with pytest.raises(IncreLoraError, match=r"data of rte: .* could not be loaded \(Arrow"):
        check(smoke(data=local))


def test_verify_tells_what_is_wrong_with_each_record(tmp_path: Path) -> None:
    study = smoke(artefacts={"table1": {"tasks": ["rte"], "rows": [{"method": "lora", "budgets": [2]}]}})
    study = study.model_copy(
        update={"seeds": (0, 1, 2, 3, 4), "artefacts": study.artefacts.model_copy(update=_only_table1())}
    )
    ok, stale, protocol, unreadable, missing = study.runs()
    other = smoke(training={"max_steps": 7}).settings("rte", "lora", 2, stale.seed)
    for settings, stored in ((ok, ok), (stale, other), (protocol, protocol.model_copy(update={"protocol": 0}))):
        write_record(settings.record_path(tmp_path), fake_record(stored))
    unreadable.record_path(tmp_path).write_text('{"run": ')
    write_record(tmp_path / "smoke" / "rte" / "lora" / "2" / "seed9.json", fake_record(ok))
    found = {finding.settings.seed: finding for finding in verify(study, tmp_path)}
    assert [found[seed].status for seed in range(5)] == ["ok", "stale", "protocol", "unreadable", "missing"]
    assert found[1].detail == "training.max_steps: 7 -> 20"
    assert missing.seed == 4
    assert [path.name for path in unexpected(study, tmp_path)] == ["seed9.json"]


def _only_table1() -> dict[str, Any]:
    return dict.fromkeys(("table2", "table3", "figure4", "figure5", "figure6", "growth"))
