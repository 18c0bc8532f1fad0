"""What a cluster costs beside one server, and how a hundred hosts would share their work: `python -m bench.cluster`."""
