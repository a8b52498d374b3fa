"""The headers of a checkpoint's weights, held against what config.json asks for; no tensor is read."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation.check.layout import Asked, Layout
from diffusiongemma.generation.check.report import Row, listed
from diffusiongemma.weights.headers import Stored, read_header
from diffusiongemma.weights.names import DECODER, ENCODER, VISION_PREFIXES, is_tied_copy
from diffusiongemma.weights.resolve import hub_headers
from diffusiongemma.weights.stream import tensor_files

__all__ = ["Headers", "compare", "download_headers", "read_headers"]


@dataclass
class Headers:
    """What the headers say.

    Attributes:
        tensors: every tensor by name.
        files: number of files.
        nbytes: of the data.
        rows: what is wrong with files or index.
    """

    tensors: dict[str, Stored] = field(default_factory=dict)
    files: int = 0
    nbytes: int = 0
    rows: list[Row] = field(default_factory=list)

    def add(self, file: str, header: Mapping[str, Stored], promised: set[str] | None) -> None:
        """One file: its tensors, and whether they are those that the index promises (None: there is no index)."""
        self.files += 1
        if promised is not None and set(header) != promised:
            odd = listed(sorted(set(header) ^ promised))
            self.rows.append(Row(file, "differs", f"its header and the index disagree about {odd}"))
        if twice := set(self.tensors) & set(header):
            self.rows.append(Row(file, "differs", f"another file holds {listed(sorted(twice))} too"))
        self.tensors |= header
        self.nbytes += sum(stored.nbytes for stored in header.values())

    @property
    def sound(self) -> bool:
        """Whether every file could be read."""
        return not self.rows


def read_headers(folder: Path, progress: Callable[[str], None]) -> Headers:
    """Read the header of every safetensors file of a folder; damage becomes a row.

    Args:
        folder: the checkpoint.
        progress: called with the name of each file before it is read.
    """
    result = Headers()
    try:
        files = tensor_files(folder)
    except CheckpointError as error:
        result.rows.append(Row("files of weights", "damaged", str(error)))
        return result
    for path, promised in files.items():
        progress(path.name)
        try:
            result.add(path.name, read_header(path), promised)
        except CheckpointError as error:
            result.rows.append(Row(path.name, "damaged", str(error)))
    return result


def download_headers(hub_id: str) -> Headers:
    """Those of a repository on the hub.

    Args:
        hub_id: ``owner/name``.
    """
    result = Headers()
    try:
        for file, header in hub_headers(hub_id).items():
            result.add(file, header, None)
    except CheckpointError as error:
        result.rows.append(Row("files of weights", "damaged", str(error)))
    return result


def compare(headers: Headers, layout: Layout, vision: bool) -> Iterator[Row]:
    """Rows on files, names, shapes and dtypes.

    Args:
        headers: what is there.
        layout: what config.json asks for.
        vision: whether config.json asks for a vision tower.
    """
    yield from headers.rows
    if headers.files and headers.sound:
        each = "file" if headers.files == 1 else "files"
        yield Row("headers", "agrees", f"{headers.files:,} {each}, {len(headers.tensors):,} tensors, {headers.nbytes:,} bytes")
    if not headers.tensors:
        return
    if layout.tensors is None:
        kinds = ", ".join(f"{count:,} {dtype}" for dtype, count in Counter(s.dtype for s in headers.tensors.values()).most_common())
        yield Row("tensors", "not checked", f"{layout.why}; there are {kinds}")
        return
    result, copies = _without_copies(headers.tensors, layout.tensors)
    asked = dict(layout.tensors)
    if vision and not any(name.startswith(VISION_PREFIXES) for name in result):
        asked = {name: one for name, one in asked.items() if not name.startswith(VISION_PREFIXES)}
        yield Row("vision tower", "not checked", "there is none: a copy for text alone, which is all that is used here")
    yield from _differences(result, asked, copies, headers.sound)


def _differences(result: Mapping[str, Stored], asked: Mapping[str, Asked], copies: int, sound: bool) -> Iterator[Row]:
    missing, left = sorted(set(asked) - set(result)), sorted(set(result) - set(asked))
    both = sorted(set(asked) & set(result))
    also = f", and {copies:,} tied copies, whose values are compared as they are loaded" if copies else ""
    if missing:
        why = "" if sound else " (a file could not be read)"
        yield Row(
            "names", "differs", f"{len(result) - len(left):,} of {len(asked):,} tensors are there{why}; missing: {listed(missing)}"
        )
    if left:
        yield Row("names", "differs", f"{len(left):,} tensors have no place in the model: {listed(left)}")
    if not missing and not left:
        yield Row("names", "agrees", f"{len(asked):,} tensors, as config.json asks for{also}")
    shapes = [
        f"{name} is {list(result[name].shape)}, not {list(asked[name].shapes[0])}"
        for name in both
        if result[name].shape not in asked[name].shapes
    ]
    dtypes = [
        f"{name} is {result[name].dtype}, not {' or '.join(sorted(asked[name].dtypes))}"
        for name in both
        if result[name].dtype not in asked[name].dtypes
    ]
    for what, wrong in (("shapes", shapes), ("dtypes", dtypes)):
        if wrong:
            yield Row(what, "differs", f"{len(wrong):,} of {len(both):,}: {listed(wrong)}")
        elif both:
            kinds = Counter(result[name].dtype for name in both).most_common()
            detail = ", ".join(f"{count:,} {dtype}" for dtype, count in kinds) if what == "dtypes" else f"all {len(both):,}"
            yield Row(what, "agrees", detail)


def _without_copies(tensors: Mapping[str, Stored], asked: Mapping[str, Asked]) -> tuple[dict[str, Stored], int]:
    """Tensors under the names that are asked for; second copies of tied ones are counted, a copy alone stands for the first."""
    result = {name: stored for name, stored in tensors.items() if name in asked or not is_tied_copy(name)}
    copies = 0
    for name, stored in tensors.items():
        if name in result:
            continue
        first = f"{DECODER}embed_tokens.weight" if name == "lm_head.weight" else DECODER + name.removeprefix(ENCODER)
        if first not in asked:
            result[name] = stored
        elif first in tensors:
            copies += 1
        else:
            result[first] = stored
    return result, copies
