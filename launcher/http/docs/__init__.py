"""What the server says of its APIs: the OpenAPI description, and the page at /docs that shows it and tries requests."""
