"""One run: the record, resume after a kill, collapse and divergence, bad data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from increlora.errors import ConfigError
from increlora.glue.tasks import TASKS, Task
from increlora.training import checkpoint as checkpoints
from increlora.training import run as run_module
from increlora.training.backbone import load_config
from increlora.training.batches import collate, epoch_order
from increlora.training.data import encode
from increlora.training.device import device_slot
from increlora.training.record import Record
from increlora.training.run import _Run
from increlora.training.run import run as run_record
from increlora.training.settings import RunSettings

METHODS: list[tuple[str, int | None, dict[str, Any]]] = [
    ("full_ft", None, {}),
    ("bitfit", None, {}),
    ("hadapter", 4, {}),
    ("padapter", 4, {}),
    ("lora", 2, {}),
    ("adalora", 2, {"deltaT": 2}),
    ("increlora", 2, {"deltaT": 3}),
    ("svd_lora", 2, {}),
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(backbone: Path, kind: str, budget: int | None, options: dict[str, Any], **changes: Any) -> RunSettings:
    training = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 8, "eval_steps": 8, **changes.pop("training", {})}
    return RunSettings(
        **{
            "study": "test",
            "task": "rte",
            "method": kind,
            "kind": kind,
            "budget": budget,
            "options": options,
            "seed": 3,
            "backbone": {"name": "tiny", "path": str(backbone)},
            "data": {"source": "builtin", "train_rows": 80, "eval_rows": 40, "test_rows": 60},
            "training": training,
            "ranks_from": {"method": "increlora"} if kind == "svd_lora" else None,
            **changes,
        }
    )


def run(chosen: RunSettings, **arguments: Any) -> dict[str, Any]:
    """The record as plain data."""
    return run_record(chosen, **arguments).model_dump(mode="json")


def ranks_for(kind: str) -> dict[str, int] | None:
    if kind != "svd_lora":
        return None
    names = ["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"]
    names += ["attention.output.dense", "intermediate.dense", "output.dense"]
    return {f"deberta.encoder.layer.{i}.{name}": 1 + (i + j) % 3 for i in range(2) for j, name in enumerate(names)}


@pytest.mark.parametrize(("kind", "budget", "options"), METHODS, ids=[m[0] for m in METHODS])
def test_record(kind: str, budget: int | None, options: dict[str, Any], tiny_backbone: Path) -> None:
    chosen = settings(tiny_backbone, kind, budget, options)
    record = run(chosen, ranks=ranks_for(kind), progress=False)
    assert Record.model_validate_json(json.dumps(record, allow_nan=False)).model_dump(mode="json") == record
    assert record["run"]["digest"] == chosen.digest
    assert [entry["step"] for entry in record["score"]["history"]] == [8, 16, 20]
    assert record["cost"]["steps"] == 20
    scores = {entry["step"]: entry["score"] for entry in record["score"]["history"]}
    assert scores[record["score"]["best_step"]] == max(scores.values())
    penalties = [entry["penalty"] for entry in record["score"]["history"]]
    regularised = kind in ("adalora", "increlora", "svd_lora")
    assert [value is not None and value > 0 for value in penalties] == [regularised] * 3
    assert record["provenance"]["data"]["rows"] == {"train": 80, "validation": 40, "test": 60}
    assert record["score"]["test"] is not None
    if kind in ("adalora", "increlora"):
        allocation = record["allocation"]
        assert allocation["events"]
        assert allocation["total_rank"] == sum(allocation["ranks"].values()) == allocation["budget_rank"] == 24
        assert allocation["growth"][-1]["ranks"] == list(allocation["ranks"].values())
        assert record["parameters"]["trainable"] == sum(
            rank * (48 if "dense" in name and "attention" not in name else 32) + rank
            for name, rank in allocation["ranks"].items()
        )
    if kind == "svd_lora":
        assert record["allocation"]["ranks"] == ranks_for(kind)


def test_controls_of_a_distribution_have_its_parameters(tiny_backbone: Path) -> None:
    found = {}
    for transform in ("none", "uniform", "shuffled"):
        source = {"method": "increlora", "transform": transform}
        chosen = settings(tiny_backbone, "svd_lora", 2, {}, ranks_from=source, training={"max_steps": 1})
        record = run_record(chosen, ranks=ranks_for("svd_lora"), progress=False)
        assert record.allocation is not None
        found[transform] = record.allocation.ranks, record.parameters.trainable
    assert found["shuffled"][1] == found["none"][1]
    assert abs(found["uniform"][1] - found["none"][1]) <= (16 + 32 + 1) / 2
    assert found["shuffled"][0] != found["none"][0]
    assert set(found["uniform"][0].values()) <= {1, 2}


@pytest.mark.parametrize(("kind", "budget", "options"), METHODS, ids=[m[0] for m in METHODS])
def test_resumed_record_equals_the_uninterrupted_one(
    kind: str, budget: int | None, options: dict[str, Any], tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the test scores of a checkpoint that was the best before the kill."""
    monkeypatch.setattr(Task, "is_better", lambda self, score, than: False)
    chosen = settings(tiny_backbone, kind, budget, options, training={"eval_steps": 4})
    whole = run(chosen, ranks=ranks_for(kind), progress=False)
    assert whole["score"]["best_step"] == 4
    saves = 0
    save = checkpoints.Checkpoint.save

    class Killed(BaseException):
        pass

    def save_and_die(self: checkpoints.Checkpoint, state: dict[str, Any]) -> None:
        nonlocal saves
        save(self, state)
        saves += 1
        if saves == 7:  # step 7 of 20: AdaLoRA and IncreLoRA are in the middle of their allocation
            raise Killed

    monkeypatch.setattr(checkpoints.Checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        run(chosen, ranks=ranks_for(kind), progress=False, checkpoint_seconds=0)
    torch.manual_seed(12345)
    resumed = run(chosen, ranks=ranks_for(kind), progress=False, checkpoint_seconds=1e9)
    for block in ("run", "score", "parameters", "allocation"):
        assert resumed[block] == whole[block], block


def test_a_run_on_two_devices_names_both(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times and memory are then those of neither."""
    chosen = settings(tiny_backbone, "bitfit", None, {})

    class Killed(BaseException):
        pass

    save = checkpoints.Checkpoint.save

    def save_and_die(self: checkpoints.Checkpoint, state: dict[str, Any]) -> None:
        save(self, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("increlora.training.run.device_name", lambda device: "a GPU")
        patch.setattr(checkpoints.Checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            run(chosen, progress=False, checkpoint_seconds=0)
    assert run(chosen, progress=False)["cost"]["device"] == "a GPU, then cpu"


@contextlib.contextmanager
def without_reserve(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the components that train in advance add nothing."""
    parts = [part for name, part in model.named_buffers() if "increlora_offset" in name]
    kept = [part.clone() for part in parts]
    for part in parts:
        part.zero_()
    yield
    for part, value in zip(parts, kept, strict=True):
        part.copy_(value)


@pytest.mark.parametrize(("kind", "budget", "options"), METHODS, ids=[m[0] for m in METHODS])
def test_test_predictions_are_those_of_the_best_weights(
    kind: str, budget: int | None, options: dict[str, Any], tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose first evaluation is the best; the test rows are predicted at every evaluation as well.

    The best weights of IncreLoRA are those of an adapter, without the reserve and its lambda of 1e-5. They
    come back into storage of another size, so numbers are compared before they are rounded for a record.
    """
    seen: dict[int, list[float]] = {}
    exact: list[list[float]] = []
    evaluate, predict = _Run._evaluate, _Run._predictions

    def predictions(self: _Run, splits: Any) -> dict[str, list[float]]:
        with monkeypatch.context() as unrounded:
            unrounded.setattr(run_module, "round", lambda value, digits: value, raising=False)
            exact.append(predict(self, splits)["validation"])
        return predict(self, splits)

    def predicting(self: _Run) -> None:
        evaluate(self)
        with without_reserve(self.adaptation.model):
            self._predictions(self.data.test)
        seen[self.progress.step] = exact[-1]

    monkeypatch.setattr(_Run, "_predictions", predictions)
    monkeypatch.setattr(_Run, "_evaluate", predicting)
    monkeypatch.setattr(Task, "is_better", lambda self, score, than: False)
    training = {"learning_rate": 3e-2}
    record = run_record(
        settings(tiny_backbone, kind, budget, options, task="stsb", training=training),
        ranks=ranks_for(kind),
        progress=False,
    )
    best, last = map(list, record.score.test_predictions["validation"])
    assert last == [round(value, 4) for value in seen[20]]
    assert best == [round(value, 4) for value in exact[-1]]
    assert exact[-1] == pytest.approx(seen[8], rel=0, abs=1e-6)
    assert best != last
    assert record.score.test is not None
    assert record.shown("test") == record.score.test.best != record.score.test.last


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [22, 26, 29])
def test_adalora_tells_its_whole_story_after_a_kill(
    killed_after: int, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that moved since the last event, at the same total, belong to the next event."""
    training = {"max_steps": 60, "learning_rate": 2e-2, "warmup_steps": 2, "eval_steps": 60}
    chosen = settings(tiny_backbone, "adalora", 2, {"deltaT": 1}, training=training)
    whole = run(chosen, progress=False)
    save = checkpoints.Checkpoint.save

    def save_and_die(self: checkpoints.Checkpoint, state: dict[str, Any]) -> None:
        save(self, state)
        if state["progress"]["step"] == killed_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, progress=False, checkpoint_seconds=0)
    resumed = run(chosen, progress=False)
    assert resumed["allocation"]["growth"][0]["ranks"] == [3] * 12
    assert resumed["allocation"] == whole["allocation"]
    assert resumed["cost"]["wall_seconds"] >= resumed["cost"]["train_seconds"]


@pytest.mark.slow
def test_killed_process_resumes(tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGKILL while it trains, then the same command again: the same scores as without the kill."""
    chosen = settings(tiny_backbone, "increlora", 2, {"deltaT": 3}, training={"epochs": 12})
    (tmp_path / "settings.json").write_text(chosen.model_dump_json())
    script = (  # slowly, so that it cannot finish before it is killed, however late that is
        "import pathlib, time; from increlora.training.checkpoint import Checkpoint; "
        "from increlora.training.run import run; from increlora.training.settings import RunSettings; "
        "save = Checkpoint.save; Checkpoint.save = lambda *state: (save(*state), time.sleep(0.2)); "
        "s = RunSettings.model_validate_json(pathlib.Path('settings.json').read_text()); "
        "run(s, progress=False, checkpoint_seconds=0); pathlib.Path('finished').touch()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    path = checkpoints.Checkpoint(chosen.digest).path
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.7)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("finished").exists(), "it finished before the kill"
    reached = checkpoints.Checkpoint(chosen.digest).load()["progress"]["step"]
    assert 0 < reached < 120
    with caplog.at_level("INFO"):
        resumed = run(chosen, progress=False)
    assert f"resumed at step {reached} of 120" in caplog.text
    checkpoints.Checkpoint(chosen.digest).delete()
    whole = run(chosen, progress=False)
    assert resumed["score"] == whole["score"]
    assert resumed["allocation"] == whole["allocation"]


@pytest.fixture(scope="module")
def plain_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without dropout, so that sums of the same gradients can be compared."""
    from increlora.training.pretrain import PretrainSettings, pretrain

    out = tmp_path_factory.mktemp("plain") / "plain"
    tiny = {"hidden_size": 16, "num_layers": 2, "num_heads": 1, "intermediate_size": 32, "steps": 2, "warmup_steps": 1}
    pretrain(PretrainSettings(**tiny, batch_size=8, documents=200, dropout=0.0), out, progress=False)
    return out


@pytest.mark.parametrize("rows", [41, 43], ids=["a last batch of one", "a last batch of three"])
def test_micro_batches_change_nothing(rows: int, plain_backbone: Path) -> None:
    data = {"source": "builtin", "train_rows": rows, "eval_rows": 40, "test_rows": 10}
    losses = []
    for pieces in (1, 2):
        training = {"gradient_accumulation": pieces, "epochs": 4}
        record = run(
            settings(plain_backbone, "increlora", 2, {"deltaT": 3}, training=training, data=data), progress=False
        )
        losses.append([entry["train_loss"] for entry in record["score"]["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_two_processes_train_like_one(plain_backbone: Path, tmp_path: Path) -> None:
    """Data-parallel training under torchrun: the same modules grow, the same losses to rounding.

    The last batch of an epoch has a single row: the second process has none, and nobody has a second micro-batch.
    """
    data = {"source": "builtin", "train_rows": 41, "eval_rows": 40, "test_rows": 10}
    training = {"gradient_accumulation": 2, "epochs": 4}
    chosen = settings(plain_backbone, "increlora", 2, {"deltaT": 3}, training=training, data=data)
    single = run(chosen, progress=False)
    script = (
        "import os, pathlib; from increlora.training.run import run; "
        "from increlora.training.settings import RunSettings; import torch; torch.set_num_threads(1); "
        "r = run(RunSettings.model_validate_json(pathlib.Path('settings.json').read_text()), progress=False); "
        "pathlib.Path(f'rank{os.environ[\"RANK\"]}.json').write_text(r.model_dump_json())"
    )
    (tmp_path / "settings.json").write_text(chosen.model_dump_json())
    (tmp_path / "one.py").write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "one.py"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    first, second = (json.loads(Path(f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["score"] == second["score"]
    assert first["allocation"]["events"] == second["allocation"]["events"] == single["allocation"]["events"]
    losses = [[entry["train_loss"] for entry in record["score"]["history"]] for record in (first, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert first["cost"]["processes"] == 2


def test_dropout_is_for_training_only(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: dict[str, set[bool]] = {"_predict": set(), "_gradients": set()}
    for name, seen in modes.items():
        original = getattr(_Run, name)

        def spy(self: _Run, *arguments: Any, _original: Any = original, _seen: set[bool] = seen) -> Any:
            _seen |= {module.training for module in self.adaptation.model.modules()}
            return _original(self, *arguments)

        monkeypatch.setattr(_Run, name, spy)
    run(settings(tiny_backbone, "lora", 2, {}), progress=False)
    assert modes == {"_predict": {False}, "_gradients": {True}}


def test_the_regulariser_is_part_of_the_objective(tiny_backbone: Path) -> None:
    training = {"learning_rate": 2e-2, "epochs": 6}

    def last(weight: float) -> float:
        options = {"deltaT": 3, "orth_reg_weight": weight}
        record = run(settings(tiny_backbone, "increlora", 2, options, training=training), progress=False)
        return record["allocation"]["orthogonality"][-1]["A"]

    assert last(10.0) < 0.5 * last(0.0)


def test_gradients_are_clipped(tiny_backbone: Path) -> None:
    """Clipped to next to nothing, below AdamW's epsilon, they move nothing."""

    def spread(max_grad_norm: float) -> float:
        training = {"max_grad_norm": max_grad_norm, "warmup_steps": 0}
        record = run(settings(tiny_backbone, "lora", 2, {}, task="stsb", training=training), progress=False)
        scores = [entry["score"] for entry in record["score"]["history"]]
        return max(scores) - min(scores)

    assert spread(1e-14) < 0.01 < spread(1.0)


def test_seeds_differ_and_repeat(tiny_backbone: Path) -> None:
    first, again, other = (
        run(settings(tiny_backbone, "lora", 2, {}, seed=seed), progress=False)["score"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first["history"] != other["history"]


@pytest.mark.parametrize("every", [1, 20], ids=["found in evaluation", "found in the loss"])
@pytest.mark.parametrize(("kind", "budget", "options"), [METHODS[0], METHODS[6]], ids=["full_ft", "increlora"])
@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_divergence_is_recorded(
    task: str, kind: str, budget: int | None, options: dict[str, Any], every: int, tiny_backbone: Path
) -> None:
    """Also where weights, predictions or orthogonality overflow before the loss does: JSON has no NaN."""
    training = {"learning_rate": 1e12, "max_grad_norm": None, "eval_steps": every}
    record = run(settings(tiny_backbone, kind, budget, options, task=task, training=training), progress=False)
    assert record["run"]["status"] == "diverged"
    assert "step" in record["run"]["reason"]
    assert record["cost"]["steps"] < 20
    Record.model_validate_json(json.dumps(record, allow_nan=False))


def test_divergence_in_the_last_step_is_recorded(tiny_backbone: Path) -> None:
    """No loss follows that would tell: the last evaluation has to."""
    training = {"learning_rate": 1e30, "max_grad_norm": None, "warmup_steps": 0, "max_steps": 1, "weight_decay": 1.0}
    record = run(settings(tiny_backbone, "full_ft", None, {}, training=training), progress=False)
    assert (record["run"]["status"], record["score"]["history"], record["score"]["test"]) == ("diverged", [], None)


@pytest.mark.parametrize("content", ["half-written", "a list", "without digest", "of another shape"])
def test_a_checkpoint_that_does_not_fit_starts_the_run_anew(
    content: str, tiny_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(tiny_backbone, "lora", 2, {})
    expected = run(chosen, progress=False)
    checkpoint = checkpoints.Checkpoint(chosen.digest)
    other: dict[str, Any] = {"adaptation": {"weights": {"a": torch.ones(2)}, "method": {}}, "optimizer": {}}
    if content == "of another shape":
        checkpoint.save({**other, "scheduler": {}, "progress": {"step": 3}})
    else:
        checkpoint.path.parent.mkdir(parents=True)
        if content == "half-written":
            checkpoint.path.write_bytes(b"half")
        else:
            torch.save([1, 2] if content == "a list" else other, checkpoint.path)
    assert run(chosen, progress=False)["score"] == expected["score"]
    assert "starting anew" in caplog.text


def test_a_finished_run_leaves_no_checkpoint_behind(tmp_path: Path) -> None:
    kept = checkpoints.Checkpoint("0123", tmp_path)
    kept.save({})
    (tmp_path / ".0123.pt.99.tmp").write_bytes(b"half-written, then killed")
    (tmp_path / ".4567.pt.99.tmp").write_bytes(b"of another run")
    kept.delete()
    assert [path.name for path in tmp_path.iterdir()] == [".4567.pt.99.tmp"]


def test_runs_share_gpus_through_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with device_slot(tmp_path) as one:
        with device_slot(tmp_path) as two:
            assert (one.index, two.index) == (0, 1)
            with pytest.raises(pytest.fail.Exception), device_slot(tmp_path):
                pass
            monkeypatch.setattr("platform.node", lambda: "another node of the cluster, the same folder")
            with device_slot(tmp_path) as elsewhere:
                assert elsewhere.index == 0
            monkeypatch.undo()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with device_slot(tmp_path) as same_machine:
            assert same_machine.index == 0, "its first is the machine's second, which is free again"
    for wrong in ("0", "two"):
        monkeypatch.setenv("INCRELORA_RUNS_PER_GPU", wrong)
        with pytest.raises(ConfigError, match="INCRELORA_RUNS_PER_GPU"), device_slot(tmp_path):
            pass


def test_collapse_is_recorded(tiny_backbone: Path) -> None:
    for task in ("stsb", "cola"):
        chosen = settings(tiny_backbone, "bitfit", None, {}, task=task, training={"learning_rate": 1e-12})
        result = run(chosen, progress=False)
        score = Record.model_validate(result).score
        best = [entry.step for entry in score.history].index(score.best_step)
        constant = len(set(score.predictions["validation"][best])) == 1
        assert (result["run"]["status"] == "collapsed") == constant


def test_tensorboard_is_written_on_request(tiny_backbone: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(settings(tiny_backbone, "increlora", 2, {"deltaT": 3}), progress=False, tensorboard=tmp_path / "board")
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))


def test_missing_backbone_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.path"):
        run(settings(tmp_path / "nowhere", "lora", 2, {}), progress=False)


def test_impossible_budget_stops_before_training(tiny_backbone: Path) -> None:
    with pytest.raises(ConfigError, match="rank 17 exceeds"):
        run(settings(tiny_backbone, "lora", 17, {}), progress=False)
    with pytest.raises(ConfigError, match="top_h"):
        run(settings(tiny_backbone, "increlora", 8, {"deltaT": 3, "top_h": 1}), progress=False)


def test_batches_cover_every_example_once_and_repeat() -> None:
    lengths = [3 + (7 * i) % 11 for i in range(53)]
    for grouping in (True, False):
        order = epoch_order(lengths, 8, seed=1, epoch=2, grouping=grouping)
        assert sorted(row for rows in order for row in rows) == list(range(53))
        assert order == epoch_order(lengths, 8, seed=1, epoch=2, grouping=grouping)
        assert order != epoch_order(lengths, 8, seed=1, epoch=3, grouping=grouping)


def test_padding_is_dynamic(tiny_backbone: Path) -> None:
    from increlora.glue.loading import Examples
    from increlora.training.backbone import load_tokenizer
    from increlora.training.settings import Backbone

    tokenizer = load_tokenizer(Backbone(name="tiny", path=str(tiny_backbone)))
    data = encode(Examples((["the dog", "the dog saw the cat"],), [0, 1]), tokenizer, 32, regression=False)
    batch = collate(data, [0, 1], tokenizer.pad_token_id)
    assert batch["input_ids"].shape[1] == max(data.lengths())
    assert batch["attention_mask"].sum(1).tolist() == data.lengths()
    assert collate(data, [0], tokenizer.pad_token_id, multiple=8)["input_ids"].shape[1] % 8 == 0


def test_sequences_longer_than_the_positions_are_refused(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("increlora.training.data.position_limit", lambda config: 512)
    with pytest.raises(ConfigError, match=r"training\.max_length: tiny reads up to 512 tokens"):
        run(settings(tiny_backbone, "lora", 2, {}, training={"max_length": 513}), progress=False)


def test_a_new_method_is_an_entry(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LayerNorm tuning, from its entry to a record that counts what it trained."""
    from increlora.methods.base import Adaptation, train_only
    from increlora.methods.method import Look, Method
    from increlora.methods.registry import METHODS, count

    def prepare(setup: Any) -> Adaptation:
        train_only(setup.model, {name for name, _ in setup.model.named_parameters() if "LayerNorm" in name})
        return Adaptation(setup.model, setup.recipe)

    method = Method(
        kind="norms", title="Norms", budget=None, parameters="build", prepare=prepare, look=Look("#000000", "1")
    )
    monkeypatch.setitem(METHODS, "norms", method)
    record = run_record(settings(tiny_backbone, "norms", None, {}), progress=False)
    assert record.run.protocol == 1
    norms = 2 * 16  # weight and bias
    expected = norms * (1 + 1 + 2 * 2)  # embeddings, relative positions, two per layer
    assert record.parameters.trainable == record.parameters.budget == expected
    config = load_config(record.run.settings.backbone, TASKS["rte"])
    assert count("norms", None, config).trainable == expected
    with pytest.raises(ConfigError, match="Norms has no budget"):
        run_record(settings(tiny_backbone, "norms", 4, {}), progress=False)
