"""What the actor of an engine needs: replies that travel together, and the LoRAs that its config declares."""
