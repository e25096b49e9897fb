"""Methods: parameter counts of the paper, where adapters sit, what trains, exact continuation, and errors."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, relu, silu
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from increlora import find_allocator
from increlora.errors import ConfigError, IncreLoraError
from increlora.methods import families, registry
from increlora.methods.base import AllocationError, head_parameters, target_shapes
from increlora.methods.families import FAMILIES, head_modules
from increlora.methods.method import Method, Recipe
from increlora.methods.ranks import svd_parameters, transform_ranks
from increlora.methods.registry import METHODS, count, meta_model

DEBERTA_TARGETS = FAMILIES["deberta-v2"].target_modules
DEBERTA = {
    "relative_attention": True,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
BASE = DebertaV2Config(
    vocab_size=128_100,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    position_buckets=256,
    max_position_embeddings=512,
    **DEBERTA,
)
TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
TINY_DEBERTA = DebertaV2Config(**TINY, position_buckets=8, **DEBERTA)
TINY_BERT = BertConfig(**TINY)
TINY_MODELS = {"deberta": TINY_DEBERTA, "bert": TINY_BERT}
BUDGETS = {"full_ft": None, "head": None, "bitfit": None, "hadapter": 4, "padapter": 4, "lora": 2, "adalora": 2}
PLAN = Recipe(total_steps=12, warmup_steps=2, learning_rate=0.01, weight_decay=0.01, seed=5)
ADALORA = {"tinit": 2, "tfinal": 3, "deltaT": 2}


def tiny_model(config=TINY_DEBERTA):
    """The same model at each call; noise makes every bias, LayerNorm and sublayer matter."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def prepare(kind, budget=None, model=None, recipe=PLAN, ranks=None, **options):
    return registry.prepare(kind, model or tiny_model(), recipe, budget=budget, options=options, ranks=ranks)


def adapt(kind, backbone="deberta", recipe=PLAN, **options):
    if kind == "adalora":
        options = {**ADALORA, **options}
    return prepare(kind, BUDGETS[kind], tiny_model(TINY_MODELS[backbone]), recipe, **options)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (4, 8), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}


def train(adaptation, optimizer, scheduler, steps):
    """Steps as the training loop takes them; all randomness of a step comes from its number."""
    adaptation.model.train()
    for step in steps:
        torch.manual_seed(step)
        loss = adaptation.model(**batch(step)).loss
        penalty = adaptation.penalty()
        (loss if penalty is None else loss + penalty).backward()
        adaptation.before_step(step)
        optimizer.step()
        scheduler.step()
        adaptation.after_step(step)
        optimizer.zero_grad()


