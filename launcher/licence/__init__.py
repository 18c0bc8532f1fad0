"""What has to be passed on with the weights that are served: the name of their licence, and the text `NOTICE`."""
