"""What a race leaves behind: for each method and scenario, when each stream was rolled back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one scenario. `units` holds candidate units until rollback, inf where never."""

    scenario: str
    method: str
    units: NDArray[np.float64]

    @property
    def share(self) -> float:
        """Share of streams that were rolled back."""
        return float(np.isfinite(self.units).mean())

    @property
    def upper(self) -> float:
        """One-sided 99% upper bound of that share (Clopper-Pearson)."""
        k, n = int(np.isfinite(self.units).sum()), self.units.size
        return 1.0 if k == n else float(beta.ppf(0.99, k + 1, n - k))

    def quantile(self, q: float) -> float:
        """Candidate units until rollback; inf where fewer than q of the streams were rolled back."""
        return float(np.quantile(self.units, q, method="higher"))
