"""Fold files for tests: as earlier versions wrote them, and their rows."""

import hashlib
import json
from pathlib import Path
from typing import Any

from creature.data.folds import FoldTable, read_folds


def folds_rows(run: Path) -> list[tuple[Any, ...]]:
    """The rows of a run's fold file: id, label, fold in each partition, hash."""
    return list(zip(*read_folds(run).table.to_pydict().values(), strict=True))


def old_text(folds: FoldTable) -> str:
    """A folds.json, whose last line is the hash of all before."""
    head = {"count": folds.count, "seed": folds.seed, "fingerprint": folds.fingerprint, "names": folds.class_names}
    repeats = {"repeats": len(folds.partitions)} if len(folds.partitions) > 1 else {}
    text = json.dumps({**head, "bad": folds.bad, **repeats}, indent=1)[:-2]
    rows = ",\n".join(json.dumps(row) for row in zip(*folds.table.to_pydict().values(), strict=True))
    text += f',\n "columns": {json.dumps(folds.table.column_names)},\n "rows": [\n{rows}\n]'
    return text + f',\n "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n'
