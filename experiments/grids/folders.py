"""Folders of runs, one a setting: the runs of a grid among them, packed or not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.evidence import finished_runs, pack
from experiments.grids.design import Grid


@dataclass(frozen=True, kw_only=True)
class SettingFolder:
    """What one folder has for a grid.

    Attributes:
        folder: as it was given.
        place: of its run folders, unpacked.
        summaries: of the finished runs that are of the grid.
        others: names of finished runs that are not.
        unfinished: names of runs without a summary.
    """

    folder: Path
    place: Path
    summaries: tuple[dict[str, Any], ...]
    others: tuple[str, ...]
    unfinished: tuple[str, ...]

    @property
    def packed(self) -> bool:
        """Whether its runs are committed evidence already."""
        return self.place != self.folder

    def pack_into(self, results: Path) -> None:
        """Write its runs of the grid as committed evidence, into a folder of the same name."""
        runs = [self.folder / summary["run"] for summary in self.summaries]
        pack(runs, results / self.folder.name, missing=self.unfinished)


def read_folders(grid: Grid, places: Sequence[Path], scratch: Path) -> list[SettingFolder]:
    """Read the folders inside each place.

    Args:
        grid: whose runs are looked for.
        places: folders of folders.
        scratch: where packed runs are unpacked.

    Raises:
        UsageError: a place has no folders, two folders have one name, or none of the runs is of the grid.
        RunError: packed runs are damaged.
    """
    found: list[SettingFolder] = []
    for place in places:
        folders = sorted(path for path in place.glob("*") if path.is_dir())
        if not folders:
            raise UsageError(f"{place} has no folders; name one that holds a folder of runs a setting.")
        found += [_read(grid, folder, scratch / str(len(found) + i)) for i, folder in enumerate(folders)]
    for name, count in Counter(each.folder.name for each in found).items():
        if count > 1:  # one would be packed over the other
            raise UsageError(f"{count} of the folders are called {name}; rename them, or put their runs into one.")
    if not any(each.summaries for each in found):
        raise UsageError(f"no run of {', '.join(map(str, places))} is of this grid; train its settings first.")
    return found


def _read(grid: Grid, folder: Path, scratch: Path) -> SettingFolder:
    place, finished, unfinished = finished_runs(folder, scratch)
    return SettingFolder(
        folder=folder,
        place=place,
        summaries=tuple(summary for summary in finished if grid.has(summary)),
        others=tuple(summary["run"] for summary in finished if not grid.has(summary)),
        unfinished=tuple(unfinished),
    )
