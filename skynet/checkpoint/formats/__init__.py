"""Formats of quantised weights, one file each: published bytes to `Quantised` matrices."""
