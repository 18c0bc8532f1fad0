"""Says afterwards who asked for a picture, and what was refused: the audit log, finding in it, and reports."""
