"""The tuner's whole life cycle on any model: one table of cases, one set of properties that hold for each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from increlora import IncreLoraConfig, create_optimizer, export_lora, find_allocator, lora_config
from increlora.errors import IncreLoraError
from increlora.tuner import importance as importance_module
from tests.conftest import TARGETS
from tests.tuner.conftest import deberta

STEPS = 20
Batch = dict[str, torch.Tensor]


class Plain(nn.Module):
    """No Transformers model: ``shared`` is called twice in a forward pass, under one name or under two."""

    def __init__(self, names: int):
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        if names == 2:
            self.again = self.shared
        self.run: Callable[..., Any] = lambda part, hidden: part(hidden)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool]) -> None:
        self.run = lambda part, hidden: checkpoint(part, hidden, **gradient_checkpointing_kwargs)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        hidden = self.run(lambda h: torch.tanh(self.first(h)), x)
        hidden = self.run(lambda h: h + torch.tanh(self.shared(h)), hidden)
        hidden = self.run(lambda h: h + torch.tanh(getattr(self, "again", self.shared)(h)), hidden)
        logits = self.head(hidden)
        return SimpleNamespace(logits=logits, loss=nn.functional.cross_entropy(logits.float(), labels))


def ids() -> torch.Tensor:
    return torch.randint(5, 100, (8, 10), generator=torch.Generator().manual_seed(1))


def sentences() -> Batch:
    return {"input_ids": ids(), "labels": ids()[:, 0] % 2}


def text() -> Batch:
    return {"input_ids": ids(), "labels": ids()}


def numbers(*shape: int) -> torch.Tensor:
    """Inputs that require gradients, because reentrant checkpointing passes none on otherwise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), requires_grad=True)


def images() -> Batch:
    return {"pixel_values": numbers(8, 3, 16, 16), "labels": ids()[:, 0] % 2}


def vectors() -> Batch:
    return {"x": numbers(8, 16), "labels": ids()[:, 0] % 3}


@dataclass(frozen=True)
class Case:
    """A model and what is adapted in it.

    Attributes:
        build: makes the model from the seed that is set.
        targets: ``target_modules`` as a regular expression.
        modules: how many modules that matches.
        batch: what is learnt by heart.
        save: ``modules_to_save``.
        checkpointing: whether the model has gradient checkpointing at all.
        exportable: whether plain LoRA can express the adapter.
    """

    build: Callable[[], nn.Module]
    targets: str
    modules: int
    batch: Callable[[], Batch] = sentences
    save: tuple[str, ...] = ()
    checkpointing: bool = True
    exportable: bool = True

    def base(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()

    def config(self, **changes: Any) -> IncreLoraConfig:
        fields: dict[str, Any] = {"target_r": 3, "deltaT": 2, "modules_to_save": list(self.save)}
        fields["orth_reg_weight"] = 0.01  # the paper's 0.1 would be most of what twenty steps can learn
        return IncreLoraConfig(target_modules=self.targets, **{**fields, **changes})

    def adapted(self, dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
        base = self.base().to(dtype)
        torch.manual_seed(1)
        return get_peft_model(base, self.config(**changes))


SIZE = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {**SIZE, **IDS, **NO_DROPOUT}
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, **IDS}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
BERT_TARGETS = (
    r".*layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense|(intermediate|output)\.dense)"
)

CASES = {
    "DeBERTa-v2": Case(
        lambda: deberta(**BERT), TARGETS, 12, save=("pooler", "classifier")
    ),  # query and key are called twice (share_att_key)
    "BERT": Case(
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)), BERT_TARGETS, 12, save=("pooler", "classifier")
    ),
    "RoBERTa": Case(
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**BERT)), BERT_TARGETS, 12, save=("classifier",)
    ),
    "ModernBERT": Case(
        lambda: hf.ModernBertForSequenceClassification(
            hf.ModernBertConfig(**SIZE, **IDS, cls_token_id=1, sep_token_id=2)
        ),
        r".*layers\.\d+\.(attn\.(Wqkv|Wo)|mlp\.(Wi|Wo))",
        8,
        save=("head", "classifier"),
    ),
    "ALBERT": Case(  # all layers are one: every adapted module is called twice
        lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**BERT, embedding_size=16)),
        r".*albert_layers\.0\.(attention\.(query|key|value|dense)|ffn|ffn_output)",
        6,
        save=("classifier",),
        checkpointing=False,  # Transformers has none for it
    ),
    "GPT-2": Case(  # Conv1D; the head is tied to the embedding
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)),
        r".*\.(c_attn|c_proj|c_fc)",
        8,
        text,
    ),
    "Llama": Case(
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, **IDS, num_key_value_heads=1)),
        r".*\.(q|k|v|o|gate|up|down)_proj",
        14,
        text,
    ),
    "T5": Case(  # encoder, decoder and head share one embedding
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
        r".*block\.\d+\.layer\.\d+\.(SelfAttention\.(q|k|v|o)|EncDecAttention\.(q|v)|DenseReluDense\.(wi|wo))",
        28,
        text,
    ),
    "ViT": Case(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**BERT, image_size=16, patch_size=8)),
        r".*layers\.\d+\.(attention\.[qkvo]_proj|mlp\.fc\d)",
        12,
        images,
        save=("classifier",),
    ),
    "called twice": Case(lambda: Plain(names=1), r"first|shared", 2, vectors, save=("head",)),
    "two names": Case(  # PEFT's LoRA would adapt a module of two names under the first one only
        lambda: Plain(names=2), r"first|shared", 2, vectors, save=("head",), exportable=False
    ),
}


