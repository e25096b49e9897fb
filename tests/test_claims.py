"""Claims of the paper held against studies whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from increlora.errors import ConfigError
from increlora.report import claims
from increlora.report.claims import NOT_VISIBLE, Finding
from increlora.report.results import Results
from increlora.study.config import Study
from increlora.training.settings import RunSettings
from tests.report_helpers import make_record, make_study, write

EFFECTS = {
    **{"full_ft": 0.1, "lora": 0.0, "adalora": 0.2, "increlora": 0.2, "orth": -0.1, "orth_advance": 0.0},
    **{"raw": -0.1, "advance": -0.1, "svd": 0.1, "svd_ada": 0.25, "sqrt": 0.3, "plain": 0.2},
}
"""What each variant has above LoRA, as a part of all answers."""


def study_with_truth(seeds: int = 5, **changes: Any) -> Study:
    """Every claim's rows; of IncreLoRA's open questions one matters and one does not."""
    base = make_study().model_dump(mode="json", exclude_unset=True)
    methods, artefacts = base["methods"], base["artefacts"]
    methods |= {
        "plain": {"title": "IncreLoRA, free score", "extends": "increlora"},
        "advance": {"title": "+ advance", "extends": "raw", "options": {"advance_learning": True}},
    }
    artefacts["table1"]["rows"].append({"method": "adalora", "budgets": [4, 2]})
    artefacts["table2"]["rows"].append("advance")
    artefacts["variants"]["rows"].append("plain")
    return make_study(methods=methods, artefacts={**artefacts, **changes}, seeds=range(seeds))


def found(tmp_path: Path, study: Study, spread: float = 0.01) -> dict[str, Finding]:
    """Verdicts by claim, where runs differ from the truth by normal noise."""

    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any]:
        rng = np.random.default_rng([settings.seed, *map(ord, settings.label)])
        bonus = 0.1 if settings.budget == 4 and settings.kind == "lora" else 0.0
        good = 0.6 + EFFECTS.get(settings.method, 0.0) + bonus + rng.normal(0, spread)
        made = make_record(settings, float(np.clip(good, 0.51, 0.97)), concentrated=settings.method == "increlora")
        for point in (made["allocation"] or {"orthogonality": []})["orthogonality"]:
            point["norm_with_reserve"] += float(rng.normal(0, 0.01))
            point["norm"] += float(rng.normal(0, 0.01))
        return made

    write(study, tmp_path, change)
    answers, lacking = claims.findings(Results(study, tmp_path))
    assert lacking == []
    return {one.claim.name: one for one in answers}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    return found(tmp_path_factory.mktemp("truth"), study_with_truth())


def test_every_claim_has_the_verdict_of_the_truth(answers: dict[str, Finding]) -> None:
    assert {name: one.verdict for name, one in answers.items()} == {
        "beats_lora": "supported",
        "beats_adalora": NOT_VISIBLE,  # they are equal
        "beats_full_ft": "supported",
        "lowest_beats_all": "supported",  # by 10 points at LoRA's larger budget, by 20 at the smaller
        "raw_below_lora": "supported",
        "orthogonality_helps": NOT_VISIBLE,
        "advance_helps": NOT_VISIBLE,
        "advance_helps_orthogonality": "supported",
        "both_help": "supported",
        "warmup_helps": "supported",
        "orthogonality_active": NOT_VISIBLE,
        "orthogonality_reserve": "supported",  # the frozen reserve alone
        "concentrated": "supported",
        "favoured": "supported",
        "distribution": "contradicted",
        "dynamic_increlora": "supported",
        "dynamic_adalora": "contradicted",
        "memory": "supported",
        "sqrt": "higher",
        "plain": NOT_VISIBLE,
    }


def test_findings_say_what_they_rest_on(answers: dict[str, Finding]) -> None:
    one = answers["lowest_beats_all"]
    assert (one.place, one.runs) == ("RTE, STS-B; r = 2", 2 * 3 * 5)  # one row against LoRA at two budgets
    assert one.paper == "+2.77 (RTE), > 0 (STS-B)"
    assert answers["beats_lora"].place == "All; r = 2"
    assert answers["beats_lora"].effect == pytest.approx((1.31 + 2.96) / 2)
    for finding in answers.values():
        low, high = finding.tested.interval or (0, 0)
        if finding.tested.p is not None and finding.claim.sign:
            assert (finding.verdict != NOT_VISIBLE) == (low > 0 or high < 0)
    # the difference that is worst for the claim, not the mean over LoRA's budgets
    assert one.tested.estimate.mean is not None
    assert one.tested.estimate.mean < 12


def test_the_papers_number_is_that_of_the_claims_own_tasks(tmp_path: Path) -> None:
    table2 = study_with_truth().model_dump(mode="json", exclude_unset=True)["artefacts"]["table2"]
    answers = found(tmp_path, study_with_truth(table2={**table2, "tasks": ["stsb"]}))
    assert answers["advance_helps_orthogonality"].effect == pytest.approx(0.10)  # and not RTE's 0.36 with it
    assert answers["advance_helps"].effect == pytest.approx(1.08)
    assert "the paper's 1.08 on RTE" in answers["advance_helps"].detail


@pytest.mark.slow
def test_what_could_not_be_seen_is_said(tmp_path: Path, answers: dict[str, Finding]) -> None:
    """The same truth in runs that scatter ten times as much."""
    blurred = found(tmp_path, study_with_truth(), spread=0.1)
    one = blurred["advance_helps"]
    assert one.verdict == NOT_VISIBLE
    assert one.tested.visible is not None
    assert one.tested.visible > 1.08  # the paper's
    assert one.detail.startswith("it could not have seen the paper's 1.08, only ")
    clear = answers["orthogonality_helps"]
    assert clear.effect == pytest.approx(1.81)
    said = "would have shown" if (clear.tested.visible or 0) <= 1.81 else "could not have seen"
    assert said in clear.detail


def test_a_worst_difference_against_the_claim_counts_as_one_of_several(tmp_path: Path) -> None:
    """LoRA's larger budget is 10 points above, so "beats LoRA at every budget" is held against two differences."""
    study = study_with_truth()
    EFFECTS_LOW = {**EFFECTS, "increlora": 0.0}

    def change(settings: RunSettings, record: dict[str, Any]) -> dict[str, Any]:
        noise = float(np.random.default_rng([settings.seed, *map(ord, settings.label)]).normal(0, 0.01))
        bonus = 0.1 if settings.budget == 4 and settings.kind == "lora" else 0.0
        return make_record(settings, 0.6 + EFFECTS_LOW.get(settings.method, 0.0) + bonus + noise)

    write(study, tmp_path, change)
    one = {one.claim.name: one for one in claims.findings(Results(study, tmp_path))[0]}["lowest_beats_all"]
    assert one.verdict == "contradicted"
    assert one.tested.p is not None
    assert one.tested.estimate.p is not None
    assert one.tested.p >= 2 * one.tested.estimate.p


def test_claims_can_be_chosen_and_those_without_rows_are_said(tmp_path: Path) -> None:
    study = make_study(only=("table2", "claims"))
    write(study, tmp_path)
    table = claims.table(Results(study, tmp_path))
    assert set(table.tidy["where"]) == {"table2"}
    lacking = "W_v, W_o and W_f1 together get more of IncreLoRA's ranks than the others"
    (left_out,) = (note for note in table.notes if note.startswith("Left out"))
    assert lacking in left_out
    artefacts = study.artefacts.model_dump(exclude_unset=True, exclude_none=True)
    chosen = make_study(artefacts={**artefacts, "claims": ["raw_below_lora"]})
    assert claims.table(Results(chosen, tmp_path)).tidy["name"].tolist() == ["raw_below_lora"]
    wrong = make_study(artefacts={**artefacts, "claims": ["raw_below_lorra"]})
    with pytest.raises(ConfigError, match="did you mean 'raw_below_lora'"):
        claims.table(Results(wrong, tmp_path))


def test_without_records_no_claim_has_a_verdict(tmp_path: Path) -> None:
    answers, _ = claims.findings(Results(study_with_truth(), tmp_path))
    assert {one.verdict for one in answers} == {"no records"}
