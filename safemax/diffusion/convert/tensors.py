"""The tensors of a checkpoint, read by name and shape, so that a missing, unexpected or wrong one is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from safemax.errors import InputError
from safemax.storage import pickled

Tensors = dict[str, Tensor]


class Source:
    """A checkpoint's tensors; one that is never read is unexpected.

    Args:
        tensors: by name; DataParallel's "module." before a name is left out.
        path: of the file, for messages.
    """

    def __init__(self, tensors: Tensors, path: Path) -> None:
        self.tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        self.path = path
        self.read: set[str] = set()

    def __call__(self, name: str, shape: Iterable[int]) -> Tensor:
        """Return a tensor as float32; InputError where it is missing or has another shape."""
        tensor, expected = self.find(name), tuple(shape)
        if tuple(tensor.shape) != expected:
            raise InputError(f"{name} has the shape {tuple(tensor.shape)}, not {expected}")
        return tensor.float()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def find(self, name: str, dimensions: int = 0) -> Tensor:
        """Return a tensor as it is; InputError where it is missing, or has another number of dimensions, if one is given."""
        if name not in self.tensors:
            raise InputError(f"{name} is missing")
        self.read.add(name)
        tensor = self.tensors[name]
        if dimensions and tensor.dim() != dimensions:
            raise InputError(f"{name} has the shape {tuple(tensor.shape)}, not one of {dimensions} dimensions")
        return tensor

    def ignore(self, name: str) -> None:
        """Leave a tensor out, whether it is there or not."""
        self.read.add(name)

    def count(self, pattern: str) -> int:
        """Return how many different numbers the pattern's group takes over all names."""
        return len({match[1] for name in self.tensors if (match := re.match(pattern, name))})

    @contextmanager
    def taken_for(self, network: str) -> Iterator[None]:
        """Say of an InputError inside which file is not this network."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.path} is not {network}: {error}") from None

    def reject_unread(self) -> None:
        """Raise InputError, naming the first, where tensors were not read."""
        rest = sorted(set(self.tensors) - self.read)
        if rest:
            raise InputError(f"{rest[0]} is unexpected" + (f", and {len(rest) - 1} more" if len(rest) > 1 else ""))


def read(path: Path, *, open_pickle: bool = False) -> Source:
    """Return the tensors of a file.

    Args:
        path: a safetensors file.
        open_pickle: the file is a pickle, to be opened by torch's loader that builds tensors alone.

    Raises:
        InputError: the file is unreadable, or a pickle that `open_pickle` does not ask for.
    """
    if open_pickle:
        return Source(pickled.tensors(path), path)
    try:
        return Source(load_file(path), path)
    except (OSError, SafetensorError) as error:
        hint = "; open_pickle = true opens a pickle of tensors alone" if path.suffix in (".pt", ".pth") else ""
        reason = str(error).splitlines()[0]
        raise InputError(f"state_dict = {path} is not a readable safetensors file: {reason}{hint}") from error
