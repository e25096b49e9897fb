"""What a GPU has to do like a CPU: losses, decisions, resuming, export (`python -m pytest -m gpu`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from increlora import IncreLoraConfig, create_optimizer, export_lora
from increlora.training import checkpoint as checkpoints
from increlora.training.run import run as run_record
from tests.test_training import METHODS, ranks_for, run, settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CASES = pytest.mark.parametrize(("kind", "budget", "options"), METHODS, ids=[method[0] for method in METHODS])
EXACT = {"precision": "fp32", "eval_steps": 4}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@CASES
def test_losses_and_ranks_are_those_of_the_cpu(
    kind: str, budget: int | None, options: dict[str, Any], tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, whose random numbers are each device's own."""

    def kept(input: Tensor, *_: Any, **__: Any) -> Tensor:
        return input

    monkeypatch.setattr(nn.functional, "dropout", kept)
    chosen, name = settings(tiny_backbone, kind, budget, options, training=EXACT), torch.cuda.get_device_name()
    on_gpu = run_record(chosen, ranks=ranks_for(kind), progress=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = run_record(chosen, ranks=ranks_for(kind), progress=False)
    assert (on_gpu.cost.device, on_cpu.cost.device) == (name, "cpu")
    losses = [[entry.train_loss for entry in record.score.history] for record in (on_gpu, on_cpu)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert on_gpu.parameters == on_cpu.parameters
    if on_cpu.allocation is not None:
        assert on_gpu.allocation is not None
        assert on_gpu.allocation.ranks == on_cpu.allocation.ranks
        assert on_gpu.allocation.growth == on_cpu.allocation.growth
    assert on_gpu.cost.peak_memory_mb


@CASES
def test_resumed_run_equals_the_uninterrupted_one(
    kind: str, budget: int | None, options: dict[str, Any], tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random numbers of the device included; in float32, as a loss of bfloat16 logits has no such resolution."""
    chosen = settings(tiny_backbone, kind, budget, options, training=EXACT)
    whole = run(chosen, ranks=ranks_for(kind), progress=False)
    save = checkpoints.Checkpoint.save

    def save_and_die(self: checkpoints.Checkpoint, state: dict[str, Any]) -> None:
        save(self, state)
        if state["progress"]["step"] == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, ranks=ranks_for(kind), progress=False, checkpoint_seconds=0)
    torch.cuda.manual_seed(12345)
    resumed = run(chosen, ranks=ranks_for(kind), progress=False, checkpoint_seconds=1e9)
    losses = [[entry["train_loss"] for entry in record["score"]["history"]] for record in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert resumed["parameters"] == whole["parameters"]
    assert (resumed["allocation"] or {}).get("ranks") == (whole["allocation"] or {}).get("ranks")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_growth_and_export_on_the_device(dtype: torch.dtype, tmp_path: Path) -> None:
    """Trained, merged and exported where it trained; adapters of a bfloat16 base stay float32."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)).to("cuda", dtype)
    start = {name: value.clone() for name, value in base.state_dict().items()}
    config = IncreLoraConfig(target_modules=["0", "2"], target_r=3, deltaT=4, growth_end=0.6)
    model = get_peft_model(base, config)
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=40, warmup_steps=2)
    inputs = torch.randn(16, 32, device="cuda", dtype=dtype)
    for step in range(1, 41):
        (model(inputs) - inputs.flip(1)).float().square().mean().backward()
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert sum(model.rank_distribution().values()) == 6
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.eval()
    with torch.no_grad():
        trained = model(inputs)
        export_lora(model, tmp_path / "lora")
        fresh = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)).to("cuda", dtype)
        fresh.load_state_dict(start)
        assert not torch.allclose(fresh(inputs), trained, atol=1e-1)
        tolerance = 1e-5 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(
            PeftModel.from_pretrained(fresh, tmp_path / "lora")(inputs), trained, atol=tolerance, rtol=tolerance
        )
        torch.testing.assert_close(model.merge_and_unload()(inputs), trained, atol=tolerance, rtol=tolerance)