def on(model: nn.Module, batch: Batch) -> Batch:
    """The batch in the dtype of the model's weights."""
    dtype = next(model.parameters()).dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


@torch.no_grad()
def evaluate(model: nn.Module, case: Case) -> Any:
    return model.eval()(**on(model, case.batch()))


def logits(model: nn.Module, case: Case) -> torch.Tensor:
    return evaluate(model, case).logits


def start(model: PeftModel, parts: int = 1, **options: Any) -> tuple[Any, Any]:
    lengths = {"total_steps": STEPS, "warmup_steps": 2, "gradient_accumulation_steps": parts}
    return create_optimizer(model, lr=2e-2, **lengths, **options)


def train(model: PeftModel, case: Case, steps: range, optimizer: Any, scheduler: Any, parts: int = 1) -> list[float]:
    model.train()
    losses = []
    batch = on(model, case.batch())
    for step in steps:
        torch.manual_seed(step)
        total = 0.0
        for part in range(parts):
            loss = model(**{name: value.chunk(parts)[part] for name, value in batch.items()}).loss / parts
            loss.backward()
            total += loss.item()
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def forget(model: PeftModel) -> None:
    for layer in find_allocator(model).layers.values():
        layer.components["default"].importance.zero_()


def importance(model: PeftModel) -> torch.Tensor:
    return find_allocator(model).importance[:, 0].clone()


def assert_same_training(one: PeftModel, other: PeftModel) -> None:
    assert one.growth_events() == other.growth_events()
    assert torch.equal(importance(one), importance(other))
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture(params=CASES.values(), ids=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def trained_once(case: Case) -> PeftModel:
    model = case.adapted(lora_dropout=0.1)
    train(model, case, range(1, STEPS + 1), *start(model))
    return model


@pytest.fixture
def trained(trained_once: PeftModel) -> PeftModel:
    return copy.deepcopy(trained_once)


def test_adapter_changes_nothing_at_first(case: Case) -> None:
    model = case.adapted()
    torch.testing.assert_close(logits(model, case), logits(case.base(), case), atol=2e-4, rtol=0)
    assert len(model.rank_distribution()) == case.modules
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-2] for name in trainable if ".modules_to_save." not in name} == {
        "increlora_A",
        "increlora_B",
        "increlora_lambda",
    }
    saved = {name.split(".modules_to_save.")[0].split(".")[-1] for name in trainable if ".modules_to_save." in name}
    assert saved == set(case.save)


