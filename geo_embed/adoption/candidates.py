"""Samples on their way from a source into a dataset, and the record of those that are left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

# Of a source with one picture a place.
ONE_VIEW = "picture"
_EXAMPLES = 3


@dataclass(frozen=True)
class Candidates:
    """What a source may offer.

    Attributes:
        frame: a row per sample: `where` it stands, for people; `sample_id`; `split`, train or test; `label`, "" where none is known;
            `latitude`, `longitude` in degrees, NaN where they aren't known; the columns `image_VIEW` with names of pictures below `root`,
            "" where there is none; and of `AREAS` those that are known.
        views: the V views.
        root: the folder that names of pictures start at.
        looked_at: whether the pictures have been opened, and those that can't be read left out.
    """

    frame: pd.DataFrame
    views: tuple[str, ...]
    root: Path
    looked_at: bool = False

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def images(self) -> list[str]:
        """The columns of the views."""
        return [f"image_{view}" for view in self.views]

    def keep(self, frame: pd.DataFrame) -> "Candidates":
        return replace(self, frame=frame)


@dataclass
class Ledger:
    """What was left out of a source and why, and what was read otherwise than it stands there."""

    notes: list[str] = field(default_factory=list)
    _parts: list[pd.DataFrame] = field(default_factory=list)

    def leave(
        self, frame: pd.DataFrame, wrong: ArrayLike, reason: str, detail: "str | pd.Series[str]"
    ) -> pd.DataFrame:
        """The rows that are not `wrong` (N,); the others are left out, for a reason (a slug), with a detail for people, one for all or by index."""
        mask: NDArray[np.bool_] = np.asarray(wrong, dtype=bool)
        if not mask.any():
            return frame
        out = frame.loc[mask]
        details = detail if isinstance(detail, str) else detail.loc[out.index].to_numpy()
        self._parts.append(
            pd.DataFrame(
                {
                    "where": out["where"].to_numpy(),
                    "sample_id": out["sample_id"].to_numpy() if "sample_id" in out else "",
                    "reason": reason,
                    "detail": details,
                }
            )
        )
        return frame.loc[~mask]

    def leave_files(self, names: list[str], reason: str, detail: str) -> None:
        """The same of files that belong to no sample."""
        if names:
            self._parts.append(
                pd.DataFrame({"where": names, "sample_id": "", "reason": reason, "detail": detail})
            )

    def table(self) -> pd.DataFrame:
        """Everything that was left out: where, sample_id, reason, detail."""
        columns = ["where", "sample_id", "reason", "detail"]
        return pd.concat(self._parts, ignore_index=True) if self._parts else pd.DataFrame(columns=columns)

    def counts(self) -> list[dict[str, Any]]:
        """For each reason how many were left out, and the first of them; the most frequent first."""
        table = self.table()
        return [
            {
                "reason": str(reason),
                "count": len(rows),
                "examples": [str(where) for where in rows["where"].head(_EXAMPLES)],
                "detail": str(rows["detail"].iloc[0]),
            }
            for reason, rows in sorted(table.groupby("reason", sort=False), key=lambda group: -len(group[1]))
        ]


def describe_group(group: Mapping[str, Any]) -> str:
    """One of `Ledger.counts` as a line: how many were left out for which reason, and the first of them."""
    return f"{group['count']:,} {group['reason']}: {group['detail']} ({group['examples'][0]})"
