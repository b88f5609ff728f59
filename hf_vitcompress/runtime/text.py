"""Text from outside, such as names of files and tensors, on its way to a terminal."""


def printable(text: str, newlines: bool = False) -> str:
    """`text` with escapes in place of characters that drive a terminal, break lines or turn the reading direction.

    Args:
        newlines: whether line breaks stay.
    """
    return "".join(
        letter if letter.isprintable() or (newlines and letter == "\n") else letter.encode("unicode_escape").decode()
        for letter in text
    )
