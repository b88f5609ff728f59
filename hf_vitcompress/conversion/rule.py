"""A rule: for which models of timm there is one of transformers that computes the same, and which it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedModelError
from .state import Names, State


class Traits(Protocol):
    """What every reading of a model of timm says; see `reading.Vit` for the attributes."""

    @property
    def classes(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def image(self) -> tuple[int, int]: ...
    @property
    def oddities(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=Traits)


@dataclass(frozen=True)
class Need(Generic[T]):
    """What a model has to be for a rule to hold.

    Attributes:
        holds: whether it is.
        lacking: what the class of transformers cannot express otherwise, as a noun; `{traits.pool!r}` and the
            like are filled in.
    """

    holds: Callable[[T], bool]
    lacking: str


@dataclass(frozen=True)
class Rule(Generic[T]):
    """How a model of timm becomes one of transformers.

    Attributes:
        title: name of the architecture for people.
        needs: what the model has to be.
        config: of transformers; the argument `labels` holds `id2label` and `label2id`, or nothing.
        model: makes one of a config, with the head that timm's model has.
        names: of the tensors.
        prepare: changes a copy of timm's state dict in place before its tensors get their names.
        same_tokens: whether the hidden states after the last norm are the same.
        same_pooled: whether, without a head, `pooler_output` is what timm's model returns.
        remarks: what is different to use, as sentences.
    """

    title: str
    needs: tuple[Need[T], ...]
    config: Callable[[T, dict[str, Any]], PreTrainedConfig]
    model: Callable[[T], Callable[..., PreTrainedModel]]
    names: Names
    prepare: Callable[[State, T], None] = lambda state, traits: None
    same_tokens: bool = True
    same_pooled: bool = False
    remarks: Callable[[T], Sequence[str]] = lambda traits: ()

    def lacking(self, traits: T) -> list[str]:
        """What it cannot express of a model; nothing where it holds."""
        return [need.lacking.format(traits=traits) for need in self.needs if not need.holds(traits)]


def matching_rule(rules: Sequence[Rule[T]], traits: T, name: str) -> Rule[T]:
    """The first rule that holds.

    Raises:
        UnsupportedModelError: none does; what stands in the way of the nearest one is named.
    """
    if traits.oddities:
        raise not_expressible(f"no class of transformers that is known here has what {name} has", traits.oddities)
    lacking = [rule.lacking(traits) for rule in rules]
    if [] in lacking:
        return rules[lacking.index([])]
    fewest = min(lacking, key=len)
    nearest = rules[lacking.index(fewest)].title
    raise not_expressible(
        f"no class of transformers computes what {name} does, and {nearest}, the nearest, cannot express", fewest
    )


def not_expressible(reason: str, things: Sequence[str] = ()) -> UnsupportedModelError:
    """What to say of a model that cannot be converted.

    Args:
        reason: the sentence's beginning, without a full stop.
        things: nouns that it ends with.
    """
    listed = f": {', and '.join(things)}" if things else ""
    return UnsupportedModelError(
        f"{reason[0].upper()}{reason[1:]}{listed}. `vitcompress compress` and ViTCompressor.compress take "
        "vision transformers of timm directly, without this conversion."
    )
