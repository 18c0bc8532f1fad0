"""The life of a request whose client asks where its time goes."""
