"""Factors between units."""

from __future__ import annotations

# (given unit, registry unit) -> (scale, offset)
CONVERSIONS = {
    ("mg/dL", "mmol/L"): (1 / 18.0156, 0.0),
    ("deg F", "deg C"): (5 / 9, -160 / 9),
    ("K", "deg C"): (1.0, -273.15),
    ("s", "ms"): (1000.0, 0.0),
    ("percent", "fraction"): (0.01, 0.0),
    ("fraction", "percent"): (100.0, 0.0),
    ("kJ/min", "kcal/min"): (1 / 4.184, 0.0),
    ("km/min", "m/min"): (1000.0, 0.0),
    ("Hz", "bpm"): (60.0, 0.0),
}
