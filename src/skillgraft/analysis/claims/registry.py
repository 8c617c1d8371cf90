"""The claims by name."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from skillgraft.analysis.claims.adamw import adamw
from skillgraft.analysis.claims.bias_only import bias_only
from skillgraft.analysis.claims.calibration import calibration
from skillgraft.analysis.claims.composition import composition
from skillgraft.analysis.claims.continual import continual
from skillgraft.analysis.claims.lottery import lottery
from skillgraft.analysis.claims.main_table import main_table
from skillgraft.analysis.claims.movement import movement
from skillgraft.analysis.claims.ood import ood
from skillgraft.analysis.claims.overlap import overlap
from skillgraft.analysis.claims.sparsity_curve import sparsity_curve
from skillgraft.analysis.claims.statements import ClaimResult
from skillgraft.config.schema import ClaimConfig

CLAIMS: dict[str, Callable[[pd.DataFrame, ClaimConfig], ClaimResult]] = {
    "sparsity_curve": sparsity_curve,
    "calibration": calibration,
    "main_table": main_table,
    "ood": ood,
    "movement": movement,
    "lottery": lottery,
    "bias_only": bias_only,
    "adamw": adamw,
    "overlap": overlap,
    "composition": composition,
    "continual": continual,
}
