import json
import signal

import pytest
import safetensors.torch
import torch

from gnnrl_ray import Split, accuracy, load_pruned, search
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.finetuning import finetune, interrupted, is_interrupted
from gnnrl_ray.jobs.recipe import Recipe
from gnnrl_ray.run.directory import Run, RunError
from gnnrl_ray.scoring import checkpoint
from gnnrl_ray.scoring.checkpoint import CheckpointError
from gnnrl_ray.scoring.training import TrainingError, train
from gnnrl_ray.zoo.weights import WeightsError, read_facts, read_weights


@pytest.fixture
def run(network, digits, tmp_path):
    search(network, digits, method="uniform", finetune="none", precision="float32",
           out=tmp_path / "run")  # fmt: skip
    return Run.open(tmp_path / "run")


def facts(run):
    return json.loads((run.storage.local / "finetune.json").read_text())


def test_what_is_kept_is_the_network_of_the_last_epoch(run, network, groups, digits):
    smaller = load_pruned(run.storage.local, network, "pruned")
    by_hand = load_pruned(run.storage.local, network, "pruned")
    steps = []
    finetune(run, smaller, digits, Recipe(epochs=2, lr=0.02), dense=network,
             groups=groups, seed=3,
             on_step=lambda step, loss: steps.append(step))  # fmt: skip
    train(by_hand, digits.train, steps=16, lr=0.02, seed=3)
    again = load_pruned(run.storage.local, network)  # fine-tuned weights come first
    for found, kept, expected in zip(
        *(n.state_dict().values() for n in (smaller, again, by_hand)), strict=True
    ):
        assert torch.equal(found, expected)
        assert torch.equal(kept, expected)
    assert steps == [*range(1, 17)]
    assert facts(run)["steps_done"] == facts(run)["steps"] == 16
    pruned = load_pruned(run.storage.local, network, "pruned")
    assert accuracy(again, digits.test) > accuracy(pruned, digits.test)


