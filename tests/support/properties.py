"""How many examples hypothesis tries: few, and the same every time, so that a test says the same on every machine."""

from hypothesis import settings

few_examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)
