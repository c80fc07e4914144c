"""Which rank a product of matrices is cut to, and how much of it is left: sd-scripts' rules under sd-scripts' names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.refusal import Refused
from trainer.tools import Arguments

LEAST, MOST = 0.0, 1.0  # of the shares that sv_fro and sv_cumulative take


@dataclass(frozen=True)
class Cutting:
    """How ranks are chosen. `rank` and `conv_rank`: the most that a layer may have; None: as many as it has values."""

    method: str
    parameter: float
    rank: int | None
    conv_rank: int | None

    def chosen(self, values: Tensor, *, larger: bool) -> int:
        """The rank of a layer with these singular values, falling. `larger`: its kernel has more than one pixel."""
        most = self.conv_rank if larger else self.rank
        most = len(values) if most is None else min(most, len(values))
        if not float(values[0]):
            return 1
        return max(1, min(most, self._wanted(values.double())))

    def _wanted(self, values: Tensor) -> int:
        if self.method == "sv_ratio":
            return int((values > values[0] / self.parameter).sum())
        if self.method == "sv_cumulative":
            shares = values.cumsum(0) / values.sum()
            return int(torch.searchsorted(shares, self.parameter)) + 1
        if self.method == "sv_fro":
            shares = values.square().cumsum(0) / values.square().sum()
            return int(torch.searchsorted(shares, self.parameter**2)) + 1
        return len(values)


def cutting(arguments: Arguments) -> Cutting:
    """Raises Refused with every argument that does not fit the others."""
    method, given = arguments["dynamic_method"], arguments["dynamic_param"]
    problems = []
    if method == "fixed":
        if arguments["rank"] is None:
            problems.append("rank: is needed, or a dynamic_method with a dynamic_param")
        if given is not None:
            problems.append("dynamic_param: is of a dynamic_method; choose one, or leave it out")
    elif given is None:
        problems.append(f"dynamic_param: {method} needs one")
    elif method == "sv_ratio" and given < 1:
        problems.append(
            f"dynamic_param: {given:g} is below 1, and sv_ratio keeps values above the largest divided by it"
        )
    elif method != "sv_ratio" and not LEAST < given <= MOST:
        problems.append(f"dynamic_param: {given:g} is no share; {method} takes one above 0 and at most 1")
    if problems:
        raise Refused("\n".join(problems))
    rank, conv_rank = arguments["rank"], arguments["conv_rank"]
    return Cutting(method, float(given or 0), rank, conv_rank or rank)


@dataclass
class Account:
    """How much is left of what was cut, by the Frobenius norm: the root of the share of the squares."""

    ranks: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)  # of each layer
    _kept: float = 0.0
    _whole: float = 0.0

    def note(self, name: str, values: Tensor, rank: int, scale: float) -> None:
        """A layer was cut. `scale`: of the product with these singular values."""
        squares = values.double().square() * scale**2
        kept, whole = float(squares[:rank].sum()), float(squares.sum())
        self.ranks[name] = rank
        self.shares[name] = math.sqrt(kept / whole) if whole else 1.0
        self._kept, self._whole = self._kept + kept, self._whole + whole

    def as_json(self) -> dict[str, object]:
        """ "retained" is of all layers together, "least_retained" of the one that lost most."""
        worst = min(self.shares, key=self.shares.__getitem__, default="")
        ranks = list(self.ranks.values())
        return {
            "layers": len(ranks),
            "rank": {"least": min(ranks), "mean": sum(ranks) / len(ranks), "most": max(ranks)} if ranks else None,
            "retained": math.sqrt(self._kept / self._whole) if self._whole else 1.0,
            "least_retained": {"layer": worst, "share": self.shares[worst]} if worst else None,
        }
