"""The options of commands: made of what the engine has, read as they are typed, and named so in errors."""