def tensors(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# Counts (param_counts of the paper; see the derivations in the documentation)


@pytest.mark.parametrize(
    ("kind", "budget", "expected"),
    [
        ("full_ft", None, 184_423_682),
        ("bitfit", None, 102_912),
        ("head", None, 0),
        ("hadapter", 64, 2_379_264),
        ("hadapter", 32, 1_198_848),
        ("hadapter", 16, 608_640),
        ("hadapter", 8, 313_536),
        ("padapter", 64, 1_189_632),
        ("padapter", 32, 599_424),
        ("padapter", 16, 304_320),
        ("padapter", 8, 156_768),
        ("lora", 8, 1_327_104),
        ("lora", 4, 663_552),
        ("lora", 2, 331_776),
        *((kind, 8, 1_327_680) for kind in ("adalora", "increlora", "svd_lora")),
        *((kind, 2, 331_920) for kind in ("adalora", "increlora", "svd_lora")),
        ("increlora", 1, 165_960),
        ("increlora", 24, 3_983_040),
    ],
)
def test_counts_of_deberta_v3_base(kind, budget, expected):
    counted = count(kind, budget, BASE)
    assert counted.trainable == expected
    assert counted.head == 592_130
    added = 0 if kind in ("full_ft", "bitfit", "head") else expected
    assert counted.total == 184_423_682 + added


def test_a_budget_of_parameters_is_that_of_lora():
    counted = count("increlora", 2, BASE, options={"budget_by": "parameters"})
    assert counted.trainable == count("lora", 2, BASE).trainable


@pytest.mark.parametrize(("labels", "head"), [(1, 591_361), (3, 592_899)])
def test_head_depends_on_the_labels(labels, head):
    config = copy.deepcopy(BASE)
    config.num_labels = labels
    assert count("bitfit", None, config).head == head


def test_svd_form_at_uneven_ranks():
    shapes = target_shapes(meta_model(BASE), DEBERTA_TARGETS)
    assert len(shapes) == 72
    ranks = {name: 3 if shape == (768, 768) else 1 for name, shape in shapes.items()}
    assert svd_parameters(shapes, ranks) == 1_536 * 48 * 3 + 3_840 * 24 + 48 * 3 + 24


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_prepared_counts_agree_with_the_formula(kind):
    adaptation = prepare(kind, 2, meta_model(BASE), Recipe(100, 0, 1e-3, 0.0, 0))
    counted = count(kind, 2, BASE)
    assert adaptation.budget_parameters == counted.trainable
    if kind == "lora":
        assert adaptation.parameters() == counted
    else:  # starts at 1.5 times the target
        assert adaptation.peak_trainable() == adaptation.parameters().trainable == 331_920 * 3 // 2
        assert adaptation.parameters().total == 184_423_682 + 331_920 * 3 // 2


# What trains


def expected_trainable(kind, backbone, name):
    if name.startswith(("pooler", "classifier", "bert.pooler")):
        return ".original_module." not in name
    if kind == "full_ft":
        return True
    if kind == "head":
        return False
    if kind == "bitfit":
        return name.endswith("bias")
    if kind in ("hadapter", "padapter"):
        return ".adapter." in name
    return ".lora_" in name


@pytest.mark.parametrize("backbone", TINY_MODELS)
@pytest.mark.parametrize("kind", BUDGETS)
def test_training_changes_exactly_what_should_train(kind, backbone):
    adaptation = adapt(kind, backbone)
    before = tensors(adaptation.model)
    train(adaptation, *adaptation.optimizer(), range(1, 4))
    moved = {name for name, tensor in tensors(adaptation.model).items() if not torch.equal(tensor, before[name])}
    expected = {name for name in before if expected_trainable(kind, backbone, name)}
    assert moved == expected == set(adaptation.named_trainable())
    head = head_parameters(tiny_model(TINY_MODELS[backbone]))
    assert adaptation.parameters().head == sum(parameter.numel() for parameter in head.values())


def test_head_is_the_pooler_and_the_classifier():
    assert head_modules(tiny_model(TINY_DEBERTA)) == ["pooler", "classifier"]
    assert head_modules(tiny_model(TINY_BERT)) == ["bert.pooler", "classifier"]
    with pytest.raises(ConfigError, match="not a Transformers model"):
        head_modules(nn.Linear(2, 2))


def test_initialisation_depends_on_the_seed_alone():
    first = adapt("adalora").weights()
    model = tiny_model()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = prepare("adalora", 2, model, **ADALORA).weights()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)


# Optimizer


def test_biases_and_layer_norms_do_not_decay():
    adaptation = adapt("full_ft")
    optimizer, _ = adaptation.optimizer()
    names = {parameter: name for name, parameter in adaptation.model.named_parameters()}
    decay = {group["weight_decay"]: {names[p] for p in group["params"]} for group in optimizer.param_groups}
    assert decay[0.0] == {name for name in names.values() if "LayerNorm" in name or name.endswith("bias")}
    assert decay[0.01] | decay[0.0] == set(names.values())


# Adapters


def hooked(kind, adapted):
    """The same adapters on an untouched model by hooks: written from the definitions, without the package's blocks."""
    model = tiny_model()
    weights = dict(adapted.model.named_parameters())

    def bottleneck(path, act):
        w = {name: weights[f"{path}.adapter.{name}"] for name in ("down.weight", "down.bias", "up.weight", "up.bias")}
        return lambda z: linear(act(linear(z, w["down.weight"], w["down.bias"])), w["up.weight"], w["up.bias"])

    def houlsby(block, path):
        f = bottleneck(path, silu)
        block.dropout.register_forward_hook(lambda module, args, output: output + f(output))

    def pfeiffer(block, path):
        f = bottleneck(path, relu)
        seen = {}
        block.register_forward_pre_hook(lambda module, args: seen.update(x=args[1]))
        block.dropout.register_forward_hook(
            lambda module, args, output: output + f(block.LayerNorm(output + seen["x"]))
        )

    for index, layer in enumerate(model.deberta.encoder.layer):
        path = f"deberta.encoder.layer.{index}"
        if kind == "hadapter":
            houlsby(layer.attention.output, f"{path}.attention.output.dropout")
            houlsby(layer.output, f"{path}.output.dropout")
        else:
            pfeiffer(layer.output, f"{path}.output")
    return model


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", ["hadapter", "padapter"])
def test_adapter_placement(kind, training):
    """In training mode both draw the same dropout masks, so that also the order of dropout and adapter is compared."""
    adapted = adapt(kind, init_std=0.5)
    logits = []
    for model in (adapted.model, hooked(kind, adapted), tiny_model()):
        torch.manual_seed(1)
        logits.append(model.train(training)(**batch()).logits)
    assert torch.allclose(logits[0], logits[1], atol=1e-6)
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)


