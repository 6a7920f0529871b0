"""The classifier that attacks may use: it shares no network with the judges that decide whether an attack succeeded."""

from __future__ import annotations

from dataclasses import replace

import torch

from safemax.data.dataset import Dataset
from safemax.judges.classifier import Ensemble, Judge
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges, plain_judge
from safemax.judges.none_head import NoneHeadNetwork

OTHER_SEED = 1000  # added to the judges' seed


def attack_helper(dataset: Dataset, config: JudgeConfig, judge_set: Judges, *, progress: bool = True) -> Judge:
    """Return the plain judge, or, where its own network bears the judging heads, one trained with another seed, then cached.

    A guided attack climbs its helper's answers: on the judges' own network it would be told what convinces them.

    Args:
        dataset: trains it.
        config: of the judges.
        judge_set: the judges; their device is used.
        progress: whether to say what it costs, and show a bar.
    """
    plain = judge_set.plain
    if not shares_network(plain, judge_set.reject):
        return plain
    own = config.judge if plain.arch == config.judge else "auto"
    device = str(next(plain.parameters()).device)
    other = replace(config, judge=own, judge_seed=config.judge_seed + OTHER_SEED)
    return plain_judge(dataset, other, device=device, progress=progress).to(device)


def shares_network(plain: Judge, reject: Judge) -> bool:
    """Return whether a judge with none heads has them on another judge's network."""
    members = reject.members if isinstance(reject, Ensemble) else [reject]
    known = plain.network.state_dict()
    for member in members:
        if isinstance(member.network, NoneHeadNetwork):
            body = member.network.body.state_dict()
            if body.keys() <= known.keys() and all(torch.equal(value, known[name]) for name, value in body.items()):
                return True
    return False
