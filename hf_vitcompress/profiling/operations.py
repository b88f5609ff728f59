"""What a compressed model runs, as far as its shapes decide it: for counting and for timing.

All are of one image; where tokens are merged, a later operation has fewer `rows`.
"""

from typing import NamedTuple


class Product(NamedTuple):
    """A linear layer, or one of the two of a factored one.

    Attributes:
        rows: vectors of one image that pass through it.
        inputs: size of such a vector.
        outputs: size of what becomes of it.
    """

    rows: int
    inputs: int
    outputs: int


class Activation(NamedTuple):
    """What stands between the layers of a feed-forward.

    Attributes:
        rows: vectors of one image.
        width: features of each.
    """

    rows: int
    width: int


class Attention(NamedTuple):
    """Scores, softmax and weighted sums, without the layers around them.

    Attributes:
        rows: queries of one image.
        keys: that each query looks at.
        heads: number of heads.
        head_dim: features of a query in one head.
        value_dim: features of a value in one head.
    """

    rows: int
    keys: int
    heads: int
    head_dim: int
    value_dim: int


class Merge(NamedTuple):
    """Tokens that are alike become one, at the end of a block (see `tokens_factored`).

    Attributes:
        rows: tokens of one image before that.
        width: features of each.
    """

    rows: int
    width: int


Operation = Product | Activation | Attention | Merge


def without_tokens(operation: Operation, merged: int) -> Operation:
    """The same operation after so many tokens of an image have been merged into others."""
    if not merged:
        return operation
    fewer = operation._replace(rows=max(1, operation.rows - merged))
    if isinstance(fewer, Attention):
        return fewer._replace(keys=max(1, fewer.keys - merged))
    return fewer


def macs_of_operation(operation: Operation) -> int:
    """Multiply-accumulates of one image; activations count none, as in `evaluation.costs`."""
    match operation:
        case Product(rows, inputs, outputs):
            return rows * inputs * outputs
        case Attention(rows, keys, heads, head_dim, value_dim):
            return rows * keys * heads * (head_dim + value_dim)
        case Merge(rows, width):
            return (rows // 2) * (rows - rows // 2) * width
        case Activation():
            return 0
    raise TypeError(f"{operation!r} is no operation.")
