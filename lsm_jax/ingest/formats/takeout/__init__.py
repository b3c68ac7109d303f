"""Fitbit's data of Google Takeout and of its web API."""
