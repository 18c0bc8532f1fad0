"""What clients are told: what is known of their requests, finished pictures, and the socket that both go by."""
