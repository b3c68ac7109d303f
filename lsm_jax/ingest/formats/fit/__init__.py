"""FIT files of Garmin and other watches."""
