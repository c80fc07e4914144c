"""What a safetensors file says of itself, shown and edited; its tensors are copied as they are."""

from __future__ import annotations

from pathlib import Path

from trainer.refusal import Refused
from trainer.tools import Arguments, Progress, Result
from trainer.tools.headers import HASHES
from trainer.tools.tensors import TensorSource, TensorWriter


def metadata(arguments: Arguments, progress: Progress) -> Result:
    """The tool; see tools.TOOLS. Raises Refused with every problem."""
    path = Path(arguments["file"])
    source = TensorSource(path)
    values = dict(source.metadata)
    changes, removed = arguments["set"] or [], arguments["remove"] or []
    problems = [
        f"set: {change!r} is not KEY=VALUE"
        for change in changes
        if not change.partition("=")[0].strip() or "=" not in change
    ]
    problems += [f"remove: {path} has no {key!r}" for key in removed if key not in values]
    editing = bool(changes or removed)
    if editing and bool(arguments["output"]) == arguments["in_place"]:
        problems.append("output: name the file to write, or give --in_place to replace the file itself; one of the two")
    if not editing and (arguments["output"] or arguments["in_place"]):
        problems.append("set, remove: there is nothing to change")
    if problems:
        raise Refused("\n".join(problems))
    for change in changes:
        key, _, value = change.partition("=")
        values[key.strip()] = value
    for key in removed:
        del values[key]
    if not editing:
        return {
            "file": str(path),
            "tensors": len(source.entries),
            "bytes": source.size,
            "metadata": dict(sorted(values.items())),
        }
    target = path if arguments["in_place"] else Path(arguments["output"])
    hashed = any(key in values for key in HASHES)  # the one of them is also of the ss_* metadata
    total, done = source.size, 0
    with TensorWriter(target, source.entries, values, hashed=hashed, new=not arguments["in_place"]) as writer:
        for name, entry in sorted(source.entries.items(), key=lambda item: item[1].start):
            writer.copy(name, source)
            done += entry.end - entry.start
            progress(done, total)
    return {
        "output": str(target),
        "set": sorted(change.partition("=")[0].strip() for change in changes),
        "removed": sorted(removed),
    }
