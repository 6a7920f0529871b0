"""A stage's folder as one zip in $OUT, for machines from which few files come back."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

LARGEST = 15_500_000  # bytes; what comes back is limited to 16 MiB a file


def pack(folder: Path) -> Path | None:
    """Write $OUT/NAME.zip, whole or not at all, small files first as far as they fit; None where $OUT is not set.

    A zip that is newer than all that the folder holds is left alone.
    """
    out = os.environ.get("OUT")
    if not out:
        return None
    target = Path(out) / f"{folder.name}.zip"
    files = sorted((each for each in folder.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
    newest = max((each.stat().st_mtime for each in files), default=0.0)
    if target.exists() and target.stat().st_mtime > newest:
        return target
    temporary = target.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in files:
            if temporary.stat().st_size + each.stat().st_size < LARGEST:
                archive.write(each, each.relative_to(folder.parent))
    temporary.replace(target)
    return target
