"""What is solved once for layers with features between them, whatever the budget."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class PairSolution:
    """The features of a pair in the order they are kept, and what each width and rank costs.

    Attributes:
        order: (m,) features, the one to keep longest first.
        rotation: (m, m) of the features before they are ordered, or `None`.
        pruned: (m + 1,) errors with the first 0 … m features.
        factored: by width, the errors (n + 1,) of each layer at every rank.
    """

    order: Tensor
    rotation: Tensor | None
    pruned: Tensor
    factored: dict[int, tuple[Tensor, ...]]
