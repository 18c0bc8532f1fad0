"""`krea2 audit`: reads an audit log."""
