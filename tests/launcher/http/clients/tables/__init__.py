"""The tables: what each client sends, and what it reads of the answer."""