def test_adapter_initialisation():
    added = adapt("hadapter").weights()
    assert all(not tensor.any() for name, tensor in added.items() if ".adapter." in name and name.endswith("bias"))
    drawn = torch.cat([t.flatten() for name, t in added.items() if ".adapter." in name and name.endswith("weight")])
    assert abs(drawn.std().item() - 0.02) < 0.002


def test_adapters_refuse_an_architecture_without_a_place():
    with pytest.raises(ConfigError, match=r"backbone\.name: no place .* DistilBert.*; allowed: deberta-v2, bert"):
        prepare("padapter", 4, tiny_model(FAMILY_CONFIGS["distilbert"]))


# LoRA and AdaLoRA


def test_lora_scale_is_alpha_over_r():
    adaptation = adapt("lora", lora_alpha=6)
    assert adaptation.model.get_submodule("deberta.encoder.layer.0.output.dense").scaling == {"default": 3.0}
    assert adaptation.ranks() is None


def test_adalora_ends_at_its_budget():
    adaptation = adapt("adalora")
    assert set(adaptation.ranks().values()) == {3}
    with pytest.raises(AllocationError, match="never moved"):
        adaptation.finish()
    optimizer, scheduler = adaptation.optimizer()
    train(adaptation, optimizer, scheduler, range(1, 13))
    adaptation.finish()
    ranks, events = adaptation.ranks(), adaptation.events()
    assert sum(ranks.values()) == 2 * 12 == events[-1]["total_rank"]
    cubic = {step: int(12 * ((9 - step) / 7) ** 3 + 24) for step in (4, 6)}  # 36 cut to 24 in steps 3 to 9
    assert {event["step"]: event["total_rank"] for event in events[:2]} == cubic
    for name in ranks:  # the events add up to the ranks
        assert ranks[name] == 3 + sum(event["grown"].get(name, 0) for event in events)
        lambdas = adaptation.model.get_parameter(f"{name}.lora_E.default")
        assert int(lambdas.count_nonzero()) == ranks[name]
    assert adaptation.parameters().trainable == svd_parameters(adaptation.shapes, ranks)
    assert adaptation.peak_trainable() == svd_parameters(adaptation.shapes, dict.fromkeys(ranks, 3))
    assert adaptation.budget_parameters == svd_parameters(adaptation.shapes, dict.fromkeys(ranks, 2))


def test_adalora_penalty_is_the_term_of_peft():
    adaptation = adapt("adalora", orth_reg_weight=0.3)
    adaptation.model.eval()
    with_term = adaptation.peft_model(**batch()).loss
    without = adaptation.model(**batch()).loss
    assert torch.allclose(with_term - without, adaptation.penalty(), atol=1e-6)
    assert adapt("adalora", orth_reg_weight=0).penalty() is None


def test_adalora_scale_never_trains():
    # on another device than the CPU, PEFT 0.21 creates `ranknum` anew, with a gradient
    adaptation = prepare("adalora", 2, meta_model(TINY_DEBERTA), **ADALORA)
    assert not [name for name in adaptation.named_trainable() if "ranknum" in name]


def test_adalora_orthogonality_of_the_active_components():
    adaptation = adapt("adalora")
    train(adaptation, *adaptation.optimizer(), range(1, 13))
    expected = []
    for name, active in adaptation.active().items():
        a = adaptation.model.get_parameter(f"{name}.lora_A.default")[active]
        expected.append((a @ a.T - torch.eye(len(a))).square().sum().item())
    found = adaptation.orthogonality()
    assert found.A == found.A_with_reserve == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found.norm == found.norm_with_reserve
    assert adaptation.regularisation() == pytest.approx(adaptation.penalty().item())
    assert adapt("adalora", orth_reg_weight=0).regularisation() == 0
    assert adapt("lora").regularisation() is adapt("lora").orthogonality() is None