def test_ranks_grow_to_the_budget_and_the_loss_falls(case: Case, trained: PeftModel) -> None:
    ranks = trained.rank_distribution()
    assert sum(ranks.values()) == 3 * case.modules
    assert find_allocator(trained).finished
    assert evaluate(trained, case).loss < 0.9 * evaluate(case.base(), case).loss
    frozen = {
        name.replace(".base_layer", "").replace(".original_module", ""): parameter
        for name, parameter in trained.get_base_model().named_parameters()
        if not parameter.requires_grad
    }
    for name, parameter in case.base().named_parameters():
        assert torch.equal(frozen[name], parameter), name


def test_saved_adapter_loads_anywhere(case: Case, trained: PeftModel, tmp_path: Path) -> None:
    expected = logits(trained, case)
    trained.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {"README.md"} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    saved = load_file(tmp_path / "adapter_model.safetensors")
    for name, rank in trained.rank_distribution().items():
        assert len(saved[f"base_model.model.{name}.increlora_A"]) == rank
    for low_memory in (False, True):
        loaded = PeftModel.from_pretrained(case.base(), tmp_path, low_cpu_mem_usage=low_memory)
        assert loaded.rank_distribution() == trained.rank_distribution()
        torch.testing.assert_close(logits(loaded, case), expected, atol=1e-5, rtol=1e-5)
    other = case.adapted()
    other.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert other.rank_distribution() == trained.rank_distribution()
    torch.testing.assert_close(logits(other, case), expected, atol=1e-5, rtol=1e-5)


def test_resume_in_mid_growth_is_bit_for_bit(case: Case, trained: PeftModel, tmp_path: Path) -> None:
    first = case.adapted(lora_dropout=0.1)
    optimizer, scheduler = start(first)
    train(first, case, range(1, 8), optimizer, scheduler)
    assert 0 < len(first.growth_events()) < len(trained.growth_events())
    first.save_pretrained(tmp_path)
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state.pt")

    torch.manual_seed(77)
    second = PeftModel.from_pretrained(case.base(), tmp_path, is_trainable=True)
    optimizer, scheduler = start(second)
    for part, state in zip((optimizer, scheduler), torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    train(second, case, range(8, STEPS + 1), optimizer, scheduler)
    assert_same_training(second, trained)


def test_merge_unmerge_disable_and_unload(case: Case, trained: PeftModel) -> None:
    expected, base = logits(trained, case), case.base()
    assert (expected - logits(base, case)).abs().max() > 0.1
    with trained.disable_adapter():
        assert torch.equal(logits(trained, case), logits(base, case))
    for change in (trained.merge_adapter, trained.unmerge_adapter):
        change()
        torch.testing.assert_close(logits(trained, case), expected, atol=1e-3, rtol=1e-3)
    merged = trained.merge_and_unload()
    torch.testing.assert_close(logits(merged, case), expected, atol=1e-3, rtol=1e-3)
    assert [type(module) for module in merged.modules()] == [type(module) for module in base.modules()]
    assert list(merged.state_dict()) == list(base.state_dict())


def test_export_is_plain_lora(case: Case, trained: PeftModel, tmp_path: Path) -> None:
    if not case.exportable:
        with pytest.raises(IncreLoraError, match="several names"):
            export_lora(trained, tmp_path)
        return
    plain = PeftModel.from_pretrained(case.base(), export_lora(trained, tmp_path))
    assert plain.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(plain, case), logits(trained, case), atol=1e-5, rtol=1e-5)