def test_an_interruption_keeps_what_has_been_trained(run, network, groups, digits):
    def interrupt(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    smaller = load_pruned(run.storage.local, network, "pruned")
    with pytest.raises(KeyboardInterrupt):
        finetune(
            run,
            smaller,
            digits,
            Recipe(epochs=2),
            dense=network,
            groups=groups,
            on_step=interrupt,
        )
    assert facts(run)["steps_done"] == 3
    kept = load_pruned(run.storage.local, network, "finetuned").state_dict()
    assert all(torch.equal(kept[k], v) for k, v in smaller.state_dict().items())


def test_training_goes_on_in_the_format_that_the_search_found_right(
    run, network, groups, digits
):
    smaller = load_pruned(run.storage.local, network, "pruned")
    finetune(run, smaller, digits, Recipe(epochs=1), dense=network, groups=groups)
    assert facts(run)["precision"] == run.mode.precision == "float32"


def test_what_diverges_is_not_kept(run, network, groups, digits):
    finetune(run, load_pruned(run.storage.local, network), digits, Recipe(epochs=1),
             dense=network, groups=groups)  # fmt: skip
    before = load_pruned(run.storage.local, network).state_dict()
    with pytest.raises(TrainingError, match="try a --lr below"):
        finetune(run, load_pruned(run.storage.local, network, "pruned"), digits,
                 Recipe(epochs=3, lr=999.0), dense=network, groups=groups)  # fmt: skip
    after = load_pruned(run.storage.local, network).state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_distillation_is_kept_in_the_record_and_changes_what_is_learnt(
    run, network, groups, digits
):
    found = []
    for distill in (0.0, 0.5):
        smaller = load_pruned(run.storage.local, network, "pruned")
        finetune(
            run,
            smaller,
            digits,
            Recipe(epochs=1, distill=distill),
            dense=network,
            groups=groups,
        )
        assert facts(run)["distill"] == distill
        found.append(smaller.linear.weight.clone())
    assert not torch.equal(*found)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("at", [8, 11])  # an epoch has 8 steps
def test_what_was_interrupted_goes_on_as_if_it_had_not_been(
    run, network, groups, digits, at
):
    recipe, steps = Recipe(epochs=2, lr=0.02), []

    def interrupt(step, loss):
        if step == at:
            raise KeyboardInterrupt

    def tune(where, **options):
        smaller = load_pruned(where.storage.local, network, "pruned")
        finetune(where, smaller, digits, recipe, dense=network, groups=groups, seed=5,
                 **options)  # fmt: skip
        return smaller.state_dict()

    whole = tune(run)
    with pytest.raises(KeyboardInterrupt):
        tune(run, on_step=interrupt)
    assert is_interrupted(run, recipe, 5)
    assert not is_interrupted(run, recipe, 6)
    assert not is_interrupted(run, Recipe(epochs=3, lr=0.02), 5)
    assert interrupted(run) == (recipe, 5, "float32")
    resumed = tune(run, resume=True, on_step=lambda step, loss: steps.append(step))
    assert steps == [*range(at + 1, 17)]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert facts(run)["steps_done"] == 16
    assert not is_interrupted(run, recipe, 5)
    with pytest.raises(CheckpointError, match="nothing to go on with"):
        tune(run, resume=True)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(("middle", "at"), [("step", 11), ("batch", 9)])
def test_an_interrupt_in_the_middle_changes_nothing(
    run, network, groups, digits, monkeypatch, middle, at
):
    """As people press Ctrl-C: while weights change, or after images have been drawn."""
    recipe, count = Recipe(epochs=2, lr=0.02), 0

    def interrupt(*_):
        nonlocal count
        count += 1
        if count == at:
            signal.raise_signal(signal.SIGINT)

    def tune(hook=None, **options):
        smaller = load_pruned(run.storage.local, network, "pruned")
        smaller.linear.register_forward_hook(hook or (lambda *_: None))
        finetune(run, smaller, digits, recipe, dense=network, groups=groups, seed=5,
                 **options)  # fmt: skip
        return smaller.state_dict()

    def interrupted_augment(*given, augment=Split._augment):
        interrupt()
        return augment(*given)

    whole = tune()
    with monkeypatch.context() as patch:
        if middle == "batch":
            patch.setattr(Split, "_augment", interrupted_augment)
        with pytest.raises(KeyboardInterrupt):
            tune(interrupt if middle == "step" else None)
    assert count == at
    resumed = tune(resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_what_goes_on_is_written_down_now_and_then(
    run, network, groups, digits, monkeypatch
):
    """Whoever is killed has no time to say goodbye."""
    monkeypatch.setattr(checkpoint, "_SECONDS", 0)
    there = []

    def look(step, loss):
        there.append((run.storage.local / "finetuning.safetensors").exists())

    finetune(run, load_pruned(run.storage.local, network), digits, Recipe(epochs=1),
             dense=network, groups=groups, on_step=look)  # fmt: skip
    assert there == [True] * 8


def test_nothing_else_is_gone_on_with(run, network, groups, digits):
    def tune(recipe, seed=0, **options):
        finetune(run, load_pruned(run.storage.local, network, "pruned"), digits, recipe,
                 dense=network, groups=groups, seed=seed, **options)  # fmt: skip

    def interrupt(step, loss):
        raise KeyboardInterrupt

    recipe = Recipe(epochs=2)
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, on_step=interrupt)
    with pytest.raises(CheckpointError, match="epochs is 2, not 5"):
        tune(Recipe(epochs=5), resume=True)
    with pytest.raises(CheckpointError, match="seed is 0, not 1"):
        tune(recipe, 1, resume=True)
    path = run.storage.local / "finetuning.safetensors"
    state, said = read_weights(path), read_facts(path)
    damaged = {
        "shape": state | {"network.linear.bias": torch.zeros(3)},
        "missing": {k: v for k, v in state.items() if k != "steps"},
        "strange": state | {"other": torch.zeros(1)},
        "steps": state | {"steps": torch.tensor(-1)},
        "number": state | {"steps": torch.zeros(2, dtype=torch.int64)},
        "generator": state | {"generator": torch.full_like(state["generator"], 255)},
    }
    files = {what: safetensors.torch.save(each, said) for what, each in damaged.items()}
    files["cut"] = path.read_bytes()[:-10]
    files["facts"] = safetensors.torch.save(state, {"epochs": "two"})
    files["none"] = safetensors.torch.save(state)
    for what, content in files.items():
        path.write_bytes(content)
        with pytest.raises((CheckpointError, RunError, WeightsError)) as refused:
            tune(recipe, resume=True)
        assert "finetuning.safetensors" in str(refused.value), what
        if what in ("cut", "facts", "none"):
            assert not is_interrupted(run, recipe, 0)
            with pytest.raises((CheckpointError, RunError, WeightsError)):
                interrupted(run)


def test_what_may_not_change_is_said_with_its_remedy():
    with pytest.raises(InputError, match=r"--epochs 3, not 5; .* start over with"):
        Recipe(epochs=3).continued({"epochs": 5}, "run")