def test_increlora_orthogonality_of_the_active_components_and_with_the_reserve():
    """And the regulariser, which counts what trains."""
    adaptation = prepare("increlora", 2, orth_reg="squared", orth_reg_weight=0.5, deltaT=6)
    modules = adaptation.shapes
    expected = {"rank": [], "used": []}
    train(adaptation, *adaptation.optimizer(), range(1, 4))
    for name in modules:
        a = adaptation.model.get_parameter(f"{name}.increlora_A.default")
        b = adaptation.model.get_parameter(f"{name}.increlora_B.default").T
        for rows, kind in ((1, "rank"), (2, "used")):
            expected[kind].append([(m[:rows] @ m[:rows].T - torch.eye(rows)).norm().item() for m in (a, b)])
    active, used = (torch.tensor(expected[kind]) for kind in ("rank", "used"))
    found = adaptation.orthogonality()
    squares = [*active.square().mean(0).tolist(), *used.square().mean(0).tolist()]
    assert list(found) == pytest.approx([*squares, active.mean().item(), used.mean().item()], rel=1e-5)
    assert adaptation.regularisation() == pytest.approx(0.5 * used.square().sum().item(), rel=1e-5)
    train(adaptation, *adaptation.optimizer(), range(4, 13))
    adaptation.finish()
    found = adaptation.orthogonality()
    assert (found.A, found.B, found.norm) == (found.A_with_reserve, found.B_with_reserve, found.norm_with_reserve)


def test_increlora_stops_at_the_parameters_of_lora():
    adaptation = prepare("increlora", 3, deltaT=2, growth_end=0.6, budget_by="parameters", ranks_per_event=2)
    train(adaptation, *adaptation.optimizer(), range(1, 13))
    adaptation.finish()
    lora = prepare("lora", 3).parameters().trainable
    assert adaptation.budget_parameters == lora
    assert lora - 33 < adaptation.parameters().trainable <= lora
    first = next(iter(find_allocator(adaptation.peft_model).layers.values()))
    first.components["default"].rank += 1
    with pytest.raises(AllocationError, match=rf"with \d+ parameters, above its budget of {lora}"):
        adaptation.finish()


# State


