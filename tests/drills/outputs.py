"""Kill each command before every change that it makes to the disk, really, and look at what is left.

A process is forked for each kill, for each look and for each second run. `make drills` runs this in some minutes.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torchao.quantization  # noqa: F401  (imported once, for all)
import transformers
from matplotlib import pyplot  # noqa: F401
from transformers import AutoModelForImageClassification

from hf_vitcompress import cli
from support.kills import watching
from support.models import DIGITS

PEOPLES = {"LICENSE": "theirs", "LICENSES/MIT.txt": "theirs", "notes.txt": "theirs", ".git/HEAD": "theirs"}
WORDS = "These words are a person's."
RECIPE = ["--rank-multiple", "2", "--measuring-images", "0", "-q"]
KILLED = 137
FORK = multiprocessing.get_context("fork")


# ---- commands, and what to start from


def compressed(root: Path, *options: str) -> list[str]:
    statistics = ["--statistics", str(root / "statistics.safetensors")]
    return ["compress", str(root / "dense"), *statistics, *RECIPE, "--output", str(root / "out"), *options]


@dataclass(frozen=True)
class Drill:
    """A command and where it starts.

    Attributes:
        name: for the table.
        work: the command, in a folder with `dense`, `statistics.safetensors` and maybe `out`.
        there: whether `out` holds an earlier result with things of people.
        result: what it writes.
        before: commands that prepare more.
    """

    name: str
    work: Callable[[Path], object]
    there: bool = True
    result: str = "out"
    before: Callable[[Path], object] = lambda root: None


def run(*arguments: str) -> None:
    sys.argv = ["vitcompress", *arguments]
    cli.main()


def save_again(root: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(root / "other")
    model.save_pretrained(root / "out", max_shard_size="100KB")


def evaluate(root: Path) -> None:
    run("evaluate", str(root / "out"), "--data", str(DIGITS / "test.parquet"), "--update-card", "-q")


def export(root: Path, *options: str) -> None:
    run("export", str(root / "out"), "--to", "torch-export", "-q", *options)


def quantized(root: Path) -> None:
    run("quantize", str(root / "other"), "--output", str(root / "out"), "--overwrite", "-q")


DRILLS = [
    Drill("compress to a new folder", lambda root: run(*compressed(root)), there=False),
    Drill("compress --overwrite", lambda root: run(*compressed(root, "--keep-ratio", "0.3", "--overwrite"))),
    Drill("save_pretrained over an old checkpoint", save_again),
    Drill("quantize --overwrite", quantized),
    Drill("export into the model's folder", export, result="out/torch-export"),
    Drill(
        "export --overwrite",
        lambda root: export(root, "--overwrite"),
        result="out/torch-export",
        before=lambda root: export(root),
    ),
    Drill("evaluate --update-card", evaluate),
]


# ---- processes


def in_process(work: Callable[[], object], folder: Path, change: int | None = None) -> int:
    """Run in a forked process, which ends before change number `change` below `folder`; its exit status."""

    def target() -> None:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends with it)
        os.dup2(sys.stderr.fileno(), 2)
        with watching(folder, change, end=lambda: os._exit(KILLED)) as watch:
            try:
                work()
            finally:
                (folder.parent / f"{folder.name}.count").write_text(str(watch.count))

    process = FORK.Process(target=target)
    process.start()
    process.join()
    return process.exitcode or 0


def weights_of(folder: Path) -> str:
    """Digest of the model that transformers loads from a folder, or why it does not, in another process."""
    queue = FORK.Queue()

    def load() -> None:
        transformers.logging.set_verbosity_error()
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            model = AutoModelForImageClassification.from_pretrained(folder)
            digest = hashlib.sha256()
            for name, tensor in sorted(model.state_dict().items()):
                digest.update(name.encode())
                for part in [tensor] if type(tensor) is torch.Tensor else [tensor.dequantize()]:
                    digest.update(part.contiguous().numpy().tobytes())
            queue.put(digest.hexdigest())
        except Exception as error:  # whatever transformers raises is an answer
            queue.put(f"refused: {str(error).splitlines()[0]}")

    process = FORK.Process(target=load)
    process.start()
    found = queue.get(timeout=300)
    process.join()
    return found


# ---- what is left


def facts(folder: Path) -> dict[str, str]:
    """What tells one result from another: files whose contents do not name times."""
    names = ("config.json", "compression_plan.json", "compression_recipe.yaml")
    found = {path.name: path for path in folder.glob("*") if path.name in names or "safetensors" in path.name}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def program(folder: Path) -> list[str]:
    """The files of an exported program."""
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))


def lost(root: Path) -> list[str]:
    """What people put there and is no more."""
    gone = [name for name, text in PEOPLES.items() if _text(root / "out" / name) != text]
    return gone + (["README.md"] if WORDS not in _text(root / "out" / "README.md") else [])


def left_over(root: Path) -> list[str]:
    """Unfinished work that nobody will finish."""
    hidden = [path for path in root.rglob(".*") if ".git" not in path.parts and path.name != ".vitcompress-files.json"]
    return [str(path.relative_to(root)) for path in hidden if path.name != ".gitattributes"]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def state(root: Path, drill: Drill) -> object:
    """What is in the place of the result; equal only for equal ones."""
    folder = root / drill.result
    if "export" in drill.name:
        return (weights_of(root / "out"), program(folder))
    if "card" in drill.name:
        report = json.loads(_text(folder / "compression_report.json"))
        measured = "top-1" in _text(folder / "compression_report.md").split("not measured")[0]
        return (weights_of(folder), report["evaluation"] is not None, measured)
    return (weights_of(folder), facts(folder))


def prepare(root: Path, drill: Drill) -> None:
    shutil.copytree(DIGITS / "model", root / "dense")
    given = ["--data", str(DIGITS / "calibration.parquet")]
    in_process(lambda: run(*compressed(root, *given, "--keep-ratio", "0.5")), root)
    other = [str(root / "other") if part == str(root / "out") else part for part in compressed(root)]
    in_process(lambda: run(*other, "--keep-ratio", "0.3"), root)
    if not drill.there:
        shutil.rmtree(root / "out")
        return
    for name, text in PEOPLES.items():
        (root / "out" / name).parent.mkdir(exist_ok=True)
        (root / "out" / name).write_text(text)
    with (root / "out" / "README.md").open("a") as card:
        card.write(f"\n{WORDS}\n")
    in_process(lambda: drill.before(root), root)


def carry_out(drill: Drill, place: Path, every: int) -> Counter[str]:
    """Kill the command before each change; count what is left of it."""
    template, good = place / "template", place / "good"
    template.mkdir(parents=True)
    prepare(template, drill)
    shutil.copytree(template, good, symlinks=True)
    status = in_process(lambda: drill.work(good), good)
    changes = int((place / "good.count").read_text())
    assert status == 0, f"{drill.name} fails without a kill"
    old, new = state(template, drill), state(good, drill)
    found: Counter[str] = Counter()
    if drill.there and lost(good):
        found[f"lost without a kill: {', '.join(lost(good))}"] += 1
    for change in range(0, changes, every):
        root = place / "kill" / f"{change}"
        shutil.copytree(template, root, symlinks=True)
        status = in_process(lambda root=root: drill.work(root), root, change)  # type: ignore[misc]
        assert status in (KILLED, 0), f"{drill.name} fails at {change}"  # 0: caches spared it the last changes
        kinds = [_kind(state(root, drill), old, new, drill)]
        if drill.there and lost(root):
            kinds.append("LOST")
        status = in_process(lambda root=root: drill.work(root), root)  # type: ignore[misc]
        after = state(root, drill)
        if after != new or (status != 0 and "new" not in drill.name and drill.name != "export into the model's folder"):
            kinds.append("NOT COMPLETED")
        if drill.there and lost(root) and "LOST" not in kinds:
            kinds.append("LOST by the next run")
        if left_over(root):
            kinds.append("LEFT " + left_over(root)[0])
        found["killed"] += 1
        found.update(kinds)
        shutil.rmtree(root)
    return found


def _kind(state: object, old: object, new: object, drill: Drill) -> str:
    if state in (old, new):
        return "old" if state == old else "new"
    weights = state[0] if isinstance(state, tuple) else ""
    if str(weights).startswith("refused"):
        return "old" if not drill.there else "refused"
    return "to be completed" if "card" in drill.name or "export" in drill.name else "MIXED"


def two_at_once(place: Path) -> list[str]:
    """Two processes with one output, and one after a third that is killed while it has the output; what went wrong."""
    drill = DRILLS[0]
    template = place / "template"
    template.mkdir(parents=True)
    prepare(template, drill)
    both = [FORK.Process(target=_quietly, args=(drill, template)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    wrong = [] if sorted(p.exitcode or 0 for p in both) == [0, 1] else [f"ended with {[p.exitcode for p in both]}"]
    shutil.rmtree(template / "out")
    killed = FORK.Process(target=_quietly, args=(drill, template))
    killed.start()
    while not (template / ".out.part").exists():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    if in_process(lambda: drill.work(template), template) != 0:
        wrong.append("a killed process blocks the next one")
    return wrong + [f"left {name}" for name in left_over(template)]


def _quietly(drill: Drill, root: Path) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends with it)
    drill.work(root)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="kill before every n-th change only")
    parser.add_argument("--only", default="", help="drills with this in their name")
    arguments = parser.parse_args()
    bad = 0
    for number, drill in enumerate(DRILLS):
        if arguments.only not in drill.name:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            found = carry_out(drill, Path(place).resolve() / str(number), arguments.every)
        told = ", ".join(f"{count} {kind}" for kind, count in found.items())
        print(f"{drill.name}: {told} ({time.perf_counter() - start:.0f} s)", flush=True)
        bad += sum(count for kind, count in found.items() if kind[:1].isupper() or kind.startswith("lost"))
    if not arguments.only or arguments.only in "two processes":
        with tempfile.TemporaryDirectory() as place:
            wrong = two_at_once(Path(place).resolve() / "two")
        print(f"two processes with one output: {', '.join(wrong) or 'one at a time'}", flush=True)
        bad += len(wrong)
    print("nothing lost, nothing mixed" if not bad else f"{bad} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
