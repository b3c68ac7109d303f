"""Who is who in a source."""
