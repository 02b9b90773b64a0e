"""Linear models by maximum likelihood, plain or with a random intercept for each participant.

The mixed model is y = X b + u[participant] + e with u ~ N(0, r s^2) and e ~ N(0, s^2). Given the
ratio r, b and s^2 have closed forms that need sums over each participant's rows alone; one search
over r finds the maximum (Bates et al. 2015, doi.org/10.18637/jss.v067.i01).

Letters: `N` rows, `P` columns, `G` participants.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

_LOG_RATIOS = np.linspace(-18, 18, 73)  # between which the search begins


@dataclass(frozen=True)
class LinearModel:
    """A fitted model.

    Attributes:
        coefficients: b, of the intercept and of each column [P + 1].
        variance: s^2, of the residuals.
        ratio: r; 0 in a plain model.
        intercepts: The best prediction of u [G]; empty in a plain model.
        log_likelihood: In nats, of all rows.
    """

    coefficients: np.ndarray
    variance: float
    ratio: float
    intercepts: np.ndarray
    log_likelihood: float

    def log_densities(
        self,
        columns: np.ndarray,
        y: np.ndarray,
        participants: np.ndarray,
    ) -> np.ndarray:
        """The log-density of other rows, each given the participant's predicted intercept.

        Args:
            columns: Columns [N, P].
            y: What they explain [N].
            participants: The participant of each row, int [N]; of no account in a plain model.

        Returns:
            In nats [N].
        """
        errors = y - _design(columns) @ self.coefficients
        variance = np.full(len(y), self.variance)
        if len(self.intercepts):
            intercepts = self.intercepts[participants]
            errors = errors - np.nan_to_num(intercepts)
            # Of a participant without a fitted row only the variance is known.
            variance[np.isnan(intercepts)] *= 1 + self.ratio
        return -0.5 * (np.log(2 * np.pi * variance) + errors**2 / variance)


def fit(
    columns: np.ndarray,
    y: np.ndarray,
    participants: np.ndarray,
    count: int,
) -> LinearModel:
    """Fits a model by maximum likelihood; an intercept is added to the columns.

    Args:
        columns: Columns [N, P].
        y: What they explain [N].
        participants: The participant of each row, int [N].
        count: Participants G in all, also those without a row here; 0 for a plain model.
    """
    x = _design(columns)
    scales = np.linalg.norm(x, axis=0)
    scales[scales == 0] = 1
    x = x / scales
    plain = np.linalg.lstsq(x, y)[0]
    residuals = y - x @ plain
    N = len(y)
    if count == 0:
        variance = float(residuals @ residuals) / N
        return LinearModel(plain / scales, variance, 0.0, np.zeros(0), _maximum(N, variance))

    rows = np.bincount(participants, minlength=count)
    sums = np.stack([np.bincount(participants, column, count) for column in x.T], 1)
    residual_sums = np.bincount(participants, residuals, count)
    squares = x.T @ x

    def at(ratio: float) -> LinearModel:
        weights = ratio / (1 + ratio * rows)
        # The change from the plain model is solved for, since that loses no digit.
        left = squares - (sums * weights[:, None]).T @ sums
        right = x.T @ residuals - sums.T @ (weights * residual_sums)
        change = np.linalg.lstsq(left, right)[0]
        total = residuals @ residuals - weights @ residual_sums**2 - right @ change
        variance = float(total) / N
        intercepts = weights * (residual_sums - sums @ change)
        intercepts[rows == 0] = np.nan
        log_likelihood = _maximum(N, variance) - 0.5 * float(np.log1p(ratio * rows).sum())
        coefficients = (plain + change) / scales
        return LinearModel(coefficients, variance, ratio, intercepts, log_likelihood)

    def cost(log_ratio: float) -> float:
        return -at(float(np.exp(log_ratio))).log_likelihood

    start = _LOG_RATIOS[np.argmin([cost(log_ratio) for log_ratio in _LOG_RATIOS])]
    step = _LOG_RATIOS[1] - _LOG_RATIOS[0]
    optimum: Any = minimize_scalar(
        cost, bounds=(start - step, start + step), method="bounded", options={"xatol": 1e-9}
    )
    return max(at(0.0), at(float(np.exp(optimum.x))), key=lambda model: model.log_likelihood)


def r_squared(columns: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of y [N] that columns [N, P] and an intercept explain."""
    return 1 - fit(columns, y, np.zeros(len(y), int), 0).variance / float(np.var(y))


def _design(columns: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(columns)), columns])


def _maximum(rows: int, variance: float) -> float:
    """The log-likelihood of N residuals under the variance that fits them best."""
    return -0.5 * rows * (float(np.log(2 * np.pi * variance)) + 1)
