"""What an ingress needs besides the HTTP application: it stands behind Serve's proxies, and before many engines."""
