"""Checks for our layers and for yours."""

from .receptive_field import receptive_field as receptive_field
