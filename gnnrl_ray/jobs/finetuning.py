"""The winner of a run, trained on to what it can be."""

from collections.abc import Callable
from typing import Any

from torch import nn

from gnnrl_ray.data import Data
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.recipe import Recipe
from gnnrl_ray.run.directory import Run, RunError
from gnnrl_ray.run.lock import locked
from gnnrl_ray.run.winner import kept_in
from gnnrl_ray.scoring.checkpoint import Checkpoint
from gnnrl_ray.scoring.padding import padded
from gnnrl_ray.scoring.training import Training, steps_per_epoch
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.network import copied

STATE = "finetuning.safetensors"  # all that it takes to go on


def finetune(
    run: Run,
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    dense: nn.Module,
    groups: ChannelGroups,
    seed: int = 0,
    precision: str | None = None,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Fine-tune the winner of ``run`` in place, and keep it there.

    The network of the last epoch counts: no test image decides anything. Once a minute,
    and when it is interrupted, all that it takes to go on is written down. Interrupted,
    what has been trained so far is kept, too. What diverges is not.

    Args:
        run: the search that it is the winner of.
        network: the winner, on the device to train on.
        data: trained on ``data.train``.
        recipe: how.
        dense: the network that it was made of.
        groups: of that one.
        seed: of order and augmentation.
        precision: see :class:`~gnnrl_ray.scoring.training.Training`; default: what the
            search found to be fast and right.
        resume: go on with what was interrupted, which had the same winner, recipe, seed
            and precision.
        on_step: called with the number of steps done and the last loss.

    Raises:
        TrainingError: the loss became infinite or NaN.
        CheckpointError: nothing to go on with, or something else.
        KeyboardInterrupt: what was trained is kept.
    """
    about = _about(run, recipe, seed, precision)
    checkpoint = Checkpoint(run.storage, STATE, about)
    state = checkpoint.read() if resume else None
    kept = kept_in(run.storage, groups)
    steps = recipe.epochs * steps_per_epoch(data.train, recipe.batch_size)
    device = next(network.parameters()).device
    teacher = copied(dense).to(device) if recipe.distill else None
    if recipe.only_pruned:
        _freeze(network, dense)
    training = None
    with locked(run.storage):
        try:
            with padded(network, dense, groups, kept) as (trained, hold):
                training = Training(
                    trained, data.train.to(device), steps=steps, lr=recipe.lr,
                    batch_size=recipe.batch_size, seed=seed,
                    precision=about["precision"], teacher=teacher,
                    distill=recipe.distill, hold=hold, on_step=on_step,
                )  # fmt: skip
                checkpoint.train(training, state)
        except KeyboardInterrupt:
            done = training.done if training else 0
            _keep(run, network, about, steps=steps, steps_done=done)
            raise
        _keep(run, network, about, steps=steps, steps_done=steps)
        checkpoint.remove()


def check_free(run: Run, overwrite: bool = False) -> None:
    """Refuse to train in the place of what was fine-tuned of the winner already.

    Raises:
        RunError: there is such a network.
    """
    if not overwrite and run.storage.exists("finetuned.safetensors"):
        goes_on = "go on with --resume, or " if run.storage.exists(STATE) else ""
        raise RunError(
            f"{run.storage}/finetuned.safetensors is there already; {goes_on}replace it "
            "with --overwrite."
        )


def interrupted(run: Run) -> tuple[Recipe, int, str]:
    """Return recipe, seed and precision of a fine-tuning that can be gone on with.

    Raises:
        InputError: there is none, or it is damaged.
    """
    checkpoint = Checkpoint(run.storage, STATE, {})
    said = checkpoint.said()
    try:
        recipe = Recipe(**{name: said[name] for name in Recipe.names()})
        return recipe, said["seed"], said["precision"]
    except (InputError, KeyError) as error:
        raise RunError(
            f"{checkpoint} does not say what it is of ({error}); start over without "
            "--resume."
        ) from error


def is_interrupted(run: Run, recipe: Recipe, seed: int) -> bool:
    """Say whether this very fine-tuning of the winner can be gone on with."""
    about = _about(run, recipe, seed, None)
    return Checkpoint(run.storage, STATE, about).is_of_this()


def _about(run: Run, recipe: Recipe, seed: int, precision: str | None) -> dict[str, Any]:
    """Return what must be the same where a fine-tuning is gone on with."""
    if precision is None:
        precision = run.mode.precision if run.mode else "float32"
    about = {name: getattr(recipe, name) for name in Recipe.names()}
    return about | {"seed": seed, "precision": precision, "groups": run.best()["groups"]}


def _keep(run: Run, network: nn.Module, about: dict[str, Any], **steps: int) -> None:
    run.save_network("finetuned", network.eval())
    said = {name: value for name, value in about.items() if name != "groups"}
    run.write_json("finetune.json", said | steps)


def _freeze(network: nn.Module, dense: nn.Module) -> None:
    """Let training leave alone what has the same shape as in ``dense``."""
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(shapes.get(name) != parameter.shape)
