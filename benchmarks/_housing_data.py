"""Houses like those of the California housing data, generated: a frame in original units, prices in dollars."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.datasets import make_blobs

__all__ = ["housing"]

_TOWNS = 30
# The coast runs from the north-west to the south-east, one degree of longitude for each degree of latitude.
_COAST = -85.0


def housing(rows: int, seed: int) -> tuple[pd.DataFrame, pd.Series]:
    """Districts with seven columns of numbers and one of names, and the median price of a house in each.

    Districts crowd around towns, whose places are the same for all seeds. Incomes, rooms and populations are skewed.
    Prices rise with income and saturate, fall with the distance from the coast, peak near two cities, and depend on age
    through the place. Their noise is multiplicative, a fifth of the price and more where houses are old: its standard
    deviation differs by a factor of ten between districts. Unlike in the original data, prices are not cut off.
    """
    of_towns = np.random.default_rng(1990)
    along = of_towns.uniform(32.5, 41.0, _TOWNS)
    inland = of_towns.gamma(1.2, 0.8, _TOWNS)
    centres = np.column_stack([_COAST - along + inland, along])
    places, _ = make_blobs(rows, centers=centres, cluster_std=of_towns.uniform(0.05, 0.3, _TOWNS), random_state=seed)
    longitude, latitude = places.T
    rng = np.random.default_rng(seed)
    from_coast = np.clip(longitude + latitude - _COAST, 0.0, None)
    income = 10_000.0 * rng.lognormal(1.25 - 0.06 * from_coast, 0.45)
    age = rng.integers(1, 53, rows).astype(float)
    rooms = 4.0 + 0.35 * income / 10_000.0 + rng.gamma(2.0, 0.4, rows)
    occupants = 1.5 + rng.gamma(3.0, 0.5, rows)
    population = np.round(rng.lognormal(7.0, 0.7, rows))
    near_cities = sum(
        strength * np.exp(-((longitude - east) ** 2 + (latitude - north) ** 2) / 0.5)
        for east, north, strength in ((-122.3, 37.7, 0.5), (-118.2, 34.0, 0.35))
    )
    log_price = (
        11.2
        + 1.1 * np.tanh(income / 60_000.0)
        + 0.5 * np.exp(-1.5 * from_coast)
        + near_cities
        - 0.12 * (occupants - 3.0)
        + 0.05 * (rooms - 6.0)
        + 0.1 * np.sin(age / 8.0) * np.exp(-from_coast)
    )
    price = np.exp(log_price) * (1.0 + (0.15 + 0.1 * age / 52.0) * rng.standard_normal(rows))
    frame = pd.DataFrame(
        {
            "median_income": income,
            "house_age": age,
            "average_rooms": rooms,
            "average_occupants": occupants,
            "population": population,
            "latitude": latitude,
            "longitude": longitude,
            "ocean_proximity": np.select([from_coast < 0.15, from_coast < 1.0], ["near ocean", "near coast"], "inland"),
        }
    )
    return frame, pd.Series(np.maximum(price, 10_000.0), name="median_price")
