"""Every setting of the agent, once: of ``--agent`` and of ``DDPGConfig.training``."""

from collections.abc import Sequence
from dataclasses import dataclass

from gnnrl_ray.errors import InputError
from gnnrl_ray.settings import Checked, setting


def parse_layers(given: object) -> tuple[int, ...]:
    """Return ``given`` if it is widths of hidden layers.

    Raises:
        InputError: it is not.
    """
    if isinstance(given, Sequence) and all(type(n) is int and n > 0 for n in given):
        return tuple(given)
    raise InputError(
        f"--agent hidden={given!r} is not a list of widths such as [300, 300]."
    )


@dataclass(frozen=True, kw_only=True)
class AgentSettings(Checked):
    """What concerns learning; what GNN-RL gives are the defaults, then AMC's.

    Raises:
        InputError: a value that cannot be; names the setting.
    """

    actor_lr: float = setting(1e-4, "Step size of Adam.", above=0)
    critic_lr: float = setting(1e-3, "Step size of Adam.", above=0)
    critic_weight_decay: float = setting(0.0, "L2 penalty on the critic.", least=0)
    tau: float = setting(
        0.01,
        "Share of the new weights in each update of the target networks.",
        above=0,
        most=1,
    )
    warmup_episodes: int = setting(
        30, "With uniformly random actions, before any update.", least=0
    )
    noise: float = setting(
        0.5,
        "Standard deviation after warm-up, as a share of the action range; the normal "
        "distribution around the actor's action is cut at the range.",
        least=0,
    )
    noise_decay: float = setting(0.97, "Factor on it per episode.", above=0, most=1)
    noise_floor: float = setting(0.0, "What it does not fall below.", least=0)
    updates_per_step: float = setting(
        1.0, "Gradient steps for each step of the environment.", least=0
    )
    max_updates_owed: int = setting(
        64, "No new episode starts while so many are outstanding.", least=1
    )
    episode_timeout: float = setting(
        0.0,
        "Seconds after which an episode's env runner is replaced; 0 for never. Not for "
        "episodes in this process.",
        least=0,
    )
    max_retries: int = setting(
        3,
        "How often an episode is run again that failed with its env runner, or by an "
        "exception in an actor.",
        least=0,
    )
    replay_capacity: int = setting(2000, "Steps that are remembered.", least=1)
    hidden: tuple = setting(
        (300, 300), "Widths of the hidden layers of actor and critic.", parse=parse_layers
    )
    algorithm: str = setting(
        "ddpg",
        "What learns: DDPG, as in the paper; wolpertinger, DDPG whose critics choose among "
        "candidates near what the actor proposes; or RLlib's soft actor-critic.",
        choices=("ddpg", "wolpertinger", "sac"),
    )
    judges: str = setting(
        "both",
        "Of candidates, with algorithm=wolpertinger: the critics, kriging, or both.",
        choices=("both", "critics", "kriging"),
    )
    encoder: str = setting(
        "mgnn",
        "Of graphs: the m-GNN, or a perceptron on the widths that knows no graph.",
        choices=("mgnn", "mlp"),
    )
    pooling: str = setting(
        "learned", "Of nodes to a graph: learned weights, or the mean.",
        choices=("learned", "mean"),
    )  # fmt: skip
    graph_dim: int = setting(64, "Embedding dimension of the m-GNN.", least=1)
    graph_layers: int = setting(
        2, "Rounds of message passing on each level of the m-GNN.", least=1
    )

    initial: str | None = setting(
        None, "Weights of another agent to start from (algorithm=wolpertinger)."
    )

    @staticmethod
    def flag(name: str) -> str:
        """Return how a setting is written on the command line."""
        return f"--agent {name}"
