import json

import pytest
import torch

from gnnrl_ray import accuracy, load_pruned, search
from gnnrl_ray.jobs.finetuning import Recipe, finetune
from gnnrl_ray.run.directory import Run
from gnnrl_ray.scoring.training import TrainingError, train


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