def round_trip(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("stop", [5, 10])
@pytest.mark.parametrize("kind", BUDGETS)
def test_continues_bit_for_bit(kind, stop):
    """AdaLoRA is interrupted between two cuts (step 5), and after the last one (step 10)."""
    whole = adapt(kind)
    train(whole, *whole.optimizer(), range(1, 13))

    first = adapt(kind)
    optimizer, scheduler = first.optimizer()
    train(first, optimizer, scheduler, range(1, stop + 1))
    saved = round_trip([first.state_dict(), optimizer.state_dict(), scheduler.state_dict()])

    second = adapt(kind, recipe=Recipe(**{**vars(PLAN), "seed": 77}))
    second.load_state_dict(saved[0])
    optimizer, scheduler = second.optimizer()
    optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    train(second, optimizer, scheduler, range(stop + 1, 13))

    expected, got = tensors(whole.model), tensors(second.model)
    assert all(torch.equal(expected[name], got[name]) for name in expected if ".original_module." not in name)
    assert whole.ranks() == second.ranks()
    assert whole.events() == second.events()


@pytest.mark.parametrize("kind", BUDGETS)
def test_weights_come_back(kind):
    """Also after more components were cut."""
    adaptation = adapt(kind)
    optimizer, scheduler = adaptation.optimizer()
    train(adaptation, optimizer, scheduler, range(1, 5))
    best, ranks, counted = adaptation.weights(), adaptation.ranks(), adaptation.parameters()
    adaptation.model.eval()
    logits = adaptation.model(**batch()).logits
    train(adaptation, optimizer, scheduler, range(5, 13))
    adaptation.model.eval()
    assert not torch.equal(adaptation.model(**batch()).logits, logits)
    adaptation.load_weights(round_trip(best))
    assert torch.equal(adaptation.model(**batch()).logits, logits)
    assert adaptation.ranks() == ranks
    assert adaptation.parameters() == counted


def test_weights_of_another_method_are_refused():
    with pytest.raises(IncreLoraError, match="do not fit this model"):
        adapt("lora").load_weights(adapt("bitfit").weights())
    narrow = prepare("hadapter", 2)
    with pytest.raises(IncreLoraError, match=r"is \(4, 16\), not \(2, 16\)"):
        narrow.load_weights(adapt("hadapter").weights())


# Errors, before any model is prepared


@pytest.mark.parametrize(
    ("kind", "options", "field", "message"),
    [
        ("lora", {"lora_alhpa": 8}, "m.options.lora_alhpa", "did you mean 'lora_alpha'"),
        ("lora", {"lora_dropout": 1.5}, "m.options.lora_dropout", "less than 1"),
        ("full_ft", {"rank": 8}, "m.options.rank", "unknown"),
        ("padapter", {"activation": "gelu"}, "m.options.activation", "'swish' or 'relu'"),
        ("increlora", {"preset": "mine"}, "m.options.preset", "'paper' or 'code'"),
        ("lorra", {}, "kind", "did you mean 'lora'"),
    ],
)
def test_option_errors_name_the_field(kind, options, field, message):
    with pytest.raises(ConfigError, match=message) as caught:
        registry.validate_options(kind, options, "m.options")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kind", "budget", "options", "field"),
    [
        ("bitfit", 8, {}, "budget"),
        ("lora", None, {}, "budget"),
        ("lora", 0, {}, "budget"),
        ("lora", 17, {}, "budget"),
        ("hadapter", 0, {}, "budget"),
        ("adalora", 2, {"tinit": 6, "tfinal": 6}, "options.tfinal"),
        ("adalora", 2, {"tinit": 1, "tfinal": 1, "deltaT": 11}, "options.tfinal"),
        ("adalora", 2, {"init_r": 2}, "options.init_r"),
        ("adalora", 12, {}, "options.init_r"),
        ("increlora", 1, {}, "options.init_r"),
        ("increlora", 4, {"top_h": 1}, "options.top_h"),
        ("increlora", 4, {"deltaT": 50}, "options.growth_end"),
    ],
)
def test_impossible_budgets_name_the_field(kind, budget, options, field):
    shapes = target_shapes(tiny_model(), DEBERTA_TARGETS)
    with pytest.raises(ConfigError) as caught:
        registry.check_budget(kind, budget, registry.validate_options(kind, options), PLAN, shapes)
    assert caught.value.field == field


def test_possible_budgets_pass():
    shapes = target_shapes(tiny_model(), DEBERTA_TARGETS)
    for kind, budget in {**BUDGETS, "increlora": 4}.items():
        options = registry.validate_options(kind, ADALORA if kind == "adalora" else {})
        registry.check_budget(kind, budget, options, PLAN, shapes)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nothing", "matches no module"),
        ("(", "not a valid regular expression"),
        (r".*\.output", "not a Linear"),
        (r".*dense", "of the head"),
    ],
)
def test_target_modules_errors(pattern, message):
    with pytest.raises(ConfigError, match=message):
        target_shapes(tiny_model(), pattern)


def test_retraining_needs_ranks():
    with pytest.raises(ConfigError, match="ranks_from"):
        prepare("svd_lora", 2)