def test_ranks_retrain_as_lora(case: Case, trained: PeftModel) -> None:
    ranks = trained.rank_distribution()
    retrained = get_peft_model(case.base(), lora_config(ranks))
    found = {name: module.r["default"] for name, module in retrained.named_modules() if hasattr(module, "lora_A")}
    assert {name.removeprefix("base_model.model."): r for name, r in found.items()} == ranks


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_regulariser_is_in_no_loss_and_in_every_gradient(task: str | None) -> None:
    """Whatever the loss is: the gradient that the regulariser adds is that which autograd finds for it."""
    models = {weight: get_peft_model(CASES["BERT"].base(), CASES["BERT"].config(task_type=task)) for weight in (0, 0.1)}
    losses, gradients = {}, {}
    for weight, model in models.items():
        model.load_state_dict(models[0].state_dict())
        find_allocator(model).regulariser.weight = weight
        logits = model.train()(**sentences()).logits
        loss = (logits.square().sum(1) + 1).log().mean()  # a loss that the model does not know
        loss.backward()
        losses[weight] = loss.item()
        named = model.get_base_model().named_parameters()
        gradients[weight] = {n: p.grad.clone() for n, p in named if ".increlora_" in n}
    assert losses[0] == losses[0.1]
    layers = find_allocator(model).layers
    matrices = {
        (name, kind): getattr(layer, f"increlora_{kind}")["default"] for name, layer in layers.items() for kind in "AB"
    }
    total = torch.zeros(())
    for (name, kind), parameter in matrices.items():
        rows = layers[name].components["default"].trained
        matrix = parameter[:rows] if kind == "A" else parameter[:, :rows].T
        total = total + (matrix @ matrix.T - torch.eye(rows)).square().sum()
    assert model.orthogonality_loss() == pytest.approx(0.1 * float(total))
    expected = torch.autograd.grad(0.1 * total, list(matrices.values()))
    for ((name, kind), _), penalty in zip(matrices.items(), expected, strict=True):
        key = f"{name}.increlora_{kind}.default"
        torch.testing.assert_close(gradients[0.1][key] - gradients[0][key], penalty, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("block", [importance_module.BLOCK, 50], ids=["whole", "in blocks"])
def test_importance_is_that_of_the_whole_matrix(case: Case, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of dW is that of the weight which it is added to; autograd gives it if the weight is trainable."""
    monkeypatch.setattr(importance_module, "BLOCK", block)
    model = case.adapted()
    train(model, case, range(1, 7), *start(model))
    layers = find_allocator(model).layers
    forget(model)
    expected = []
    for layer in layers.values():
        layer.get_base_layer().weight.requires_grad_(True)
    model(**case.batch()).loss.backward()
    for layer in layers.values():
        gradient = layer.get_base_layer().weight.grad
        update = layer.factored_update("default")
        expected.append(
            (update * (gradient.T if isinstance(layer.get_base_layer(), hf.Conv1D) else gradient)).abs().mean()
        )
    model.update_and_allocate(7)
    torch.testing.assert_close(importance(model) / 0.15, torch.stack(expected), rtol=1e-4, atol=1e-9)


def test_free_importance_is_the_signed_sum_over_the_matrix(case: Case) -> None:
    """Of the active components, for every kind of layer and however often it is called."""
    model = case.adapted(score="taylor")
    train(model, case, range(1, 7), *start(model))
    layers = find_allocator(model).layers
    forget(model)
    for layer in layers.values():
        layer.get_base_layer().weight.requires_grad_(True)
    model(**case.batch()).loss.backward()
    expected = [
        (layer.get_delta_weight("default") * layer.get_base_layer().weight.grad).sum().abs()
        for layer in layers.values()
    ]
    model.update_and_allocate(7)
    torch.testing.assert_close(importance(model) / 0.15, torch.stack(expected), rtol=1e-3, atol=1e-6)


@dataclass(frozen=True)
class Precision:
    """Weights of the base model, autocast and loss scale."""

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scale: float | None = None


PRECISIONS = {
    "bfloat16 weights": Precision(weights=torch.bfloat16),
    "bfloat16 autocast": Precision(autocast=torch.bfloat16),
    "float16 autocast": Precision(autocast=torch.float16, scale=2.0**12),
}


def train_scaled(
    model: PeftModel,
    case: Case,
    precision: Precision,
    steps: int = STEPS,
    unscale: bool = True,
    overflows: tuple[int, ...] = (),
) -> list[torch.Tensor]:
    """Train with a GradScaler, through gradients that are infinite at the steps ``overflows``; return the scores."""
    scaler = torch.amp.GradScaler("cpu", init_scale=precision.scale or 1.0, enabled=precision.scale is not None)
    optimizer, scheduler = start(model, scaler=scaler)
    model.train()
    scores = []
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        with torch.autocast("cpu", dtype=precision.autocast, enabled=precision.autocast is not None):
            loss = model(**on(model, case.batch())).loss
        scaler.scale(loss * float("inf") if step in overflows else loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        model.update_and_allocate(step)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < before) == (step in overflows)
        if step not in overflows:
            scheduler.step()
        optimizer.zero_grad()
        scores.append(importance(model))
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_half_precision(case: Case, precision: Precision, tmp_path: Path) -> None:
    exact, model = case.adapted(), case.adapted(precision.weights)
    expected = train_scaled(exact, case, Precision(), steps=2)[0]
    scores = train_scaled(model, case, precision)
    torch.testing.assert_close(scores[0], expected, rtol=0.3, atol=0)
    assert sum(model.rank_distribution().values()) == 3 * case.modules
    assert evaluate(model, case).loss < 0.9 * evaluate(case.base(), case).loss
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if ".increlora_" in name else precision.weights), name
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.base().to(precision.weights), tmp_path)
    torch.testing.assert_close(logits(loaded, case), logits(model, case))


@pytest.mark.one_fast
def test_float16_scores_at_the_highest_loss_scale(case: Case) -> None:
    """A GradScaler raises its scale until gradients overflow; up to there the scores must not."""
    model = case.adapted()
    train(model, case, range(1, 7), *start(model))
    scores = {}
    for scale in (1.0, *(2.0**power for power in range(24, 0, -1))):
        one = copy.deepcopy(model)
        forget(one)
        with torch.autocast("cpu", dtype=torch.float16, enabled=scale > 1):
            loss = one(**case.batch()).loss
        regulariser = find_allocator(one).regulariser
        regulariser.weight, regulariser.scaler = 0, torch.amp.GradScaler("cpu", init_scale=scale)
        regulariser.scaler.scale(loss).backward()
        one.update_and_allocate(7)
        scores[scale] = importance(one)
        if scale > 1 and all(p.grad is None or p.grad.isfinite().all() for p in one.parameters()):
            break
    assert scale > 1
    torch.testing.assert_close(scores[scale], scores[1.0], rtol=0.3, atol=0)


@pytest.mark.one_fast
@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled before", "unscaled in the step"])
def test_loss_scale_changes_nothing(case: Case, unscale: bool) -> None:
    """A power of two scales floats without rounding, so a scaled training is the plain one bit for bit."""
    plain, scaled = case.adapted(), case.adapted()
    train(plain, case, range(1, STEPS + 1), *start(plain))
    train_scaled(scaled, case, Precision(scale=2.0**10), unscale=unscale)
    assert_same_training(scaled, plain)


@pytest.mark.one_fast
@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled before", "unscaled in the step"])
def test_overflow_is_passed_over(case: Case, unscale: bool) -> None:
    """Step 2 is the first growth; its infinite gradients must neither be used nor stay."""
    model = case.adapted()
    scores = train_scaled(model, case, Precision(scale=2.0**10), unscale=unscale, overflows=(2, 5))
    for step in (2, 5):
        assert torch.equal(scores[step - 1], scores[step - 2])
    assert not torch.equal(scores[2], scores[1])
    assert model.growth_events()[0]["step"] == 2
    assert sum(model.rank_distribution().values()) == 3 * case.modules
    assert evaluate(model, case).loss < 0.9 * evaluate(case.base(), case).loss


@pytest.mark.one_fast
def test_accumulated_parts_count_as_one_batch(case: Case) -> None:
    whole, parts = case.adapted(), case.adapted()
    train(whole, case, range(1, 9), *start(whole))
    train(parts, case, range(1, 9), *start(parts, parts=2), parts=2)
    assert parts.growth_events() == whole.growth_events()
    torch.testing.assert_close(importance(parts), importance(whole), rtol=1e-3, atol=1e-9)


@pytest.mark.one_fast
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_gradient_checkpointing_changes_nothing(case: Case, use_reentrant: bool) -> None:
    plain, checkpointed = case.adapted(), case.adapted()
    if not case.checkpointing:
        with pytest.raises(ValueError, match="does not support activation checkpointing"):
            checkpointed.gradient_checkpointing_enable()
        return
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    expected = train(plain, case, range(1, 9), *start(plain))
    losses = train(checkpointed, case, range(1, 9), *start(checkpointed))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    assert checkpointed.growth_events() == plain.growth_events()
    torch.testing.assert_close(importance(checkpointed), importance(plain), rtol=1e-3, atol=1e-9)
