"""Which files of which model a picture was made with, for what it says of itself."""
