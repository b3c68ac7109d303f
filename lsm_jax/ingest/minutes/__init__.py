"""From samples to minutes, and from minutes to days."""
