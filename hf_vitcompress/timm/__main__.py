"""`python -m hf_vitcompress.timm SCRIPT [ARGUMENTS]`: run a script to which timm knows compressed models."""

import runpy
import sys
from pathlib import Path

USAGE = "usage: python -m hf_vitcompress.timm SCRIPT [ARGUMENTS], e.g. validate.py --model local-dir:FOLDER …"


def main() -> None:
    """Run the script that the command line names, as `python SCRIPT` does."""
    del sys.argv[0]
    if not sys.argv or not Path(sys.argv[0]).is_file():
        found = f"hf_vitcompress.timm: there is no script {sys.argv[0]!r}\n" if sys.argv else ""
        sys.exit(found + USAGE)
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