def test_reading_the_registry_is_cheap():
    code = (
        "import sys, increlora.methods.registry; sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_increlora_options_are_fields_of_the_tuner():
    given = {"preset": "code", "top_h": 3, "orth_reg": "component", "score_window": "all", "lora_alpha": 12.5}
    options = registry.validate_options("increlora", given)
    config = options.tuner_config(target_r=4)
    assert (config.top_h, config.target_r, config.orth_reg) == (3, 4, "component")  # given
    assert (config.score_window, config.lora_alpha) == ("all", 12.5)
    assert (config.score_reduction, config.ranks_per_event) == ("sum_sqrt", 2)  # the preset's
    # what a run's settings hold is the whole dump, which has to mean the same
    assert registry.validate_options("increlora", options.model_dump()).tuner_config(target_r=4) == config


def test_retraining_can_give_lambda_the_rate_that_it_grew_with():
    options = registry.validate_options("svd_lora", {"lambda_lr_ratio": 3})
    assert options.tuner_config(init_r=2).lambda_lr_ratio == 3


@pytest.mark.parametrize(
    ("kind", "options", "field", "message"),
    [
        ("increlora", {"top_hh": 3}, "top_hh", "did you mean 'top_h'"),
        ("increlora", {"deltaT": "five"}, "deltaT", "got 'five'; must be 1 or more, or None"),
        ("increlora", {"deltaT": True}, "deltaT", "got True; must be 1 or more, or None"),
        ("increlora", {"init_std": float("inf")}, "init_std", "finite"),
        ("increlora", {"beta1": 1.0}, "beta1", "between 0 and 1"),
        ("increlora", {"target_r": 4}, "target_r", "unknown"),
        ("increlora", {"tinit": "never"}, "tinit", "deltaT"),
        ("svd_lora", {"deltaT": 5}, "deltaT", "unknown"),
    ],
)
def test_wrong_options_of_the_tuner_are_found_before_training(kind, options, field, message):
    shapes = target_shapes(tiny_model(), DEBERTA_TARGETS)
    with pytest.raises(ConfigError, match=message) as caught:
        registry.check_budget(kind, 4, registry.validate_options(kind, options), PLAN, shapes, "m.options")
    assert caught.value.field == f"m.options.{field}"


def test_what_a_later_tuner_adds_changes_no_digest():
    """A run's settings spell out the same options as ever, and of later ones those that a config gives."""
    names = ["preset", "lora_alpha", "lora_dropout", "scaling", "orth_reg_weight", "orth_reg", "init_std"]
    assert sorted(registry.validate_options("svd_lora", {}).model_dump()) == sorted(names)
    assert len(registry.validate_options("increlora", {}).model_dump()) == 21
    for given in ({}, {"orth_reg_weight": None}):  # null once meant another default
        assert registry.validate_options("svd_lora", given).model_dump()["orth_reg_weight"] == "auto"
    assert registry.validate_options("increlora", {"capacity_block": 8}).model_dump()["capacity_block"] == 8


# The registry


def test_a_method_that_says_nothing_of_its_parameters_is_no_method():
    with pytest.raises(TypeError, match="parameters"):
        Method(
            kind="new", title="New", budget=METHODS["lora"].budget, prepare=lambda setup: None, look=("#000000", "o")
        )


def test_every_method_looks_different():
    assert len({method.look for method in METHODS.values()}) == len(METHODS)


def test_components_follow_the_options():
    on = [
        {component.name for component in METHODS["increlora"].components if component.is_on(chosen.model_dump())}
        for chosen in (
            registry.validate_options("increlora", {}),
            registry.validate_options("increlora", {"orth_reg_weight": 0.0, "advance_learning": False}),
        )
    ]
    assert on == [{"orth", "advance", "restart"}, {"restart"}]


# Families

NAMES = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)  # noqa: C408
FAMILY_CONFIGS = {
    "deberta-v2": TINY_DEBERTA,
    "bert": TINY_BERT,
    "roberta": RobertaConfig(**TINY),
    "electra": ElectraConfig(**TINY, embedding_size=16),
    "mpnet": MPNetConfig(**TINY),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32
    ),
    "modernbert": ModernBertConfig(**TINY, **NAMES),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_finds_every_matrix_of_every_layer(family):
    """All linear layers are either in a layer, and adapted, or belong to the head; each place is a module."""
    model = tiny_model(FAMILY_CONFIGS[family])
    found = target_shapes(model, families.target_modules(family))
    head = tuple(f"{name}." for name in head_modules(model))
    linear_layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not f"{n}.".startswith(head)}
    assert set(found) == linear_layers
    places = [families.locate(name) for name in found]
    assert {place.layer for place in places} == {0, 1}
    assert len(set(places)) == len(places) == 2 * len(FAMILIES[family].matrices)
    for path in (FAMILIES[family].attention_output, FAMILIES[family].ffn_output, FAMILIES[family].ffn_block):
        assert path is None or len(FAMILIES[family].modules(model, {path})) == 2


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (name, kind)
        for name, family in FAMILIES.items()
        for kind in ("hadapter", "padapter", "lora", "increlora")
        if kind != "padapter" or family.ffn_block is not None
    ],
)
def test_methods_train_on_every_family(family, kind):
    adaptation = prepare(kind, 4, tiny_model(FAMILY_CONFIGS[family]))
    before = tensors(adaptation.model)
    train(adaptation, *adaptation.optimizer(), range(1, 5))
    moved = {name for name, tensor in tensors(adaptation.model).items() if not torch.equal(tensor, before[name])}
    part = "adapter" if "adapter" in kind else "lora_A"
    assert sum(part in name for name in moved) >= 2 * len(FAMILIES[family].matrices) / 2


