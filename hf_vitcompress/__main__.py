"""`python -m hf_vitcompress` is `vitcompress`."""

from .cli import main

main()
