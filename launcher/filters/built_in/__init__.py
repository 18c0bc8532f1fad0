"""The filters that come with the engine, a file each, named as in `--filter NAME`.

Each file is light to import, and has:

- `OPTIONS`: the names of the options that it has, or None if it takes any.
- `check_options(value, options) -> str`: raises `ArgumentError` for a value (what follows `NAME:`, "" where nothing
  does) or options that are not allowed. Returns the value for the filter's process, such as a path where a name was
  given.
- `make(value, options) -> Filter`: makes the filter, in its process.
"""
