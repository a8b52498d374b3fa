"""Demonstrations: what an application adds to the rooms, by the seams that other packages have too (``plugins``)."""
