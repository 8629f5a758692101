"""Methods of search: what has been scored -> the next candidate; each in a file of its own.

Imported when they are used: some stand on Ray, which takes seconds to import. A method is a
class that is given a :class:`~gnnrl_ray.run.task.Task`, with

``check(settings)``
    raises ``InputError`` for settings that it cannot use;
``candidates(settings)``
    how many candidates it proposes;
``run()``
    finds those that the journal lacks.

Most only propose, and inherit the rest from :class:`~gnnrl_ray.methods.proposer.Proposer`.
"""

import importlib

METHODS = {
    "gnn-rl": "gnnrl_ray.agent.method:Agent",
    "uniform": "gnnrl_ray.methods.uniform:Uniform",
    "random": "gnnrl_ray.methods.random:Random",
}


def method_of(name: str) -> type:
    """Return the class of the method ``name``, one of ``METHODS``."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
