"""Weights of other packages -> checkpoint folders."""
