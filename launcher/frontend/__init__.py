"""Owns every request from its arrival until its client has the images, and decides what steps next: the front-end."""
