"""What is shown to people: names from outside, such as those of files and tensors, losses and durations."""


def printable(text: str, newlines: bool = False) -> str:
    """`text` with escapes in place of characters that drive a terminal, break lines or turn the reading direction.

    Args:
        newlines: whether line breaks stay.
    """
    return "".join(
        letter if letter.isprintable() or (newlines and letter == "\n") else letter.encode("unicode_escape").decode()
        for letter in text
    )


def loss_text(loss: float, interval: tuple[float, float] | None = None) -> str:
    """A loss in three significant digits, however small it is; with the ends of its interval in parentheses."""
    text = f"{loss:.3g}"
    return text if interval is None else f"{text} ({interval[0]:.3g} to {interval[1]:.3g})"


def seconds_text(seconds: float) -> str:
    """A duration without its unit: below ten seconds with one decimal, above in whole ones."""
    return f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:.0f}"  # what is between would be rounded to 10.0