def test_positions_that_no_token_can_have_do_not_count():
    sizes = {"max_position_embeddings": 514}
    assert families.position_limit(RobertaConfig(**sizes)) == families.position_limit(MPNetConfig(**sizes)) == 512
    assert families.position_limit(BertConfig()) == 512
    assert families.position_limit(BASE) is None
    # where the limit is broken, the model cannot look the position up
    model = AutoModelForSequenceClassification.from_config(RobertaConfig(**TINY))
    ids = torch.full((1, families.position_limit(model.config)), 7)
    model(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=torch.full((1, ids.shape[1] + 1), 7))


def test_an_unknown_architecture_needs_an_expression():
    with pytest.raises(ConfigError, match=r"backbone\.target_modules: is required for a t5 model"):
        families.target_modules("t5")
    assert families.target_modules("t5", "mine") == "mine"


# Rank distributions


def test_transform_ranks():
    ranks = {"a": 5, "b": 1, "c": 0, "d": 1, "e": 4}
    shapes = dict.fromkeys(ranks, (8, 8))
    assert transform_ranks(ranks, "none", shapes) == ranks
    assert transform_ranks(ranks, "uniform", shapes) == {"a": 3, "b": 2, "c": 2, "d": 2, "e": 2}
    shuffled = transform_ranks(ranks, "shuffled", shapes, seed=1)
    assert list(shuffled) == list(ranks)
    assert sorted(shuffled.values()) == sorted(ranks.values())
    assert shuffled == transform_ranks(ranks, "shuffled", shapes, 1) != transform_ranks(ranks, "shuffled", shapes, 2)
    with pytest.raises(ValueError, match="unknown"):
        transform_ranks(ranks, "reversed", shapes)
    with pytest.raises(ConfigError, match="ranks_from: the saved ranks do not fit this backbone: e"):
        transform_ranks(ranks, "uniform", {name: shape for name, shape in shapes.items() if name != "e"})


@pytest.mark.parametrize("seed", range(5))
def test_the_controls_of_a_distribution_have_its_parameters(seed):
    """Ranks that favour the large matrices: where they are shuffled or levelled without regard to size, many less."""
    shapes = target_shapes(meta_model(BASE), DEBERTA_TARGETS)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 5, (len(shapes),), generator=generator).tolist()
    ranks = {
        name: rank * (3 if max(shape) > 768 else 1) for (name, shape), rank in zip(shapes.items(), drawn, strict=True)
    }
    shuffled = transform_ranks(ranks, "shuffled", shapes, seed)
    assert shuffled != ranks
    assert svd_parameters(shapes, shuffled) == svd_parameters(shapes, ranks)
    for shape in set(shapes.values()):
        assert sorted(ranks[n] for n in shapes if shapes[n] == shape) == sorted(
            shuffled[n] for n in shapes if shapes[n] == shape
        )
    uniform = transform_ranks(ranks, "uniform", shapes)
    assert max(uniform.values()) - min(uniform.values()) <= 1
    assert abs(svd_parameters(shapes, uniform) - svd_parameters(shapes, ranks)) <= (768 + 3072 + 1) / 2


def test_the_uniform_control_is_the_closest_there_is():
    shapes = {"a": (2, 2), "b": (4, 4), "c": (8, 2), "d": (9, 7)}  # 5, 9, 11 and 17 parameters for one rank
    for total in range(1, 43):
        ranks = {"a": total, "b": 0, "c": 0, "d": 0}
        one = [svd_parameters(shapes, {name: 1}) for name in shapes]
        share = svd_parameters(shapes, ranks) // sum(one)
        choices = [
            sum((share + (mask >> i & 1)) * number for i, number in enumerate(one)) for mask in range(2 ** len(one))
        ]
        best = min(abs(choice - svd_parameters(shapes, ranks)) for choice in choices)
        found = svd_parameters(shapes, transform_ranks(ranks, "uniform", shapes))
        assert abs(found - svd_parameters(shapes, ranks)) == best
