"""Rows of delimited text, Parquet and Excel, block by block."""
