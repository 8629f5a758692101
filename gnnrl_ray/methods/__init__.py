"""Methods of search: what has been scored -> the next candidate; each in a file of its own.

Imported when they are used: some stand on Ray, which takes seconds to import. A method is a
class that is given a :class:`~gnnrl_ray.run.task.Task`, with

``check(settings)``
    raises ``InputError`` for settings that it cannot use;
``candidates(settings)``
    how many candidates it proposes;
``probes(groups)``
    how many evaluations it makes beside those;
``run()``
    finds those that the journal lacks.

Most only propose, and inherit the rest from :class:`~gnnrl_ray.methods.proposer.Proposer`.
"""

import importlib

METHODS = {
    "gnn-rl": "gnnrl_ray.agent.method:Agent",
    "uniform": "gnnrl_ray.methods.uniform:Uniform",
    "shallow": "gnnrl_ray.methods.shallow:Shallow",
    "deep": "gnnrl_ray.methods.deep:Deep",
    "inside": "gnnrl_ray.methods.inside:Inside",
    "global": "gnnrl_ray.methods.threshold:Global",
    "amc": "gnnrl_ray.methods.amc:AMC",
    "agmc": "gnnrl_ray.methods.agmc:AGMC",
    "fp": "gnnrl_ray.methods.fp:FP",
    "spp": "gnnrl_ray.methods.spp:SPP",
    "rnp": "gnnrl_ray.methods.rnp:RNP",
    "random": "gnnrl_ray.methods.random:Random",
    "rs": "gnnrl_ray.methods.rs:RS",
    "local": "gnnrl_ray.methods.local:Local",
    "cem": "gnnrl_ray.methods.cem:CEM",
    "cmaes": "gnnrl_ray.methods.cmaes:CMAES",
    "tpe": "gnnrl_ray.methods.sampled:TPE",
    "gp": "gnnrl_ray.methods.sampled:GP",
    "turbo": "gnnrl_ray.methods.turbo:Turbo",
}


def method_of(name: str) -> type:
    """Return the class of the method ``name``, one of ``METHODS``."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
