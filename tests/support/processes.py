"""Processes of their own, which see the tests' shared code and the package of this checkout."""

import os

from support.models import REPOSITORY


def environment(**more: object) -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120", "PYTHONPATH": path}
    return {**os.environ, **own, **{name: str(value) for name, value in more.items()}}
