"""Minute features from raw signals: heart beats, skin conductance, skin temperature, motion.

The papers publish the names, units and moments of these features and an outline (LSM-1, arXiv 2410.13638): median
filtering and a robust slope for the slow signals; for motion, three axes reduced to one, band-filtered, then statistics
of the minute. The rest is our choice; docs/reference/signals.md defines every feature. NaN means missing in
all inputs. All functions work on all minutes at once and give NaN for a minute with too few samples.
"""
