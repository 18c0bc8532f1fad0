"""What other people's clients send to a server of images, and what they read of its answers.

Each row of the tables was read in the client's public source, whose file is named, and is told here in our own words.
"""
