"""The front-end: owns every request from its arrival until its client has the images, and decides what steps next."""
